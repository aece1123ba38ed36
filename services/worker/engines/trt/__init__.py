"""The parts of the TensorRT engine (../tensorrt.py): which plan, which sizes, driver, device, a stream, a model.

`buckets` and `matching` decide and do nothing else. Only `device` knows pycuda, and only `driver` knows libcuda.
"""
