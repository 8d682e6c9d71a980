"""Packages that only some of slim needs, and the line that says how to get one that is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from slim.errors import SlimError
from slim.version import DISTRIBUTION

EXTRA_OF = {  # package, as it is imported -> the extra of pyproject.toml that it is in
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "torchvision": "run",
    "lightning_fabric": "run",
    "sklearn": "run",
    "plotly": "run",
    "jinja2": "run",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "torchmetrics": "detection",
    "pycocotools": "detection",
    "datasets": "datasets",
    "openvino": "openvino",
    "executorch": "executorch",
    "torchao": "executorch",
}
IN_NO_EXTRA = ("timm", "huggingface_hub")  # where networks come from


@contextmanager
def named_if_missing() -> Iterator[None]:
    """Turn the lack of an optional package into a SlimError that names the command which installs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF and package not in IN_NO_EXTRA:
            raise
        command = install(EXTRA_OF[package]) if package in EXTRA_OF else f"pip install {package}"
        raise SlimError(f"{package} isn't installed: expected {command}") from None


def install(extra: str) -> str:
    """Return the command that installs slim with an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
