"""Penalties λ·p(x) on all penalised values together, as one flat tensor x [P].

Each has a value, a subgradient, and its proximal operator where there is one:

    prox(v, step) = argmin over x of Σ (x_i − v_i)² / (2·step_i) + λ·p(x)

`step` is a number ≥ 0 or a tensor like v; a step of 0 leaves a value as it is. A new penalty is a dataclass with these
methods; `methods` names the ways in which it can act (see `slim.sparsify`).
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor

from slim.errors import SlimError, unknown

METHODS = ("subgradient", "proximal", "loss")


@dataclass
class Penalty(ABC):
    """Base of all penalties. `strength` is λ ≥ 0."""

    strength: float
    methods: ClassVar[tuple[str, ...]] = METHODS

    def __post_init__(self) -> None:
        check_strength(self.strength)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Return what it adds to the loss: a tensor without dimensions."""

    def subgradient(self, x: Tensor) -> Tensor:
        """Return what it adds to the gradient of x: a tensor like x. Where x is 0 it is 0."""
        raise SlimError(f"{type(self).__name__} has no subgradient: expected method 'proximal'")

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """Return the proximal operator's result: a tensor like x."""
        raise SlimError(f"{type(self).__name__} has no proximal operator: expected method 'subgradient' or 'loss'")

    def bind(self, parameters: Mapping[str, Tensor]) -> None:  # noqa: B027
        """Take note, once and before the first use, of the parameters laid end to end in x. Most penalties don't
        care."""

    def thin(self, stays: Tensor) -> None:  # noqa: B027
        """Go on with the values of x (bool [P]) that are left, where the network has lost channels."""

    def magnitude(self, x: Tensor) -> Tensor:
        """Return how far from zero each value counts as being, when the lowest are looked for: a tensor like x."""
        return x.abs()


@dataclass
class L1(Penalty):
    """λ·Σ|x|, the paper's. Its proximal operator is soft thresholding."""

    def value(self, x: Tensor) -> Tensor:
        return self.strength * x.abs().sum()

    def subgradient(self, x: Tensor) -> Tensor:
        return self.strength * x.sign()

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        threshold = step * self.strength
        return x - _clamp(x, threshold)


@dataclass
class L2(Penalty):
    """λ·½·Σx², so that its gradient is λ·x, as weight decay has it. It shrinks and never reaches zero."""

    def value(self, x: Tensor) -> Tensor:
        return self.strength / 2 * x.square().sum()

    def subgradient(self, x: Tensor) -> Tensor:
        return self.strength * x

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return x / (1 + step * self.strength)


@dataclass
class ElasticNet(Penalty):
    """λ·(r·Σ|x| + (1 − r)·½·Σx²), where r is `l1_ratio`: scikit-learn's convention."""

    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("l1_ratio", self.l1_ratio, 0 <= self.l1_ratio <= 1, "a number in [0, 1]")

    def value(self, x: Tensor) -> Tensor:
        return self.strength * (self.l1_ratio * x.abs().sum() + (1 - self.l1_ratio) / 2 * x.square().sum())

    def subgradient(self, x: Tensor) -> Tensor:
        return self.strength * (self.l1_ratio * x.sign() + (1 - self.l1_ratio) * x)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        scaled = step * self.strength
        return (x - _clamp(x, scaled * self.l1_ratio)) / (1 + scaled * (1 - self.l1_ratio))


