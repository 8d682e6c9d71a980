"""Copy a network around its tensors: the same modules, with other parameters and buffers in them.

`copy.deepcopy` with a memo does this too, and is what decides in doubt; but it asks the same questions of every empty
dict of every module, which takes most of the time that planning a small network needs, and it refuses networks that
keep what can't be copied: features of the last training step, locks, writers, open files.
"""

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from functools import cached_property
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.trace.outputs import find_tensors

_PLAIN = {bool, int, float, complex, str, bytes, type(None), type, BuiltinFunctionType, ModuleType, torch.dtype}
_CONTAINERS = {dict, OrderedDict, list, set}
_FLAT = {tuple, *_CONTAINERS}
COMPILED = "_compiled_call_impl"  # of model.compile(), in place
INTERNAL = frozenset(nn.Module().__dict__)  # attributes that every module has


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that a compiled or a distributed one wraps; any other as it is. SlimError for what is none."""
    if not isinstance(model, nn.Module):
        raise SlimError(f"model is a {type(model).__name__}: expected a torch.nn.Module")
    while True:
        inner = getattr(model, "_orig_mod", None)  # torch.compile's
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


Modules = list[tuple[str, nn.Module]]
Tensors = list[tuple[str, Tensor]]


def named_modules(model: nn.Module) -> Modules:
    """List every module under each of its names, with a dot at the end."""
    found: Modules = []

    def visit(prefix: str, module: nn.Module) -> None:
        found.append((prefix, module))
        if module._modules:
            for name, child in module._modules.items():
                if child is not None:
                    visit(f"{prefix}{name}.", child)

    visit("", unwrapped(model))
    return found


def dotted(*parts: str) -> str:
    """Return the name of what lies within what: parts without a name, such as the network itself, are left out.

    >>> dotted("", "weight"), dotted("features.3", "weight")
    ('weight', 'features.3.weight')
    """
    return ".".join(filter(None, parts))


def named_tensors(model: nn.Module) -> Tensors:
    """List every parameter and buffer under each of its names (a shared one has several)."""
    return registered_tensors(named_modules(model))


def stored_tensors(model: nn.Module) -> Tensors:
    """List the tensors that modules hold beside their parameters and buffers, by path: constants, caches, states."""
    modules = named_modules(model)
    return _stored(modules, registered_tensors(modules))


def all_tensors(model: nn.Module) -> Tensors:
    """List `named_tensors`, then `stored_tensors`."""
    modules = named_modules(model)
    registered = registered_tensors(modules)
    return registered + _stored(modules, registered)


def registered_tensors(modules: Modules) -> Tensors:
    """List the parameters and buffers of modules that are listed already."""
    found = []
    for prefix, module in modules:
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    found.append((prefix + name, tensor))
    return found


def _stored(modules: Modules, registered: Tensors) -> Tensors:
    return unregistered(
        [each for prefix, module in modules for each in attribute_tensors(prefix, module.__dict__)], registered
    )


def unregistered(tensors: Tensors, registered: Tensors) -> Tensors:
    """List the tensors that aren't among the registered ones."""
    known = {id(tensor) for _, tensor in registered}
    return [(path, tensor) for path, tensor in tensors if id(tensor) not in known]


def attribute_tensors(prefix: str, attributes: dict[str, Any]) -> Tensors:
    """List the tensors in a module's own attributes, by path."""
    own = attributes.keys() - INTERNAL
    own = {name for name in own if type(attributes[name]) not in _PLAIN and not _is_flat(attributes[name])}
    found: Tensors = []
    for name in attributes if own else ():  # in their order
        if name in own:
            found += find_tensors(attributes[name], prefix + name, arrays=False).items()
    return found


def _is_flat(value: Any) -> bool:
    return type(value) in _FLAT and _PLAIN.issuperset(map(type, value.values() if isinstance(value, dict) else value))


