"""Whole numbers that modules keep in plain attributes, and which of them forward code reads."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from slim.trace.copy import INTERNAL, Modules

StoredSize = int | list[int] | tuple[int, ...]


def kind_of(name: str) -> str | None:
    """Return what a name within numbered blocks has in common with its likes in the others: "blocks.#.attn.qkv". None
    where there are none: a number at the end says nothing of what it counts."""
    parts = name.split(".")
    if parts[-1].isdigit() or not any(part.isdigit() for part in parts):
        return None
    return ".".join("#" if part.isdigit() else part for part in parts)


_own: dict[type, set[str]] = {}


def own_sizes(kind: type) -> set[str]:
    """Return the names of attributes in which torch.nn keeps sizes of its own layers, such as `in_channels`."""
    if kind not in _own:
        bases = [base for base in kind.__mro__ if base.__module__.startswith("torch.nn.")]
        _own[kind] = {name for base in bases for name in vars(base).get("__constants__", ())}
    return _own[kind]


_for_building: dict[type, set[str]] = {}


def for_building(kind: type) -> set[str]:
    """Return the names that occur only where a class builds its instances: in methods that its constructor calls, and
    in no other. What is kept under such a name, the width that a network has come to so far say, has served."""
    if kind not in _for_building:
        names: dict[str, set[str]] = {}
        for base in kind.__mro__:
            own = vars(base).items() if not base.__module__.startswith("torch.nn.") else ()
            for name, member in own:
                names.setdefault(name, set()).update(_names_in(getattr(member, "__code__", None)))
        reached, pending = {"__init__"}, ["__init__"]
        while pending:
            found = names.get(pending.pop(), set()) & names.keys() - reached
            reached |= found
            pending += found
        building, using = (
            set().union(*(names[name] for name in some)) for some in (reached - {"__init__"}, names.keys() - reached)
        )
        _for_building[kind] = building - using
    return _for_building[kind]


def _names_in(code: Any) -> set[str]:
    """Return the names of attributes in a function's code, and in that of the functions in it."""
    if not isinstance(code, CodeType):
        return set()
    return set(code.co_names).union(*(_names_in(constant) for constant in code.co_consts))


def words_in(code: Any, known: Mapping[str, Any] | None = None) -> set[str]:
    """Return by which names a function, or its code, may read what a dict or an object holds: attributes, arguments and
    strings in it, in the functions in it, and in those that it calls by a name that is `known`."""
    if isinstance(code, FunctionType):
        known, code = code.__globals__, code.__code__
    if not isinstance(code, CodeType):
        return set()
    words = {*code.co_names, *code.co_varnames, *(each for each in code.co_consts if isinstance(each, str))}
    called = [each.__code__ for name in code.co_names if isinstance(each := (known or {}).get(name), FunctionType)]
    return words.union(*(words_in(each, {}) for each in (*code.co_consts, *called)))


_words: dict[type, set[str]] = {}


def words_of(kind: type) -> set[str]:
    """Return the words in the methods of a class of another package than torch.nn, but for its constructor."""
    if kind not in _words:
        bases = [base for base in kind.__mro__ if not base.__module__.startswith("torch.nn.")]
        members = [member for base in bases for name, member in vars(base).items() if name != "__init__"]
        _words[kind] = set().union(*(words_in(getattr(member, "fget", member)) for member in members))
    return _words[kind]


