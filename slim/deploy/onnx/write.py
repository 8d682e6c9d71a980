"""A network as one ONNX file, checked against PyTorch before it is kept.

torch's dynamo exporter traces the network, and its optimiser (onnxscript) folds every BatchNorm that follows
a convolution or linear layer into that layer's weights and drops dead nodes. The file holds weights, graph
and what deployment needs to know, in strings under these metadata keys:

slim.version        the version of slim that wrote it
slim.input_shape    JSON [C, H, W], the shape of one image
slim.classes        JSON list of class names, in the order of the logits
slim.mean, .std     JSON lists, one number per channel in 0..1 units
slim.plan           digest of the pruning plan
slim.preprocessing  "in graph" where the file takes raw images (see `export_onnx`)

Classes, mean, std and plan are there if they were given.
"""

import contextlib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import onnx
import torch
from torch import Tensor, nn

from slim import tables
from slim.batches import first_batch
from slim.deploy.onnx.arguments import Arguments, run_forward
from slim.deploy.onnx.compare import check, check_float64
from slim.deploy.onnx.dimensions import BatchUnit, OpenSizes, keep_words
from slim.deploy.onnx.file import OnnxFile
from slim.deploy.onnx.translate import OPSETS, Graph
from slim.deploy.target import Executable
from slim.errors import SlimError, check_type
from slim.files import replacing
from slim.trace.copy import clone
from slim.version import __version__

TOLERANCE = 1e-4


class Metadata(TypedDict, total=False):
    """What a file says of itself: class names in the order of the logits, one number per channel in 0..1 units, the
    digest of the plan, what it was trained for."""

    task: str | None
    classes: Sequence[str] | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    plan_digest: str | None


@dataclass(frozen=True)
class ExportReport:
    """What `slim.export_onnx` wrote, and how close it is to the network."""

    path: Path
    max_relative_error: float  # max|a - b| / max|a|, a from PyTorch and b from onnxruntime: the worst batch size
    file_size: int  # bytes
    float64_error: float | None = None  # the same in float64, before optimisation; None: not asked for, or no kernels
    float64_engine: str | None = None  # what ran it: "onnxruntime", "onnx reference", or "none" and why

    def __str__(self) -> str:
        error = f"{self.max_relative_error:.0e}"
        return f"{self.path}: {tables.size(self.file_size)}, equals PyTorch's network to {error} (relative)"