def detached(tensor: Tensor) -> Tensor:
    """Return a copy that no graph holds; of a parameter, a parameter."""
    copied = tensor.detach().clone()
    return nn.Parameter(copied, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def clone(
    model: nn.Module,
    replace: Callable[[Tensor], Tensor] = detached,
    replace_stored: Callable[[Tensor], Tensor] = detached,
) -> nn.Module:
    """Copy `model` with `replace(tensor)` for each of its parameters and buffers, and `replace_stored` for the tensors
    in other attributes; shared ones stay shared. What can't be copied is shared with the original."""
    model = unwrapped(model)
    memo: dict[int, Any] = {}
    modules = named_modules(model)
    registered = registered_tensors(modules)
    for tensors, replaced in ((registered, replace), (_stored(modules, registered), replace_stored)):
        for _, tensor in tensors:
            if id(tensor) not in memo:
                memo[id(tensor)] = replaced(tensor)
    fresh: list[tuple[nn.Module, nn.Module]] = []
    others: list[tuple[str, nn.Module]] = []
    for name, module in modules:
        if id(module) not in memo:
            if not _is_simple(type(module)):
                others.append((name, module))
                continue
            new = memo[id(module)] = object.__new__(type(module))  # a class's own __new__ may take arguments
            fresh.append((module, new))
    for old, new in fresh:  # all are known by now, so attributes that refer to other modules find their copies
        worked_out = _worked_out(type(old))
        copied = {
            k: v if (kind := type(v)) in _PLAIN else kind() if kind in _CONTAINERS and not v else _copy(v, memo)
            for k, v in old.__dict__.items()  # most are plain, or empty
            if k not in worked_out
        }
        copied.pop(COMPILED, None)  # it runs the original
        if "_orig_mod" in old._modules:  # torch.compile(module): so does its forward
            copied["forward"] = memo[id(old._modules["_orig_mod"])]
        object.__setattr__(new, "__dict__", copied)
    for name, module in others:
        try:
            copy.deepcopy(module, memo)
        except Exception as error:
            raise SlimError(
                f"module {name[:-1] or 'model'!r} can't be copied: {type(error).__name__}: {error}"
            ) from error
    made: nn.Module = memo[id(model)]
    return made


_anew: dict[type, set[str]] = {}


def _worked_out(kind: type) -> set[str]:
    """Return the attributes that a class works out when they are first read: in a copy, anew."""
    if kind in _anew:
        return _anew[kind]
    found = {k for base in kind.__mro__ for k, v in vars(base).items() if isinstance(v, cached_property)}
    _anew[kind] = {k for k in found if isinstance(getattr(kind, k, None), cached_property)}  # no subclass has another
    return _anew[kind]


def _is_simple(kind: type) -> bool:
    """Say whether the class leaves copying to its attributes."""
    return not hasattr(kind, "__deepcopy__") and kind.__reduce_ex__ is object.__reduce_ex__


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind in _CONTAINERS and not value:
        return kind()
    if id(value) in memo:
        return memo[id(value)]
    if kind is FunctionType:
        return _rebound(value, memo)
    if kind is MethodType:
        return MethodType(_copy(value.__func__, memo), _copy(value.__self__, memo))
    if kind is tuple:
        return value if _is_flat(value) else tuple(_copy(item, memo) for item in value)
    if kind in (list, set, deque, dict, OrderedDict, defaultdict):
        return _copied_container(value, memo)
    known = len(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:
        while len(memo) > known:  # what was begun
            memo.popitem()
    return _copied_attributes(value, memo)


def _copied_container(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    made: Any = kind(value.default_factory) if kind is defaultdict else kind()
    memo[id(value)] = made
    if isinstance(value, dict):
        made.update((_copy(key, memo), _copy(item, memo)) for key, item in value.items())
    elif isinstance(value, set):
        made.update(_copy(item, memo) for item in value)
    else:
        made.extend(_copy(item, memo) for item in value)
    return made


def _copied_attributes(value: Any, memo: dict[int, Any]) -> Any:
    """Return an object that deepcopy refuses, copied attribute by attribute where it is plain enough, else itself."""
    if not isinstance(getattr(value, "__dict__", None), dict) or not _is_simple(type(value)):
        return value
    try:
        made = object.__new__(type(value))
    except TypeError:  # a lock, a file: not made of attributes
        return value
    memo[id(value)] = made
    made.__dict__.update({key: _copy(item, memo) for key, item in value.__dict__.items()})
    return made


def _rebound(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """Return the function with the copies of what it captured of the model: forward code in a closure runs the copy."""

    def captured(value: Any) -> Any:
        if isinstance(value, FunctionType | MethodType):
            return _copy(value, memo)
        return memo.get(id(value), value) if isinstance(value, Tensor | nn.Module) else value

    memo[id(function)] = function  # for one that captures itself
    cells = tuple(_recaptured(cell, captured) for cell in function.__closure__ or ())
    defaults = tuple(captured(value) for value in function.__defaults__ or ())
    same = zip((*cells, *defaults), (*(function.__closure__ or ()), *(function.__defaults__ or ())))
    if all(new is old for new, old in same):
        return function
    made = FunctionType(function.__code__, function.__globals__, function.__name__, defaults or None, cells)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    memo[id(function)] = made
    return made


def _recaptured(cell: CellType, captured: Callable[[Any], Any]) -> CellType:
    try:
        held = cell.cell_contents
    except ValueError:  # empty
        return cell
    new = captured(held)
    return cell if new is held else CellType(new)
