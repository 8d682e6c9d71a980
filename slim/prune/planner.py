"""Which channels go: all groups of the network ranked against one global threshold, within floors and a budget.

    plan = slim.plan(model, example_inputs, ratio=0.5)
    thin = plan.apply(model)

A *group* is a set of coupled channels (see `slim.trace`). The groups with the lowest scores go, until the budget is
met; each layer's best channels, as many as the floor says, always stay. Source: Network Slimming, Liu et al., ICCV
2017, section 3.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim.errors import SlimError, SlimWarning, check_choice, check_type
from slim.prune.auto import Auto, choose_score
from slim.prune.blocks import ScoresBlocks, add_to, removable, without
from slim.prune.budgets import BoundBudget, Budget, Chosen, Costs, Ratio
from slim.prune.choosing import Candidates, Orders, by_cost, by_threshold, fixed_sizes, matching
from slim.prune.constants import take_up
from slim.prune.draft import draft, nothing_to_prune
from slim.prune.groups import Bools, Floats, Groups
from slim.prune.knapsack import CostModel, MeasuresCost
from slim.prune.plan import PruningPlan
from slim.prune.rules import Rules, Scope
from slim.prune.scores import Score, as_score, name_of_score, ranked, scored
from slim.prune.stored_sizes import StoredSizes
from slim.trace.inputs import cannot_run
from slim.trace.traced import KEPT, Trace, trace

ATTEMPTS = 100  # plans, after each of which more channels are frozen or coupled


def plan(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget | None = None,
    *,
    ratio: float | None = None,
    score: Score | Mapping[str, Any] | Auto | Literal["auto"] | None = None,
    floor: float = 0.1,
    scope: Scope = "global",
    mode: Literal["couple", "select"] = "couple",
    grouped: Literal["within", "whole"] = "within",
    round_to: int | MeasuresCost | None = None,
    keep: str | Sequence[str] = (),
    layer_ratios: Mapping[str, float] | None = None,
    blocks: bool = False,
    after: Sequence[PruningPlan] = (),
) -> PruningPlan:
    """Plan which channels of `model` to remove. The model is left as it is.

    >>> thin = slim.plan(model, x, slim.Flops(0.5)).apply(model)  # half of the FLOPs stay, at most

    `example_inputs`: a tensor, a tuple or a dict of what `forward` takes.
    `budget`: what is kept: `slim.Channels`, `slim.Flops`, `slim.Params`, `slim.Latency`, or one of your own.
    `ratio`: in its place, the share of prunable channels to remove at most, in [0, 1) (default 0.5).
    `score`: how important a group is: `slim.Gamma()` (default), `slim.Magnitude()`, `slim.Residual(images)`,
    `slim.Taylor(batches, loss)`, `slim.Random()`, any function of the groups, or a mapping from layer names to one
    value for each channel; "auto" or `slim.Auto(images)`: what suits the network.
    `floor`: what always stays of each layer: a share below 1 (default 0.1), or a number of channels; at least one does.
    `scope`: "global" ranks all channels together, as in the paper; "layer" takes the same share of each layer;
    "isomorphic" of each kind of layer: stems, streams, expansions (Fang et al., Isomorphic Pruning, ECCV 2024).
    `mode`: for BatchNorm before convolution, "couple" removes a channel of the shared stream when every reader drops
    it, "select" lets each reader choose its own channels through an index, as in the paper.
    `grouped`: a grouped convolution loses the same places "within" each of its groups, or "whole" groups, with all that
    they read and make.
    `round_to`: keep a multiple of this many channels in each layer, never none (default: of 8, in layers of at least
    32 channels, as runtimes work in blocks of channels; 1 for the paper's exact numbers); or a `slim.Runtime`: channels
    go by the importance that is lost for the time saved there, in whole steps of what numbers of channels cost. Under a
    budget of FLOPs, importance counts times the FLOPs, so that time shrinks as they do.
    `keep`: shell pattern of layers to leave whole, or several. `layer_ratios`: pattern -> share to remove there.
    `blocks`: whole residual blocks go, too, where that loses less for what it saves; by `slim.Residual(images)` alone.
    `after`: the plans that made `model`, in the order of their use. The budget and the floors then count from the
    network before them all, so that several small steps end where one large step would; the plan is empty where they
    have met the budget.

    Warns where γ rank that no penalty has acted on. Raises SlimError for values out of range, or where nothing can go.
    """
    budget = _one_budget(budget, ratio)
    check_choice("mode", mode, ("couple", "select"))
    check_choice("grouped", grouped, ("within", "whole"))
    _check_earlier(after, layer_ratios)
    rules = Rules.of(floor, scope, round_to, keep, layer_ratios, blocks)
    traced = trace(model, example_inputs, select=mode == "select", whole_groups=grouped == "whole")
    chosen, reason = choose_score(score, model, traced)
    planner = Planner(model, example_inputs, traced, chosen, rules, after)
    if round_to is not None and not isinstance(round_to, int):
        planner.cost_model = round_to.cost_model(traced)
    made = budget.meet(planner)
    made.score, made.reason = name_of_score(chosen), reason
    _warn_of_layers_passed_by(planner.traced)
    return made


def _warn_of_layers_passed_by(traced: Trace) -> None:
    if passed_by := traced.passed_by:
        warnings.warn(
            f"example_inputs lead past {', '.join(passed_by[:3])}{', …' * (len(passed_by) > 3)}, as forward code looks "
            "at values or draws: these stay whole, and may not fit the thin network; expected inputs that reach them",
            SlimWarning,
            stacklevel=3,
        )


def _check_earlier(plans: object, layer_ratios: object) -> None:
    """Raise SlimError where these aren't plans that may come before one with these settings."""
    check_type("after", plans, "the plans that made the model, in a list", list, tuple)
    assert isinstance(plans, list | tuple)
    for each in plans:
        check_type("after", each, "what slim.plan returned", PruningPlan)
    if plans and layer_ratios:
        raise SlimError("layer_ratios can't be planned after other plans: expected a budget alone")


def _one_budget(budget: Any, ratio: float | None) -> Budget:
    """Return the budget that was asked for, by one of the two. Raises SlimError where that is none."""
    if budget is not None and ratio is not None:
        raise SlimError(f"one budget at a time: got ratio {ratio!r} and {budget!r}")
    budget = budget if budget is not None else Ratio(0.5 if ratio is None else ratio)
    if not isinstance(budget, Budget):
        raise SlimError(f"budget {budget!r:.60}: expected one such as slim.Flops(0.5), or ratio=0.5")
    return budget


class Planner:
    """Plans for one traced model, whatever the budget: `within(budget)` gives the best that its cost function allows.

    With a `cost_model`, channels go in whole steps of what it measured, by the value lost for the cost saved.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        traced: Trace,
        score: Score,
        rules: Rules,
        after: Sequence[PruningPlan] = (),
    ) -> None:
        labels = ranked(score, traced)
        if not labels:
            raise SlimError(f"nothing to prune: {_why_nothing(traced, model)}")
        channels = sum(map(len, labels.values()))
        if after and after[-1].totals["channels"][1] != channels:
            raise SlimError(
                f"the model has {channels} prunable channels: expected the {after[-1].totals['channels'][1]} that the "
                "plans in after leave"
            )
        self.model, self.example_inputs = model, example_inputs
        self.score, self.rules, self.after = score, rules, after
        self._use(traced)
        self.widths = {layer.name: layer.before for layer in after[0].layers} if after else {}
        self.totals = {kind: before for kind, (before, _) in after[0].totals.items()} if after else None
        self._orders: Orders = {}
        self.cost_model = None
        self._scored: tuple[NDArray[np.int64], Floats] | None = None
        self._missed: Sequence[float] | None = None  # without each of the branches

    @property
    def cost_model(self) -> CostModel | None:
        """Return what the network costs where it runs, if sizes follow from that."""
        return self._cost_model

    @cost_model.setter
    def cost_model(self, model: CostModel | None) -> None:
        self._cost_model = model
        self._orders.clear()

    def _use(self, traced: Trace) -> None:
        """Plan from this trace from now on."""
        self.traced, self.sizes = traced, StoredSizes(traced)
        self.branches = removable(traced, self.rules, self.score) if self.rules.blocks else []
        for pattern in self.rules.keep:
            for name in matching(list(traced.made), pattern, "keep"):
                traced.classes.freeze(traced.made[name].labels, KEPT)

    def within(self, budget: Budget) -> tuple[PruningPlan, Chosen]:
        """Return a plan that the model's forward code can run, and what was chosen for it.

        Raises SlimError where there is none, or where nothing can go.
        """
        reason = ""
        for _ in range(ATTEMPTS):
            known = set(self.traced.made)
            made, chosen, kept = self._attempt(budget)
            misfit = self.sizes.follow(made, kept)
            if self.traced.made.keys() - known:  # values led the masked network to other layers
                continue
            misfit = misfit or take_up(made, self.traced, kept, self.model, self.example_inputs)
            if misfit is None:
                without(made, self.traced, [branch for branch in self.branches if not kept[branch.label]], kept)
                return made, chosen
            reason = misfit.reason
            if self._add_inference():
                continue
            if self.sizes.couple(misfit):
                continue
            if not len(misfit.labels):
                if self.sizes.forget_trials():
                    continue
                break
            settled = self.traced.settle(misfit.labels, misfit.reason)
            if settled is not self.traced:
                self._use(settled)
        raise SlimError(f"no plan found that this model's forward code can run: {reason}")

    def _add_inference(self) -> bool:
        """Let both modes have their say where they run different code; whether anything is new."""
        try:
            return self.traced.add_inference()
        except Exception as error:
            if not self.traced.inputs_are_meta:
                raise cannot_run(error) from error
        self._use(self.traced.with_data(self.model, self.example_inputs))
        return True

    def _attempt(self, budget: Budget) -> tuple[PruningPlan, Chosen, Bools]:
        """Plan with what is known so far of the channels that are frozen and coupled."""
        counted = ranked(self.score, self.traced)
        if not counted:
            raise SlimError(f"nothing to prune: {_why_nothing(self.traced, self.model)}")
        groups = Groups(self.traced, self.model, self.widths, counted)
        costs = Costs(groups, self.totals)
        groups.savings = budget.savings(costs)
        groups.rank_by(self._scores(groups))
        self._add_blocks(groups, costs, budget)
        bound = budget.bind(costs)
        safe, chosen = self._choose(groups, budget, bound)
        if not chosen.pruned.any() and not self.after and bound.limit < bound.whole:
            no_steps = self.cost_model is not None and chosen.exhausted
            raise nothing_to_prune(groups, budget, safe, no_steps)
        made = draft(costs, budget, bound, chosen, safe, self.rules.rounding(groups))
        return made, chosen, groups.kept(chosen.pruned)

    def _add_blocks(self, groups: Groups, costs: Costs, budget: Budget) -> None:
        """Let whole blocks go as channel groups do, at what is missed without them for what that saves."""
        if not self.branches:
            return
        if self._missed is None:
            assert isinstance(self.score, ScoresBlocks)
            self._missed = self.score.missed_without(groups, self.branches)
        add_to(groups, self.branches, self._missed, lambda: budget.savings(costs))

    def _choose(self, groups: Groups, budget: Budget, bound: BoundBudget) -> tuple[Bools, Chosen]:
        """Return the groups that stay in any case, and those chosen to go, so that no part of a layer runs empty."""
        widths = dict(zip(groups.names, groups.widths.tolist()))
        floors, fixed = self.rules.floors(widths, self.widths), self.fixed(groups)
        members: list[NDArray[np.int64]] = []
        while True:
            safe = groups.protected(floors, members)
            choice = Candidates(groups, safe, self.rules, fixed, bound)
            model = self.cost_model
            chosen = by_threshold(choice) if model is None else by_cost(choice, model, budget.by_flops, self._orders)
            if chosen.exhausted and self.rules.by_cost:  # whole steps of the runtime are too wide for what is asked
                chosen = by_threshold(choice)
            emptied = groups.emptied(chosen.pruned)
            if not emptied:
                return safe, chosen
            members += emptied

    def fixed(self, groups: Groups) -> NDArray[np.int64]:
        """Return for each pattern the number of groups to keep that is given, or -1."""
        return fixed_sizes(groups, self.rules.layer_ratios)

    def _scores(self, groups: Groups) -> Floats:
        """Return the score of each group, which is asked for again where groups have been coupled since."""
        if self._scored is None or not np.array_equal(self._scored[0], groups.roots):
            self._scored = groups.roots, scored(self.score, groups)
        return self._scored[1]


def check_prunable(model: nn.Module, example_inputs: Any, mode: str = "couple", grouped: str = "within") -> None:
    """Raise SlimError where no channel of a network can go, whatever the budget and the score."""
    traced = trace(model, example_inputs, select=mode == "select", whole_groups=grouped == "whole")
    if all(traced.classes.frozen(made.labels).all() for made in traced.made.values()):
        raise SlimError(f"nothing to prune: {_why_nothing(traced, model)}")


def _why_nothing(traced: Trace, model: nn.Module) -> str:
    """Return what keeps all channels of a network in which none can be ranked, and what to do about it."""
    frozen = {traced.classes.reason(int(label)) for made in traced.made.values() for label in made.labels}
    reasons = sorted(reason for reason in frozen if reason)
    if any(type(module).__name__ == "FrozenBatchNorm2d" for module in model.modules()):
        return (
            "its FrozenBatchNorm2d add what no channel can take along; expected nn.BatchNorm2d in their place, which "
            "takes the same numbers, with requires_grad_(False) to stay as they are"
        )
    if not reasons:
        return "no layer makes channels: expected convolutions or linear layers as modules of the network"
    return f"all channels are frozen ({'; '.join(reasons[:3])})"


def explain(model: nn.Module, example_inputs: Any) -> str:
    """Return the groups of a model in one line each: which layers' channels are coupled, and what is frozen and why.

    >>> print(slim.explain(model, x))
    32 groups: 1
    """
    traced = trace(model, example_inputs)
    labels = ranked(as_score(None, traced), traced)
    if not labels:
        return f"nothing to prune: {_why_nothing(traced, model)}"
    groups = Groups(traced, model, counted=labels)
    lines = []
    for pattern, size in enumerate(groups.pattern_size):
        mine = groups.pattern == pattern
        names = [groups.names[i] for i in np.unique(groups.layer[mine[groups.member]])]
        if groups.frozen[mine].all():
            for root in np.unique(groups.roots[mine])[:1]:
                lines.append(f"frozen: {int(size)} groups in {', '.join(names)}: {traced.classes.reason(int(root))}")
        else:
            lines.append(f"{int(size)} groups: {', '.join(names)}")
    return "\n".join(lines)
