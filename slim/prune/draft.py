"""The plan written out: what a choice of groups means for every tensor, and what the plan says of itself."""

from collections.abc import Iterator, Mapping

import numpy as np
from torch import nn

from slim.errors import NothingToPrune
from slim.prune.budgets import BoundBudget, Budget, Chosen, Costs
from slim.prune.choosing import SHORT
from slim.prune.groups import Bools, Groups
from slim.prune.plan import PlannedLayer, PruningPlan


def draft(
    costs: Costs, budget: Budget, bound: BoundBudget, chosen: Chosen, safe: Bools, rounding: str = ""
) -> PruningPlan:
    """Return the plan that prunes what was chosen for a budget, where `safe` groups were kept whatever it said."""
    groups, kept = costs.groups, costs.groups.kept(chosen.pruned)
    everything = groups.kept()
    cuts, left = _cuts(groups, kept), _left(groups, kept)
    layers, frozen = _layers(groups, chosen.pruned, safe), _frozen(groups)
    removed = groups.traced.pruned(kept)
    achieved = budget.achieved(bound.cost(kept), bound.whole)
    sums = {"channels": costs.channels, "params": costs.params, "flops": costs.flops}
    return PruningPlan(
        requested=budget.requested,
        achieved={budget.name: achieved},
        removed=groups.traced.with_tied(removed),
        masks=groups.traced.masks(removed),
        cuts=left | cuts | _apart(groups, cuts),
        shapes={name: list(groups.traced.shapes[name]) for name in cuts if name not in groups.traced.stored},
        selects=sorted(groups.traced.selecting & removed.keys()),
        totals={kind: (total(everything), total(kept)) for kind, total in sums.items()},
        layers=layers,
        kinds=_kinds(groups),
        frozen=frozen,
        shortfall=_shortfall(budget, achieved, layers, frozen, chosen.exhausted, rounding),
        rounding=rounding,
    )


def _kinds(groups: Groups) -> dict[str, int]:
    """Return how many of the channels that count are made by what kind of layer."""
    kinds: dict[str, int] = {}
    for name, labels in groups.labels.items():
        kind = groups.traced.made[name].kind
        kinds[kind] = kinds.get(kind, 0) + len(labels)
    return kinds


def _cuts(groups: Groups, kept: Bools) -> dict[str, dict[int, list[int]]]:
    """Return what every parameter and buffer loses: name -> dimension -> indices."""
    cuts: dict[str, dict[int, list[int]]] = {}
    places = ((name, dim) for name, dims in groups.traced.labels.items() for dim in dims)
    for (name, dim), pruned in zip(places, groups.vectors.where(~kept)):
        if pruned:
            cuts.setdefault(name, {})[dim] = pruned
    return cuts


def _apart(groups: Groups, cuts: Mapping[str, dict[int, list[int]]]) -> dict[str, dict[int, list[int]]]:
    """Return what buffers that several modules share lose under their other names: `.double()` and `.to(device)` make
    each of them one of its own."""
    first: dict[int, str] = {}
    shared = [
        (name, first[id(tensor)])
        for name, tensor in groups.traced.state.registered
        if first.setdefault(id(tensor), name) != name and not isinstance(tensor, nn.Parameter)
    ]
    return {name: cuts[known] for name, known in shared if known in cuts}


def _left(groups: Groups, kept: Bools) -> dict[str, dict[int, list[int]]]:
    """Return what tensors lose that forward will have left in attributes by the time that the plan is applied."""
    cuts = {
        name: {dim: np.flatnonzero(~kept[labels]).tolist() for dim, labels in dims.items()}
        for name, dims in groups.traced.left.items()
    }
    return {name: {dim: gone for dim, gone in cut.items() if gone} for name, cut in cuts.items() if any(cut.values())}


def _layers(groups: Groups, pruned: Bools, safe: Bools) -> list[PlannedLayer]:
    threshold = groups.score[pruned].max() if pruned.any() else -np.inf
    held = safe & ~groups.frozen & (groups.score <= threshold)
    return [
        PlannedLayer(
            name,
            len(members),
            int((~pruned[members]).sum()),
            int(held[members].sum()),
            int(groups.frozen[members].sum()),
        )
        for name, members in zip(groups.names, np.split(groups.member, np.cumsum(groups.widths)[:-1]))
    ]


def _frozen(groups: Groups) -> dict[str, dict[str, int]]:
    """Return what can't be pruned: reason -> layer -> number of channels."""
    found: dict[str, dict[str, int]] = {}
    for name, members in zip(groups.names, np.split(groups.member, np.cumsum(groups.widths)[:-1])):
        for group in np.unique(members[groups.frozen[members]]):
            reason = groups.traced.classes.reason(int(groups.roots[group])) or "fixed size"
            where = found.setdefault(reason, {})
            where[name] = where.get(name, 0) + int((members == group).sum())
    if groups.names != list(groups.traced.norms):  # what makes channels that can't go doesn't count: named all the same
        for name, labels in _uncounted(groups):
            for label in labels:
                where = found.setdefault(groups.traced.classes.reason(label) or "fixed size", {})
                where[name] = where.get(name, 0) + 1
    return found


def _uncounted(groups: Groups) -> Iterator[tuple[str, list[int]]]:
    """Yield what makes channels of which none can go and none counts, with the labels of these."""
    traced = groups.traced
    for name in (traced.bare | traced.norms.keys()) - groups.labels.keys():
        labels = traced.made[name].labels
        if traced.classes.frozen(labels).all():
            yield name, labels.tolist()


def _shortfall(
    budget: Budget,
    achieved: float,
    layers: list[PlannedLayer],
    frozen: Mapping[str, Mapping[str, int]],
    exhausted: bool,
    rounding: str,
) -> str:
    """Return one line on what held the plan back, or nothing where it meets the budget to within a point."""
    if budget.missed(achieved) <= SHORT:
        return ""
    floors = sum(layer.after - layer.frozen for layer in layers)
    large = f"the next group of channels is too large{', as ' * bool(rounding)}{rounding}"
    why = [] if exhausted else [large]
    why += [f"floors keep {floors} channels"] if floors and exhausted else []
    why += [f"{sum(where.values())} channels are frozen ({reason})" for reason, where in frozen.items()]
    return f"asked for {budget.name} {budget.asked:g}, reached {achieved:.4g}: {'; '.join(why)}"


def nothing_to_prune(groups: Groups, budget: Budget, safe: Bools, no_steps: bool) -> NothingToPrune:
    """Return the error for a plan that would remove nothing, with the reason."""
    free = ~groups.frozen
    why = "every group of channels would empty a layer" if free.any() else "all channels are frozen"
    if (~safe).any():
        smallest = int(groups.size[~safe].min())
        why = f"the smallest group that may go holds {smallest} of {len(groups.member)} channels"
        why = "no layer has a whole step of channels to spare on this runtime" if no_steps else why
    elif not free.any():
        reasons = {groups.traced.classes.reason(int(r)) for r in groups.roots}
        why += f" ({'; '.join(sorted(r for r in reasons if r)[:3])})"
    return NothingToPrune(f"{budget.name} {budget.asked:g} would remove nothing: {why}")
