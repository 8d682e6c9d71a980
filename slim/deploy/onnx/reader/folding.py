"""Readers of the operators that put several numbers together: pooling, means, resizing, the largest ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.deploy.onnx.reader.layers import behind, padding_of, window_of
from slim.deploy.onnx.reader.node import Node, Operation, reads

MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
LINEAR = {3: "linear", 4: "bilinear", 5: "trilinear"}


@reads("MaxPool")
def max_pool(node: Node) -> Operation:
    """Read the largest of each window."""
    window = window_of(node, node.attribute("kernel_shape"))
    if len(node.outputs) > 1 or len(window[0]) not in MAX:
        raise node.refused("expected one output, and one to three dimensions of space")
    padding, extra = padding_of(node, window, float("-inf"))
    pool = MAX[len(window[0])](
        window[0], window[1], padding, dilation=window[2], ceil_mode=bool(node.attribute("ceil_mode", 0))
    )
    return Operation(behind(extra, pool), [node.tensor(0)])


@reads("AveragePool")
def average_pool(node: Node) -> Operation:
    """Read the mean of each window."""
    window = window_of(node, node.attribute("kernel_shape"))
    padding, extra = padding_of(node, window)
    counts = bool(node.attribute("count_include_pad", 0))
    if len(window[0]) not in AVERAGE or set(window[2]) != {1} or (extra is not None and not counts):
        raise node.refused(
            "expected no dilation, and the same padding on both sides unless it counts (count_include_pad)"
        )
    pool = AVERAGE[len(window[0])](
        window[0], window[1], padding, ceil_mode=bool(node.attribute("ceil_mode", 0)), count_include_pad=counts
    )
    return Operation(behind(extra, pool), [node.tensor(0)])


@reads("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node) -> Operation:
    """Read a mean, or the largest, over the whole space."""
    return Operation(_mean_of_space if node.op == "GlobalAveragePool" else _largest_of_space, [node.tensor(0)])


def _mean_of_space(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def _largest_of_space(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def _sum_of_squares(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    return (x * x).sum(dim, keepdim=keepdim)


def _product(x: Tensor, dim: tuple[int, ...], keepdim: bool) -> Tensor:
    for each in sorted((each % x.dim() for each in dim), reverse=True):  # torch's own takes one dimension
        x = x.prod(each, keepdim=keepdim)
    return x


REDUCE: dict[str, Callable[..., Any]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL1": partial(torch.linalg.vector_norm, ord=1),
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceProd": _product,
    "ReduceSumSquare": _sum_of_squares,
}


@reads(*REDUCE)
def reduce(node: Node) -> Operation:
    """Read a reduction, whose axes were an attribute in older operator sets."""
    axes, keep = node.integers("axes", 1), bool(node.attribute("keepdims", 1))
    if axes is None and node.attribute("noop_with_empty_axes", 0):
        raise node.refused("it has no axes and does nothing")
    call = partial(_reduced, function=REDUCE[node.op], axes=None if axes is None else tuple(axes), keepdim=keep)
    return Operation(call, [node.tensor(0)])


def _reduced(x: Tensor, function: Callable[..., Any], axes: tuple[int, ...] | None, keepdim: bool) -> Any:
    return function(x, dim=tuple(range(x.dim())) if axes is None else axes, keepdim=keepdim)


@reads("LpNormalization")
def lp_normalization(node: Node) -> Operation:
    """Read a division by the norm along a dimension."""
    power, axis = node.attribute("p", 2), node.attribute("axis", -1)
    return Operation(partial(F.normalize, p=power, dim=axis), [node.tensor(0)])


@reads("CumSum")
def cumulative_sum(node: Node) -> Operation:
    """Read sums of all that comes before, along a dimension."""
    if node.attribute("exclusive", 0) or node.attribute("reverse", 0):
        raise node.refused("expected sums from the first on, with each number itself")
    return Operation(partial(torch.cumsum, dim=node.number(1)), [node.tensor(0)])


@reads("ArgMax", "ArgMin")
def arg_max(node: Node) -> Operation:
    """Read the place of the largest."""
    if node.attribute("select_last_index", 0):
        raise node.refused("it takes the last of equal ones: expected the first")
    function = torch.argmax if node.op == "ArgMax" else torch.argmin
    return Operation(
        partial(function, dim=node.attribute("axis", 0), keepdim=bool(node.attribute("keepdims", 1))), [node.tensor(0)]
    )


@reads("TopK")
def top_k(node: Node) -> Operation:
    """Read the largest along a dimension, and their places."""
    count = node.number(1)
    return Operation(
        partial(
            torch.topk,
            k=count,
            dim=node.attribute("axis", -1),
            largest=bool(node.attribute("largest", 1)),
            sorted=bool(node.attribute("sorted", 1)),
        ),
        [node.tensor(0)],
    )


@reads("LRN")
def local_response(node: Node) -> Operation:
    """Read a local response normalisation."""
    return Operation(
        nn.LocalResponseNorm(
            node.attribute("size"),
            node.attribute("alpha", 1e-4),
            node.attribute("beta", 0.75),
            node.attribute("bias", 1.0),
        ),
        [node.tensor(0)],
    )


class Resize(nn.Module):
    """A change of the image's size, by factors or to sizes that are kept or given."""

    def __init__(
        self, mode: str, scales: tuple[float, ...] | None, sizes: list[int] | None, corners: bool | None
    ) -> None:
        super().__init__()
        self.mode, self.scales, self.corners = mode, scales, corners
        self.sizes = (sizes,)  # of the image: they follow no channel

    def forward(self, x: Tensor, sizes: Any = None) -> Tensor:
        mode = LINEAR[x.dim()] if self.mode == "linear" else self.mode
        if self.scales is not None:
            scaled = [float(scale) for scale in self.scales]
            return F.interpolate(x, None, scaled, mode, self.corners, recompute_scale_factor=False)
        size = self.sizes[0] if sizes is None else (sizes.tolist() if isinstance(sizes, Tensor) else sizes)[2:]
        return F.interpolate(x, size, None, mode, self.corners)


