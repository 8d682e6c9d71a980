"""How channels are chosen, apart from how many."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from slim.errors import SlimError
from slim.prune.knapsack import MeasuresCost

Scope = Literal["global", "layer", "isomorphic"]


@dataclass(frozen=True)
class Rules:
    """How channels are chosen, apart from how many: the keywords of `slim.plan` of these names."""

    floor: float = 0.1
    scope: Scope = "global"
    round_to: int | MeasuresCost = 1
    keep: Sequence[str] = ()
    layer_ratios: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if checked_number("floor", self.floor) < 0 or (self.floor >= 1 and self.floor != round(self.floor)):
            raise SlimError(f"floor {self.floor!r}: expected a share from 0 to below 1, or a whole number of channels")
        if self.scope not in get_args(Scope):
            raise SlimError(f"unknown scope {self.scope!r}: expected one of {', '.join(get_args(Scope))}")
        if isinstance(self.round_to, (bool, str, float)) or (
            isinstance(self.round_to, int) and not 1 <= self.round_to <= 4096
        ):
            raise SlimError(f"round_to {self.round_to!r}: expected a whole number from 1 to 4096, or a slim.Runtime")

    @property
    def unit(self) -> int:
        """The number of channels whose multiples are kept."""
        return self.round_to if isinstance(self.round_to, int) else 1

    def floors(self, widths: Mapping[str, int], before: Mapping[str, int]) -> list[int]:
        """Return how many channels of each layer stay in any case; a share is that of its width `before` all plans."""
        least = {name: self.floor * before.get(name, width) - 1e-9 for name, width in widths.items()}
        if self.floor >= 1:
            least = dict.fromkeys(widths, self.floor)
        return [min(width, max(1, math.ceil(least[name]))) for name, width in widths.items()]


def checked_number(name: str, value: Any) -> float:
    """Return `value` where it is a number. Raises SlimError, which calls it `name`, where it isn't."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SlimError(f"{name} {value!r} is not a number: expected one")
    return value
