"""Find the tensors in whatever a model returns or holds, with a name for each.

torch's pytree knows tuples, lists and dicts. Models return more: dataclasses, namespaces, subclasses of lists and
dicts, distributions, objects with tensors in their attributes.
"""

from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import suppress
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.errors import SlimError

_LEAVES = (str, bytes, int, float, complex, type(None), type, torch.dtype, torch.device, np.generic, ModuleType)
_CODE = (FunctionType, BuiltinFunctionType, MethodType, nn.Module)  # what may lead to tensors, but holds no results
_ITERATED = (Sequence, Set, ValuesView, GeneratorType, map, filter, zip)


def find_tensors(value: Any, name: str = "output", *, arrays: bool = True) -> dict[str, Tensor]:
    """Return the tensors (and numeric `arrays`, as tensors) in `value` by path: "output.logits", "output[0].x".

    Looked for in sequences, mappings and sets, in attributes and slots, nested as deep as they are; a tensor that is
    there twice counts once. Modules and functions aren't entered.

    >>> list(find_tensors({"a": torch.zeros(1), "b": [torch.ones(1)]}))
    ["output['a']", "output['b'][0]"]
    """
    found: dict[str, Tensor] = {}
    seen: dict[int, Any] = {}  # what was met, by id: held, so that no other object gets that id
    pending = [(name, value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, (*_LEAVES, *_CODE)) or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            found[path] = item
        elif isinstance(item, np.ndarray):
            if arrays and item.dtype.kind in "biufc":
                found[path] = torch.from_numpy(np.ascontiguousarray(item))
        else:
            pending += reversed([(path + step, child) for step, child in _children(item)])
    return found


def output_tensors(output: Any) -> dict[str, Tensor]:
    """Return `find_tensors(output)`. Raises SlimError where there are none: nothing could be kept or compared."""
    found = find_tensors(output)
    if not found:
        raise SlimError(f"forward returns {_described(output)} in which there is no tensor: expected at least one")
    return found


def _described(output: Any) -> str:
    return "None" if output is None else f"an object of type {type(output).__name__}"


def _children(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Mapping):
        yield from ((f"[{key!r}]", item[key]) for key in list(item))
    elif isinstance(item, tuple) and hasattr(item, "_fields"):
        yield from ((f".{field}", child) for field, child in zip(item._fields, item))
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
