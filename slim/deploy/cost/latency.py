"""A budget of latency: planned by a cost model, then measured, and corrected until it is kept."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from slim.deploy.cost import network
from slim.deploy.cost.correction import ATTEMPTS, TOLERANCE, Attempt, correct
from slim.deploy.cost.model import LatencyModel, SharedModel
from slim.deploy.cost.runtime import Runtime, Runtimes
from slim.errors import SlimError
from slim.progress import progress
from slim.prune.budgets import BoundBudget, Budget, Cost, Costs, Plans
from slim.prune.plan import PruningPlan


@dataclass(frozen=True)
class Latency(Budget):
    """A budget of time: `Latency(0.5)`, a share of the original's latency, or `Latency("4.0ms")`, that of one call.

    `runtime`: where it is measured (default: the best provider of onnxruntime, all cores, batch 1); with
    `slim.Runtimes`, the budget holds for the worst of several settings, or for their mean. Channels go by the
    importance that is lost for the time saved, in whole steps of what numbers of channels cost there; the thin network
    is exported, measured against the original, and the plan corrected until it meets the budget within 3 %.

    Raises SlimError for what is neither a share nor a time, and while planning for a time that the original keeps.
    """

    asked: float | str  # type: ignore[assignment]
    runtime: Runtime | Runtimes = field(default_factory=Runtime)
    name = "latency"

    def __post_init__(self) -> None:
        read_latency(self.asked)

    @property
    def requested(self) -> dict[str, float]:
        return read_latency(self.asked)

    @property
    def by_time(self) -> bool:
        return True

    def cost(self, costs: Costs) -> Cost:
        return self.runtime.cost_model(costs.traced).of

    def bind(self, costs: Costs) -> BoundBudget:
        cost, [(kind, asked)] = self.cost(costs), self.requested.items()
        whole = costs.whole(self, cost)
        return BoundBudget(cost, asked * whole if kind == self.name else asked, whole)

    def meet(self, planner: Plans) -> PruningPlan:
        if planner.after:
            raise SlimError("latency can't be planned after other plans: expected ratio, Channels, Flops or Params")
        if planner.rules.round_to not in (None, 1):
            raise SlimError(
                f"round_to {planner.rules.round_to!r}: expected none with a latency, which chooses sizes by their cost"
            )
        correction = Correction(planner.model, planner.example_inputs, self)
        planner.cost_model = model = self.runtime.cost_model(planner.traced)

        def predicted(share: float) -> PruningPlan:
            plan, chosen = planner.within(Predicted(share, model))
            plan.timing = {"next_step": chosen.next_step}
            return plan

        return correction.kept(predicted)


@dataclass(frozen=True)
class Predicted(Budget):
    """A share of the original's latency, as a cost model predicts it."""

    model: LatencyModel | SharedModel
    name = "latency"

    def cost(self, costs: Costs) -> Cost:
        return self.model.of

    def savings(self, costs: Costs) -> Any:
        return costs.flops.shares()


