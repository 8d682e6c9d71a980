"""Which groups go: those below one threshold, or those of the least value for the time that they cost."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from slim.errors import SlimError
from slim.prune.budgets import Costs
from slim.prune.groups import Bools, Floats, Groups

if TYPE_CHECKING:
    from slim.deploy.cost.model import LatencyModel


@dataclass
class Rules:
    """How channels are chosen, apart from how many."""

    floor: float = 0.1
    floor_count: int = 1
    round_to: int = 1  # or, with a cost model, whole steps of what it measured
    scope: Literal["global", "layer"] = "global"
    latency: "LatencyModel | None" = None
    by_flops: bool = False  # with a cost model: a budget of FLOPs, whose time is to shrink as they do


@dataclass
class Chosen:
    """The groups that go for a budget."""

    out: Bools
    exhausted: bool  # whether nothing more may go
    next_step: float = 0.0  # with a cost model: cost of the smallest step that the budget has no room for


def choose(
    groups: Groups, safe: Bools, rules: Rules, fixed: NDArray[np.int64], budget: float, kind: str, costs: "Costs"
) -> Chosen:
    """The groups that go for a budget: a ratio's number of channels to remove, or what may stay of another `kind`.

    `fixed[pattern]` is a number of groups to keep that the user set for the pattern's layers, or -1.
    """

    def gone(keep: NDArray[np.int64]) -> Bools:
        """Of each pattern all but the best `keep`."""
        out: Bools = (groups.rank >= keep[groups.pattern]) & ~safe
        return out

    if rules.latency is not None:
        return _by_value_for_cost(groups, safe, rules, fixed, budget, kind, costs, gone)
    steps, sizes = _below_threshold(groups, safe, rules, fixed)

    taken = _steps_within(budget, kind, steps, lambda k: gone(sizes(k)), costs)
    keep = sizes(taken)
    if kind != "ratio":
        _fill(keep, groups, rules, fixed, lambda keep: costs.of(kind, gone(keep)) <= budget)
    return Chosen(gone(keep), taken == steps)


def _scores(groups: Groups, rules: Rules) -> Floats:
    if rules.scope == "global":
        return groups.score
    # every layer loses the same share, earlier plans included
    size = groups.pattern_size_before[groups.pattern]
    share: Floats = (size - groups.rank) / size
    return share


def _below_threshold(
    groups: Groups, safe: Bools, rules: Rules, fixed: NDArray[np.int64]
) -> tuple[int, Callable[[int], NDArray[np.int64]]]:
    """How many steps there are, and for a number of steps how many groups of each pattern stay: in each step, one more
    falls below the threshold."""
    score = _scores(groups, rules)
    free = ~safe & (fixed[groups.pattern] < 0)
    order = np.flatnonzero(free)
    order = order[np.lexsort((groups.roots[order], score[order]))]
    unit = _units(groups, rules)
    least = np.bincount(groups.pattern, weights=safe).astype(np.int64)

    def sizes(steps: int) -> NDArray[np.int64]:
        taken = np.bincount(groups.pattern[order[:steps]], minlength=len(groups.pattern_size))
        keep = groups.pattern_size - taken
        keep = np.where(fixed >= 0, np.maximum(fixed, least), keep)
        if rules.round_to > 1:
            down = keep // unit * unit
            up = np.minimum(down + unit, groups.pattern_size)
            nearest = np.where((keep - down <= up - keep) & (down >= np.maximum(least, 1)), down, up)
            keep = np.where(keep % unit == 0, keep, nearest)
        return keep

    return len(order), sizes


def _units(groups: Groups, rules: Rules) -> NDArray[np.int64]:
    """How many groups of each pattern make a whole step of rounding."""
    return np.array([rules.round_to // math.gcd(rules.round_to, int(m)) for m in groups.multiple])


def _fill(
    keep: NDArray[np.int64],
    groups: Groups,
    rules: Rules,
    fixed: NDArray[np.int64],
    fits: Callable[[NDArray[np.int64]], bool],
) -> None:
    """The last group below the threshold may have been a large one. The best of the others come back as far as the
    budget has room for them."""
    score = _scores(groups, rules)
    best_first = np.split(np.lexsort((groups.rank, groups.pattern)), np.cumsum(groups.pattern_size)[:-1])
    unit = _units(groups, rules)
    open_ = [(-score[best_first[p][keep[p]]], p) for p in np.flatnonzero((keep < groups.pattern_size) & (fixed < 0))]
    heapify(open_)
    while open_:
        _, p = heappop(open_)
        had = keep[p]
        keep[p] = min(had + unit[p], groups.pattern_size[p])
        if not fits(keep):
            keep[p] = had  # and its others, which cost the same, don't fit either
        elif keep[p] < groups.pattern_size[p]:
            heappush(open_, (-score[best_first[p][keep[p]]], p))


def _by_value_for_cost(
    groups: Groups,
    safe: Bools,
    rules: Rules,
    fixed: NDArray[np.int64],
    budget: float,
    kind: str,
    costs: "Costs",
    gone: Callable[[NDArray[np.int64]], Bools],
) -> Chosen:
    """As `choose`, by whole steps of the staircase of a pattern, in the order of value lost for time saved."""
    from slim.prune.knapsack import by_value_for_cost, sizes_after, terms_of, within

    assert rules.latency is not None
    least = np.bincount(groups.pattern, weights=safe).astype(np.int64)
    start = np.where(fixed >= 0, np.maximum(fixed, least), groups.pattern_size)
    best_first = np.lexsort((groups.rank, groups.pattern))
    score = _scores(groups, rules)
    value = score if rules.by_flops else score * groups.size
    values = np.split(value[best_first], np.cumsum(groups.pattern_size)[:-1])
    worth = [np.r_[0.0, np.cumsum(each)] for each in values]
    terms, steps = terms_of(rules.latency, groups.traced.classes, groups.roots, groups.pattern, groups.pattern_size)
    order = by_value_for_cost(
        worth, start.tolist(), np.where(fixed >= 0, start, least).tolist(), steps, terms, rules.by_flops
    )

    if kind == "ratio":
        taken = _steps_within(budget, kind, len(order), lambda k: gone(sizes_after(order[:k], start)), costs)
        return Chosen(gone(sizes_after(order[:taken], start)), taken == len(order))
    found = within(budget, order, start, worth, lambda keep: costs.of(kind, gone(keep)))
    return Chosen(gone(found.keep), found.exhausted, found.next_step)


def _steps_within(budget: float, kind: str, steps: int, gone: Callable[[int], Bools], costs: "Costs") -> int:
    """How many steps to take: as many as the ratio allows, or as few as bring the cost within the budget."""
    if kind == "ratio":
        return _last(steps, lambda k: costs.channels(gone(k)) <= budget + 1e-9)
    over = _last(steps, lambda k: costs.of(kind, gone(k)) > budget)
    return min(steps, over + 1) if costs.of(kind, gone(over)) > budget else over


def _last(steps: int, holds: Callable[[int], bool]) -> int:
    """The largest number of steps at which `holds`, which is true up to there and false after."""
    low, high = 0, steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def fixed_sizes(groups: Groups, layer_ratios: Mapping[str, float]) -> NDArray[np.int64]:
    """For each pattern the number of groups to keep that `layer_ratios` sets, or -1."""
    fixed = np.full(len(groups.pattern_size), -1, np.int64)
    for pattern, share in layer_ratios.items():
        layers = [groups.names.index(name) for name in matching(groups.names, pattern, "layer_ratios")]
        if not 0 <= number(f"layer_ratios {pattern!r}", share) < 1:
            raise SlimError(f"layer_ratios {pattern!r}: {share!r} is out of range: expected 0 <= ratio < 1")
        touched = np.unique(groups.pattern[groups.member[np.isin(groups.layer, layers)]])
        fixed[touched] = groups.pattern_size[touched] - np.floor(share * groups.pattern_size[touched] + 1e-9)
    return fixed


def matching(names: Sequence[str], pattern: str, setting: str) -> list[str]:
    """The BatchNorms that a shell pattern of a setting means."""
    found = [name for name in names if fnmatch(name, pattern)]
    if not found:
        raise SlimError(f"{setting} {pattern!r} matches no BatchNorm: expected a name such as {names[0]!r}")
    return found


def number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SlimError(f"{name} {value!r} is not a number: expected one")
    return value
