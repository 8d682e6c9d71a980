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

import copy
import itertools
import json
import math
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.reference
import onnxruntime
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from slim.deploy.onnx.session import brief, open_session, silence
from slim.errors import SlimError
from slim.files import replacing
from slim.version import __version__

OPSETS = range(18, 26)  # below, the exporter has no operators; above, its version converter gives up
MAX_BYTES = 2**31 - 2**24  # protobuf's limit for one file, less room for the graph
CHECKED_BATCH_SIZES = (1, 2, 7)
CHECKED_FLOAT64_BATCH_SIZES = (1, 3)
OTHER_SIZE = (32, 64)  # pixels added to height and width, to try a file of any image size: networks halve up to 5 times
ROUNDING_FACTOR = 10  # two roundings of a saturated LeViT at random lay within a factor of 4 of each other
FLOAT64_TOLERANCE = 1e-6  # attributes such as BatchNorm's epsilon and HardSigmoid's 1/6 are float32 in every ONNX file


@dataclass(frozen=True)
class ExportReport:
    path: Path
    max_relative_error: float  # max|a - b| / max|a|, a from PyTorch and b from onnxruntime: the worst batch size
    file_size: int  # bytes
    float64_error: float | None = None  # the same in float64, before optimisation; None: not asked for, or no kernels
    float64_engine: str | None = None  # what ran it: "onnxruntime", "onnx reference", or "none" and why


