"""What operators give on tensors without data: torch works out many of these shapes in Python, anew in each call.

They follow from the shapes, strides and types of what an operator is given, so each is worked out once.
"""

from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload

META = torch.device("meta")


class Layout(NamedTuple):
    """All that a tensor without data has."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=META)


def run_on_meta(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return `func(*args, **kwargs)`, all of whose tensors hold no data."""
    if not _makes_new_tensors(func):
        return func(*args, **kwargs)
    return _built(_results(func, _described(args), _described(tuple(kwargs.items()))))


@cache
def _makes_new_tensors(func: OpOverload) -> bool:
    """Say whether an operator of torch's own gives only tensors that share no memory with what it is given."""
    return func.namespace == "aten" and all(value.alias_info is None for value in func._schema.returns)


@lru_cache(maxsize=2**14)
def _results(func: OpOverload, args: Any, kwargs: Any) -> Any:
    return _described(func(*_built(args), **dict(_built(kwargs))))


def _described(value: Any) -> Any:
    """Return what can be compared: layouts for tensors, and numbers with their types (1, 1.0 and True are equal)."""
    if isinstance(value, Tensor):
        return Layout(value.shape, value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return type(value), *map(_described, value)
    return type(value), value


def _built(value: Any) -> Any:
    """Return what was described."""
    if isinstance(value, Layout):
        return value.tensor()
    kind, *parts = value
    return kind(map(_built, parts)) if kind in (tuple, list) else parts[0]
