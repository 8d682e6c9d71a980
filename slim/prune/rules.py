"""How channels are chosen, apart from how many."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from slim.errors import SlimError, check_choice, check_type
from slim.prune.groups import Groups
from slim.prune.knapsack import MeasuresCost

Scope = Literal["global", "layer", "isomorphic"]
STEP, WIDE = 8, 32  # by default, layers of at least 32 channels keep multiples of 8: kernels work in blocks of them


@dataclass(frozen=True)
class Rules:
    """How channels are chosen, apart from how many: the keywords of `slim.plan` of these names."""

    floor: float = 0.1
    scope: Scope = "global"
    round_to: int | MeasuresCost | None = None
    keep: Sequence[str] = ()
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    blocks: bool = False

    def __post_init__(self) -> None:
        if checked_number("floor", self.floor) < 0 or (self.floor >= 1 and self.floor != round(self.floor)):
            raise SlimError(f"floor {self.floor!r}: expected a share from 0 to below 1, or a whole number of channels")
        check_type("blocks", self.blocks, "True or False", bool)
        check_type("keep", self.keep, "a shell pattern or several", list, tuple, set)
        check_type("layer_ratios", self.layer_ratios, "shares by shell pattern", Mapping)
        for pattern in (*self.keep, *self.layer_ratios):
            check_type("a pattern", pattern, "a shell pattern of layers", str)
        check_choice("scope", self.scope, get_args(Scope))
        whole = isinstance(self.round_to, int) and not isinstance(self.round_to, bool) and 1 <= self.round_to <= 4096
        if self.round_to is not None and not whole and not hasattr(self.round_to, "cost_model"):
            raise SlimError(f"round_to {self.round_to!r}: expected a whole number from 1 to 4096, or a slim.Runtime")

    @classmethod
    def of(
        cls,
        floor: float,
        scope: Scope,
        round_to: int | MeasuresCost | None,
        keep: str | Sequence[str],
        layer_ratios: Mapping[str, float] | None,
        blocks: bool,
    ) -> "Rules":
        """Return rules from what `slim.plan` was given, where one pattern may stand for several."""
        patterns = (keep,) if isinstance(keep, str) else keep
        return cls(floor, scope, round_to, patterns, {} if layer_ratios is None else layer_ratios, blocks)

    def units(self, groups: Groups) -> NDArray[np.int64]:
        """Return of how many groups of each pattern a multiple is kept, so that layers have the width asked for."""
        asked = self.round_to if isinstance(self.round_to, int) else STEP
        units: NDArray[np.int64] = asked // np.gcd(asked, groups.multiple)
        wide = isinstance(self.round_to, int) | (groups.pattern_size_before >= WIDE // STEP * units)
        return np.where(wide, units, 1)

    @property
    def by_cost(self) -> bool:
        """Say whether sizes follow from what they cost on a runtime, as far as its whole steps meet the budget."""
        return not isinstance(self.round_to, int | None)

    def rounding(self, groups: Groups) -> str:
        """Return what layers are rounded to, in a line; nothing where they aren't."""
        if self.by_cost:
            return f"layers keep numbers of channels that suit {self.round_to}"
        if (self.units(groups) == 1).all():
            return ""
        if self.round_to is None:
            return f"layers of {WIDE} channels and more keep a multiple of {STEP} (round_to 1: any number)"
        return f"layers keep a multiple of {self.round_to}"

    def floors(self, widths: Mapping[str, int], before: Mapping[str, int]) -> list[int]:
        """Return how many channels of each layer stay in any case; a share is that of its width `before` all plans."""
        least = {name: self.floor * before.get(name, width) - 1e-9 for name, width in widths.items()}
        if self.floor >= 1:
            least = dict.fromkeys(widths, self.floor)
        return [min(width, max(1, math.ceil(least[name]))) for name, width in widths.items()]


def checked_number(name: str, value: Any) -> float:
    """Return `value` where it is a finite number. Raises SlimError, which calls it `name`, where it isn't."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SlimError(f"{name} {value!r} is not a number: expected one")
    if not abs(value) <= sys.float_info.max:
        raise SlimError(f"{name} {value!r:.40} is not a finite number: expected one")
    return value
