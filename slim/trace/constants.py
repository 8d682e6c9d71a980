"""The numbers that forward code hands to operators. One that comes from a number of channels changes when channels go:
the thin network would compute something else, so the check compares them.

They come as Python numbers, and as small tensors made from such. Those hold values even where the network runs without
data, so that what is computed from them can be compared, too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from slim.trace.codes import alike_along, codes_on, name_of
from slim.trace.meta import META
from slim.trace.op import Op

SMALL = 64  # elements of a tensor whose values are compared one by one
ROUNDING = 1e-4  # of float32 through a whole network; one channel less than 4,096 changes a number by 2.4e-4


class Table:
    """A large constant tensor. Two of one size are the same where their sums are; those of other sizes are for the
    rules to judge."""

    def __init__(self, tensor: Tensor) -> None:
        values = tensor.detach().reshape(-1)
        values = torch.view_as_real(values).reshape(-1) if values.is_complex() else values
        values = values.double().nan_to_num()
        places = torch.arange(1, len(values) + 1, dtype=torch.float64, device=values.device)
        self._size = len(values)
        self._sums = float(values.sum()), float(values.abs().sum()), float((values * places.rsqrt()).sum())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        scale = self._sums[1]  # also the other's, where they are alike
        alike = all(
            math.isclose(a, b, rel_tol=ROUNDING, abs_tol=ROUNDING * scale) for a, b in zip(self._sums, other._sums)
        )
        return self._size != other._size or alike

    __hash__ = None  # type: ignore[assignment]


Constant = complex | tuple[complex, ...] | Table


def constants_of(op: Op, *, meta: bool) -> list[Constant] | None:
    """Return the numbers among the operator's arguments, and the values of small constant tensors.

    None for an operator on constants alone: what it makes counts where it meets something else. In a run without data
    (`meta`), a tensor that has data is constant; in one with data those are that were made of numbers.
    """
    constant = [tensor for tensor in op.tensors if not tensor.is_meta and is_constant(tensor, meta)]
    if len(constant) == len(op.tensors):
        return None
    takes_any = op.operator.takes_any
    found: list[Constant] = []
    for name, value in op.arguments.items():
        if value is None or isinstance(value, Tensor):  # most are
            continue
        if isinstance(value, float) or (takes_any[name] and _is_number(value)):
            found.append(value)
        elif takes_any[name] and isinstance(value, list) and all(map(_is_number, value)):
            found.append(tuple(value))
    return found + [_values(_once(tensor)) for tensor in constant]


def _values(tensor: Tensor) -> Constant:
    return tuple(tensor.reshape(-1).tolist()) if tensor.numel() <= SMALL else Table(tensor)


def constants_among(tensors: Mapping[str, Tensor]) -> dict[str, Constant]:
    """Return by name the numbers in those of a network's outputs that forward code made of numbers, or by what isn't
    torch."""
    return {
        name: _values(tensor.detach())
        for name, tensor in tensors.items()
        if not tensor.is_meta and tensor.layout == torch.strided and is_constant(tensor, True)
    }


def _once(tensor: Tensor) -> Tensor:
    """Return one of all the places that hold the same value."""
    once = tensor.detach()
    for d in alike_along(tensor):
        once = once[(slice(None),) * d + (slice(1),)]
    return once


def mark_result(op: Op, result: Any, *, constant: bool, meta: bool) -> None:
    """Remember whether what an operator gave is constant: in a run without data that shows, but where one is written
    over."""
    if meta and (constant or not op.in_place):
        return
    constant = constant or op.name == "lift_fresh"
    for tensor in tree_leaves(result):
        if isinstance(tensor, Tensor):
            mark_constant(tensor, constant)


def mark_constant(tensor: Tensor, constant: bool) -> None:
    """Remember whether a tensor was made of numbers alone."""
    tensor.__dict__["_constant"] = constant


def same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Return whether two runs handed over the same numbers, up to rounding: some may come from data."""
    return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))


def _equal(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return a == b or (a != a and b != b) or _close(a, b)


def _close(a: object, b: object) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=ROUNDING)


def is_constant(tensor: Tensor, meta: bool) -> bool:
    """Return whether a tensor with data was made of numbers alone, in a run without data (`meta`) or in one with."""
    mark = tensor.__dict__.get("_constant", meta)
    return bool(mark) and name_of(tensor) is None and not codes_on(tensor)


def number_in(tensor: Tensor, *, meta: bool) -> complex | None:
    """Return the number that a constant tensor holds, None where it is none, or holds several."""
    return tensor.item() if tensor.dim() == 0 and not tensor.is_meta and is_constant(tensor, meta) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, complex)) and not isinstance(value, bool)


_FROM_NUMBERS = {torch.tensor, torch.as_tensor}
TAKES_VALUES = {torch.Tensor.__getitem__, torch.Tensor.new_tensor, torch.Tensor.new_full, *_FROM_NUMBERS}


class ValuesNeeded(Exception):
    """Forward code has made a tensor from numbers that its operators don't show: functions must be watched as well."""


class KeepValues(TorchFunctionMode):
    """Tensors that forward code makes from numbers hold data, also where it asks for a device without."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in TAKES_VALUES:
            return func(*args, **kwargs)
        if func is torch.Tensor.__getitem__ and _without_data(args[0]):
            args = args[0], _indices(args[1])
        elif func is torch.Tensor.new_tensor and _without_data(args[0]):
            func, kwargs = torch.tensor, {"dtype": args[0].dtype, **kwargs, "device": "cpu"}
            args = args[1:]
        elif func is torch.Tensor.new_full and _without_data(args[0]) and is_small((*args[1:], kwargs.get("size"))[0]):
            func, kwargs = torch.full, {"dtype": args[0].dtype, **kwargs, "device": "cpu"}
            args = args[1:]
        elif func in _FROM_NUMBERS and _names_meta(kwargs):
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _without_data(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_meta


def _names_meta(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]) == META


def is_small(size: Sequence[int]) -> bool:
    """Return whether a tensor of this size keeps its values in a run without data."""
    return math.prod(size) <= SMALL


def _indices(index: Any) -> Any:
    """Return an index whose lists are tensors with data."""
    if isinstance(index, tuple):
        return tuple(_indices(each) for each in index)
    return torch.tensor(index) if isinstance(index, list) and index and not isinstance(index[0], Tensor) else index
