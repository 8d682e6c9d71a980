"""Whole numbers that modules keep in plain attributes, and which of them forward code reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from slim.trace.copy import INTERNAL, named_modules

Size = int | list[int] | tuple[int, ...]


def own_sizes(module: nn.Module) -> set[str]:
    """Return the names of attributes in which torch.nn keeps sizes of its own layers, such as `in_channels`."""
    bases = [base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.")]
    return {name for base in bases for name in vars(base).get("__constants__", ())}


def kept_sizes(model: nn.Module) -> dict[str, Size]:
    """Return the whole numbers, and lists and tuples of such, that modules of other packages than torch.nn keep:
    "module.attribute" -> value, under the first name of each module."""
    return {
        f"{prefix}{name}": value
        for prefix, module in _of_others(model)
        for name, value in vars(module).items()
        if name not in INTERNAL and _is_size(value) and name not in own_sizes(module)
    }


def _of_others(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    first = {id(module): (prefix, module) for prefix, module in reversed(named_modules(model))}
    for prefix, module in first.values():
        if not type(module).__module__.startswith("torch.nn."):
            yield prefix, module


def _is_size(value: Any) -> bool:
    numbers = value if type(value) in (list, tuple) else (value,)
    return bool(numbers) and all(type(number) is int for number in numbers)


@contextmanager
def noting_reads(model: nn.Module, read: set[str]) -> Iterator[None]:
    """Add to `read` the name of each of `kept_sizes` that something reads for as long as the context lasts."""
    names = kept_sizes(model)
    kept: dict[tuple[int, str], str] = {}
    kinds: dict[type, type | None] = {}
    was = []
    for prefix, module in _of_others(model):
        kind = type(module)
        mine = {(id(module), key): prefix + key for key in vars(module) if prefix + key in names}
        if mine and kind not in kinds:
            kinds[kind] = _noting(kind, kept, read)
        if mine and kinds[kind] is None:
            read |= set(mine.values())
        elif mine:
            kept |= mine
            was.append((module, kind))
    for module, kind in was:
        module.__class__ = kinds[kind]  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, kind in was:
            module.__class__ = kind


def _noting(kind: type, kept: dict[tuple[int, str], str], read: set[str]) -> type | None:
    """Return a subclass that notes which of the `kept` attributes are read; None for a class that can't have one."""
    getattribute: Any = kind.__getattribute__

    def __getattribute__(self: Any, attribute: str) -> Any:
        name = kept.get((id(self), attribute))
        if name is not None:
            read.add(name)
        return getattribute(self, attribute)

    members = {"__getattribute__": __getattribute__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    try:
        return type(kind)(kind.__name__, (kind,), members)
    except Exception:  # a class may say how it is subclassed
        return None
