"""Weights that torch.nn.utils computes from directions and lengths before each forward: of fewer channels a direction
is shorter, so that `rebuild` states them anew."""

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from slim.trace.copy import Modules
from slim.trace.spectral import spectral_norms

PARAMETRIZED = ".parametrizations."  # in the names of what torch.nn.utils.parametrize keeps


def owner_of(name: str) -> str:
    """Return the name of the module whose tensor this is; of a parametrization, of the module that has it."""
    holder, parametrized, _ = f".{name}".partition(PARAMETRIZED)
    return holder[1:] if parametrized else name.rpartition(".")[0]


def weight_norms(modules: Modules) -> Iterator[tuple[str, nn.Module, WeightNorm]]:
    """Yield what the old `torch.nn.utils.weight_norm` was called on: how its names begin, the module, and the norm."""
    for prefix, module in modules:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                yield prefix, module, hook


def stated_anew(modules: Modules) -> set[str]:
    """Return the names of the tensors of which weights are computed, and that `rebuild` may state anew."""
    found = {f"{prefix}{norm.name}_{part}" for prefix, _, norm in weight_norms(modules) for part in "gv"}
    found |= {normed.v for normed in spectral_norms(modules)}
    return found | {
        prefix + name for prefix, module in modules for name in module._parameters if PARAMETRIZED in f".{prefix}"
    }
