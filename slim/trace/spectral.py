"""Spectral norms of torch.nn.utils, in a trace: one operator, whose rule knows which channels its vectors follow.

torch divides a weight by an estimate of its largest singular value, uᵀWv, and keeps u and v from step to step.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, library, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from slim.trace.copy import Modules

if not hasattr(torch.ops.slim, "spectral_norm"):  # registered once, however often this module is imported
    _library = library.Library("slim", "DEF")
    _library.define("spectral_norm(Tensor weight, Tensor u, Tensor v, int dim) -> Tensor")

    def _normed(weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
        return weight / singular_value(weight, u, v, dim)

    _library.impl("spectral_norm", _normed, "CompositeExplicitAutograd")


def singular_value(weight: Tensor, u: Tensor, v: Tensor, dim: int) -> Tensor:
    """Return uᵀWv, where `dim` of the weight is the first dimension of W, and all others make up the second."""
    return u @ (weight.movedim(dim, 0).flatten(1) @ v)


class Normed(NamedTuple):
    """A weight under a spectral norm: the names of its tensors, and the dimension that u follows."""

    weight: str
    u: str
    v: str
    dim: int


def spectral_norms(modules: Modules) -> Iterator[Normed]:
    """Yield the weights under a spectral norm, of the old kind or the first of a weight's parametrizations."""
    for prefix, module in modules:
        if isinstance(module, _SpectralNorm) and hasattr(module, "_u") and prefix.endswith(".0."):
            yield Normed(f"{prefix[:-2]}original", f"{prefix}_u", f"{prefix}_v", module.dim)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                name = prefix + hook.name
                yield Normed(f"{name}_orig", f"{name}_u", f"{name}_v", hook.dim)


class _AsOneOperator(_SpectralNorm):
    def forward(self, weight: Tensor) -> Tensor:
        normed: Tensor = torch.ops.slim.spectral_norm(weight, self._u, self._v, self.dim)
        return normed


class _HookAsOneOperator(SpectralNorm):
    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        weight, u, v = (getattr(module, f"{self.name}_{part}") for part in ("orig", "u", "v"))
        normed: Tensor = torch.ops.slim.spectral_norm(weight, u, v, self.dim)
        return normed


def run_as_one_operator(module: nn.Module) -> None:
    """Let the spectral norms of a copied module be one operator each, without the step that improves u and v."""
    if type(module) is _SpectralNorm and hasattr(module, "_u"):
        module.__class__ = _AsOneOperator
    for hook in module._forward_pre_hooks.values():
        if type(hook) is SpectralNorm:
            hook.__class__ = _HookAsOneOperator
