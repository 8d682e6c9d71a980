"""How far an optimizer went: the step size that belongs to a proximal step.

Minimise f(x) + λ·p(x). A gradient step x − α·∇f(x) with the step size α is followed by prox with the same α,

    x' = argmin over x of Σ (x_i − (x_i − α_i·∇f_i))² / (2·α_i) + λ·p(x),

whose fixed points are those of f + λ·p: 0 ∈ ∇f(x) + λ·∂p(x). That holds with a step size α_i for each value, too.
With another step size in the second half, λ would be off by the ratio of the two. So what is α where the optimizer
steps along something else than the gradient? Every optimizer here moves by a weighted sum of the gradients so far,

    x' = x − Σ_k w_k·∇f(x_k),

and at a fixed point all of them are the same gradient. So α = Σ_k w_k: the step per unit of a steady gradient.

- **SGD** with momentum μ and dampening τ keeps b = μ·b + (1 − τ)·∇f, from b = ∇f at first, and steps by lr·b. The
  weights in b add up to c = 1 after the first step and c' = μ·c + (1 − τ) from then on, so α = lr·c, which tends to
  lr·(1 − τ)/(1 − μ): ten times lr for μ = 0.9. Nesterov (τ = 0) steps by lr·(∇f + μ·b), so α = lr·(1 + μ·c), which
  tends to lr/(1 − μ) as well. Weight decay joins ∇f and is part of f.
- **Adam and AdamW** step by lr·m̂/(√v̂ + ε). The weights in m̂ = m/(1 − β₁ᵗ) add up to 1 from the first step on, so
  α_i = lr/(√v̂_i + ε), with v̂ = v/(1 − β₂ᵗ), or the largest v so far with amsgrad. The scaling v̂ changes from step to
  step, but the fixed point doesn't depend on it. Decoupled weight decay shrinks x before the step; it isn't part of f,
  which is one more reason to keep it off what is penalised.

lr is that of the parameter's group in that very step, so schedules and per-group learning rates need no care. Each
parameter keeps its own c; one that was trained before it was watched has reached its limit.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError


def knows(optimizer: torch.optim.Optimizer) -> bool:
    """Say whether the step size of an optimizer can be told."""
    return isinstance(optimizer, torch.optim.SGD | torch.optim.Adam)  # AdamW is an Adam


class StepSizes:
    """Watches the steps of `optimizer` on some `parameters`, laid end to end."""

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], groups: list[int]) -> None:
        self.adam = isinstance(optimizer, torch.optim.Adam)
        if not knows(optimizer):
            raise SlimError(
                f"method 'proximal' can't tell the step size of {type(optimizer).__name__}: expected SGD, Adam or "
                "AdamW of torch.optim, or method 'subgradient' or 'auto'"
            )
        self.groups = groups  # the number of each parameter's group
        self.sums = [0.0] * len(parameters)  # c, for SGD
        self.weights: list[float] | Tensor = [0.0] * len(parameters)  # of a steady gradient in SGD's step, α/lr
        self._told: list[float] = []  # the same, where that is a tensor
        self.follow(parameters)

    def follow(self, parameters: list[nn.Parameter]) -> None:
        """Go on with thinner parameters in the place of the ones so far."""
        self.parameters = parameters
        self.moved = [True] * len(parameters)  # whether a parameter had a gradient in the last step
        self._sizes = [parameter.numel() for parameter in parameters]
        self._counts = torch.tensor(self._sizes, device=parameters[0].device)

    def hold(self) -> None:
        """Keep the weights in a tensor from now on, which a recorded step reads anew each time."""
        if not isinstance(self.weights, Tensor):
            self.weights = torch.tensor(self.weights, device=self.parameters[0].device)

    @property
    def held(self) -> bool:
        return isinstance(self.weights, Tensor)

    def before_step(self, optimizer: Any) -> None:
        if self.adam or all(self.sums):
            return
        for i, parameter in enumerate(self.parameters):
            if not self.sums[i] and optimizer.state.get(parameter, {}).get("momentum_buffer") is not None:
                group = optimizer.param_groups[self.groups[i]]
                self.sums[i] = (1 - group["dampening"]) / (1 - group["momentum"])

    def after_step(self, optimizer: Any) -> Tensor | float:
        """Return α of the step just taken: one number where it is the same for all values, else a flat tensor [P]. It
        is 0 where a parameter had no gradient."""
        self.look()
        self.count(optimizer)
        return self.size(optimizer)

    def look(self) -> None:
        """Take note of which parameters have a gradient."""
        self.moved = [parameter.grad is not None for parameter in self.parameters]

    def count(self, optimizer: Any) -> None:
        """Go on by a step of SGD: its momentum holds one gradient more."""
        if self.adam:
            return
        weights = [self._weight(i, optimizer.param_groups[group]) for i, group in enumerate(self.groups)]
        if not isinstance(self.weights, Tensor):
            self.weights = weights
        elif weights != self._told:
            self.weights.copy_(torch.tensor(weights), non_blocking=True)
        self._told = weights

    def _weight(self, i: int, group: dict[str, Any]) -> float:
        momentum = group["momentum"]
        if not self.moved[i] or not momentum:
            return float(self.moved[i])
        self.sums[i] = momentum * self.sums[i] + (1 - group["dampening"]) if self.sums[i] else 1.0
        return 1 + momentum * self.sums[i] if group["nesterov"] else self.sums[i]

    def size(self, optimizer: Any) -> Tensor | float:
        """Return α as `after_step` does, of a step that was counted."""
        size = self._adam(optimizer) if self.adam else self._sgd(optimizer)
        skipped = getattr(optimizer, "found_inf", None)  # from GradScaler, where the step itself skips
        return size if skipped is None else torch.where(skipped.to(self.parameters[0].device) > 0, 0.0, size)

    def _sgd(self, optimizer: Any) -> Tensor | float:
        rates = [optimizer.param_groups[number]["lr"] for number in self.groups]
        if isinstance(self.weights, Tensor):
            return self._flat(_stacked(rates) * self.weights)
        return self._flat([float(rate) * weight for rate, weight in zip(rates, self.weights)])

    def _adam(self, optimizer: Any) -> Tensor:
        groups = [optimizer.param_groups[number] for number in self.groups]
        states = [optimizer.state.get(parameter, {}) for parameter in self.parameters]
        seconds = [
            state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"] if state else torch.ones_like(parameter)
            for parameter, state, group in zip(self.parameters, states, groups)
        ]
        steps = torch.stack([state["step"] if state else torch.ones(()) for state in states])
        readable = steps.is_cpu and not self.held  # else, with fused or capturable ones, the device would wait
        if readable:
            steps = steps.double()
        beta2 = _stacked([float(group["betas"][1]) for group in groups])
        if isinstance(beta2, Tensor):
            beta2 = beta2.to(steps)
        correction = (1 - beta2**steps).sqrt()
        lr = _stacked([group["lr"] if moved else 0.0 for group, moved in zip(groups, self.moved)])
        v = torch.cat([second.reshape(-1) for second in seconds])
        eps = self._flat(_stacked([float(group["eps"]) for group in groups]))
        return self._flat(lr) / (v.sqrt() / self._flat(correction.tolist() if readable else correction) + eps)

    def _flat(self, each: list[float] | Tensor | float) -> Tensor | float:
        """Turn a number for each parameter into one for each value, or leave one number where all are alike."""
        each = _stacked(each) if isinstance(each, list) else each
        if not isinstance(each, Tensor) or each.ndim == 0:
            return each
        parameter = self.parameters[0]
        each = each.to(device=parameter.device, dtype=parameter.dtype)
        return each.repeat_interleave(self._counts, output_size=sum(self._sizes))


def _stacked(each: Sequence[float | Tensor]) -> float | Tensor:
    """Return numbers, or tensors of one, as one tensor; or as they are where all are the same."""
    if all(number is each[0] for number in each):
        return each[0]
    if any(isinstance(number, Tensor) for number in each):
        device = next(number.device for number in each if isinstance(number, Tensor))
        made = [number if isinstance(number, Tensor) else torch.full((), number, device=device) for number in each]
        return torch.stack(made)
    return each[0] if each.count(each[0]) == len(each) else torch.tensor(each)
