"""Readers of the operators that move numbers about. Sizes that the file has as constants are kept in modules, one
attribute for each, so that they can follow the channels that they count."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.deploy.onnx.reader.node import Node, Operation, reads
from slim.deploy.onnx.reader.sizes import UNKNOWN

FAR = 2**31  # beyond any size: exporters write "to the end" as a number above it
PADDING = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


class Reshape(nn.Module):
    """A shape to give: numbers of the file, and for 0 the size that the input has there."""

    def __init__(self, sizes: Sequence[Any]) -> None:
        super().__init__()
        self.places = tuple(None if size is UNKNOWN else f"size_{i}" for i, size in enumerate(sizes))
        for place, size in zip(self.places, sizes):
            if place:
                setattr(self, place, size)

    def forward(self, x: Tensor, shape: Any = None) -> Tensor:
        sizes = [getattr(self, place) if place else shape[i] for i, place in enumerate(self.places)]
        return x.reshape([x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(sizes)])


@reads("Reshape")
def reshape(node: Node) -> Operation:
    """Read a reshape. One size that isn't known is what is left for it."""
    sizes, before = node.size(1), node.shape(0)
    if sizes is None:
        return Operation(_reshaped, [node.tensor(0), node.plain(1)])
    if node.attribute("allowzero", 0) and 0 in sizes:
        raise node.refused("it makes a tensor of no elements")
    if sizes and before and node.values.batch is not None and sizes[0] == before[0] == node.values.batch:
        sizes = [0, *sizes[1:]]  # a batch that the file fixes
    open_sizes = [i for i, size in enumerate(sizes) if size is UNKNOWN]
    if len(open_sizes) == 1 and -1 not in sizes:
        sizes[open_sizes[0]] = -1
        open_sizes = []
    return Operation(Reshape(sizes), [node.tensor(0), *([node.plain(1)] if open_sizes else [])])


def _reshaped(x: Tensor, shape: Any) -> Tensor:
    sizes = shape.tolist() if isinstance(shape, Tensor) else shape
    return x.reshape([x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(sizes)])


@reads("Flatten")
def flatten(node: Node) -> Operation:
    """Read a flattening into two dimensions."""
    axis = node.attribute("axis", 1)
    return Operation(
        partial(torch.flatten, start_dim=1) if axis == 1 else partial(_matrix, axis=axis), [node.tensor(0)]
    )


def _matrix(x: Tensor, axis: int) -> Tensor:
    axis = axis % x.dim() if axis < 0 else axis
    rows = 1
    for size in x.shape[:axis]:
        rows = rows * size
    return x.reshape(rows, -1)


@reads("Transpose")
def transpose(node: Node) -> Operation:
    """Read a change of the order of dimensions."""
    order = node.attribute("perm")
    return Operation(partial(_permuted, order=None if order is None else tuple(order)), [node.tensor(0)])


def _permuted(x: Tensor, order: tuple[int, ...] | None) -> Tensor:
    return x.permute(order or tuple(reversed(range(x.dim()))))


@reads("Squeeze")
def squeeze(node: Node) -> Operation:
    """Read the removal of dimensions of one element."""
    axes = node.integers("axes", 1)
    return Operation(torch.squeeze if axes is None else partial(torch.squeeze, dim=tuple(axes)), [node.tensor(0)])


@reads("Unsqueeze")
def unsqueeze(node: Node) -> Operation:
    """Read new dimensions of one element."""
    return Operation(partial(_unsqueezed, axes=tuple(node.integers("axes", 1) or ())), [node.tensor(0)])


def _unsqueezed(x: Any, axes: tuple[int, ...]) -> Tensor:
    x = torch.as_tensor(x)
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@reads("Concat")
def concat(node: Node) -> Operation:
    """Read a concatenation."""
    return Operation(partial(_joined, dim=node.attribute("axis")), [node.tensor(i) for i in range(len(node.inputs))])


def _joined(*tensors: Any, dim: int) -> Tensor:
    return torch.cat([torch.as_tensor(each) for each in tensors], dim)


class SplitInto(nn.Module):
    """Parts of these sizes along a dimension."""

    def __init__(self, sizes: list[int], dim: int) -> None:
        super().__init__()
        self.sizes, self.where = sizes, (str(dim),)

    def forward(self, x: Tensor) -> Any:
        return x.split(self.sizes, int(self.where[0]))


