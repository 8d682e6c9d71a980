"""The version of slim, which checkpoints, ONNX files and measurements carry, and the name it is installed by."""

__version__ = "0.1.0"
DISTRIBUTION = "slim-prune"  # for pip and uv, as in pyproject.toml; the import and the commands are slim
