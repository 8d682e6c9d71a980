"""A budget of what may be lost of a metric: the largest cut that keeps within it, found by bisection."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from slim.batches import as_one
from slim.errors import NothingToPrune, SlimError
from slim.progress import progress
from slim.prune.budgets import Budget, Cost, Costs, Flops, Plans
from slim.prune.calibration import MOST
from slim.prune.plan import PruningPlan
from slim.prune.recovery.recover import recover
from slim.prune.rules import checked_number

CLOSE = 0.005  # shares of the original closer than this are one


@dataclass(frozen=True)
class Loss(Budget):
    """A budget of a metric: `Loss(0.01, evaluate)` finds the largest cut that loses at most 0.01 of it.

        plan = slim.plan(model, x, slim.Loss(0.01, evaluate, images), score=slim.Residual(images))

    `evaluate(network)` returns the metric, a number: of validation data, since the cut is chosen by it. It is called
    for the original and for a thin network in each of at most `evaluations` steps (default 12, the original included).
    `images`: as `slim.recover` takes them; each thin network is recovered on them before it is evaluated, and the plan
    is for a network that you recover, too. None: as pruned.
    `by`: what is bisected, a budget of the share that is kept: `slim.Flops` (default), `slim.Params`, `slim.Channels`,
    or `lambda share: slim.Latency(share, runtime)`.
    `larger_is_better`: False for a metric that is an error.

    What a larger network loses too much, no smaller one is tried for. The plan's `achieved` holds the `loss`, the
    `metric` and its `baseline`. Raises SlimError where `evaluate` gives no number, and NothingToPrune where even the
    smallest cut that was tried loses more.
    """

    asked: float
    evaluate: Callable[[nn.Module], Any] = field(kw_only=False, default=None)  # type: ignore[assignment]
    images: Any = field(default=None, repr=False)
    by: Callable[[float], Budget] = Flops
    larger_is_better: bool = True
    evaluations: int = 12
    name = "loss"

    def __post_init__(self) -> None:
        if not 0 <= checked_number("loss", self.asked) < math.inf:
            raise SlimError(
                f"loss {self.asked!r} is out of range: expected what may be lost of the metric, such as 0.01"
            )
        if not callable(self.evaluate):
            raise SlimError(f"evaluate {self.evaluate!r}: expected a function of a network that returns its metric")
        if isinstance(self.evaluations, bool) or not isinstance(self.evaluations, int) or self.evaluations < 2:
            raise SlimError(f"evaluations {self.evaluations!r}: expected a whole number of at least 2")

    @property
    def by_time(self) -> bool:
        return self.by(0.5).by_time

    def cost(self, costs: Costs) -> Cost:
        return self.by(0.5).cost(costs)

    def part(self, done: float, whole: float) -> Budget:
        raise SlimError("a loss can't be reached in steps: expected Flops, Params or Channels")

    def meet(self, planner: Plans) -> PruningPlan:
        if planner.after:
            raise SlimError("loss can't be planned after other plans: expected ratio, Channels, Flops or Params")
        baseline = self._metric(planner.model)
        search = _Search(self, planner, baseline)
        low, high = 0.0, 1.0  # the smaller loses too much, or nothing is left of it; the larger keeps the budget
        with progress("looking for the largest cut", self.evaluations) as advance:
            while high - low > CLOSE and search.evaluations < self.evaluations:
                done, share = search.evaluations, (low + high) / 2
                low, high = (low, share) if search.keeps(share) else (share, high)
                advance(search.evaluations - done)
        if search.best is None:
            least = min(search.lost.values(), default=0.0)
            raise NothingToPrune(
                f"loss {self.asked:g} allows no cut that was tried: the smallest keeps {low:.1%} and loses {least:.3g}"
            )
        plan, lost = search.best
        sign = 1 if self.larger_is_better else -1
        plan.requested = self.requested
        plan.achieved = {"loss": lost, "metric": baseline - sign * lost, "baseline": baseline}
        plan.shortfall = ""
        return plan

    def _metric(self, network: nn.Module) -> float:
        return as_number(self.evaluate(network))


def as_number(value: Any) -> float:
    """Return what `evaluate` of the user's own returned as a number. Raises SlimError for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):  # the last of whole numbers without end
        found = math.nan
    if not math.isfinite(found):
        raise SlimError(f"evaluate returned {value!r:.80}: expected a number")
    return found


class _Search:
    """The cuts that were tried: what they lose, and the largest so far that keeps the budget."""

    def __init__(self, budget: Loss, planner: Plans, baseline: float) -> None:
        self.budget, self.planner, self.baseline = budget, planner, baseline
        self.images = None if budget.images is None else as_one(budget.images, MOST)  # which may be read only once
        self.best: tuple[PruningPlan, float] | None = None
        self.lost: dict[str, float] = {}  # digest of a plan -> what its network loses
        self.evaluations = 1

    def keeps(self, share: float) -> bool:
        """Say whether the network of this share keeps the budget."""
        try:
            plan = self.budget.by(share).meet(self.planner)
        except NothingToPrune:
            return True  # as it was
        if plan.digest not in self.lost:
            self.lost[plan.digest] = self._loss(plan)
            self.evaluations += 1
        lost = self.lost[plan.digest]
        if lost <= self.budget.asked + 1e-12:
            self.best = plan, lost
            return True
        return False

    def _loss(self, plan: PruningPlan) -> float:
        model = self.planner.model
        thin = plan.apply(model)
        if self.images is not None:
            thin = recover(model, thin, plan, self.images).model
        drop = self.baseline - self.budget._metric(thin)
        return drop if self.budget.larger_is_better else -drop
