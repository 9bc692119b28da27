"""ONNX graphs: written, read, run, changed."""