@reads("Split")
def split(node: Node) -> Operation:
    """Read a split into parts, equal ones unless sizes are given."""
    axis, sizes = node.attribute("axis", 0), node.integers("split", 1)
    if sizes is None or len(set(sizes)) == 1:
        return Operation(partial(torch.chunk, chunks=len(node.outputs), dim=axis), [node.tensor(0)])
    return Operation(SplitInto(sizes, axis), [node.tensor(0)])


class Slice(nn.Module):
    """A part of each of some dimensions. A place where it starts or ends is an attribute of its own."""

    def __init__(self, cuts: Sequence[tuple[int, int | None, int | None, int]]) -> None:
        super().__init__()
        self.cuts = [(str(axis), step) for axis, _, _, step in cuts]
        for axis, start, end, _ in cuts:
            setattr(self, f"start_{axis}", start)
            setattr(self, f"end_{axis}", end)

    def forward(self, x: Tensor) -> Tensor:
        for axis, step in self.cuts:
            x = _cut(x, int(axis), getattr(self, f"start_{axis}"), getattr(self, f"end_{axis}"), step)
        return x


@reads("Slice")
def slice_(node: Node) -> Operation:
    """Read a slice."""
    if not all(node.is_constant(i) or not node.input(i) for i in range(1, 5)):
        names = [node.plain(i) if node.input(i) else "" for i in range(1, len(node.inputs))]
        return Operation(_sliced, [node.tensor(0), *names])
    starts, ends = node.integers("starts", 1) or [], node.integers("ends", 2) or []
    axes, steps = node.integers("axes", 3) or list(range(len(starts))), node.integers("steps", 4) or [1] * len(starts)
    cuts = [_near(*each) for each in zip(axes, starts, ends, steps)]
    return Operation(Slice(cuts), [node.tensor(0)])


def _near(axis: int, start: int, end: int, step: int) -> tuple[int, int | None, int | None, int]:
    """Return a cut with None for its ends beyond any size."""
    return (
        axis,
        None if abs(start) >= FAR or (start == 0 and step > 0) else start,
        None if abs(end) >= FAR else end,
        step,
    )


def _cut(x: Tensor, axis: int, start: Any, end: Any, step: int) -> Tensor:
    if step < 0:  # torch has no slices backwards
        chosen = range(x.shape[axis])[slice(start, end, step)]
        return x.index_select(axis, torch.tensor(list(chosen), device=x.device))
    index = [slice(None)] * (axis % x.dim()) + [slice(start, end, step)]
    return x[tuple(index)]


def _sliced(x: Tensor, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Tensor:
    starts, ends, axes, steps = (
        each.tolist() if isinstance(each, Tensor) else [each] if isinstance(each, int) else each
        for each in (starts, ends, axes, steps)
    )
    for i, (start, end) in enumerate(zip(starts, ends)):
        far = isinstance(end, int) and abs(end) >= FAR
        x = _cut(x, axes[i] if axes else i, start, None if far else end, steps[i] if steps else 1)
    return x


@reads("Gather")
def gather(node: Node) -> Operation:
    """Read a choice along one dimension, by one index or a tensor of them."""
    axis = node.attribute("axis", 0)
    if node.is_constant(1) and node.array(1).ndim == 0:
        return Operation(partial(torch.select, dim=axis, index=node.number(1)), [node.tensor(0)])
    return Operation(partial(_taken, axis=axis), [node.tensor(0), node.tensor(1)])


def _taken(x: Tensor, index: Any, axis: int) -> Tensor:
    index = torch.as_tensor(index, device=x.device)
    axis = axis % x.dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]) if index.dim() != 1 else found


@reads("GatherElements")
def gather_elements(node: Node) -> Operation:
    """Read a choice of single elements along one dimension."""
    return Operation(partial(_elements, axis=node.attribute("axis", 0)), [node.tensor(0), node.tensor(1)])


def _elements(x: Tensor, index: Tensor, axis: int) -> Tensor:
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@reads("Expand")
def expand(node: Node) -> Operation:
    """Read a broadcast to a shape."""
    return Operation(_expanded, [node.tensor(0), node.plain(1)])


