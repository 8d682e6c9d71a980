"""Which groups go: those below one threshold, or those of the least value for the time that they cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from slim.errors import SlimError
from slim.prune.budgets import BoundBudget, Chosen
from slim.prune.groups import Bools, Floats, Groups
from slim.prune.knapsack import CostModel, by_value_for_cost, sizes_after, terms_of, within
from slim.prune.rules import Rules, checked_number

Ints = NDArray[np.int64]
SHORT = 0.01  # of the whole: a plan that misses a ratio by more is short of it


@dataclass
class Candidates:
    """What there is to choose from: ranked groups, those that are `safe`, and for each pattern the number of groups to
    keep that the user has `fixed` for its layers, or -1."""

    groups: Groups
    safe: Bools
    rules: Rules
    fixed: Ints
    budget: BoundBudget

    def pruned(self, keep: Ints) -> Bools:
        """Return the groups that go where the best `keep` of each pattern stay."""
        out: Bools = (self.groups.rank >= keep[self.groups.pattern]) & ~self.safe
        return out

    def cost(self, keep: Ints) -> float:
        """Return what the network costs then."""
        return self.budget.cost(self.groups.kept(self.pruned(keep)))

    @property
    def least(self) -> Ints:
        """Return the number of groups of each pattern that are safe."""
        return np.bincount(self.groups.pattern, weights=self.safe).astype(np.int64)

    @property
    def scores(self) -> Floats:
        """Return what groups are compared by across the network."""
        if self.rules.scope == "global":
            return self.groups.score
        if self.rules.scope == "isomorphic":
            return _places(self.groups.score, structures(self.groups), self.groups.roots)
        # every layer loses the same share, earlier plans included
        size = self.groups.pattern_size_before[self.groups.pattern]
        share: Floats = (size - self.groups.rank) / size
        return share

    @property
    def units(self) -> Ints:
        """Return how many groups of each pattern make a whole step of rounding."""
        return self.rules.units(self.groups)


def by_threshold(choice: Candidates) -> Chosen:
    """Return the groups that go below one threshold for all."""
    steps, sizes = _thresholds(choice)
    taken = _steps_within(choice.budget, steps, lambda k: choice.cost(sizes(k)))
    keep = sizes(taken)
    if not choice.budget.stops_short:
        _fill(keep, choice)
    elif choice.cost(keep) - choice.budget.limit > SHORT * choice.budget.whole:
        _take_smaller(keep, choice)
    return Chosen(choice.pruned(keep), taken == steps)


def _thresholds(choice: Candidates) -> tuple[int, Callable[[int], Ints]]:
    """Return how many thresholds there are, and a function that says how many groups of each pattern stay at each: with
    each threshold, one group more falls below it."""
    groups, score, unit, least, fixed = choice.groups, choice.scores, choice.units, choice.least, choice.fixed
    order = np.flatnonzero(~choice.safe & (fixed[groups.pattern] < 0))
    order = order[np.lexsort((groups.roots[order], score[order]))]

    def sizes(steps: int) -> Ints:
        taken = np.bincount(groups.pattern[order[:steps]], minlength=len(groups.pattern_size))
        keep = groups.pattern_size - taken
        keep = np.where(fixed >= 0, np.maximum(fixed, least), keep)
        down = keep // unit * unit
        up = np.minimum(down + unit, groups.pattern_size)
        nearest = np.where((keep - down <= up - keep) & (down >= np.maximum(least, 1)), down, up)
        return np.where(keep % unit == 0, keep, nearest)

    return len(order), sizes


def _fill(keep: Ints, choice: Candidates) -> None:
    """Bring the best groups back, in place, as far as the budget has room: the last one to go may have been large."""
    groups, score, unit = choice.groups, choice.scores, choice.units
    best_first = np.split(np.lexsort((groups.rank, groups.pattern)), np.cumsum(groups.pattern_size)[:-1])
    open_ = [
        (-score[best_first[p][keep[p]]], p) for p in np.flatnonzero((keep < groups.pattern_size) & (choice.fixed < 0))
    ]
    heapify(open_)
    while open_:
        _, p = heappop(open_)
        had = keep[p]
        keep[p] = min(had + unit[p], groups.pattern_size[p])
        if choice.cost(keep) > choice.budget.limit:
            keep[p] = had  # and its others, which cost the same, don't fit either
        elif keep[p] < groups.pattern_size[p]:
            heappush(open_, (-score[best_first[p][keep[p]]], p))


def _take_smaller(keep: Ints, choice: Candidates) -> None:
    """Prune more groups, in place, where the first one to stay was too large: the lowest ones that leave the limit."""
    groups, score, unit = choice.groups, choice.scores, choice.units
    best_first = np.split(np.lexsort((groups.rank, groups.pattern)), np.cumsum(groups.pattern_size)[:-1])
    least = np.maximum(choice.least, 1)

    def lower(p: int) -> int:
        return int((keep[p] - 1) // unit[p] * unit[p])

    def place(p: int) -> tuple[float, int]:
        return float(score[best_first[p][keep[p] - 1]]), p

    open_ = [place(p) for p in np.flatnonzero(choice.fixed < 0).tolist() if lower(p) >= least[p]]
    heapify(open_)
    while open_:
        _, p = heappop(open_)
        had, keep[p] = int(keep[p]), lower(p)
        if choice.cost(keep) < choice.budget.limit - 1e-9:
            keep[p] = had  # and its others, which are as large, don't fit either
        elif lower(p) >= least[p]:
            heappush(open_, place(p))


Orders = dict[bytes, list[tuple[int, int]]]  # what decides an order -> the order


def by_cost(choice: Candidates, model: CostModel, by_flops: bool, known: Orders) -> Chosen:
    """Return the groups that go by whole steps of the cost of a pattern, in the order of value lost for cost saved.

    With `by_flops`, for a budget of FLOPs, time is to shrink as they do. `known` are orders by the same model, as a
    budget that is corrected asks for the same again and again; what is new is added.
    """
    groups, budget, fixed = choice.groups, choice.budget, choice.fixed
    start = np.where(fixed >= 0, np.maximum(fixed, choice.least), groups.pattern_size)
    best_first = np.lexsort((groups.rank, groups.pattern))
    value = choice.scores if by_flops else choice.scores * groups.size
    values = np.split(value[best_first], np.cumsum(groups.pattern_size)[:-1])
    worth = [np.r_[0.0, np.cumsum(each)] for each in values]
    least = np.where(fixed >= 0, start, np.maximum(choice.least, groups.least))
    inputs = (groups.roots, groups.pattern, value[best_first], start, least, np.array(by_flops))
    decides = b"".join(each.tobytes() for each in inputs)
    if decides not in known:
        terms, steps = terms_of(model, groups.traced.classes, groups.roots, groups.pattern, groups.pattern_size)
        known[decides] = by_value_for_cost(worth, start.tolist(), least.tolist(), steps, terms, by_flops)
    order = known[decides]

    if budget.stops_short:
        taken = _steps_within(budget, len(order), lambda k: choice.cost(sizes_after(order[:k], start)))
        keep = sizes_after(order[:taken], start)
        if choice.cost(keep) - budget.limit > SHORT * budget.whole:
            _take_smaller(keep, choice)
        return Chosen(choice.pruned(keep), taken == len(order))
    found = within(budget.limit, order, start, worth, choice.cost)
    return Chosen(choice.pruned(found.keep), found.exhausted, found.next_step / budget.whole)


def _steps_within(budget: BoundBudget, steps: int, cost: Callable[[int], float]) -> int:
    """Return how many steps to take: as few as bring the cost within the budget, or as many as stop short of it."""
    if budget.stops_short:
        return _last(steps, lambda k: cost(k) >= budget.limit - 1e-9)
    over = _last(steps, lambda k: cost(k) > budget.limit)
    return min(steps, over + 1) if cost(over) > budget.limit else over


def _last(steps: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number of steps at which `holds`, which is true up to there and false after."""
    low, high = 0, steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _places(score: Floats, kind: Ints, roots: Ints) -> Floats:
    """Return the place of each among those of its kind: 1 for the best, near 0 for the last."""
    size = np.bincount(kind)
    order = np.lexsort((roots, -score, kind))
    place = np.empty(len(order))
    place[order] = np.arange(len(order)) - np.r_[0, np.cumsum(size)][kind[order]]
    out: Floats = 1 - place / size[kind]
    return out