@reads("Resize", "Upsample")
def resize(node: Node) -> Operation:
    """Read a change of the image's size, where torch has the same: see `_mode`."""
    older = node.op == "Upsample"
    scales_at, sizes_at = (1, 4) if older else (2, 3)
    scales = node.attribute("scales") if older and node.has("scales") else node.constant(scales_at)
    scales = None if scales is None or not len(scales) else [float(each) for each in scales]
    if scales is not None and (len(scales) < 3 or scales[:2] != [1.0, 1.0]):
        raise node.refused(f"its scales are {scales}: expected 1 for batch and channels")
    constant = node.is_constant(sizes_at)
    sizes = [int(each) for each in node.array(sizes_at)][2:] if constant and scales is None else None
    if node.attribute("axes") or node.attribute("antialias", 0):
        raise node.refused("expected neither axes nor antialias")
    mode, corners = _mode(node, scales, older)
    takes = [node.tensor(0)] + ([node.plain(sizes_at)] if scales is None and not constant else [])
    return Operation(Resize(mode, None if scales is None else tuple(scales[2:]), sizes, corners), takes)


def _mode(node: Node, scales: list[float] | None, older: bool) -> tuple[str, bool | None]:
    """torch's name for the mode, and whether corners are aligned. SlimError where torch has no such mode."""
    mode = node.attribute("mode", "nearest")
    where = node.attribute("coordinate_transformation_mode", "half_pixel")
    rounding = node.attribute("nearest_mode", "round_prefer_floor")
    if older:
        where, rounding = "asymmetric", "floor"
    if mode == "nearest":
        if (where, rounding) == ("asymmetric", "floor"):
            return "nearest", None
        if where in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round_prefer"):
            return "nearest-exact", None
    elif mode in ("linear", "cubic"):
        if mode == "cubic" and node.attribute("cubic_coeff_a", -0.75) != -0.75:
            raise node.refused(f"its cubic_coeff_a is {node.attribute('cubic_coeff_a')}: expected -0.75")
        torchs = "linear" if mode == "linear" else "bicubic"
        if where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
            return torchs, where == "align_corners"
    raise node.refused(f"{mode} with {where} and {rounding}: expected a mode that torch has")
