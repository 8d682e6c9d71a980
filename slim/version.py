"""The version of slim, which checkpoints, ONNX files and measurements carry."""

__version__ = "0.1.0"