Call = tuple[tuple[Any, ...], dict[str, Any]]  # the args and kwargs of forward


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
    opset: int = 20,
    dynamic_size: bool = False,
    preprocess: bool = False,
    float64: bool = False,
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

    dynamic_size: leaves height and width open too (the last two dimensions of each input [N, C, …, H, W]).
    preprocess: puts normalisation and softmax into the graph: the file takes raw images, uint8 [N, H, W, C], and
    gives class "probabilities" [N, K]. It needs `mean` and `std`, and a model with one input [N, C, H, W].
    classes, mean, std, plan_digest: go into the file's metadata (names in the order of the logits; one number per
    channel, in 0..1 units).

    The exported file is run in onnxruntime on batches of 1, 2 and 7 random inputs and compared with PyTorch (with
    `dynamic_size`, on larger images too); only if max|a - b| / max|a| is within `tolerance` each time (or within ten
    times what PyTorch's own float32 is away from float64, for networks that magnify rounding) does it take its place at
    `path`. Otherwise, and on any other failure, what was at `path` stays as it was. `float64` also
    compares the graph before optimisation in float64, which tells a wrong operator from rounding; it takes a second
    export and, as onnxruntime has no Conv in float64 on the CPU, usually ONNX's own slow evaluator.

    Raises SlimError if the opset is outside 18..25, the metadata doesn't fit the network, the network can't
    be exported, the weights pass 2 GB, or the file differs from the network.
    """
    path = Path(path)
    if path.is_dir():
        raise SlimError(f"{str(path)!r} is a folder: expected the name of the ONNX file to write")
    draft = Draft(
        model,
        example_inputs,
        opset=opset,
        dynamic_size=dynamic_size,
        preprocess=preprocess,
        classes=classes,
        mean=mean,
        std=std,
        plan_digest=plan_digest,
    )
    error, engine = None, None
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(draft.content)
            difference = draft.check(temporary, path.name, tolerance)
            if float64:
                error, engine = draft.check_float64(path.name)
    except OSError as failure:
        raise SlimError(f"can't write {str(path)!r}: {failure.strerror}") from failure
    return ExportReport(path, difference, len(draft.content), error, engine)


class Draft:
    """What `export_onnx` writes, before it is checked: `content` is the file. Arguments and errors are the same."""

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        opset: int = 20,
        dynamic_size: bool = False,
        preprocess: bool = False,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        plan_digest: str | None = None,
    ) -> None:
        if opset not in OPSETS:
            raise SlimError(f"opset {opset}: expected {OPSETS[0]} to {OPSETS[-1]}")
        net = _copy_for_export(model)
        call = _as_call(example_inputs)
        outputs = _forward(net, _batch(call, 2))
        metadata = _metadata(_tensors(call)[0], outputs, classes, mean, std, plan_digest)
        if preprocess:
            net, call = _with_preprocessing(net, call, outputs, mean, std)
            metadata["slim.preprocessing"] = "in graph"
        self._net, self._call, self._opset = net, call, opset
        self._names = _Names(call, outputs, preprocess, dynamic_size)
        self.content = _export(net, call, opset, self._names, metadata)

    def check(self, file: Path, name: str, tolerance: float = 1e-4) -> float:
        """The largest relative difference between the network and `file`, which holds `content` and is called `name`
        in errors. Raises SlimError if it is above `tolerance`."""
        return _check(self._net, self._call, self._names, file, name, tolerance)

    def check_float64(self, name: str) -> tuple[float | None, str]:
        """The same in float64, before optimisation, and what ran that graph."""
        return _check_float64(self._net, self._call, self._opset, self._names, name)


def _copy_for_export(model: nn.Module) -> nn.Module:
    """A copy in eval mode and float32 on the CPU, every tensor in torch's default memory layout.

    In a channels_last network, flattening after global pooling traces as a walk over strides: ten nodes with Range
    and Gather. `.contiguous()` wouldn't do, as a 1×1 convolution's weight counts as both layouts at once.
    """
    net = copy.deepcopy(model).cpu().float().eval()
    for tensor in itertools.chain(net.parameters(), net.buffers()):
        tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return net


def _as_call(example_inputs: Any) -> Call:
    """`example_inputs` as the args and kwargs of forward."""
    if isinstance(example_inputs, dict):
        call: Call = (), dict(example_inputs)
    else:
        call = (example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)), {}
    tensors = _tensors(call)
    if not tensors or any(tensor.ndim < 2 or tensor.shape[0] == 0 for tensor in tensors):
        raise SlimError(
            "example_inputs: expected a tensor [N, C, H, W] of at least one image, or a tuple or dict of such"
        )
    return call


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _batch(call: Call, size: int, generator: torch.Generator | None = None) -> Call:
    """The same call with a batch of `size`: standard normal where a tensor is float, any pixels where it is uint8,
    else rows of the example."""

    def resize(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(size, *tensor.shape[1:], generator=generator)
        if tensor.dtype == torch.uint8:
            return torch.randint(256, (size, *tensor.shape[1:]), generator=generator, dtype=torch.uint8)
        return tensor.cpu()[torch.arange(size) % tensor.shape[0]]

    resized: Call = pytree.tree_map_only(Tensor, resize, call)
    return resized


def _forward(net: nn.Module, call: Call, like: str = "like the example") -> list[Tensor]:
    args, kwargs = call
    try:
        with torch.no_grad():
            outputs = _tensors(net(*args, **kwargs))
    except Exception as error:
        size = _tensors(call)[0].shape[0]
        raise SlimError(f"the network can't run a batch of {size} {like}: {_root(error)}") from error
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
        if outputs[0].ndim < 2:
            raise SlimError(
                f"{len(classes)} class names for outputs {list(outputs[0].shape)}: expected a network that gives [N, K]"
            )
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


def _with_preprocessing(
    net: nn.Module,
    call: Call,
    outputs: list[Tensor],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[nn.Module, Call]:
    if mean is None or std is None:
        raise SlimError("preprocess needs mean and std, one number per channel: without them nothing is to be put in")
    if any(value <= 0 for value in std):
        raise SlimError(f"std is {list(std)}: expected numbers above 0")
    images, *more = _tensors(call)
    if more or images.ndim != 4 or not images.is_floating_point():
        shapes = [list(tensor.shape) for tensor in (images, *more)]
        raise SlimError(f"preprocess takes a network of one input [N, C, H, W]: this one takes {shapes}")
    if len(outputs) != 1 or outputs[0].ndim != 2:
        shapes = [list(tensor.shape) for tensor in outputs]
        raise SlimError(f"preprocess takes a classifier that gives [N, K]: this network gives {shapes}")
    count, channels, height, width = images.shape
    return WithPreprocessing(net, mean, std), ((torch.zeros(count, height, width, channels, dtype=torch.uint8),), {})


class _Names:
    """What inputs, outputs and open dimensions are called in the file."""

    def __init__(self, call: Call, outputs: list[Tensor], preprocess: bool, dynamic_size: bool) -> None:
        self.inputs = ["images"] if len(_tensors(call)) == 1 else None
        self.outputs = ["probabilities" if preprocess else "logits"] if len(outputs) == 1 else None
        self._first_size = 1 if preprocess else -2  # where height stands: [N, H, W, C] or [N, C, …, H, W]
        self.dynamic_size = dynamic_size
        self._batch = torch.export.Dim("batch")
        for tensor in _tensors(call):
            if dynamic_size and tensor.ndim < 4:
                raise SlimError(f"dynamic_size: the network takes {list(tensor.shape)}: expected images [N, C, H, W]")

    def dimensions(self, call: Call) -> Any:
        """A name for every open dimension, as torch.onnx.export takes them."""
        return pytree.tree_map(self._open, call)

    def larger(self, call: Call) -> Call:
        """The call on images of another size."""
        return pytree.tree_map_only(Tensor, self._enlarge, call)

    def _open(self, leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        height = self._first_size % leaf.ndim
        return {0: self._batch} | ({height: "height", height + 1: "width"} if self.dynamic_size else {})

    def _enlarge(self, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        height = self._first_size % tensor.ndim
        for i, more in enumerate(OTHER_SIZE):
            shape[height + i] += more
        return tensor.new_zeros(shape)


def _export(net: nn.Module, call: Call, opset: int, names: _Names, metadata: dict[str, str]) -> bytes:
    """The file: the optimised graph with its metadata."""
    program = _translate(net, call, opset, names, optimize=True)
    program.model.metadata_props.update(metadata)
    return program.model_proto.SerializeToString()


def _translate(net: nn.Module, call: Call, opset: int, names: _Names, optimize: bool) -> torch.onnx.ONNXProgram:
    size = sum(tensor.nbytes for tensor in itertools.chain(net.parameters(), net.buffers()))
    if size > MAX_BYTES:
        raise SlimError(f"the network's weights take {size / 2**30:.1f} GB: expected less than 2 GB, for one ONNX file")
    # Two rows: torch.export takes a dimension of size 1 for a constant
    args, kwargs = _as_dtype_of(net, _batch(call, 2))
    positional, by_name = names.dimensions((args, kwargs))
    try:
        with silence(), torch.no_grad():
            program = torch.onnx.export(
                net,
                args,
                kwargs=kwargs,
                dynamo=True,
                optimize=optimize,
                verbose=False,
                opset_version=opset,
                input_names=names.inputs,
                output_names=names.outputs,
                dynamic_shapes=by_name if kwargs else positional,
            )
    except Exception as error:  # the exporter lets through errors of many kinds
        why = _place_of_choice(error) or _root(error)
        raise SlimError(f"torch's ONNX exporter can't export the network: {why}") from error
    assert program is not None
    # The exporter notes stack traces with local paths on every node
    ir.passes.common.ClearMetadataAndDocStringPass()(program.model)
    program.model.producer_name, program.model.producer_version = "slim", __version__
    return program


def _as_dtype_of(net: nn.Module, call: Call) -> Call:
    """The call with floating-point tensors of the network's own type."""
    dtype = next((t.dtype for t in itertools.chain(net.parameters(), net.buffers()) if t.is_floating_point()), None)
    cast: Call = pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, call)
    return cast