class WithPreprocessing(nn.Module):
    """Raw images uint8 [N, H, W, C] in, class probabilities [N, K] out, around a classifier of normalised images.

    mean and std hold a number per channel, in units where white is 1. The arithmetic is that of `slim.workbench.data`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("scale", 1 / (255 * torch.tensor(std)))
        self.register_buffer("shift", -torch.tensor(mean) / torch.tensor(std))

    def forward(self, images: Tensor) -> Tensor:
        normalised = images.to(self.scale.dtype) * self.scale + self.shift
        # Contiguous, because strides would be traced: ten nodes where a classifier flattens
        return self.net(normalised.permute(0, 3, 1, 2).contiguous()).softmax(1)


def export_onnx(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    batch: int | str = "any",
    opset: int = 20,
    dynamic_size: bool = False,
    preprocess: bool = False,
    float64: bool = False,
    metadata: Metadata | None = None,
    tolerance: float = TOLERANCE,
) -> ExportReport:
    """Export `model` to one ONNX file at `path`, weights inside, with a dynamic batch dimension.

    The file computes what `model` computes in eval mode and float32; `model` itself is not touched.
    `example_inputs` is a tensor, or a tuple or dict of what `forward` takes, or batches of it (a DataLoader, a list),
    of which the first is taken; the first dimension of every tensor is the batch. A single input is called "images" in
    the file, and a single output "logits".

    batch: the batch sizes that the file takes: "any"; a number, 8, for networks that take that many alone; or its
    multiples, "8n", for those that see their batch as clips of 8 frames (video, temporal shift).
    dynamic_size: leaves height and width open too (the last two dimensions of each input [N, C, …, H, W]).
    preprocess: puts normalisation and softmax into the graph: the file takes raw images, uint8 [N, H, W, C], and
    gives class "probabilities" [N, K]. It needs `mean` and `std`, and a model with one input [N, C, H, W].
    metadata: goes into the file: classes (names in the order of the logits), mean and std (one number per channel, in
    0..1 units), plan_digest, task (such as "regression").

    The exported file is run in onnxruntime on batches of 1, 2 and 7 random inputs and compared with PyTorch (with
    `dynamic_size`, on larger images too); only if max|a - b| / max|a| is within `tolerance` each time (or within ten
    times what PyTorch's own float32 is away from float64, for networks that magnify rounding) does it take its place at
    `path`. Otherwise, and on any other failure, what was at `path` stays as it was. `float64` also
    compares the graph before optimisation in float64, which tells a wrong operator from rounding; it takes a second
    export and, as onnxruntime has no Conv in float64 on the CPU, usually ONNX's own slow evaluator.

    Raises SlimError if the opset is outside 18..25, the metadata doesn't fit the network, the network can't
    be exported, the weights pass 2 GB, or the file differs from the network.

    >>> report = slim.export_onnx(thin, x, "thin.onnx", metadata={"classes": ["cat", "dog", "owl", "yak"]})
    >>> report.max_relative_error < 1e-4
    True
    """
    check_type("model", model, "export_onnx(model, example_inputs, path)", nn.Module)
    check_type("path", path, "export_onnx(model, example_inputs, path)", str, Path)
    path = Path(path)
    if path.is_dir():
        raise SlimError(f"{str(path)!r} is a folder: expected the name of the ONNX file to write")
    draft = Draft(
        model,
        first_batch(example_inputs),
        batch=batch,
        opset=opset,
        dynamic_size=dynamic_size,
        preprocess=preprocess,
        metadata=metadata,
    )
    return write_checked(draft, path, tolerance, float64=float64)


def write_checked(draft: "Draft", path: Path, tolerance: float = TOLERANCE, *, float64: bool = False) -> ExportReport:
    """Write a draft to `path`, once it is checked, as `export_onnx` does."""
    content, error, engine = draft.content, None, None
    with replacing(path) as temporary:
        temporary.write_bytes(content)
        difference = draft.check(OnnxFile(temporary, "cpu", 0), path.name, tolerance)
        if float64:
            error, engine = draft.check_float64(path.name)
    return ExportReport(path, difference, len(content), error, engine)


class Draft:
    """What `export_onnx` writes, before it is checked. Arguments and errors are the same.

    `inputs`, `outputs`: their names in the file, in place of its own. `original`: a file with these names, whose other
    names and descriptions are kept. `properties` are the file's metadata.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        batch: int | str = "any",
        opset: int = 20,
        dynamic_size: bool = False,
        preprocess: bool = False,
        metadata: Metadata | None = None,
        inputs: list[str] | None = None,
        outputs: list[str] | None = None,
        original: onnx.ModelProto | None = None,
    ) -> None:
        if opset not in OPSETS:
            raise SlimError(f"opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
        sizes = BatchUnit.of(batch)
        net = _copy_for_export(model)
        arguments = Arguments.of(example_inputs)
        made = _try_batch(net, arguments, sizes)
        self.properties = _metadata(arguments.tensors[0], made, metadata or {})
        if preprocess:
            net, arguments = _with_preprocessing(net, arguments, made, metadata or {})
            self.properties["slim.preprocessing"] = "in graph"
        self.original = original
        self.graph = Graph(
            net,
            arguments,
            OpenSizes(arguments, sizes, raw_images=preprocess, dynamic_size=dynamic_size),
            inputs=inputs or (["images"] if len(arguments.tensors) == 1 else None),
            outputs=outputs or (["probabilities" if preprocess else "logits"] if len(made) == 1 else None),
            opset=opset,
        )

    @cached_property
    def content(self) -> bytes:
        """Return the file: the optimised graph with its metadata."""
        program = self.graph.translated(self.graph.net, optimize=True)
        program.model.metadata_props.update(self.properties)
        made = program.model_proto
        if self.original is not None:
            keep_words(made, self.original)
        return made.SerializeToString()

    def check(self, opened: Executable, name: str, tolerance: float = TOLERANCE, runtime: str = "onnxruntime") -> float:
        """Return the largest relative difference between the network and a file, called `name` in errors, that was
        opened in a runtime.

        Raises SlimError if it is above `tolerance`."""
        return check(self.graph, opened, name, tolerance, runtime)

    def check_float64(self, name: str) -> tuple[float | None, str]:
        """Return the same in float64, before optimisation, and what ran that graph."""
        return check_float64(self.graph, name)


def _copy_for_export(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode and float32 on the CPU, every tensor in torch's default memory layout.

    In a channels_last network, flattening after global pooling traces as a walk over strides: ten nodes with Range
    and Gather. `.contiguous()` wouldn't do, as a 1×1 convolution's weight counts as both layouts at once.
    """
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    net = clone(model).cpu().float().eval()
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return net


def _try_batch(net: nn.Module, arguments: Arguments, batch: BatchUnit) -> list[Tensor]:
    """Return what the network returns for a batch to export with; where it takes the example alone, the error says
    so. What forward keeps for one size of batch, as detectors do their anchors, then is of the smallest one, which
    torch.export holds to be another than an open one: the graph makes it anew."""
    try:
        made = run_forward(net, arguments.batch(batch.example))
        with contextlib.suppress(SlimError):  # what it can't run, the comparison of the file with it will tell
            run_forward(net, arguments.batch(batch.unit))
        return made
    except SlimError as error:
        size = arguments.batch_size
        if batch != BatchUnit() or size < 2:
            raise
        run_forward(net, arguments.batch(size))
        other = f"batch='{size}n' is for networks that take multiples of {size}, {size} for it alone"
        raise SlimError(f"{error}; {other}") from error


def _metadata(example: Tensor, outputs: list[Tensor], given: Metadata) -> dict[str, str]:
    if unknown := given.keys() - Metadata.__annotations__.keys():
        raise SlimError(f"metadata {min(unknown)!r}: expected {', '.join(Metadata.__annotations__)}")
    metadata = {"slim.version": __version__, "slim.input_shape": json.dumps(list(example.shape[1:]))}
    if (classes := given.get("classes")) is not None:
        if outputs[0].ndim < 2:
            raise SlimError(
                f"{len(classes)} class names for outputs {list(outputs[0].shape)}: expected a network that gives [N, K]"
            )
        if len(classes) != outputs[0].shape[1]:
            raise SlimError(f"{len(classes)} class names for {outputs[0].shape[1]} outputs: expected one for each")
        metadata["slim.classes"] = json.dumps(list(classes), ensure_ascii=False)
    for name, values in (("mean", given.get("mean")), ("std", given.get("std"))):
        if values is not None:
            if len(values) != example.shape[1]:
                raise SlimError(
                    f"{name} has {len(values)} numbers for {example.shape[1]} channels: expected one for each"
                )
            if not all(abs(value) <= sys.float_info.max and (value > 0 or name == "mean") for value in values):
                raise SlimError(f"{name} is {list(values)}: expected numbers{' above 0' if name == 'std' else ''}")
            metadata[f"slim.{name}"] = json.dumps([float(value) for value in values])
    for key, text in (("plan", given.get("plan_digest")), ("task", given.get("task"))):
        if text is not None:
            metadata[f"slim.{key}"] = text
    return metadata


def _with_preprocessing(
    net: nn.Module, arguments: Arguments, outputs: list[Tensor], metadata: Metadata
) -> tuple[nn.Module, Arguments]:
    mean, std = metadata.get("mean"), metadata.get("std")
    if mean is None or std is None:
        raise SlimError("preprocess needs mean and std, one number per channel: without them nothing is to be put in")
    images, *more = arguments.tensors
    if more or images.ndim != 4 or not images.is_floating_point():
        shapes = [list(tensor.shape) for tensor in (images, *more)]
        raise SlimError(f"preprocess takes a network of one input [N, C, H, W]: this one takes {shapes}")
    if len(outputs) != 1 or outputs[0].ndim != 2:
        shapes = [list(tensor.shape) for tensor in outputs]
        raise SlimError(f"preprocess takes a classifier that gives [N, K]: this network gives {shapes}")
    count, channels, height, width = images.shape
    raw = torch.zeros(count, height, width, channels, dtype=torch.uint8)
    return WithPreprocessing(net, mean, std), Arguments((raw,), {})
