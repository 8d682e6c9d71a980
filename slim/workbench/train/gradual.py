"""Pruning within a training: many small steps, after each of which the network trains on."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from slim.errors import NothingToPrune, SlimError
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.trace.intercept import evaluating
from slim.workbench.config import SparsityConfig
from slim.workbench.train.state import TrainingState


class Gradual:
    """When a training prunes, and how much.

    `sparsity.gradual` = n prunes are at equal distances between two shares of its T steps: the i-th of them, from 1,
    after step round(T·(start + (end − start)·i/n)). By then the share s·(1 − (1 − i/n)³) of all that `rules`, the
    arguments of `slim.plan`, ask to remove is gone, as in Zhu and Gupta (https://arxiv.org/abs/1710.01878, equation
    1): much at first, when many channels do little, and less and less. Shares, budgets and floors are those of the
    network before the first of them.

    Raises SlimError where that can't be, and where the last plan can't be made for this model.
    """

    def __init__(
        self, sparsity: SparsityConfig, rules: Mapping[str, Any], model: nn.Module, example: Tensor, steps: int
    ) -> None:
        count, start, end = sparsity.gradual, sparsity.gradual_start, sparsity.gradual_end
        if start >= end:
            raise SlimError(f"sparsity.gradual_start is {start}: expected less than gradual_end, which is {end}")
        if round((end - start) * steps) < count:
            raise SlimError(
                f"sparsity.gradual is {count}: expected at most {round((end - start) * steps)}, as this training has "
                f"{steps} steps"
            )
        for name in ("latency", "layer_ratios"):
            if rules.get(name):
                raise SlimError(
                    f"prune.{name} is {rules[name]!r}, which gradual pruning can't reach: expected ratio, flops or "
                    "params, or sparsity.gradual 0"
                )
        if rules.get("images") is not None:
            rules = {**rules, "images": rules["images"].to(example.device)}
        budgets: dict[str, float] = {
            kind: rules[kind] for kind in ("ratio", "flops", "params") if rules.get(kind) is not None
        }
        self.kind, self.asked = next(iter(budgets.items()), ("ratio", 0.5))
        self.rules: dict[str, Any] = {key: value for key, value in rules.items() if key not in budgets}
        self.example = example
        self.shares = {round(steps * (start + (end - start) * i / count)): i / count for i in range(1, count + 1)}
        last = self._plan(model, self.asked)
        if self.kind != "ratio" and self.asked > 1:  # an absolute number: as a share of the model's own
            self.asked = min(1.0, self.asked / last.totals[self.kind][0])

    def budget(self, step: int) -> float:
        """Return what to ask for after `step`, one of `shares`: the share to remove, or that may stay."""
        done = 1 - (1 - self.shares[step]) ** 3
        return self.asked * done if self.kind == "ratio" else (1 - done) + self.asked * done

    def plan_of(self, state: TrainingState) -> PruningPlan | None:
        """Plan for a training at one of these steps, on its present weights; None where nothing can go yet."""
        try:
            made = self._plan(state.model, self.budget(state.step), after=[plan for _, plan in state.prunes])
        except NothingToPrune:
            return None
        return made if made.removed else None

    def _plan(self, model: nn.Module, asked: float, **more: Any) -> PruningPlan:
        with evaluating(model):
            return plan(model, self.example, **(self.rules | {self.kind: asked} | more))
