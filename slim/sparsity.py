"""A penalty on the BatchNorm scales γ, added to any training loop by one line.

Network Slimming (Liu et al., ICCV 2017, https://arxiv.org/abs/1708.06519, equation 1) trains on
loss + λ·Σ|γ|. `sparsify` hooks the optimizer, so that just before each of its steps the penalty's subgradient
λ·sign(γ) joins γ's gradient; the loop itself stays as it is.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError, unknown

NEAR_ZERO = 1e-2
"""A γ below this counts as near zero. It is absolute, as the threshold that prunes compares γ across layers,
and so that the share doesn't move when only the largest γ does. It is 2 % of the paper's first value 0.5, and
above the band of about λ·lr/(1 − momentum), 1e-3 at most for usual settings, in which the subgradient step
keeps swinging round 0."""


class Penalty(Protocol):
    """A function of all penalised values together, as one flat tensor [P]."""

    strength: float  # λ

    def value(self, x: Tensor) -> Tensor:
        """What it adds to the loss: a tensor without dimensions."""

    def subgradient(self, x: Tensor) -> Tensor:
        """What it adds to the gradient of x: a tensor like x."""


@dataclass
class L1:
    """strength · Σ|x|, with the subgradient strength · sign(x), where sign(0) = 0."""

    strength: float

    def value(self, x: Tensor) -> Tensor:
        return self.strength * x.abs().sum()

    def subgradient(self, x: Tensor) -> Tensor:
        return self.strength * x.sign()


def sparsify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    penalty: Penalty,
    *,
    method: str = "subgradient",
    targets: str = "*",
) -> "Sparsity":
    """Penalise the BatchNorm scales γ of `model` from now on; call `.remove()` on the result to stop.

    - `penalty`: such as `L1(1e-4)`. It is copied; change `.strength` of the result to schedule λ.
    - `method`: "subgradient" adds the penalty's subgradient to γ's gradient before each step of the
      optimizer.
    - `targets`: a shell pattern for the names of the BatchNorm layers in `model.named_modules()`, such as
      "layer1.*".

    Penalised are the γ of all matching BatchNorm layers that have one and train it. The penalty enters once
    per step of the optimizer, however many backward passes came before it, and on each process of a
    distributed run after gradients were averaged, so it needs no scaling for either. With
    `torch.amp.GradScaler` the gradients are already unscaled when an ordinary optimizer steps; fused ones
    unscale inside the step, and the subgradient is multiplied by their scale to match. With
    `optimizer.step(closure)` it enters after the closure has computed the gradients. Clipping gradients
    before the step doesn't see the penalty; adaptive optimizers such as Adam rescale it with the rest of γ's
    gradient.

    Raises `SlimError` when no γ matches, when the optimizer lacks one that does, for an unknown method, and
    for a strength that isn't a number ≥ 0.
    """
    if method != "subgradient":
        raise unknown("sparsity method", method, ["subgradient"])
    gammas = {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and isinstance(module.weight, nn.Parameter)
        and module.weight.requires_grad
        and fnmatchcase(name, targets)
    }
    if not gammas:
        raise SlimError(f"no BatchNorm layer with a trainable scale matches {targets!r}: there is nothing to penalise")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, gamma in gammas.items():
        if id(gamma) not in held:
            raise SlimError(
                f"the optimizer lacks {name}.weight: expected all {len(gammas)} scales that match "
                f"{targets!r}; give it the model's parameters, or narrow targets"
            )
    return Sparsity(gammas, optimizer, penalty)


class Sparsity:
    """A penalty at work. `gammas` maps the names of the penalised BatchNorm layers to their γ."""

    def __init__(self, gammas: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, penalty: Penalty) -> None:
        self.gammas = gammas
        self.penalty = copy.copy(penalty)
        self.strength = penalty.strength  # checks it
        self._unique = list({id(gamma): gamma for gamma in gammas.values()}.values())  # tied layers share one
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    @property
    def strength(self) -> float:
        """λ. It may be changed at any time and acts from the next step on."""
        return self.penalty.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value < math.inf:
            raise SlimError(f"sparsity strength is {value}: expected a number ≥ 0")
        self.penalty.strength = value

    def remove(self) -> None:
        """Take the penalty off the optimizer. A second call does nothing."""
        self._hook.remove()

    @torch.no_grad()
    def value(self) -> float:
        """The penalty's part of the loss, λ·Σ|γ| for `L1`."""
        return float(self.penalty.value(_flat(self._unique)))

    @torch.no_grad()
    def near_zero(self, threshold: float = NEAR_ZERO) -> float:
        """The share, 0 to 1, of penalised γ with |γ| < threshold."""
        return float((_flat(self._unique).abs() < threshold).double().mean())

    def _before_step(self, optimizer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            self._add(optimizer)
            return None

        def penalised(closure: Callable[[], Any] = closure) -> Any:
            loss = closure()
            self._add(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": penalised}

    @torch.no_grad()
    def _add(self, optimizer: Any) -> None:
        gammas = [gamma for gamma in self._unique if gamma.grad is not None]
        gradients = [gamma.grad for gamma in gammas if gamma.grad is not None]
        if not gammas or self.strength == 0:
            return
        # One flat tensor: a few calls instead of two for each layer, and a penalty may look at all γ.
        added = self.penalty.subgradient(_flat(gammas))
        scale = getattr(optimizer, "grad_scale", None)  # from GradScaler, where the step itself unscales
        if scale is not None:
            added = added * scale.to(added.device)
        parts = added.split([gamma.numel() for gamma in gammas])
        torch._foreach_add_(gradients, list(parts))


def _flat(tensors: list[nn.Parameter]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
