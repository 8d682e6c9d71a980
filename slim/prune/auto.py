"""Which score suits a network: |γ| where a penalty has acted on them; where none has, what images show."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from slim.errors import SlimWarning
from slim.prune.residual import Residual
from slim.prune.scores import Gamma, Magnitude, Score, as_score
from slim.trace.copy import named_tensors
from slim.trace.traced import Trace

NEAR_ZERO = 0.02  # of the 95th percentile of |γ|: a channel whose γ is below it was penalised to nothing
PENALISED = 0.1  # the share of such channels that weight decay alone hardly leaves
EQUAL = 1e-6  # relative spread of γ that differ by rounding


@dataclass(frozen=True)
class Auto:
    """Choose the score by what is known of the network, and say which and why in the plan (`plan.ranked_by`).

        slim.plan(model, x, slim.Flops(0.5), score=slim.Auto(images))    # score="auto" is slim.Auto()

    |γ| (`Gamma`) where a penalty has acted on them: `penalised` says so, or with None (default) at least a tenth of all
    γ lie near zero, as a penalty leaves them. Elsewhere `Residual` where `images` are given, as `slim.recover` takes
    them, and `Magnitude` where none are.
    """

    images: Any = field(default=None, repr=False)
    penalised: bool | None = None

    def choose(self, gammas: "Gammas", traced: Trace) -> tuple[Score, str]:
        """Return the score for a network with these γ, and why."""
        known = self.penalised is not None and gammas.count > 0
        why = f"a penalty has {'' if self.penalised else 'not '}acted on γ" if known else str(gammas)
        if gammas.penalised if self.penalised is None else self.penalised:
            return as_score(None, traced), why
        return (Magnitude() if self.images is None else Residual(self.images)), why


@dataclass(frozen=True)
class Gammas:
    """What the γ of a network tell: how many there are, the share near zero, and their relative spread."""

    count: int
    near_zero: float = 0.0
    spread: float = 0.0

    @classmethod
    def of(cls, model: nn.Module, traced: Trace) -> "Gammas":
        """Look at the scales of all BatchNorms."""
        tensors = dict(named_tensors(model))
        each = [tensors[next(iter(traced.made[name].tensors))].detach().abs().double() for name in traced.norms]
        size = np.concatenate([np.zeros(0), *(gamma.cpu().numpy() for gamma in each)])
        if not len(size) or not np.isfinite(size).all():  # the score says what is wrong
            return cls(len(size))
        high = int(0.95 * (len(size) - 1))
        low = size <= NEAR_ZERO * np.partition(size, high)[high]
        return cls(len(size), float(low.mean()), float(size.std() / max(size.mean(), 1e-30)))

    @property
    def penalised(self) -> bool:
        """Say whether a penalty has been at work."""
        return self.near_zero >= PENALISED and self.spread > EQUAL

    def __str__(self) -> str:
        if not self.count:
            return "the network has no γ"
        if self.spread <= EQUAL:
            return f"all {self.count:,} γ are equal"
        return f"{self.near_zero:.0%} of {self.count:,} γ are near zero"


def choose_score(given: Any, model: nn.Module, traced: Trace) -> tuple[Score, str]:
    """Return the score that was asked for, or that suits and why. Warns where γ rank that say little.

    Raises SlimError for what is no score.
    """
    if isinstance(given, str) and given == "auto":
        given = Auto()
    gammas = Gammas.of(model, traced)
    score, why = given.choose(gammas, traced) if isinstance(given, Auto) else (as_score(given, traced), "")
    if isinstance(score, Gamma) and not why and not gammas.penalised:
        warnings.warn(
            f"γ says little about which channels matter: {gammas}, unlike after training with a penalty: expected "
            "score=slim.Residual(images) or slim.Taylor(batches, loss), or such a training (slim.sparsify) first",
            SlimWarning,
            stacklevel=3,
        )
    return score, why