def _check(net: nn.Module, call: Call, names: _Names, file: Path, name: str, tolerance: float) -> float:
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
    calls = [(_batch(call, size, generator), "like the example") for size in CHECKED_BATCH_SIZES]
    if names.dynamic_size:
        larger = _batch(names.larger(call), 2, generator)
        calls.append((larger, f"of another size, {list(_tensors(larger)[0].shape)}"))
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4  # the error says it
    worst = 0.0
    for one, like in calls:
        expected = _forward(net, one, like)
        size = _tensors(one)[0].shape[0]
        feed = {entry.name: tensor.numpy() for entry, tensor in zip(inputs, _tensors(one), strict=True)}
        try:
            actual = session.run(None, feed, quiet)
        except Exception as error:
            raise SlimError(f"{name} doesn't run in onnxruntime on a batch of {size} {like}: {brief(error)}") from error
        difference = _largest_difference(expected, actual)
        if difference > tolerance and not _is_rounding(net, one, expected, actual):
            other = "" if like == "like the example" else f" {like}"
            raise SlimError(
                f"{name} differs from the network by {difference:.2e} (relative, batch of {size}{other}): "
                f"expected at most {tolerance:.2e}; the file was not kept"
            )
        worst = max(worst, difference)
    return worst


def _is_rounding(net: nn.Module, call: Call, expected: list[Tensor], actual: Sequence[Any]) -> bool:
    """Whether the file is as near to the network in float64 as the network in float32 is, to within a factor: then
    rounding alone, which such a network magnifies, explains a difference between the two."""
    net = copy.deepcopy(net).double()
    try:
        truth = _forward(net, _as_dtype_of(net, call))
    except SlimError:  # code that insists on float32
        return False
    own = max(_relative_difference(a, b) for a, b in zip(truth, expected, strict=True))
    return _largest_difference(truth, actual) <= ROUNDING_FACTOR * own < 1


