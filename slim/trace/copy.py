"""Copy a network around its tensors: the same modules, with other parameters and buffers in them.

`copy.deepcopy` with a memo does this too, and is what decides in doubt; but it asks the same questions of every empty
dict of every module, which takes most of the time that planning a small network needs.
"""

import copy
from collections import OrderedDict
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = {bool, int, float, complex, str, bytes, type(None), type, FunctionType, BuiltinFunctionType, torch.dtype}
_CONTAINERS = {dict, OrderedDict, list, set}


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names (a shared one has several)."""
    found = []
    for prefix, module in named_modules(model):
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    found.append((prefix + name, tensor))
    return found


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module under each of its names, with a dot at the end."""
    found: list[tuple[str, nn.Module]] = []

    def visit(prefix: str, module: nn.Module) -> None:
        found.append((prefix, module))
        for name, child in module._modules.items():
            if child is not None:
                visit(f"{prefix}{name}.", child)

    visit("", model)
    return found


def clone(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `model` that holds `replace(tensor)` for each of its tensors; shared ones stay shared."""
    memo: dict[int, Any] = {}
    for _, tensor in named_tensors(model):
        if id(tensor) not in memo:
            memo[id(tensor)] = replace(tensor)
    fresh: list[tuple[nn.Module, nn.Module]] = []
    for _, module in named_modules(model):
        if id(module) not in memo:
            if not _is_simple(type(module)):
                continue  # deepcopy meets it later, with the memo
            new = memo[id(module)] = type(module).__new__(type(module))
            fresh.append((module, new))
    for old, new in fresh:  # all are known by now, so attributes that refer to other modules find their copies
        copied = {k: v if type(v) in _PLAIN else _copy(v, memo) for k, v in old.__dict__.items()}
        object.__setattr__(new, "__dict__", copied)
    made: nn.Module = memo.get(id(model)) or copy.deepcopy(model, memo)
    return made


def _is_simple(kind: type[nn.Module]) -> bool:
    """Whether the module class leaves copying to its attributes."""
    return not hasattr(kind, "__deepcopy__") and kind.__reduce_ex__ is object.__reduce_ex__


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _CONTAINERS and not value:
        return kind()
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is dict:
        copied: dict[Any, Any] = {}
        memo[id(value)] = copied
        copied.update((key, _copy(item, memo)) for key, item in value.items())
        return copied
    if kind is tuple and all(type(item) in _PLAIN for item in value):
        return value
    return copy.deepcopy(value, memo)
