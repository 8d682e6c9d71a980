"""The runtimes that there are, by the suffix of their files, and files written for any of them."""

import os
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from slim.deploy.target import Target
from slim.errors import SlimError

if TYPE_CHECKING:
    from torch import nn

TARGETS = {  # suffix of its files -> the module and the class, which may need a package that isn't installed
    ".onnx": ("slim.deploy.onnx.target", "OnnxRuntime"),
    ".xml": ("slim.deploy.openvino.target", "OpenVino"),
    ".pte": ("slim.deploy.executorch.target", "ExecuTorch"),
}
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "executorch": ".pte"}  # of the files of each, by the runtime's name


def target_of(path: str | Path, provider: str = "auto", threads: int = 0) -> Target:
    """Return the runtime that runs the file at `path`. Raises SlimError for a file that none runs, and for a runtime
    that isn't installed."""
    suffix = Path(path).suffix.lower()
    if suffix not in TARGETS:
        raise SlimError(f"{str(path)!r}: expected a file that ends in {' or '.join(TARGETS)}")
    module, name = TARGETS[suffix]
    target: Target = getattr(import_module(module), name)(provider, threads)
    return target


def export(model: "nn.Module", example_inputs: Any, path: str | Path, target: Target | None = None) -> float:
    """Write `model` as a file for a runtime, checked there before it is kept.

        slim.export(thin, x, "thin.xml")  # for OpenVINO

    `example_inputs`: a tensor, or a tuple or dict of what `forward` takes. `target`: the runtime, by default the one
    whose files end as `path` does, on its CPU; `slim.export_onnx` has more settings for ONNX files.

    Returns max|a - b| / max|a| over the outputs, a from PyTorch and b from the file: the worst of several batches.
    Raises SlimError where the runtime isn't installed, lacks an operator or computes something else. What was at `path`
    stays then.
    """
    path = Path(path)
    if path.is_dir():
        raise SlimError(f"{str(path)!r} is a folder: expected the name of the file to write")
    target = target or target_of(path)
    if path.suffix != target.suffix:
        raise SlimError(f"{str(path)!r}: expected a name that ends in {target.suffix}, for {target}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent, prefix=".slim-") as folder:
        draft = Path(folder, path.name)
        target.export(model, example_inputs, draft)
        difference = target.check(draft, model, example_inputs)
        for suffix in (*target.beside, target.suffix):  # the file that names the others last
            os.replace(draft.with_suffix(suffix), path.with_suffix(suffix))
    return difference
