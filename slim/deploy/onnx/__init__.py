"""ONNX out, checked; ONNX in, ready to predict.

`session` opens a file in onnxruntime, `write` exports a network and checks the file against it, `predict`
runs a file on arrays and on images, `quantize` makes an INT8 file of a float one. Only `write` needs torch, so
names are looked up on first use: predicting starts in a blink.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim.deploy.onnx.predict import OnnxModel
    from slim.deploy.onnx.quantize import Int8Report, quantize_onnx
    from slim.deploy.onnx.write import ExportReport, export_onnx

__all__ = ["ExportReport", "Int8Report", "OnnxModel", "export_onnx", "quantize_onnx"]

_HOME = {
    "export_onnx": "write",
    "ExportReport": "write",
    "OnnxModel": "predict",
    "quantize_onnx": "quantize",
    "Int8Report": "quantize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'slim.deploy.onnx' has no attribute {name!r}")
    return getattr(import_module(f"slim.deploy.onnx.{_HOME[name]}"), name)
