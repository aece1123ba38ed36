"""MiniLM: a sentence encoder, rebuilt as ONNX from its published weights."""