class Correction:
    """Plans for a budget, measured beside the original and corrected.

    Raises SlimError for a time that the original keeps already.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, budget: Latency) -> None:
        self.model, self.example_inputs, self.runtime = model, example_inputs, budget.runtime
        self.requested = budget.requested
        self.kind, self.asked = next(iter(self.requested.items()))
        with progress("exporting the network", 1):
            self.original = network.Network(model, example_inputs, self.runtime)
        self.cuts = True  # whether files of thin networks are cut from the original's
        self.firsts = self._firsts() if self.kind == "latency_ms" else []

    def _firsts(self) -> list[float]:
        """Return the milliseconds of the original in each setting, which a budget in milliseconds is a share of."""
        settings = range(len(self.runtime.each))
        firsts = [network.share_of(network.in_turn([self.original], setting)) for setting in settings]
        if self.asked >= (first := self.runtime.taken(firsts)):
            raise SlimError(
                f"latency {self.asked:.8g}ms: the network takes {first:.4g} ms as it is ({self.runtime}): "
                "expected less than that"
            )
        return firsts

    def kept(self, planned: Callable[[float], PruningPlan]) -> PruningPlan:
        """Return the plan among `planned(share of the original's predicted latency)` that keeps the budget.

        The plan says what was measured: the original's time, and the share of it in calls in turn. A budget in
        milliseconds is the share that it is of the original's time when that was first measured, since a busy machine
        has no speed that lasts. The network that the plan makes is checked in onnxruntime.
        """
        found: dict[str, list[network.Timed]] = {}  # digest of a plan -> what was measured in each setting
        latest: dict[str, network.Network] = {}  # the last one measured, which is nearly always the one that is kept

        def measured(plan: PruningPlan) -> float:
            latest.clear()
            latest[plan.digest] = thin = self._network(plan)
            found[plan.digest] = network.timed(self.original, thin, budget)
            advance(1)
            return self._share(found[plan.digest])

        def predicted(share: float) -> tuple[PruningPlan, float]:
            plan = planned(min(share, 1.0))
            return plan, plan.achieved["latency"]

        budget = self.asked / self.runtime.taken(self.firsts) if self.firsts else self.asked
        with progress("timing whole networks", ATTEMPTS) as advance:
            best = correct(predicted, measured, budget)
        kept = latest.get(best.plan.digest) or self._network(best.plan)
        try:
            kept.check()
        except SlimError:
            if not kept.is_cut:
                raise
            self.cuts = False  # its times say nothing: once more with exports
            return self.kept(planned)
        return self._told(best, found[best.plan.digest])

    def _network(self, plan: PruningPlan) -> network.Network:
        original = self.original if self.cuts else None
        return network.Network(plan.apply(self.model), self.example_inputs, self.runtime, original, plan)

    def _share(self, found: list[network.Timed]) -> float:
        """Return the share of the original's time in all settings, given that in each."""
        taken, shares = self.runtime.taken, [each.share for each in found]
        if not self.firsts:
            return taken(shares)
        return taken([share * first for share, first in zip(shares, self.firsts)]) / taken(self.firsts)

    def _told(self, best: Attempt[PruningPlan], found: list[network.Timed]) -> PruningPlan:
        """Return the plan with what was measured in place of what was predicted."""
        plan, predicted, share = best.plan, best.plan.achieved["latency"], self._share(found)
        firsts = self.firsts or [each.original_ms for each in found]
        next_step, ms = plan.timing["next_step"] / predicted * best.took, share * self.runtime.taken(firsts)
        settings = [
            {"runtime": str(runtime), "original_ms": first, "ms": each.share * first, "share": each.share}
            for runtime, first, each in zip(self.runtime.each, firsts, found)
        ]
        plan.timing = settings[0] if len(settings) == 1 else {"settings": settings, "share": share}
        plan.timing["predicted_share"] = predicted
        if best.took < 1 - TOLERANCE:
            plan.timing |= {"unused": 1 - best.took, "next_step": next_step}
        plan.requested, plan.achieved = self.requested, {self.kind: share if self.kind == "latency" else ms}
        missed = (
            f"asked for {self.kind} {self.asked:g}, measured {plan.achieved[self.kind]:.4g}: floors, coupled channels "
            "and steps allow no less"
        )
        plan.shortfall, plan.rounding = missed if best.took > 1 + TOLERANCE else "", ""
        return plan


def read_latency(latency: float | str) -> dict[str, float]:
    """Return a latency budget: {"latency": share of the original's} or {"latency_ms": milliseconds of one call}.

    A number, or text that is one, in (0, 1] is a share; text with a unit, such as "4.0ms" or "0.1 s", a time. Raises
    SlimError for anything else.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(ms|s|us|µs|)\s*", str(latency).lower())
    value, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if not 0 < value < math.inf or (not unit and value > 1):
        raise SlimError(f"latency {latency!r}: expected a share of the original's such as 0.5, or a time such as 4.0ms")
    return {"latency_ms": value * {"s": 1e3, "ms": 1.0}.get(unit, 1e-3)} if unit else {"latency": value}
