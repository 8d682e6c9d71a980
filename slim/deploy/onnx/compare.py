"""An exported graph against its network: in onnxruntime, and before optimisation in float64."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import onnx.reference
import onnxruntime
import torch
from torch import Tensor, nn

from slim.deploy.onnx.arguments import Arguments, root_cause, run_forward
from slim.deploy.onnx.session import brief
from slim.deploy.onnx.translate import Graph
from slim.deploy.target import Executable
from slim.errors import SlimError
from slim.trace.copy import clone

CHECKED_BATCHES = (1, 2, 7)
CHECKED_FLOAT64_BATCHES = (1, 3)
ROUNDING_FACTOR = 10  # two roundings of a saturated LeViT at random lay within a factor of 4 of each other
FLOAT64_TOLERANCE = 1e-6  # attributes such as BatchNorm's epsilon and HardSigmoid's 1/6 are float32 in every ONNX file


def check(graph: Graph, opened: Executable, name: str, tolerance: float, runtime: str = "onnxruntime") -> float:
    """Return the largest relative difference between a graph's network and a file, called `name` in errors, that was
    `opened` in a runtime.

    Raises SlimError if it is above `tolerance`, where neither runs, and for a batch that isn't as open as asked for.
    """
    batch = graph.open_sizes.batch
    for entry in opened.inputs:
        if batch.multiples and isinstance(entry.shape[0], int):
            raise SlimError(
                f"the network can only be exported for a batch of {entry.shape[0]}: expected a forward that does the "
                "same for every batch size, or batch as the number of images that it takes"
            )
    generator = torch.Generator().manual_seed(0)
    calls = [(graph.arguments.batch(size, generator), "like the example") for size in batch.sizes(CHECKED_BATCHES)]
    if graph.open_sizes.dynamic_size:
        larger = graph.open_sizes.larger(graph.arguments).batch(batch.example, generator)
        calls.append((larger, f"of another size, {list(larger.tensors[0].shape)}"))
    worst = 0.0
    for arguments, like in calls:
        expected = run_forward(graph.net, arguments, like)
        size = arguments.batch_size
        feed = {entry.name: tensor.numpy() for entry, tensor in zip(opened.inputs, arguments.tensors, strict=True)}
        try:
            actual = opened.run(feed)
        except Exception as error:
            raise SlimError(f"{name} doesn't run in {runtime} on a batch of {size} {like}: {brief(error)}") from error
        difference = _largest_difference(expected, actual)
        if difference > tolerance and not _is_rounding(graph.net, arguments, expected, actual):
            other = "" if like == "like the example" else f" {like}"
            raise SlimError(
                f"{name} differs from the network by {difference:.2e} (relative, batch of {size}{other}): "
                f"expected at most {tolerance:.2e}; the file was not kept"
            )
        worst = max(worst, difference)
    return worst


def check_float64(graph: Graph, name: str) -> tuple[float | None, str]:
    """Return the largest relative difference between the network and its graph before optimisation, both in float64,
    and what ran the graph. None where nothing could; SlimError if it is more than attributes in float32 explain."""
    net = clone(graph.net).double()
    proto = graph.translated(net, optimize=False).model_proto
    run, engine = _float64_runner(proto)
    generator = torch.Generator().manual_seed(1)
    worst = 0.0
    for size in graph.open_sizes.batch.sizes(CHECKED_FLOAT64_BATCHES):
        arguments = graph.arguments.batch(size, generator).in_dtype_of(net)
        expected = run_forward(net, arguments)
        feed = {entry.name: tensor.numpy() for entry, tensor in zip(proto.graph.input, arguments.tensors, strict=True)}
        try:
            actual = run(None, feed)
        except Exception as error:  # the evaluator isn't complete: it has no grouped ConvTranspose, for one
            return None, f"none ({engine}: {root_cause(error)})"
        worst = max(worst, _largest_difference(expected, actual))
    if worst > FLOAT64_TOLERANCE:
        raise SlimError(
            f"{name}: before optimisation, the graph differs from the network by {worst:.2e} in float64 ({engine}): "
            f"expected at most {FLOAT64_TOLERANCE:.0e}; the file was not kept"
        )
    return worst, engine


def _is_rounding(net: nn.Module, arguments: Arguments, expected: list[Tensor], actual: Sequence[Any]) -> bool:
    """Say whether rounding alone, which such a network magnifies, explains how far a file is from it."""
    net = clone(net).double()
    try:
        truth = run_forward(net, arguments.in_dtype_of(net))
    except SlimError:  # code that insists on float32
        return False
    return explained_by_rounding(truth, expected, actual)


def explained_by_rounding(truth: Sequence[Tensor], expected: Sequence[Tensor], actual: Sequence[Any]) -> bool:
    """Say whether what one engine gives is as near to the `truth`, in float64, as what another gives in float32, to
    within a factor."""
    own = _largest_difference(truth, expected)
    return _largest_difference(truth, actual) <= ROUNDING_FACTOR * own < 1


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


def _largest_difference(expected: Sequence[Tensor], actual: Sequence[Any]) -> float:
    return max(relative_difference(a, torch.as_tensor(b)) for a, b in zip(expected, actual, strict=True))


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    """Return max|a - b| / max|a|; infinite for different shapes and where either is NaN."""
    if expected.shape != actual.shape:
        return math.inf
    difference = (expected.double() - actual.double()).abs().max().item()
    largest = expected.double().abs().max().item()
    if math.isnan(difference):
        return math.inf
    return 0.0 if difference == 0 else difference / largest if largest > 0 else math.inf
