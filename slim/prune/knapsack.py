"""Which channels to keep: value for cost, in whole steps of the staircase.

Each step takes the channels whose value is the least for the time that they save, given what is gone already: the
greedy way through a knapsack whose costs depend on each other (a convolution costs what it reads times what it makes).
Source: HALP (Shen et al., NeurIPS 2022) states pruning under a latency budget as a knapsack over groups of channels.
"""

import bisect
import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slim.prune.groups import Bools, Floats
from slim.trace.classes import Classes
from slim.trace.traced import Trace

Ints = NDArray[np.int64]
CostSurface = Callable[[ArrayLike, ArrayLike], Floats]  # of the numbers of channels read and made
SPARE = 0.01  # of a budget that may be left before another way is looked for
WAYS = 8


@dataclass(frozen=True)
class CostPart:
    """One operator of a cost model: its `cost` over the channels that it `reads` and `makes` (a number, or labels).

    The cost climbs in steps of `widths` channels along the two; `flops` is what the operator computes for them. Without
    the label `switch`, where it has one, it isn't there.
    """

    reads: int | Ints
    makes: int | Ints
    widths: tuple[int, int]
    cost: CostSurface
    flops: CostSurface
    switch: int | None = None


class CostModel(Protocol):
    """What a traced network costs where it will run, for any choice of channels."""

    def of(self, kept: Bools) -> float:
        """Return the cost where only `kept` labels of the trace stay."""

    def parts(self) -> Iterable[CostPart]:
        """Return the operators whose costs add up to it."""


class MeasuresCost(Protocol):
    """A place where networks run, such as `slim.Runtime`, that knows what they cost there."""

    def cost_model(self, traced: Trace) -> CostModel:
        """Return the cost model of a traced network."""


@dataclass
class Extent:
    """A number of channels: `fixed` of them, and for each item of `by_item` (item -> channels of one of its groups)."""

    fixed: float
    by_item: dict[int, float]

    def at(self, keep: Ints, item: int, counts: Ints) -> Ints:
        """Return the number where `keep` groups of each item stay, but `counts` of `item`."""
        total = self.fixed + sum(share * keep[other] for other, share in self.by_item.items() if other != item)
        return np.rint(total + self.by_item.get(item, 0.0) * counts).astype(np.int64)


@dataclass
class Term:
    """A part of the cost: `surface` over the numbers of channels read and made; and the FLOPs that it pays for. It is
    there for as long as the item `switch` is, which has one group."""

    surface: CostSurface
    reads: Extent
    makes: Extent
    flops: CostSurface | None = None
    switch: int | None = None

    @property
    def items(self) -> set[int]:
        """Return the items that it depends on."""
        sizes = self.reads.by_item.keys() | self.makes.by_item.keys()
        return sizes if self.switch is None else sizes | {self.switch}

    def on(self, keep: Ints, item: int, counts: Ints) -> Ints | int:
        """Return 1 where it is there, 0 where it isn't, for `keep` groups of each item, but `counts` of `item`."""
        return 1 if self.switch is None else counts if item == self.switch else int(keep[self.switch])


def by_value_for_cost(
    worth: Sequence[Floats],
    start: Sequence[int],
    least: Sequence[int],
    steps: Sequence[int],
    terms: Sequence[Term],
    by_flops: bool = False,
) -> list[tuple[int, int]]:
    """Return the order in which items shrink: (item, how many of it stay from here on), until every item is at its
    least.

    `worth[item][n]` is the value of the best n groups of an item; `start` and `least` are how many there are and how
    many stay in any case; an item stops at multiples of `steps`. The sum of `terms` is the cost.

    With `by_flops`, a group's value is multiplied by the FLOPs that go with it: where all FLOPs take the same time,
    that is the plain order of values, and where some take longer, they go earlier.

    At each turn the item goes next that has a jump down (over one step or more, since a cost can be flat for a while)
    with the least value lost for the cost saved, and it goes down by one step. What saves nothing goes last, by value.
    """
    prices = Prices(worth, start, least, steps, terms, by_flops)
    order: list[tuple[int, int]] = []
    turn = np.zeros(len(start), np.int64)
    heap = [(*known, item, 0) for item in range(len(start)) if (known := prices.of(item)) is not None]
    heapq.heapify(heap)
    while heap:
        _, _, item, when = heapq.heappop(heap)
        if when != turn[item]:  # the price has changed since
            continue
        for other in prices.shrink(item):
            turn[other] += 1
            if (known := prices.of(other)) is not None:
                heapq.heappush(heap, (*known, other, int(turn[other])))
        order.append((item, int(prices.keep[item])))
    return order