def structures(groups: Groups) -> Ints:
    """Return the kind of each group: those of a kind lie along dimensions of the same kinds of tensors (rows of 3×3
    convolutions, columns of 1×1 ones, rows of depthwise ones, …), whatever their number. Frozen groups are of none."""
    tokens: dict[object, int] = {}
    seen = []
    for name, dims in groups.traced.labels.items():
        shape = groups.traced.shapes[name]
        for dim, labels in dims.items():
            token = tokens.setdefault((len(shape), dim, shape[2:], shape[1:2] == (1,)), len(tokens))
            roots = np.unique(groups.root_of[labels])
            place = np.searchsorted(groups.roots, roots).clip(max=len(groups.roots) - 1)
            seen.append(place[groups.roots[place] == roots] * 2**16 + token)
    pairs = np.unique(np.concatenate(seen))
    salt = np.random.default_rng(0).integers(1, 2**40, len(tokens))
    signature = np.zeros(len(groups.roots), np.int64)
    np.add.at(signature, pairs >> 16, salt[pairs & 0xFFFF])
    signature[groups.frozen] = 0
    return np.unique(signature, return_inverse=True)[1]


def fixed_sizes(groups: Groups, layer_ratios: Mapping[str, float]) -> Ints:
    """Return for each pattern the number of groups to keep that `layer_ratios` sets, or -1."""
    fixed = np.full(len(groups.pattern_size), -1, np.int64)
    for pattern, share in layer_ratios.items():
        _check_counted(groups, pattern)
        layers = [groups.names.index(name) for name in matching(groups.names, pattern, "layer_ratios")]
        if not 0 <= checked_number(f"layer_ratios {pattern!r}", share) < 1:
            raise SlimError(f"layer_ratios {pattern!r}: {share!r} is out of range: expected 0 <= ratio < 1")
        touched = np.unique(groups.pattern[groups.member[np.isin(groups.layer, layers)]])
        fixed[touched] = groups.pattern_size[touched] - np.floor(share * groups.pattern_size[touched] + 1e-9)
    return fixed


def _check_counted(groups: Groups, pattern: str) -> None:
    """Raise SlimError for a pattern of layers that are there, and of which no channel can go."""
    traced = groups.traced
    found = [name for name in traced.made if fnmatch(name, pattern)]
    if found and not groups.labels.keys() & set(found):
        reason = traced.classes.reason(int(traced.made[found[0]].labels[0]))
        raise SlimError(
            f"layer_ratios {pattern!r}: {found[0]} isn't ranked by itself"
            + (f", as its channels are frozen ({reason})" if reason else "")
            + f": expected one such as {groups.names[0]!r}"
        )


def matching(names: Sequence[str], pattern: str, setting: str) -> list[str]:
    """Return the layers that a shell pattern of a setting means. Raises SlimError where there are none."""
    found = [name for name in names if fnmatch(name, pattern)]
    if not found:
        raise SlimError(f"{setting} {pattern!r} matches no layer: expected a name such as {names[0]!r}")
    return found
