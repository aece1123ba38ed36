"""Handwritten digits: a scikit-learn classifier of 8x8 images, exported to ONNX."""