def _check_float64(net: nn.Module, call: Call, opset: int, names: _Names, name: str) -> tuple[float | None, str]:
    """The largest relative difference between the network and its graph before optimisation, both in float64, and
    what ran the graph. None where nothing could; SlimError if it is more than attributes in float32 explain."""
    net = copy.deepcopy(net).double()
    proto = _translate(net, call, opset, names, optimize=False).model_proto
    run, engine = _float64_runner(proto)
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for size in CHECKED_FLOAT64_BATCH_SIZES:
        one = _as_dtype_of(net, _batch(call, size, generator))
        expected = _forward(net, one)
        feed = {entry.name: tensor.numpy() for entry, tensor in zip(proto.graph.input, _tensors(one), strict=True)}
        try:
            actual = run(None, feed)
        except Exception as error:  # the evaluator isn't complete: it has no grouped ConvTranspose, for one
            return None, f"none ({engine}: {_root(error)})"
        worst = max(worst, _largest_difference(expected, actual))
    if worst > FLOAT64_TOLERANCE:
        raise SlimError(
            f"{name}: before optimisation, the graph differs from the network by {worst:.2e} in float64 ({engine}): "
            f"expected at most {FLOAT64_TOLERANCE:.0e}; the file was not kept"
        )
    return worst, engine


def _float64_runner(proto: onnx.ModelProto) -> tuple[Callable[..., Any], str]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # no kernel for float64
        run: Callable[..., Any] = onnx.reference.ReferenceEvaluator(proto).run
        return run, "onnx reference"
    return session.run, "onnxruntime"


def _largest_difference(expected: list[Tensor], actual: Sequence[Any]) -> float:
    return max(_relative_difference(a, torch.as_tensor(b)) for a, b in zip(expected, actual, strict=True))


def _relative_difference(expected: Tensor, actual: Tensor) -> float:
    """max|a - b| / max|a|; infinite for different shapes and where either is NaN."""
    if expected.shape != actual.shape:
        return math.inf
    difference = (expected.double() - actual.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    if math.isnan(difference):
        return math.inf
    return 0.0 if difference == 0 else difference / largest if largest > 0 else math.inf


def _place_of_choice(error: BaseException) -> str | None:
    """Where the network's code makes its way depend on values, if that is what is wrong: torch says no more than that
    it "could not guard on" u0."""
    error = _bottom(error)
    if not isinstance(error, GuardOnDataDependentSymNode):
        return None
    said = "what forward does depends on values that it computes"
    own = (os.path.dirname(torch.__file__) + os.sep, __file__, "<")  # torch, this file, code made on the way
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    return f"{said}, in {places[-1].filename}, line {places[-1].lineno}: {places[-1].line}" if places else said


def _root(error: BaseException) -> str:
    """The first line of the error at the bottom: the exporter wraps it in a page of advice."""
    error = _bottom(error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _bottom(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