@dataclass
class Lp(Penalty):
    """λ·Σ|x|ᵖ for any p > 0.

    For p < 1 its slope grows without bound towards 0, where the subgradient overshoots: act by "proximal", which
    jumps to 0 below a threshold (generalised soft thresholding, Zuo et al., ICCV 2013). For p > 1 nothing reaches 0.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("p", self.p, _is_number(self.p) and self.p > 0, "a number above 0")

    def value(self, x: Tensor) -> Tensor:
        return self.strength * x.abs().pow(self.p).sum()

    def subgradient(self, x: Tensor) -> Tensor:
        slope = self.strength * self.p * x.abs().pow(self.p - 1) * x.sign()
        return torch.where(x == 0, 0, slope)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        p, v, s = self.p, x.abs(), torch.as_tensor(step * self.strength, dtype=x.dtype, device=x.device)
        if p == 1:
            return x - _clamp(x, s)
        if p < 1:  # the larger root of z + s·p·z^(p−1) = v, or 0 where that has the lower objective
            threshold = (2 * s * (1 - p)).pow(1 / (2 - p)) * (2 - p) / (2 - 2 * p)
            z = _newton(
                lambda z: z + s * p * z.pow(p - 1) - v,
                lambda z: 1 + s * p * (p - 1) * z.pow(p - 2),
                torch.maximum(v, threshold),
            )
            return torch.where(s == 0, v, torch.where(v > threshold, z, 0)) * x.sign()
        # The root of z + s·p·z^(p−1) = v. With z = yᵃ this is yᵃ + s·p·yᵇ = v, convex in y, which Newton's method
        # solves from above without fail.
        a, b = (1.0, p - 1) if p >= 2 else (1 / (p - 1), 1.0)
        start = torch.minimum(v.pow(1 / a), (v / (s * p)).pow(1 / b))
        y = _newton(
            lambda y: y.pow(a) + s * p * y.pow(b) - v,
            lambda y: a * y.pow(a - 1) + s * p * b * y.pow(b - 1),
            start,
        )
        return torch.where((v == 0) | (s == 0), v, y.pow(a)) * x.sign()


@dataclass
class DeadZoneL1(Penalty):
    """λ·Σ max(0, |x| − a): nothing is asked of values within ±a, where `a` ≥ 0 is the half-width of the dead zone."""

    a: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("a", self.a, _is_number(self.a) and self.a >= 0, "a number ≥ 0")

    def value(self, x: Tensor) -> Tensor:
        return self.strength * (x.abs() - self.a).clamp(min=0).sum()

    def subgradient(self, x: Tensor) -> Tensor:
        return self.strength * x.sign() * (x.abs() > self.a)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        inside = x.clamp(-self.a, self.a)
        beyond = x - inside
        return inside + (beyond - _clamp(beyond, step * self.strength))


@dataclass
class L0(Penalty):
    """λ times the number of values that aren't 0. Its proximal operator is hard thresholding: x stays where
    |x| > √(2·step·λ). It has no slope to follow, so it acts by "proximal" only."""

    methods: ClassVar[tuple[str, ...]] = ("proximal",)

    def value(self, x: Tensor) -> Tensor:
        return self.strength * (x != 0).sum(dtype=x.dtype)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        return torch.where(x.square() > 2 * step * self.strength, x, 0)


@dataclass
class TransformedL1(Penalty):
    """λ·Σ (a + 1)·|x| / (a + |x|): from the count of nonzero values (a → 0) to Σ|x| (a → ∞).

    Zhang and Xin, https://arxiv.org/abs/1411.5735; the threshold of its proximal operator is theirs (theorem 3.1).
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("a", self.a, _is_number(self.a) and self.a > 0, "a number above 0")

    def value(self, x: Tensor) -> Tensor:
        return self.strength * ((self.a + 1) * x.abs() / (self.a + x.abs())).sum()

    def subgradient(self, x: Tensor) -> Tensor:
        return self.strength * self.a * (self.a + 1) * x.sign() / (self.a + x.abs()).square()

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        a, v, s = self.a, x.abs(), torch.as_tensor(step * self.strength, dtype=x.dtype, device=x.device)
        slope = s * a * (a + 1)
        z = _newton(lambda z: z + slope / (a + z).square() - v, lambda z: 1 - 2 * slope / (a + z).pow(3), v)
        large = s > a * a / (2 * (a + 1))
        threshold = torch.where(large, (2 * s * (a + 1)).sqrt() - a / 2, s * (a + 1) / a)
        return torch.where(v > threshold, z, 0) * x.sign()


@dataclass
class Polarization(Penalty):
    """λ·(t·Σ|x| − Σ|x − x̄|), x̄ the mean of all: pushes part of the values to 0 and the others away from it.

    Zhuang et al., NeurIPS 2020, equation 2 (there t is 1.2 at first). It has no proximal operator in closed form.
    """

    t: float = 1.2
    methods: ClassVar[tuple[str, ...]] = ("subgradient", "loss")

    def value(self, x: Tensor) -> Tensor:
        return self.strength * (self.t * x.abs().sum() - (x - x.mean()).abs().sum())

    def subgradient(self, x: Tensor) -> Tensor:
        side = (x - x.mean()).sign()
        return self.strength * (self.t * x.sign() - side + side.mean())


