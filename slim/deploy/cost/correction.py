"""A plan corrected until what it takes, as measured, keeps its budget."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

TOLERANCE = 0.03  # of the budget
AIM = 0.02  # of the budget: as measured once, so that it is within the tolerance when measured again
ATTEMPTS = 8

Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Attempt(Generic[Plan]):
    """A plan with what the model predicted and the runtime took, as shares of the budget."""

    plan: Plan
    predicted: float
    took: float

    @property
    def meets(self) -> bool:
        return self.off <= AIM

    @property
    def off(self) -> float:
        return abs(self.took - 1)


def correct(
    planned: Callable[[float], tuple[Plan, float]], measured: Callable[[Plan], float], budget: float
) -> Attempt[Plan]:
    """Return a plan that keeps `budget` within 3 %, as measured.

    `planned(target)` is the best plan that the cost model says takes at most `target`, with what it says of it;
    `measured(plan)` is what it takes. The target moves until a plan meets the budget, between one that was too slow and
    one that was faster than it need be, in proportion to what the model missed by. It stops within 2 %, as another
    measurement will differ. Where no plan comes so close, the closest within 3 %; where none does (steps of the
    staircase can be larger than that), the slowest that keeps the budget, else the fastest.
    """
    tried: list[Attempt[Plan]] = []
    slow, fast = np.inf, 0.0  # targets whose plans were too slow, and faster than need be
    target = budget
    for _ in range(ATTEMPTS):
        plan, predicted = planned(target)
        if any(math.isclose(predicted, attempt.predicted * budget) for attempt in tried):
            middle = (fast + slow) / 2
            if target == middle or not fast < slow < np.inf:
                break  # nothing lies in between
            target = middle
            continue
        took = measured(plan)
        tried.append(Attempt(plan, predicted / budget, took / budget))
        if tried[-1].meets:
            return tried[-1]
        if took > budget:
            slow = min(slow, predicted)
        else:
            fast = max(fast, target)
        target = predicted * budget / took
        if not fast < target < slow:
            target = (fast + slow) / 2 if fast < slow < np.inf else target
        if fast >= slow:  # noise: what was too slow is below what was fast enough
            slow, fast = np.inf, 0.0
    if within := [attempt for attempt in tried if attempt.off <= TOLERANCE]:
        return min(within, key=lambda a: a.off)
    keeping = [attempt for attempt in tried if attempt.took <= 1]
    return max(keeping, key=lambda a: a.took) if keeping else min(tried, key=lambda a: a.took)
