"""Pruning within a training: many small steps, after each of which the network trains on."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from slim.errors import NothingToPrune, SlimError, SlimWarning
from slim.prune.budgets import Budget, Ratio
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.trace.intercept import evaluating
from slim.workbench.config import SparsityConfig
from slim.workbench.train.state import TrainingState


@dataclass(frozen=True)
class Pruning:
    """What `slim.plan` is asked for: a budget, and its other keywords."""

    budget: Budget = field(default_factory=lambda: Ratio(0.5))
    rules: Mapping[str, Any] = field(default_factory=dict)

    def plan(self, model: nn.Module, example: Any, budget: Budget | None = None, **more: Any) -> PruningPlan:
        """Return the plan for a network in training, to this budget or another."""
        with evaluating(model), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlimWarning)  # the penalty is still at work on γ
            return plan(model, example, budget or self.budget, **self.rules, **more)


class Gradual:
    """When a training prunes, and how much.

    `sparsity.gradual` = n prunes are at equal distances between two shares of its T steps: the i-th of them, from 1,
    after step round(T·(start + (end − start)·i/n)). By then the share 1 − (1 − i/n)³ of all that `pruning` asks to
    remove is gone, as in Zhu and Gupta (https://arxiv.org/abs/1710.01878, equation
    1): much at first, when many channels do little, and less and less. Shares, budgets and floors are those of the
    network before the first of them.

    Raises SlimError where that can't be, and where the last plan can't be made for this model.
    """

    def __init__(
        self, sparsity: SparsityConfig, pruning: Pruning, model: nn.Module, example: Tensor, steps: int
    ) -> None:
        count, start, end = sparsity.gradual, sparsity.gradual_start, sparsity.gradual_end
        if start >= end:
            raise SlimError(f"sparsity.gradual_start is {start}: expected less than gradual_end, which is {end}")
        if round((end - start) * steps) < count:
            raise SlimError(
                f"sparsity.gradual is {count}: expected at most {round((end - start) * steps)}, as this training has "
                f"{steps} steps"
            )
        if sparsity.target == "plan":
            raise SlimError("sparsity.target is 'plan', whose channels stay until the end: expected a share of zeros")
        if pruning.rules.get("layer_ratios"):
            raise _unreachable("layer_ratios", pruning.rules["layer_ratios"])
        if not pruning.budget.total:
            raise _unreachable(pruning.budget.name, pruning.budget.asked)
        self.pruning, self.budget, self.example = pruning, pruning.budget, example
        self.shares = {round(steps * (start + (end - start) * i / count)): i / count for i in range(1, count + 1)}
        self.whole = pruning.plan(model, example).totals[self.budget.total][0]

    def budget_after(self, step: int) -> Budget:
        """Return what to ask for after `step`, one of `shares`."""
        return self.budget.part(1 - (1 - self.shares[step]) ** 3, self.whole)

    def plan_of(self, state: TrainingState) -> PruningPlan | None:
        """Plan for a training at one of these steps, on its present weights; None where nothing can go yet."""
        before = [plan for _, plan in state.prunes]
        try:
            made = self.pruning.plan(state.model, self.example, self.budget_after(state.step), after=before)
        except NothingToPrune:
            return None
        return made if made.removed else None


def _unreachable(name: str, value: Any) -> SlimError:
    return SlimError(
        f"prune.{name} is {value!r}, which gradual pruning can't reach: expected ratio, flops or params, or "
        "sparsity.gradual 0"
    )