def _expanded(x: Any, shape: Any) -> Tensor:
    x, shape = torch.as_tensor(x), shape.tolist() if isinstance(shape, Tensor) else shape
    more = len(shape) - x.dim()
    shape = [1] * -more + list(shape)
    kept = [None] * more + list(x.shape)
    return x.expand([size if old is None or old == 1 else old for old, size in zip(kept, shape)])


@reads("Tile")
def tile(node: Node) -> Operation:
    """Read a repetition."""
    return Operation(_tiled, [node.tensor(0), node.plain(1)])


def _tiled(x: Tensor, repeats: Any) -> Tensor:
    return x.repeat(repeats.tolist() if isinstance(repeats, Tensor) else repeats)


@reads("Pad")
def pad(node: Node) -> Operation:
    """Read padding, whose widths were an attribute before operator set 11."""
    widths, mode = node.integers("pads", 1), node.attribute("mode", "constant")
    value = node.attribute("value", None) or (node.number(2) if node.opset >= 11 else None) or 0.0
    axes = node.integers("axes", 3)
    shape = node.shape(0)
    if widths is None or mode not in PADDING:
        raise node.refused(f"its mode is {mode}: expected {', '.join(PADDING)}, and widths")
    count = len(widths) // 2
    if axes is not None and shape is None:
        raise node.refused("its axes count from a number of dimensions that isn't known")
    rank = count if axes is None else len(shape or [])
    places = range(rank) if axes is None else [axis % rank for axis in axes]
    around = {place: (widths[i], widths[i + count]) for i, place in enumerate(places)}
    if mode != "constant":
        return Operation(partial(_mirrored, around=tuple(sorted(around.items())), mode=PADDING[mode]), [node.tensor(0)])
    first = next((place for place in range(rank) if any(around.get(place, (0, 0)))), rank)
    flat = tuple(width for place in reversed(range(first, rank)) for width in around.get(place, (0, 0)))
    return Operation(partial(F.pad, pad=flat, value=float(value)), [node.tensor(0)])


def _mirrored(x: Tensor, around: tuple[tuple[int, tuple[int, int]], ...], mode: str) -> Tensor:
    """Pad with what is there: the space at once, as torch does it, any other dimension as if it were one of space."""
    widths = dict(around)
    space = [width for place in reversed(range(2, x.dim())) for width in widths.get(place, (0, 0))]
    x = F.pad(x, space, mode) if any(space) else x
    for place in (0, 1):
        if any(widths.get(place, (0, 0))):
            rows = x.movedim(place, -1)
            x = (
                F.pad(rows.flatten(0, -2)[None], widths[place], mode)[0]
                .unflatten(0, rows.shape[:-1])
                .movedim(-1, place)
            )
    return x


@reads("Trilu")
def triangle(node: Node) -> Operation:
    """Read the upper or lower triangle of a matrix."""
    call = torch.triu if node.attribute("upper", 1) else torch.tril
    return Operation(partial(call, diagonal=node.number(1) or 0), [node.tensor(0)])


@reads("DepthToSpace", "SpaceToDepth")
def depth_to_space(node: Node) -> Operation:
    """Read a move of blocks of the image into channels, or back."""
    size = node.attribute("blocksize")
    if node.op == "SpaceToDepth":
        call: Any = partial(_to_depth, size=size)
    else:
        call = partial(F.pixel_shuffle, upscale_factor=size)
        if node.attribute("mode", "DCR") == "DCR":
            call = partial(_to_space, size=size)
    return Operation(call, [node.tensor(0)])


def _to_space(x: Tensor, size: int) -> Tensor:
    n, channels, height, width = x.shape
    blocks = x.reshape(n, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, channels // size**2, height * size, width * size)


def _to_depth(x: Tensor, size: int) -> Tensor:
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, channels * size**2, height // size, width // size)


@reads("ConstantOfShape")
def constant_of_shape(node: Node) -> Operation:
    """Read a tensor of one value; where it has one dimension, a list of sizes."""
    value = node.attribute("value")
    from onnx import numpy_helper

    filled = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return Operation(partial(_filled, value=filled.reshape(-1)[0].item()), [node.plain(0)])


def _filled(shape: Any, value: Any) -> Tensor:
    return torch.full(shape.tolist() if isinstance(shape, Tensor) else shape, value)


@reads("Range")
def range_(node: Node) -> Operation:
    """Read a row of numbers."""
    return Operation(torch.arange, [node.plain(i) for i in range(3)])
