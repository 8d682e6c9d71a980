"""Find the tensors in whatever a model returns or holds, with a name for each.

torch's pytree knows tuples, lists and dicts. Models return more: dataclasses, namespaces, subclasses of lists and
dicts, distributions, objects with tensors in their attributes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import suppress
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from slim.errors import SlimError

_LEAVES = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, np.generic, ModuleType)
_CODE = (FunctionType, BuiltinFunctionType, MethodType, nn.Module)  # what may lead to tensors, but holds no results
_ITERATED = (Sequence, Set, ValuesView)
_LONG = 10_000  # items of an iterator, which may have no end


def find_tensors(
    value: Any, name: str = "output", *, arrays: bool = True, result: bool = False, numbers: bool = False
) -> dict[str, Tensor]:
    """Return the tensors (and numeric `arrays`, as tensors) in `value` by path: "output.logits", "output[0].x".

    Looked for in sequences, mappings and sets, in attributes and slots, nested as deep as they are; a tensor that is
    there twice counts once. Modules and functions aren't entered. In a `result`, which nobody else has, functions are,
    for what they have captured, and iterators are used up; with `numbers`, those of Python count as well.

    >>> list(find_tensors({"a": torch.zeros(1), "b": [torch.ones(1)]}))
    ["output['a']", "output['b'][0]"]
    """
    found: dict[str, Tensor] = {}
    seen: dict[int, Any] = {}  # what was met, by id: held, so that no other object gets that id
    pending = [(name, value)]
    while pending:
        path, item = pending.pop()
        if numbers and type(item) in (int, float) and math.isfinite(item):
            with _disable_current_modes():
                found[path] = torch.tensor(item, dtype=torch.float64 if type(item) is float else None)
            found[path].__dict__["_number"] = True
        if isinstance(item, _LEAVES) or id(item) in seen:
            continue
        if isinstance(item, _CODE):
            pending += reversed([(path + step, child) for step, child in _captured(item)] if result else [])
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            found[path] = item
        elif isinstance(item, np.ndarray):
            if arrays and item.dtype.kind in "biufc":
                found[path] = torch.from_numpy(np.ascontiguousarray(item))
            elif item.dtype.kind == "O":
                pending.append((path, item.tolist()))
        else:
            item = list(islice(item, _LONG)) if result and _is_iterator(item) else item
            pending += reversed([(path + step, child) for step, child in _children(item)])
    return found


def _is_iterator(item: Any) -> bool:
    return isinstance(item, Iterator) and type(item).__module__ in ("builtins", "itertools")


def _captured(code: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a function or a bound method has captured."""
    if isinstance(code, FunctionType):
        for name, cell in zip(code.__code__.co_freevars, code.__closure__ or ()):
            with suppress(ValueError):  # empty
                yield f".{name}", cell.cell_contents
        yield from ((f".{i}", each) for i, each in enumerate(code.__defaults__ or ()))
    elif isinstance(code, MethodType):
        yield ".__self__", code.__self__


def output_tensors(output: Any, *, numbers: bool = False) -> dict[str, Tensor]:
    """Return the tensors in what forward returned, with `numbers` those of Python as well. Raises SlimError where there
    are no tensors: nothing could be kept or compared."""
    found = find_tensors(output, result=True, numbers=numbers)
    if all("_number" in tensor.__dict__ for tensor in found.values()):
        raise SlimError(f"forward returns {_described(output)} in which there is no tensor: expected at least one")
    return found


def _described(output: Any) -> str:
    return "None" if output is None else f"an object of type {type(output).__name__}"


def _children(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Mapping):
        yield from ((f"[{key!r}]", item[key]) for key in list(item))
    elif isinstance(item, tuple) and hasattr(item, "_fields"):
        yield from ((f".{field}", child) for field, child in zip(item._fields, item))
    elif isinstance(item, partial):
        yield from ((f".{name}", getattr(item, name)) for name in ("func", "args", "keywords"))
    elif isinstance(item, _ITERATED):
        yield from ((f"[{index}]", child) for index, child in enumerate(item))
    yield from ((f".{attribute}", child) for attribute, child in _attributes(item))


def _attributes(item: Any) -> Iterator[tuple[str, Any]]:
    """Return what an object holds in its `__dict__` and its slots; properties aren't called."""
    with suppress(TypeError):  # one that has no `__dict__`
        yield from list(vars(item).items())
    for kind in type(item).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot in ("__dict__", "__weakref__"):
                continue
            private = slot.startswith("__") and not slot.endswith("__")
            held = f"_{kind.__name__.lstrip('_')}{slot}" if private else slot
            with suppress(AttributeError):  # a slot that isn't set
                yield slot, object.__getattribute__(item, held)
