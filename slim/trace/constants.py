"""The numbers that forward code hands to operators. One that comes from a number of channels changes when channels go:
the thin network would compute something else, so the check compares them.

They come as Python numbers, and as small tensors made from such. Those hold values even where the network runs without
data, so that what is computed from them can be compared, too.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from slim.trace.codes import codes_on, name_of
from slim.trace.meta import META
from slim.trace.op import Op

SMALL = 64  # elements of a tensor whose values are compared
Constant = complex | tuple[complex, ...]


def constants_of(op: Op, *, meta: bool) -> list[Constant] | None:
    """Return the numbers among the operator's arguments, and the values of small constant tensors.

    None for an operator on constants alone: what it makes counts where it meets something else. In a run without data
    (`meta`), a tensor that has data is constant; in one with data those are that were made of numbers.
    """
    constant = [tensor for tensor in op.tensors if not tensor.is_meta and _is_constant(tensor, meta)]
    if len(constant) == len(op.tensors):
        return None
    takes_any = op.operator.takes_any
    found: list[Constant] = [
        value
        for value, any_number in zip(op.args, takes_any.values())
        if isinstance(value, float) or (any_number and _is_number(value))
    ]
    for name, value in sorted(op.kwargs.items()):
        if isinstance(value, float) or (takes_any.get(name) and _is_number(value)):
            found.append(value)
    return found + [tuple(t.detach().reshape(-1).tolist()) for t in constant if t.numel() <= SMALL]


def mark_result(op: Op, result: Any, *, constant: bool, meta: bool) -> None:
    """Remember whether what an operator gave is constant: in a run without data that shows, but where one is written
    over."""
    if meta and (constant or not op.in_place):
        return
    constant = constant or op.name == "lift_fresh"
    for tensor in tree_leaves(result):
        if isinstance(tensor, Tensor):
            tensor.__dict__["_constant"] = constant


def same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Return whether two runs handed over the same numbers (those of tensors up to rounding)."""
    return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b))


def _equal(a: object, b: object) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_equal(x, y) or _close(x, y) for x, y in zip(a, b))
    return a == b or (a != a and b != b)


def _close(a: object, b: object) -> bool:
    return isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-5)


def _is_constant(tensor: Tensor, meta: bool) -> bool:
    mark = tensor.__dict__.get("_constant", meta)
    return bool(mark) and name_of(tensor) is None and not codes_on(tensor)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, complex)) and not isinstance(value, bool)


_FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.scalar_tensor, torch.full}
_TAKES_VALUES = {torch.Tensor.__getitem__, torch.Tensor.new_tensor, torch.Tensor.new_full, *_FROM_NUMBERS}


class KeepValues(TorchFunctionMode):
    """Tensors that forward code makes from numbers hold data, also where it asks for a device without."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _TAKES_VALUES:
            return func(*args, **kwargs)
        if func is torch.Tensor.__getitem__ and _without_data(args[0]):
            args = args[0], _indices(args[1])
        elif func is torch.Tensor.new_tensor and _without_data(args[0]):
            func, kwargs = torch.tensor, {"dtype": args[0].dtype, **kwargs, "device": "cpu"}
            args = args[1:]
        elif func is torch.Tensor.new_full and _without_data(args[0]) and _is_small(args[1:], kwargs):
            func, kwargs = torch.full, {"dtype": args[0].dtype, **kwargs, "device": "cpu"}
            args = args[1:]
        elif func in _FROM_NUMBERS and _names_meta(kwargs) and (func is not torch.full or _is_small(args, kwargs)):
            kwargs = {**kwargs, "device": "cpu"}
        return func(*args, **kwargs)


def _without_data(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_meta


def _names_meta(kwargs: dict[str, Any]) -> bool:
    return kwargs.get("device") is not None and torch.device(kwargs["device"]) == META


def _is_small(args: Any, kwargs: dict[str, Any]) -> bool:
    size = args[0] if args else kwargs.get("size", ())
    return math.prod((size,) if isinstance(size, int) else size) <= SMALL


def _indices(index: Any) -> Any:
    """Return an index whose lists are tensors with data."""
    if isinstance(index, tuple):
        return tuple(_indices(each) for each in index)
    return torch.tensor(index) if isinstance(index, list) and index and not isinstance(index[0], Tensor) else index
