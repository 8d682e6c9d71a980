"""A network as one ONNX file, checked against PyTorch before it is kept.

torch's dynamo exporter traces the network, and its optimiser (onnxscript) folds every BatchNorm that follows
a convolution or linear layer into that layer's weights and drops dead nodes. The file holds weights, graph
and what deployment needs to know, in strings under these metadata keys:

slim.version      the version of slim that wrote it
slim.input_shape  JSON [C, H, W], the shape of one image
slim.classes      JSON list of class names, in the order of the logits
slim.mean, .std   JSON lists, one number per channel in 0..1 units
slim.plan         digest of the pruning plan

The last four are there if they were given.
"""

import contextlib
import copy
import io
import itertools
import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from slim import __version__
from slim.errors import SlimError
from slim.export.session import brief, open_session
from slim.files import replacing

OPSETS = range(18, 26)  # below, the exporter has no operators; above, its version converter gives up
MAX_BYTES = 2**31 - 2**24  # protobuf's limit for one file, less room for the graph
CHECKED_BATCH_SIZES = (1, 2, 7)


@dataclass(frozen=True)
class ExportReport:
    path: Path
    max_relative_error: float  # max|a - b| / max|a|, a from PyTorch and b from onnxruntime: the worst batch size
    file_size: int  # bytes


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    opset: int = 20,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    plan_digest: str | None = None,
    tolerance: float = 1e-4,
) -> ExportReport:
    """Export `model` to one ONNX file at `path`, weights inside, with a dynamic batch dimension.

    The file computes what `model` computes in eval mode and float32; `model` itself is not touched.
    `example_inputs` is a tensor, or a tuple or dict of what `forward` takes; the first dimension of every
    tensor is the batch. A single input is called "images" in the file, and a single output "logits".

    `classes` (names in the order of the logits), `mean` and `std` (one number per channel, in 0..1 units) and
    `plan_digest` go into the file's metadata.

    The exported file is run in onnxruntime on batches of 1, 2 and 7 random inputs and compared with PyTorch;
    only if max|a - b| / max|a| is within `tolerance` each time does it take its place at `path`. Otherwise,
    and on any other failure, what was at `path` stays as it was.

    Raises SlimError if the opset is outside 18..25, the metadata doesn't fit the network, the network can't
    be exported, the weights pass 2 GB, or the file differs from the network.
    """
    path = Path(path)
    if opset not in OPSETS:
        raise SlimError(f"opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
    if path.is_dir():
        raise SlimError(f"{str(path)!r} is a folder: expected the name of the ONNX file to write")

    net = _copy_for_export(model)
    args, kwargs = _as_call(example_inputs)
    outputs = _forward(net, *_batch((args, kwargs), 2))
    metadata = _metadata(_tensors((args, kwargs))[0], outputs, classes, mean, std, plan_digest)
    onnx_bytes = _export(net, args, kwargs, opset, single_output=len(outputs) == 1, metadata=metadata)

    try:
        with replacing(path) as temporary:
            temporary.write_bytes(onnx_bytes)
            difference = _check(net, args, kwargs, temporary, path.name, tolerance)
    except OSError as error:
        raise SlimError(f"can't write {str(path)!r}: {error.strerror}") from error
    return ExportReport(path, difference, len(onnx_bytes))


def _copy_for_export(model: nn.Module) -> nn.Module:
    """A copy in eval mode and float32 on the CPU, every tensor in torch's default memory layout.

    In a channels_last network, flattening after global pooling traces as a walk over strides: ten nodes with Range
    and Gather. `.contiguous()` wouldn't do, as a 1×1 convolution's weight counts as both layouts at once.
    """
    net = copy.deepcopy(model).cpu().float().eval()
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return net


def _as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """`example_inputs` as the args and kwargs of forward."""
    if isinstance(example_inputs, dict):
        args, kwargs = (), dict(example_inputs)
    else:
        args, kwargs = (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}
    tensors = _tensors((args, kwargs))
    if not tensors or any(tensor.ndim < 2 or tensor.shape[0] == 0 for tensor in tensors):
        raise SlimError(
            "example_inputs: expected a tensor [N, C, H, W] of at least one image, or a tuple or dict of such"
        )
    return args, kwargs


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _batch(call: Any, size: int, generator: torch.Generator | None = None) -> Any:
    """The same call with a batch of `size`: standard normal where a tensor is float, else rows of the
    example."""

    def resize(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(size, *tensor.shape[1:], generator=generator)
        return tensor.cpu()[torch.arange(size) % tensor.shape[0]]

    return pytree.tree_map_only(Tensor, resize, call)


def _forward(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    try:
        with torch.no_grad():
            outputs = _tensors(net(*args, **kwargs))
    except Exception as error:
        size = _tensors((args, kwargs))[0].shape[0]
        raise SlimError(f"the network can't run a batch of {size} like the example: {_root(error)}") from error
    if not outputs:
        raise SlimError("the network returns no tensor: expected at least one, such as logits [N, K]")
    return outputs


def _metadata(
    example: Tensor,
    outputs: list[Tensor],
    classes: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    plan_digest: str | None,
) -> dict[str, str]:
    metadata = {"slim.version": __version__, "slim.input_shape": json.dumps(list(example.shape[1:]))}
    if classes is not None:
        if len(classes) != outputs[0].shape[1]:
            raise SlimError(f"{len(classes)} class names for {outputs[0].shape[1]} outputs: expected one for each")
        metadata["slim.classes"] = json.dumps(list(classes), ensure_ascii=False)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None:
            if len(values) != example.shape[1]:
                raise SlimError(
                    f"{name} has {len(values)} numbers for {example.shape[1]} channels: expected one for each"
                )
            metadata[f"slim.{name}"] = json.dumps([float(value) for value in values])
    if plan_digest is not None:
        metadata["slim.plan"] = plan_digest
    return metadata


def _export(
    net: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opset: int,
    single_output: bool,
    metadata: dict[str, str],
) -> bytes:
    size = sum(tensor.nbytes for tensor in itertools.chain(net.parameters(), net.buffers()))
    if size > MAX_BYTES:
        raise SlimError(f"the network's weights take {size / 2**30:.1f} GB: expected less than 2 GB, for one ONNX file")
    batch = torch.export.Dim("batch")
    # Two rows: torch.export takes a dimension of size 1 for a constant
    args, kwargs = _batch((args, kwargs), 2)
    dynamic = pytree.tree_map(lambda leaf: {0: batch} if isinstance(leaf, Tensor) else None, (args, kwargs))
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                net,
                args,
                kwargs=kwargs,
                dynamo=True,
                optimize=True,
                verbose=False,
                opset_version=opset,
                input_names=["images"] if len(_tensors((args, kwargs))) == 1 else None,
                output_names=["logits"] if single_output else None,
                dynamic_shapes=dynamic[1] if kwargs else dynamic[0],
            )
    except Exception as error:  # the exporter lets through errors of many kinds
        raise SlimError(f"torch's ONNX exporter can't export the network: {_root(error)}") from error
    assert program is not None
    # The exporter notes stack traces with local paths on every node
    ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.metadata_props.update(metadata)
    program.model.producer_name, program.model.producer_version = "slim", __version__
    return program.model_proto.SerializeToString()


def _check(
    net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], file: Path, name: str, tolerance: float
) -> float:
    """The largest relative difference between `net` and `file`; SlimError if it is above `tolerance`."""
    session = open_session(file, provider="cpu")
    inputs = session.get_inputs()
    for entry in inputs:
        if isinstance(entry.shape[0], int):
            raise SlimError(
                f"the network can only be exported for a batch of {entry.shape[0]}: expected a forward that "
                "does the same for every batch size"
            )
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in CHECKED_BATCH_SIZES:
        call = _batch((args, kwargs), size, generator)
        expected = _forward(net, *call)
        feed = {entry.name: tensor.numpy() for entry, tensor in zip(inputs, _tensors(call), strict=True)}
        try:
            actual = session.run(None, feed)
        except Exception as error:
            raise SlimError(f"{name} doesn't run in onnxruntime on a batch of {size}: {brief(error)}") from error
        pairs = zip(expected, map(torch.from_numpy, actual), strict=True)
        difference = max(_relative_difference(a, b) for a, b in pairs)
        if difference > tolerance:
            raise SlimError(
                f"{name} differs from the network by {difference:.2e} (relative, batch of {size}): "
                f"expected at most {tolerance:.2e}; the file was not kept"
            )
        worst = max(worst, difference)
    return worst


def _relative_difference(expected: Tensor, actual: Tensor) -> float:
    """max|a - b| / max|a|; infinite for different shapes and where either is NaN."""
    if expected.shape != actual.shape:
        return math.inf
    difference = (expected.double() - actual.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    if math.isnan(difference):
        return math.inf
    return 0.0 if difference == 0 else difference / largest if largest > 0 else math.inf


def _root(error: BaseException) -> str:
    """The first line of the error at the bottom: the exporter wraps it in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Neither logs, warnings nor prints: what matters of them is in the error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(disabled)
