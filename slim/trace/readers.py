"""Layers whose bias can take up channels that are constant where they read them, so that these can go."""

from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from slim.trace.copy import Modules
from slim.trace.labeller import Labeller

_FORWARDS = {nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}


def weight_of(layer: nn.Module) -> str | None:
    """Return the name that a linear layer or convolution has for its weight, or for what that is computed of: None
    where it has no such, and for other layers."""
    if type(layer).forward not in _FORWARDS or "forward" in layer.__dict__:
        return None
    if layer._parameters.get("weight") is not None:
        return "weight"
    chain: Any = layer._modules.get("parametrizations")
    computed = None if chain is None or "weight" not in chain else chain["weight"]
    plain = computed is not None and "original" in computed._parameters and not any(True for _ in computed.buffers())
    return "parametrizations.weight.original" if plain else None


def readers(modules: Modules) -> dict[str, nn.Module]:
    """Return the linear layers and convolutions, by name, that give every place the same for a channel that is the same
    at every place, and whose weight and bias are their own."""
    held = Counter(id(t) for _, module in modules for t in module._parameters.values() if t is not None)
    found = {}
    for prefix, module in modules:
        reads = weight_of(module) is not None and not _meets_zeros(module)
        if reads and all(held[id(t)] == 1 for t in module.parameters()):
            found[prefix[:-1]] = module
    return found


def _meets_zeros(module: nn.Module) -> bool:
    """Say whether a convolution reads zeros around what it is given."""
    padding: Any = getattr(module, "padding", 0)
    none = padding == "valid" or not any(padding if isinstance(padding, tuple) else (padding,))
    return not none and getattr(module, "padding_mode", "zeros") == "zeros"


@contextmanager
def noting_readers(labeller: Labeller, modules: Modules, names: Container[str]) -> Iterator[None]:
    """Let a run know which of these layers, of those that are named, is at work."""

    def at_work(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        labeller.reader = name
        try:
            return forward(*args, **kwargs)
        finally:
            labeller.reader = None

    found = {prefix[:-1]: module for prefix, module in modules if prefix[:-1] in names}
    for name, module in found.items():  # hooks would take longer than what they surround
        module.__dict__["forward"] = partial(at_work, name, module.forward)
    try:
        yield
    finally:
        for module in found.values():
            module.__dict__.pop("forward", None)
