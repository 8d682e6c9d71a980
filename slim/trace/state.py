"""Undo what a forward pass leaves behind: caches, counters, states, draws of random numbers."""

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.trace.copy import INTERNAL, Tensors, attribute_tensors, named_modules, registered_tensors, unregistered
from slim.trace.outputs import find_tensors

_CONTAINERS = {dict, OrderedDict, defaultdict, list, set, deque}
_REGISTERED = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}  # which hold no containers
_HOLDING = _CONTAINERS | {FunctionType}
_Act = Callable[[Any, Any], object]
_GENERATORS: dict[type, tuple[Callable[[Any], Any], _Act, _Act]] = {  # read and set what they hold, and seed them
    random.Random: (random.Random.getstate, random.Random.setstate, random.Random.seed),
    np.random.RandomState: (
        np.random.RandomState.get_state,
        np.random.RandomState.set_state,
        np.random.RandomState.seed,
    ),
    np.random.Generator: (
        lambda generator: generator.bit_generator.state,
        lambda generator, state: setattr(generator.bit_generator, "state", state),
        lambda generator, seed: setattr(generator.bit_generator, "state", np.random.PCG64(seed).state),
    ),
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state, torch.Generator.manual_seed),
}
_NOTED = {*_HOLDING, *_GENERATORS}


def _is_as_before(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    """Say whether a dict holds the very objects that it held."""
    return now.keys() == before.keys() and all(map(is_, now.values(), before.values()))


@contextmanager
def restored(model: nn.Module, state: "State | None" = None) -> Iterator["State"]:
    """Put the model's modules back as they were: their attributes and classes, the containers in them (those that hooks
    captured, too), and what buffers and stored tensors hold. Parameters keep their values.

    A forward pass that fills a cache, counts, or draws from a random generator then finds the same state each time.
    `state` is what they are put back to, where it is known (default: as they are now).
    """
    state = State(model) if state is None else state
    draws = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield state
    finally:
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        state.restore()


class State:
    """What the modules of a model hold at a time, to which they can be put back any number of times.

    `modules` are listed under each of their names, and `registered` their parameters and buffers; `stored` are the
    tensors in other attributes; `tensors` are those that forward may write, by name: buffers, and what is stored.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = named_modules(model)
        self.registered = registered_tensors(self.modules)
        self.stored: Tensors = []
        self._modules = [(name, module, type(module), {**module.__dict__}) for name, module in self.modules]
        self._containers: dict[int, tuple[Any, Any]] = {}
        self.tensors: dict[str, Tensor] = {}
        self._draws: list[tuple[Any, Any]] = []  # generators of the modules' own, and what they hold
        self._own: list[tuple[str, Any]] = []  # containers in attributes, by name
        for prefix, module, _, attributes in self._modules:
            for name, value in attributes.items():
                kind = type(value)
                if kind not in _NOTED:  # most aren't
                    continue
                if name in _REGISTERED:
                    self._containers[id(value)] = value, value.copy()
                elif kind in _GENERATORS:
                    self._draws.append((value, _GENERATORS[kind][0](value)))
                elif value or name not in INTERNAL:  # forward code adds no hooks
                    self._note(value)
                    if name not in INTERNAL:
                        self._own.append((prefix + name, value))
            for key, tensor in module._buffers.items():
                if tensor is not None:
                    self.tensors[prefix + key] = tensor
            stored = attribute_tensors(prefix, attributes)
            self.stored += stored
            self.tensors |= {path: tensor for path, tensor in stored if not isinstance(tensor, nn.Parameter)}
        real = [tensor for tensor in self.tensors.values() if not tensor.is_meta]
        self._values = [(tensor, tensor.data, tensor.detach().clone()) for tensor in real]

    @property
    def all_tensors(self) -> Tensors:
        """Return `copy.all_tensors` of the model."""
        return self.registered + unregistered(self.stored, self.registered)

    def _note(self, value: Any) -> None:
        kind = type(value)
        if kind in _CONTAINERS:
            if id(value) not in self._containers:
                self._containers[id(value)] = value, dict(value) if isinstance(value, dict) else list(value)
                for item in value.values() if isinstance(value, dict) else value:
                    if type(item) in _HOLDING:
                        self._note(item)
        elif kind is FunctionType:
            for cell in value.__closure__ or ():
                try:
                    held = cell.cell_contents
                except ValueError:  # empty
                    continue
                if type(held) in _CONTAINERS:
                    self._note(held)

    def written(self) -> dict[str, Tensor]:
        """Return the tensors that have been put into attributes since, new ones or in the place of others, by name."""
        found: dict[str, Tensor] = {}
        for path, value in self._own:  # first: what has taken a container's place since counts
            if self._is_filled(value):
                found |= find_tensors(value, path, arrays=False)
        for prefix, module, _, attributes in self._modules:
            if not _is_as_before(buffers := module._buffers, self._held(buffers)):
                found |= {prefix + key: tensor for key, tensor in buffers.items() if tensor is not None}
            for name, value in () if _is_as_before(module.__dict__, attributes) else module.__dict__.items():
                if name not in INTERNAL and value is not attributes.get(name):
                    found |= find_tensors(value, prefix + name, arrays=False)
        return {n: t for n, t in found.items() if t is not self.tensors.get(n)}

    def _held(self, container: Any) -> Any:
        """Return what a container held, nothing where it wasn't there."""
        return self._containers.get(id(container), (None, {}))[1]

    def _is_filled(self, value: Any) -> bool:
        """Say whether a container of an attribute holds something else than before."""
        if type(value) not in _CONTAINERS or id(value) not in self._containers or isinstance(value, set):
            return False
        before = self._containers[id(value)][1]
        if isinstance(value, dict):
            return not _is_as_before(value, before)
        return len(value) != len(before) or any(a is not b for a, b in zip(value, before))

    def drawn(self) -> list[object]:
        """Return where the generators of random numbers stand that forward code draws from."""
        own = [_GENERATORS[type(generator)][0](generator) for generator, _ in self._draws]
        tensors = [torch.get_rng_state(), *(held for held in own if isinstance(held, Tensor))]
        numpy = np.random.get_state(legacy=False)["state"]
        states = [random.getstate(), numpy["key"].tobytes(), numpy["pos"], *(t.numpy().tobytes() for t in tensors)]
        return [*states, repr(own)]

    def seed(self, seed: int) -> None:
        """Let these generators start from a seed."""
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        for generator, _ in self._draws:
            _GENERATORS[type(generator)][2](generator, seed)

    def restore(self) -> None:
        for _, module, kind, attributes in self._modules:
            if type(module) is not kind:
                module.__class__ = kind
            object.__setattr__(module, "__dict__", {**attributes})
        for container, before in self._containers.values():
            if container or before:
                container.clear()
                container.update(before) if isinstance(container, dict | set) else container.extend(before)
        for generator, held in self._draws:
            _GENERATORS[type(generator)][1](generator, held)
        for tensor, data, value in self._values:
            tensor.data = data.copy_(value) if data.shape == value.shape else value
