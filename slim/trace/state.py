"""Undo what a forward pass leaves behind: caches, counters, states, draws of random numbers."""

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from slim.trace.copy import named_modules, named_tensors, stored_tensors

_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Put the model's modules back as they were: their attributes and classes, the containers in them (those that hooks
    captured, too), and what buffers and stored tensors hold. Parameters keep their values.

    A forward pass that fills a cache, counts, or draws from a random generator then finds the same state each time.
    """
    modules = [(module, type(module), {**module.__dict__}) for _, module in named_modules(model)]
    containers: dict[int, tuple[Any, Any]] = {}
    for _, _, attributes in modules:
        for value in attributes.values():
            _note_containers(value, containers)
    tensors = [tensor for _, tensor in named_tensors(model) if not isinstance(tensor, nn.Parameter)]
    stored = [tensor for _, tensor in stored_tensors(model)]
    values = [(tensor, tensor.data, tensor.detach().clone()) for tensor in (*tensors, *stored) if not tensor.is_meta]
    draws = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(draws[0])
        np.random.set_state(draws[1])
        for module, kind, attributes in modules:
            module.__class__ = kind
            object.__setattr__(module, "__dict__", attributes)
        for container, before in containers.values():
            _refill(container, before)
        for tensor, data, before in values:
            tensor.data = data.copy_(before) if data.shape == before.shape else before


def _note_containers(value: Any, noted: dict[int, tuple[Any, Any]]) -> None:
    if id(value) in noted:
        return
    if isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                held = cell.cell_contents
            except ValueError:  # empty
                continue
            if type(held) in _CONTAINERS:
                _note_containers(held, noted)
    elif type(value) in _CONTAINERS:
        noted[id(value)] = value, copy.copy(value)
        for item in value.values() if isinstance(value, dict) else value:
            _note_containers(item, noted)


def _refill(container: Any, before: Any) -> None:
    container.clear()
    if isinstance(container, dict | set):
        container.update(before)
    else:
        container.extend(before)
