"""From an ONNX file to the bytes of a plan, for whoever compiles: a build's step, a worker that misses one."""