class KeptSizes(Mapping[str, StoredSize]):
    """The whole numbers, and lists and tuples of such, that modules of other packages than torch.nn keep, but for what
    only building them takes: "module.attribute" -> value, under the first name of each module.

    `read` has the names of those that forward code was seen to read while `noting` them.
    """

    def __init__(self, modules: Modules) -> None:
        self.read: set[str] = set()
        self._sizes: dict[str, StoredSize] = {}
        self._places: dict[tuple[int, str], str] = {}  # (a module's id, attribute) -> name
        self._noting: list[tuple[nn.Module, type]] = []  # what notes the reads, and its class while it does
        kinds: dict[tuple[type, frozenset[str]], type | None] = {}
        others: dict[type, frozenset[str]] = {}  # attributes that are no such sizes
        for prefix, module in {id(module): (prefix, module) for prefix, module in reversed(modules)}.values():
            kind = type(module)
            if kind.__module__.startswith("torch.nn."):
                continue
            if kind not in others:
                others[kind] = INTERNAL | own_sizes(kind) | for_building(kind)
            held = {k: size_in(v) for k, v in vars(module).items() if k not in others[kind]}
            mine = {k: size for k, size in held.items() if size is not None}
            if not mine:
                continue
            if (of := (kind, frozenset(mine))) not in kinds:
                kinds[of] = _noting(*of, self._places, self.read)
            noting = kinds[of]
            self._sizes |= {prefix + key: value for key, value in mine.items()}
            self._places |= {(id(module), key): prefix + key for key in mine}
            if noting is None:
                self.read |= {prefix + key for key in mine}
            else:
                self._noting.append((module, noting))

    def __getitem__(self, name: str) -> StoredSize:
        return self._sizes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Add to `read` the name of each size that something reads for as long as the context lasts."""
        was = [(module, type(module)) for module, _ in self._noting]
        for module, kind in self._noting:
            object.__setattr__(module, "__class__", kind)
        try:
            yield
        finally:
            for module, kind in was:
                object.__setattr__(module, "__class__", kind)


def size_in(value: Any) -> StoredSize | None:
    """Return the whole number that an attribute holds, or the list or tuple of such, numpy's among them; None where it
    holds anything else."""
    several = type(value) in (list, tuple, torch.Size)
    numbers = [int(n) for n in (value if several else (value,)) if type(n) is int or isinstance(n, np.integer)]
    if not numbers or (several and len(numbers) < len(value)):
        return None
    return numbers[0] if not several else numbers if type(value) is list else tuple(numbers)


DEPTH = 3  # of dicts, lists and objects in each other in which sizes are looked for, as config.stages["stem"][0]
FEW = 16  # numbers of a list, each of which may be a size by itself; of longer ones, none is


def sizes_within(module: nn.Module) -> Iterator[tuple[str, StoredSize]]:
    """Yield the sizes that a module keeps, with their names: in attributes, and in the dicts, lists and plain objects
    that these hold, such as "config.widths.0"."""
    yield from _sizes_among({key: held for key, held in vars(module).items() if key not in INTERNAL}, DEPTH)


def _sizes_among(items: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, StoredSize]]:
    for name, value in items.items():
        if not isinstance(name, str):
            continue
        size = size_in(value)
        if size is not None:
            yield name, size
        if depth and not isinstance(size, int):
            yield from ((f"{name}.{key}", each) for key, each in _sizes_among(fields_of(value), depth - 1))


def fields_of(value: Any) -> Mapping[Any, Any]:
    """Return what a dict, a short list or a plain object holds by name; nothing of modules, tensors, classes and
    functions."""
    if isinstance(value, dict):
        return value
    if type(value) in (list, tuple):
        return {str(i): each for i, each in enumerate(value)} if len(value) <= FEW else {}
    held = getattr(value, "__dict__", None)
    plain = isinstance(held, dict) and not (isinstance(value, nn.Module | torch.Tensor | type) or callable(value))
    return held if plain and held is not None else {}


def with_size(value: Any, path: Sequence[str], size: Any) -> Any:
    """Return a copy of what an attribute holds with another size at a place within; others may hold the same object."""
    if not path:
        return type(value)(size)
    held, key = fields_of(value), path[0]
    inner = with_size(held[key], path[1:], size)
    if type(value) in (list, tuple):
        return type(value)({**held, key: inner}.values())
    made = copy.copy(value)
    if isinstance(made, dict):
        made[key] = inner
    else:
        object.__setattr__(made, key, inner)  # a dataclass may be frozen
    return made


def _noting(kind: type, attributes: Iterable[str], kept: Mapping[tuple[int, str], str], read: set[str]) -> type | None:
    """Return a subclass that notes which of these attributes are read, by the names under which they are `kept`; None
    for a class that can't have one."""

    def noted(attribute: str) -> property:
        def get(self: Any) -> Any:
            read.add(kept[id(self), attribute])
            try:
                return self.__dict__[attribute]
            except KeyError:
                raise AttributeError(attribute) from None

        return property(
            get,
            lambda self, value: self.__dict__.__setitem__(attribute, value),
            lambda self: self.__dict__.__delitem__(attribute),
        )

    members = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, **{a: noted(a) for a in attributes}}
    try:
        return type(kind)(kind.__name__, (kind,), members)
    except Exception:  # a class may say how it is subclassed
        return None