class Prices:
    """What each item loses and saves at the numbers at which it may stop, given how many of the others stay.

    Each term's part is kept for all stops of an item: it changes with the other items of the term alone.
    """

    def __init__(
        self,
        worth: Sequence[Floats],
        start: Sequence[int],
        least: Sequence[int],
        steps: Sequence[int],
        terms: Sequence[Term],
        by_flops: bool,
    ) -> None:
        self.keep = np.array(start, np.int64)
        self.worth, self.by_flops = worth, by_flops
        self.stops = [np.r_[now, _stops(now, low, step)] for now, low, step in zip(start, least, steps)]
        self.taken = [0] * len(start)  # stops that an item has passed
        self.terms = terms
        self.touching: list[list[int]] = [[] for _ in start]  # for each item the terms that depend on it
        for number, term in enumerate(terms):
            for item in term.items:
                self.touching[item].append(number)
        self.costs, self.flops = ([np.zeros((len(t), len(s))) for t, s in zip(self.touching, self.stops)] for _ in "cf")
        for item, mine in enumerate(self.touching):
            for number in mine:
                self._measure(item, number)

    def _measure(self, item: int, number: int) -> None:
        term, row, counts = self.terms[number], self.touching[item].index(number), self.stops[item]
        sizes = term.reads.at(self.keep, item, counts), term.makes.at(self.keep, item, counts)
        there = term.on(self.keep, item, counts)
        self.costs[item][row] = term.surface(*sizes) * there
        if self.by_flops and term.flops:
            self.flops[item][row] = term.flops(*sizes) * there

    def of(self, item: int) -> tuple[float, float] | None:
        """Return the least value lost for the cost saved over the stops ahead, and the value of a group of the next;
        None where there are none."""
        ahead = self.taken[item]
        counts = self.stops[item][ahead:]
        if len(counts) < 2:
            return None
        costs, flops = (table[item][:, ahead:].sum(0) for table in (self.costs, self.flops))
        saved, lost = costs[0] - costs[1:], self.worth[item][counts[0]] - self.worth[item][counts[1:]]
        if self.by_flops:
            lost = lost / (counts[0] - counts[1:]) * (flops[0] - flops[1:])
        cheapest = np.inf if not (saved > 0).any() else (lost[saved > 0] / saved[saved > 0]).min()
        return float(cheapest), float(lost[0] / (counts[0] - counts[1]))

    def shrink(self, item: int) -> set[int]:
        """Take an item to its next stop; return the items whose prices have changed."""
        self.taken[item] += 1
        self.keep[item] = self.stops[item][self.taken[item]]
        changed = {item}
        for number in self.touching[item]:
            for other in self.terms[number].items - {item}:
                self._measure(other, number)
                changed.add(other)
        return changed