@dataclass
class GroupLasso(Penalty):
    """λ·Σ_g √n_g·‖x_g‖₂ over groups of n_g values, which reach zero together (Yuan and Lin, 2006).

    `groups` says what is one group: `slim.coupled(model, example_inputs)` for the channels that must be removed
    together (the γ of a residual stage, say), where the label 0 is a group of its own; an integer tensor [P] with a
    group number for each value of x; or None, where each output channel of each weight is a group.
    """

    groups: Mapping[str, Any] | Tensor | None = None
    _index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.groups, Tensor):
            self._set_index(self.groups)

    def thin(self, stays: Tensor) -> None:
        self._set_index(self._index[stays.to(self._index.device)])

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        if isinstance(self.groups, Tensor):
            return
        rows, alone = [], 0
        for name, parameter in parameters.items():
            channels = len(parameter)
            labels = torch.as_tensor(list((self.groups or {}).get(name, [0] * channels)), dtype=torch.int64)
            if len(labels) != channels:
                raise SlimError(f"GroupLasso has {len(labels)} labels for {name}: expected {channels}")
            labels = torch.where(labels == 0, -1 - alone - torch.arange(channels), labels)
            alone += channels
            rows.append(labels.repeat_interleave(parameter.numel() // channels))
        self._set_index(torch.cat(rows))

    def _set_index(self, labels: Tensor) -> None:
        _, self._index, self._counts = labels.cpu().unique(return_inverse=True, return_counts=True)
        self._root = self._counts.double().sqrt()  # √n of each group

    def _sum(self, x: Tensor) -> Tensor:
        """Sum x over each group."""
        if len(self._index) != len(x):
            raise SlimError(f"GroupLasso has groups for {len(self._index)} values, not {len(x)}: expected one for each")
        if (self._root.dtype, self._root.device) != (x.dtype, x.device):
            self._index, self._root = self._index.to(x.device), self._counts.to(device=x.device, dtype=x.dtype).sqrt()
        return torch.zeros_like(self._root).index_add_(0, self._index, x)

    def value(self, x: Tensor) -> Tensor:
        return self.strength * (self._sum(x.square()).sqrt() * self._root).sum()

    def subgradient(self, x: Tensor) -> Tensor:
        norm = self._sum(x.square()).sqrt()
        return self.strength * x * torch.where(norm > 0, self._root / norm, 0)[self._index]

    def magnitude(self, x: Tensor) -> Tensor:
        return (self._sum(x.square()).sqrt() / self._root)[self._index]

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        """Return the proximal operator's result: with one step for all it is block soft thresholding. With a step for
        each value, x_i = v_i·r/(r + t_i), t = step·λ·√n, where r is the norm of the result: the root of ‖v/(r + t)‖ =
        1, or 0 where ‖v/t‖ ≤ 1. As 1/‖v/(r + t)‖ is concave in r, Newton's method climbs to the root from any point
        below it (as in trust regions: Conn, Gould and Toint, 2000, section 7.3); with equal steps it is linear, and one
        step is exact.
        """
        tiny = torch.finfo(x.dtype).tiny
        self._sum(x)  # checks the size, and brings the index to x's device
        t = (step * self.strength * self._root[self._index]).expand_as(x)
        alive = self._sum((x / t.clamp(min=tiny)).square()) > 1
        r = torch.zeros_like(self._root).scatter_reduce_(0, self._index, x.abs() - t, "amax")  # r ≥ |v_i| − t_i
        for _ in range(8):
            length = (r[self._index] + t).clamp(min=tiny)
            ratio = (x / length).square()
            inverse = self._sum(ratio).rsqrt()
            r = r + (1 - inverse) / (self._sum(ratio / length) * inverse.pow(3))
        r = torch.where(alive, r, 0)[self._index]
        return torch.where(alive[self._index], x - x * t / (r + t), 0)


PENALTIES: dict[str, type[Penalty]] = {
    "l1": L1,
    "l2": L2,
    "elastic_net": ElasticNet,
    "lp": Lp,
    "dead_zone": DeadZoneL1,
    "l0": L0,
    "transformed_l1": TransformedL1,
    "polarization": Polarization,
    "group_lasso": GroupLasso,
}


def penalty(name: str, strength: float, **kwargs: Any) -> Penalty:
    """Return the penalty of a name in `PENALTIES`, with its own settings, such as `penalty("lp", 1e-4, p=0.5)`."""
    if name not in PENALTIES:
        raise unknown("penalty", name, PENALTIES)
    try:
        return PENALTIES[name](strength, **kwargs)
    except TypeError:
        allowed = [f.name for f in fields(PENALTIES[name]) if f.init and f.name != "strength"]
        raise SlimError(f"penalty {name} can't take {kwargs}: expected {', '.join(allowed) or 'no settings'}") from None


def _clamp(x: Tensor, bound: Tensor | float) -> Tensor:
    """Cut x to ±bound. What is within equals x bit for bit, so that x minus it is exactly 0."""
    return x.clamp(-bound, bound)  # type: ignore[arg-type]


def _newton(f: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Find a root of each element's convex increasing function, from a start to the right of it."""
    x = start
    for _ in range(20):
        x = x - f(x) / slope(x)
    return x


def check_strength(value: Any) -> None:
    """Raise SlimError where λ isn't a number of at least 0."""
    _check("sparsity strength", value, _is_number(value) and value >= 0, "a number ≥ 0")


def _is_number(value: Any) -> bool:
    real, most = isinstance(value, Real) and not isinstance(value, bool), sys.float_info.max
    return real and bool(-most <= value <= most)


def _check(name: str, value: float, sound: bool, expected: str) -> None:
    if not sound:
        raise SlimError(f"{name} is {value}: expected {expected}")
