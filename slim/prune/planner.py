"""Which channels go: rank all groups of the network by |γ| against one global threshold, within floors and a budget.

    plan = slim.plan(model, example_inputs, ratio=0.5)
    thin = plan.apply(model)

A *group* is a set of channels that stand or fall together (see `slim.trace`). Its score is taken over the |γ| of every
BatchNorm that holds it. The groups with the lowest scores go, until the budget is met; each layer's best channels,
the floor's worth, always stay. Source: Network Slimming, Liu et al., ICCV 2017, section 3.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim.deploy.cost.runtime import Runtime, read_latency
from slim.errors import NothingToPrune, SlimError
from slim.prune.budgets import Costs
from slim.prune.choosing import Rules, choose, fixed_sizes, matching, number
from slim.prune.groups import Bools, Floats, Groups, Score
from slim.prune.plan import Layer, PruningPlan
from slim.prune.rebuild import thinned
from slim.prune.scores import residual_scores
from slim.trace.check import Counted, Misfit, find_misfit, kept_size
from slim.trace.copy import named_tensors
from slim.trace.tracer import Trace, trace


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    floor: float = 0.1,
    floor_count: int = 1,
    score: Score = "mean",
    scope: Literal["global", "layer"] = "global",
    mode: Literal["couple", "select"] = "couple",
    grouped: Literal["within", "whole"] = "within",
    round_to: int | Literal["auto"] = 1,
    latency: float | str | None = None,
    runtime: Runtime | None = None,
    keep: Sequence[str] | None = None,
    layer_ratios: Mapping[str, float] | None = None,
    images: Any = None,
    after: Sequence[PruningPlan] = (),
) -> PruningPlan:
    """Plan which channels of `model` to remove. The model is left as it is.

    `example_inputs`: a tensor, a tuple or a dict of what `forward` takes.
    One budget: `ratio`, the share of all BatchNorm channels to remove, in [0, 1) (default 0.5); `flops` or `params`,
    what may stay of them: a share in (0, 1], or an absolute number above 1.
    `floor`: share of each layer's channels that always stays, at least `floor_count`.
    `score`: how a group's score follows from its |γ|; or "residual": not from γ, but from what the layers that read a
    channel miss once the others stand in for it (see `slim.prune.scores`), which needs `images`, a few hundred.
    `scope`: "global" ranks all channels together, as in the paper; "layer" takes the same share of each layer.
    `mode`: for BatchNorm before convolution, "couple" removes a channel of the shared stream when every reader drops
    it, "select" lets each reader choose its own channels through an index, as in the paper.
    `grouped`: a grouped convolution loses the same places "within" each of its groups, or "whole" groups, with all that
    they read and make.
    `round_to`: keep a multiple of this many channels in each layer, never none; "auto": what suits `runtime`.
    `latency`: a budget measured in onnxruntime, a share of the original's or a time such as "4.0ms" (or a number with
    its unit), on `runtime` (`slim.Runtime`; default: the best provider, all cores, batch 1). Channels go by the value
    |γ| that is lost for the time saved, in whole steps of what numbers of channels cost there; the thin network is
    exported, measured against the original, and the plan corrected until it meets the budget within 3 %. With
    round_to="auto" channels go in the same way until another budget is met, and whole networks aren't measured; under
    a budget of FLOPs, |γ| counts times the FLOPs, so that time shrinks as they do.
    `keep`: shell patterns of BatchNorms to leave whole. `layer_ratios`: pattern -> share to remove there.
    `after`: the plans that made `model`, in the order of their use. The budget and the floors then count from the
    network before them all, so that several small steps end where one large step would; the plan is empty where they
    have met the budget.

    Raises SlimError for a value out of range, a model without BatchNorm, or a request that can remove nothing.
    """
    requested = _requested(ratio, flops, params, latency)
    if latency is not None and round_to not in (1, "auto"):
        raise SlimError(f"round_to {round_to!r}: expected 1 or auto with a latency, which chooses sizes by their cost")
    if after and (latency is not None or layer_ratios):
        raise SlimError("latency and layer_ratios can't be planned after other plans: expected ratio, flops or params")
    unit = 1 if round_to == "auto" else round_to
    numbers = (("floor", floor, 0, 1), ("floor_count", floor_count, 1, 10**9), ("round_to", unit, 1, 4096))
    for name, value, low, high in numbers:
        if not low <= number(name, value) <= high:
            raise SlimError(f"{name} {value!r} is out of range: expected {low} to {high}")
    for name, choice, choices in (
        ("score", score, get_args(Score)),
        ("scope", scope, ("global", "layer")),
        ("mode", mode, ("couple", "select")),
        ("grouped", grouped, ("within", "whole")),
    ):
        if choice not in choices:
            raise SlimError(f"unknown {name} {choice!r}: expected one of {', '.join(choices)}")
    traced = trace(model, example_inputs, select=mode == "select", whole_groups=grouped == "whole")
    if not traced.norms:
        raise SlimError("nothing to prune: the network has no BatchNorm with a scale γ that forward uses")
    channels = sum(len(labels) for labels in traced.norms.values())
    if after and after[-1].totals["channels"][1] != channels:
        raise SlimError(
            f"the model has {channels} BatchNorm channels: expected the {after[-1].totals['channels'][1]} that the "
            "plans in after leave"
        )
    _freeze_kept(traced, keep or ())
    gammas = _gammas(model, traced)
    if score == "residual":
        if images is None:
            raise SlimError('score "residual" needs images: expected a batch of training images')
        gammas = residual_scores(model, traced, images, next(iter(requested)))
    rules = Rules(floor, floor_count, unit, scope)
    stored: dict[str, Counted] = dict(traced.group_counts)
    refused: set[str] = set()

    def planned(requested: dict[str, float]) -> PruningPlan:
        for _ in range(100):
            made, kept = _plan(traced, gammas, requested, rules, score, layer_ratios or {}, after)
            misfit = _follow_stored_sizes(traced, made, kept, stored, refused)
            if misfit is None:
                return made
            if traced.add_inference():  # the two modes run different code: both have their say
                continue
            if _tie_what_shares_a_size(traced, stored, misfit):
                continue
            if not len(misfit.labels):
                break
            traced.classes.freeze(misfit.labels, misfit.reason)
        raise SlimError(f"no plan found that this model's forward code can run: {misfit.reason if misfit else ''}")

    if round_to == "auto" or latency is not None:
        # inside, because only a plan for a runtime needs onnxruntime
        from slim.deploy.cost.measure import LatencyBudget
        from slim.deploy.cost.model import latency_model

        runtime = runtime or Runtime()
        if latency is None:
            rules.latency, rules.by_flops = latency_model(traced, runtime), flops is not None
        else:
            budget = LatencyBudget(model, example_inputs, requested, runtime)
            rules.latency = latency_model(traced, runtime)
            return budget.kept(lambda share: planned({"latency": share}))
    return planned(requested)


def _follow_stored_sizes(
    traced: Trace, made: PruningPlan, kept: Bools, stored: dict[str, Counted], refused: set[str]
) -> Misfit | None:
    """What keeps the thin network from running, once sizes that modules store follow their channels.

    Where an attribute holds a size that an operator was given, it is tried with the thin size, alone or with the others
    of its module; what brings the network further is kept in `stored`, what doesn't goes into `refused`.
    """

    def thin(sizes: Mapping[str, Counted]) -> dict[str, int | list[int]]:
        return {name: kept_size(counted, kept) for name, counted in sizes.items()}

    def check(tried: dict[str, Counted]) -> Misfit | None:
        made.sizes = thin(stored | tried)
        return find_misfit(traced, lambda copied: thinned(copied, made.change), kept, stored | tried)

    def further(after: Misfit | None, before: Misfit) -> bool:
        return after is None or after.step > before.step

    misfit = check({})
    while misfit is not None:
        stale = {
            name: counted
            for name, counted in misfit.stored.items()
            if name not in stored
            and name not in refused
            and kept_size(counted, kept) != kept_size(counted, np.ones_like(kept))
        }
        modules = {name.rpartition(".")[0] for name in stale}
        together = [[name for name in stale if name.rpartition(".")[0] == module] for module in modules]
        for names in [[name] for name in stale] + [names for names in together if len(names) > 1]:
            tried = {name: stale[name] for name in names}
            after = check(tried)
            if not further(after, misfit):
                continue
            for name in names if len(names) > 1 else []:  # one of them may only look like the size at hand
                fewer = {other: tried[other] for other in tried if other != name}
                without = check(fewer)
                if further(without, misfit):
                    tried, after = fewer, without
            stored |= tried
            misfit = after
            break
        else:
            refused |= stale.keys()
            break
    made.sizes = thin(stored)
    return misfit


def _tie_what_shares_a_size(traced: Trace, stored: Mapping[str, Counted], misfit: Misfit) -> bool:
    """Where one stored size serves several layers, such as the heads of an attention, the same places of each stand or
    fall together. Whether that is new."""
    new = False
    for name, labels in misfit.shared.items():
        counted = np.asarray(stored[name])
        if (traced.classes.roots(labels) != traced.classes.roots(counted)).any():
            traced.classes.unite(labels, counted, f"{name} holds the size of both")
            new = True
    return new


def _requested(
    ratio: float | None, flops: float | None, params: float | None, latency: float | str | None
) -> dict[str, float]:
    given: dict[str, float] = {
        k: v for k, v in (("ratio", ratio), ("flops", flops), ("params", params)) if v is not None
    }
    if latency is not None:
        given |= read_latency(latency)
    if len(given) > 1:
        raise SlimError(f"one budget at a time: got {' and '.join(given)}")
    if not given:
        given = {"ratio": 0.5}
    kind, value = next(iter(given.items()))
    number(kind, value)
    if kind == "ratio" and not 0 <= value < 1:
        raise SlimError(f"ratio {value!r} is out of range: expected 0 <= ratio < 1")
    if kind != "ratio" and not value > 0:
        raise SlimError(f"{kind} {value!r} is out of range: expected a share above 0, up to 1, or an absolute number")
    return given


def _gammas(model: nn.Module, traced: Trace) -> dict[str, Floats]:
    named = dict(named_tensors(model))
    gammas = {}
    for name in traced.norms:
        gamma = named[f"{name}.weight"].detach().abs().double().cpu().numpy()
        if not np.isfinite(gamma).all():
            raise SlimError(f"γ of {name} has values that aren't finite: expected numbers")
        gammas[name] = gamma
    return gammas


def _freeze_kept(traced: Trace, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for bn in matching(list(traced.norms), pattern, "keep"):
            traced.classes.freeze(traced.norms[bn], "kept on request")


def _plan(
    traced: Trace,
    gammas: Mapping[str, Floats],
    requested: dict[str, float],
    rules: Rules,
    score: Score,
    layer_ratios: Mapping[str, float],
    after: Sequence[PruningPlan],
) -> tuple[PruningPlan, Bools]:
    widths = {layer.name: layer.before for layer in after[0].layers} if after else {}
    groups = Groups(traced, gammas, score, widths)
    floors = [
        min(int(n), max(1, rules.floor_count, math.ceil(rules.floor * widths.get(name, n) - 1e-9)))
        for name, n in zip(groups.names, groups.widths)
    ]
    fixed = fixed_sizes(groups, layer_ratios)
    costs = Costs(traced, groups, rules.latency)
    kind, asked = next(iter(requested.items()))
    what = "channels" if kind == "ratio" else kind
    now = costs.of(what, np.zeros(len(groups.roots), bool))
    whole = after[0].totals[what][0] if after else now
    budget = asked * whole if kind == "ratio" or asked <= 1 else asked
    if kind == "ratio":
        budget -= whole - now  # which went before
    members: list[NDArray[np.int64]] = []
    while True:
        safe = groups.protected(floors, members)
        chosen = choose(groups, safe, rules, fixed, budget, kind, costs)
        out = chosen.out
        emptied = groups.emptied(out)
        if not emptied:
            break
        members += emptied
    met = asked == 0 if kind == "ratio" else budget >= whole
    if not out.any() and not after and not met:
        raise NothingToPrune(_nothing(groups, requested, safe, rules.latency is not None and chosen.exhausted))
    made = _write(traced, groups, costs, out, safe, requested, whole, chosen.exhausted)
    if kind == "latency":
        made.timing = {"next_step": chosen.next_step / whole}
    return made, costs.kept(out)


def _nothing(groups: Groups, requested: dict[str, float], safe: Bools, no_steps: bool) -> str:
    kind, asked = next(iter(requested.items()))
    free = ~groups.frozen
    why = "every group of channels would empty a layer" if free.any() else "all channels are frozen"
    if (~safe).any():
        smallest = int(groups.size[~safe].min())
        why = f"the smallest group that may go holds {smallest} of {len(groups.member)} BatchNorm channels"
        why = "no layer has a whole step of channels to spare on this runtime" if no_steps else why
    elif not free.any():
        reasons = {groups.traced.classes.reason(int(r)) for r in groups.roots}
        why += f" ({'; '.join(sorted(r for r in reasons if r)[:3])})"
    return f"{kind} {asked:g} would remove nothing: {why}"


def _write(
    traced: Trace,
    groups: Groups,
    costs: Costs,
    out: Bools,
    safe: Bools,
    requested: dict[str, float],
    whole: float,
    exhausted: bool,
) -> PruningPlan:
    kept = costs.kept(out)
    removed = {}
    layers = []
    frozen: dict[str, dict[str, int]] = {}
    threshold = groups.score[out].max() if out.any() else -1.0
    held = safe & ~groups.frozen & (groups.score <= threshold)
    for name, members in zip(groups.names, np.split(groups.member, np.cumsum(groups.widths)[:-1])):
        indices = np.flatnonzero(out[members]).tolist()
        if indices:
            removed[name] = indices
        stuck = groups.frozen[members]
        layers.append(
            Layer(name, len(members), len(members) - len(indices), int(held[members].sum()), int(stuck.sum()))
        )
        for group in np.unique(members[stuck]):
            reason = traced.classes.reason(int(groups.roots[group])) or "fixed size"
            where = frozen.setdefault(reason, {})
            where[name] = where.get(name, 0) + int((members == group).sum())
    cuts: dict[str, dict[int, list[int]]] = {}
    known: dict[bytes, list[int]] = {}  # many tensors lose the same channels: one list for all of them
    places = ((name, dim) for name, dims in traced.labels.items() for dim in dims)
    for (name, dim), gone in zip(places, groups.vectors.where(~kept)):
        if len(gone):
            cuts.setdefault(name, {})[dim] = known.setdefault(gone.tobytes(), gone.tolist())
    nothing = np.zeros_like(out)
    totals = {
        kind: (int(costs.of(kind, nothing)), int(costs.of(kind, out))) for kind in ("channels", "params", "flops")
    }
    kind, asked = next(iter(requested.items()))
    left = costs.of("channels" if kind == "ratio" else kind, out)
    achieved = 1 - left / whole if kind == "ratio" else left / whole if asked <= 1 else float(left)
    return PruningPlan(
        requested=requested,
        achieved={kind: achieved},
        removed=removed,
        cuts=cuts,
        shapes={name: list(traced.shapes[name]) for name in cuts if name not in traced.stored},
        selects=sorted(traced.selecting & removed.keys()),
        totals=totals,
        layers=layers,
        frozen=frozen,
        shortfall=_shortfall(kind, asked, achieved, layers, frozen, exhausted),
    )


def _shortfall(
    kind: str, asked: float, got: float, layers: list[Layer], frozen: Mapping[str, Mapping[str, int]], exhausted: bool
) -> str:
    missed = asked - got if kind == "ratio" else got / asked - 1
    if missed <= 0.01:
        return ""
    floors = sum(layer.floor for layer in layers)
    why = [] if exhausted else ["the next group of channels is too large"]
    why += [f"floors and ties hold {floors} channels"] if floors and exhausted else []
    why += [f"{sum(where.values())} channels are frozen ({reason})" for reason, where in frozen.items()]
    return f"asked for {kind} {asked:g}, reached {got:.4g}: {'; '.join(why)}"


def explain(model: nn.Module, example_inputs: Any) -> str:
    """The groups of a model: which BatchNorms stand or fall together, and what is frozen and why. One line each."""
    traced = trace(model, example_inputs)
    if not traced.norms:
        return "no BatchNorm with a scale γ that forward uses"
    groups = Groups(traced, {n: np.ones(len(v)) for n, v in traced.norms.items()}, "mean")
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