def _stops(now: int, least: int, step: int) -> Ints:
    """Return the numbers below `now` at which an item may stop, highest first."""
    last = -(-least // step) * step
    return np.arange((now - 1) // step * step, last - 1, -step)


def sizes_after(order: Sequence[tuple[int, int]], start: Ints) -> Ints:
    """Return how many of each item stay after steps of an order."""
    keep = start.copy()
    for item, left in order:
        keep[item] = left
    return keep


@dataclass
class Sizes:
    """Numbers of groups to keep that a budget has room for."""

    keep: Ints
    cost: float
    value: float
    next_step: float  # cost of the smallest step up for which there was no room; 0 where every item is whole
    exhausted: bool = False  # all steps are taken


def within(
    budget: float,
    order: Sequence[tuple[int, int]],
    start: Ints,
    worth: Sequence[Floats],
    cost: Callable[[Ints], float],
) -> Sizes:
    """Return the numbers of groups to keep of each item that fit in a budget; all steps of the order where none do.

    `order`, `start` and `worth` are those of `by_value_for_cost`, and `cost` is for numbers of groups.

    Steps are taken until the budget is met, and then put back where the last one saved more than was missing. If that
    last step is so large that part of the budget is left all the same, later steps of other items are tried in its
    place; of a few such ways, the one that keeps the most value. So a budget is left in part only where using it would
    cost value.
    """
    found: list[Sizes] = []
    steps = list(order)
    for _ in range(WAYS):
        taken = bisect.bisect_left(
            range(len(steps) + 1), True, key=lambda k: cost(sizes_after(steps[:k], start)) <= budget
        )
        if taken > len(steps):
            break
        found.append(_put_back(budget, steps[:taken], start, worth, cost))
        if taken == 0 or found[-1].cost >= (1 - SPARE) * budget:
            break
        large = steps[taken - 1][0]
        steps = steps[: taken - 1] + [step for step in steps[taken:] if step[0] != large]
    if found:
        return max(found, key=lambda sizes: sizes.value)
    keep = sizes_after(order, start)
    return Sizes(keep, cost(keep), _value(keep, worth), 0.0, exhausted=True)


def _put_back(
    budget: float,
    steps: Sequence[tuple[int, int]],
    start: Ints,
    worth: Sequence[Floats],
    cost: Callable[[Ints], float],
) -> Sizes:
    """Return the numbers of groups after `steps`, with those that the budget has room for put back: the latest first,
    which is the most expensive. An item with no room for its next step is done: other items don't make it cheaper."""
    keep = start.copy()
    taken: dict[int, list[int]] = {}  # item -> how many of it there were before each of its steps
    for item, left in steps:
        taken.setdefault(item, []).append(int(keep[item]))
        keep[item] = left

    def with_step_back(item: int) -> Ints:
        more = keep.copy()
        more[item] = taken[item][-1]
        return more

    full: set[int] = set()
    for item, _ in reversed(steps):
        if item in full:
            continue
        if cost(with_step_back(item)) <= budget:
            keep[item] = taken[item].pop()
        else:
            full.add(item)
    now = cost(keep)
    next_step = min((cost(with_step_back(item)) for item in full), default=now) - now
    return Sizes(keep, now, _value(keep, worth), next_step)


def _value(keep: Ints, worth: Sequence[Floats]) -> float:
    return float(sum(each[n] for each, n in zip(worth, keep)))


def terms_of(model: CostModel, classes: Classes, roots: Ints, item: Ints, size: Ints) -> tuple[list[Term], list[int]]:
    """Return the terms of a cost model, and the step of each item in groups.

    `roots` are the labels of the groups, `item` says which item each belongs to, and `size` is the number of groups of
    each item.
    """
    group_of = np.full(len(classes), -1)
    group_of[roots] = np.arange(len(roots))
    steps = np.ones(len(size), np.int64)

    def extent(labels: int | Ints, width: int) -> Extent:
        if isinstance(labels, int):
            return Extent(labels, {})
        groups = group_of[classes.roots(labels)]
        channels = np.bincount(item[groups[groups >= 0]], minlength=len(size))
        shares = {int(i): channels[i] / size[i] for i in np.flatnonzero(channels)}
        for i, share in shares.items():
            steps[i] = max(steps[i], width // math.gcd(width, max(1, round(share))))
        return Extent(float((groups < 0).sum()), shares)

    terms = []
    for part in model.parts():
        reads, makes = (extent(*each) for each in zip((part.reads, part.makes), part.widths))
        switch = None if part.switch is None else group_of[part.switch]
        terms.append(Term(part.cost, reads, makes, part.flops, switch if switch is None else int(item[switch])))
    return terms, steps.tolist()
