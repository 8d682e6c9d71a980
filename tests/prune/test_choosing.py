"""Which channels go, against a second implementation that takes them one by one from plain lists."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim.errors import NothingToPrune
from slim.prune.knapsack import CostPart
from slim.trace.traced import Trace

X = torch.zeros(1, 3, 4, 4)
NAMES, WIDTHS = ["1", "4", "7"], [4, 6, 9]
Scores = list[list[float]]


def network() -> nn.Module:
    rows = [(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in zip((3, *WIDTHS), WIDTHS)]
    return nn.Sequential(*(layer for row in rows for layer in row), nn.Conv2d(WIDTHS[-1], 2, 1)).eval()


def flops(keep: Sequence[int]) -> float:
    a, b, c = keep
    return 2 * 16 * (3 * a + a * b + b * c + 2 * c)


def params(keep: Sequence[int]) -> float:
    a, b, c = keep
    return 3 * a + a * b + b * c + 2 * c + 3 * (a + b + c) + 2


COSTS: dict[str, tuple[Any, Callable[[Sequence[int]], float]]] = {
    "flops": (slim.Flops, flops), "params": (slim.Params, params), "channels": (slim.Channels, sum)
}  # fmt: skip


def best_first(scores: Scores) -> list[list[int]]:
    return [sorted(range(len(own)), key=lambda i: (-own[i], i)) for own in scores]


def rounded(keep: int, width: int, least: int, unit: int) -> int:
    """The nearest multiple, the lower one of two as near; never less than what stays in any case, or none."""
    down = keep // unit * unit
    up = min(down + unit, width)
    if keep == down:
        return keep
    return down if keep - down <= up - keep and down >= max(least, 1) else up


class Choice:
    """How many channels of each layer stay."""

    def __init__(self, scores: Scores, least: list[int], unit: int, fixed: dict[int, int]) -> None:
        self.scores, self.least, self.unit, self.fixed = scores, least, unit, fixed
        self.best = best_first(scores)
        free = [(scores[p][i], p, i) for p in range(3) if p not in fixed for i in self.best[p][least[p] :]]
        self.order = [p for _, p, _ in sorted(free)]

    def after(self, steps: int) -> list[int]:
        taken = self.order[:steps]
        keep = [self.fixed.get(p, n - taken.count(p)) for p, n in enumerate(WIDTHS)]
        return [rounded(k, n, low, self.unit) for k, n, low in zip(keep, WIDTHS, self.least)]

    def fill(self, keep: list[int], fits: Callable[[list[int]], bool]) -> list[int]:
        """Bring back the best ones that went, of layers that have room for a step."""
        open_ = {p for p in range(3) if p not in self.fixed and keep[p] < WIDTHS[p]}
        while open_:
            p = min(open_, key=lambda p: (-self.scores[p][self.best[p][keep[p]]], p))
            more = [min(k + self.unit, WIDTHS[q]) if q == p else k for q, k in enumerate(keep)]
            if fits(more):
                keep = more
            if not fits(more) or keep[p] == WIDTHS[p]:
                open_.remove(p)
        return keep

    def take(self, keep: list[int], fits: Callable[[list[int]], bool]) -> list[int]:
        """Take the lowest ones that stay, of layers that have a step to spare."""

        def lower(p: int) -> int:
            return (keep[p] - 1) // self.unit * self.unit

        open_ = {p for p in range(3) if p not in self.fixed and lower(p) >= max(self.least[p], 1)}
        while open_:
            p = min(open_, key=lambda p: (self.scores[p][self.best[p][keep[p] - 1]], p))
            less = [lower(p) if q == p else k for q, k in enumerate(keep)]
            if fits(less):
                keep = less
            if not fits(less) or lower(p) < max(self.least[p], 1):
                open_.remove(p)
        return keep

    def removed(self, keep: list[int]) -> dict[str, list[int]]:
        gone = {name: sorted(self.best[p][keep[p] :]) for p, name in enumerate(NAMES)}
        return {name: channels for name, channels in gone.items() if channels}


def scores_of(seed: int) -> Scores:
    random = np.random.default_rng(seed)
    return [(random.random(n) * (1 + p)).round(2).tolist() for p, n in enumerate(WIDTHS)]


def floors(floor: float) -> list[int]:
    return [min(n, max(1, math.ceil(floor if floor >= 1 else floor * n - 1e-9))) for n in WIDTHS]


def planned(scores: Scores, **settings: Any) -> dict[str, list[int]]:
    try:
        return slim.plan(network(), X, score=dict(zip(NAMES, scores)), **settings).removed
    except NothingToPrune:
        return {}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("floor", "unit", "fixed"), [(0, 1, {}), (0.3, 2, {}), (2, 3, {}), (0.1, 1, {1: 3})])
@pytest.mark.parametrize("kind", COSTS)
def test_budgets(kind: str, floor: float, unit: int, fixed: dict[int, int], seed: int) -> None:
    budget, cost = COSTS[kind]
    choice = Choice(scores_of(seed), floors(floor), unit, fixed)
    for share in (0.8, 0.55, 0.3):
        limit = share * cost(WIDTHS)
        sizes = [choice.after(k) for k in range(len(choice.order) + 1)]
        first = next((k for k in sizes if cost(k) <= limit), sizes[-1])
        keep = choice.fill(first, partial(lambda limit, k: cost(k) <= limit, limit))
        ratios = {NAMES[p]: 0.5 for p in fixed}
        found = planned(choice.scores, budget=budget(share), floor=floor, round_to=unit, layer_ratios=ratios)
        assert found == choice.removed(keep)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("floor", "unit", "fixed"), [(0, 1, {}), (0.3, 2, {}), (2, 3, {}), (0.1, 1, {1: 3})])
def test_ratios(floor: float, unit: int, fixed: dict[int, int], seed: int) -> None:
    choice = Choice(scores_of(seed), floors(floor), unit, fixed)
    for ratio in (0.1, 0.35, 0.5, 0.8):
        limit, whole = (1 - ratio) * sum(WIDTHS), sum(WIDTHS)
        sizes = [choice.after(k) for k in range(len(choice.order) + 1)]
        keep = [sizes[0], *(k for k in sizes if sum(k) >= limit - 1e-9)][-1]
        if sum(keep) - limit > 0.01 * whole:
            keep = choice.take(keep, partial(lambda limit, k: sum(k) >= limit - 1e-9, limit))
        ratios = {NAMES[p]: 0.5 for p in fixed}
        found = planned(choice.scores, ratio=ratio, floor=floor, round_to=unit, layer_ratios=ratios)
        assert found == choice.removed(keep)


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.7])
def test_the_same_share_of_each_layer(ratio: float) -> None:
    scores = scores_of(0)
    plan = slim.plan(network(), X, ratio=ratio, score=dict(zip(NAMES, scores)), scope="layer", round_to=1, floor=0)
    assert all(abs(layer.after - (1 - ratio) * layer.before) < 1 for layer in plan.layers)
    for name, own in zip(NAMES, best_first(scores)):
        gone = plan.removed.get(name, [])
        assert gone == sorted(own[len(own) - len(gone) :])


@pytest.mark.parametrize("equal", [1.0, 0.0])
def test_equal_scores_go_from_the_first_layer_on(equal: float) -> None:
    """Of a layer the last channels first, as the better rank is that of the lower label."""
    scores = [[equal] * n for n in WIDTHS]
    choice = Choice(scores, [1, 1, 1], 1, {})
    for ratio in (0.1, 0.3, 0.6):
        keep = choice.after(math.floor(ratio * sum(WIDTHS) + 1e-9))
        assert planned(scores, ratio=ratio, floor=0, round_to=1) == choice.removed(keep)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_plans_in_two_steps_end_where_one_does(share: float) -> None:
    """The budget counts from the network before both."""
    model, scores = network(), scores_of(3)
    first = slim.plan(model, X, slim.Flops(0.95), score=dict(zip(NAMES, scores)), floor=0, round_to=1)
    thin = first.apply(model)
    left = [[s for i, s in enumerate(own) if i not in first.removed.get(name, [])] for name, own in zip(NAMES, scores)]
    second = slim.plan(thin, X, slim.Flops(share), score=dict(zip(NAMES, left)), floor=0, round_to=1, after=[first])
    after = [layer.after for layer in second.layers]
    assert flops(after) <= share * flops(WIDTHS)
    assert second.totals["flops"] == (first.totals["flops"][1], flops(after))
    assert second.achieved["flops"] == pytest.approx(flops(after) / flops(WIDTHS))


class Stairs:
    """A runtime in which operators work on blocks of four channels."""

    def __str__(self) -> str:
        return "blocks of 4"

    def cost_model(self, traced: Trace) -> "Blocks":
        return Blocks(traced)


class Blocks:
    def __init__(self, traced: Trace) -> None:
        self.traced = traced

    def parts(self) -> list[CostPart]:
        def cost(reads: Any, makes: Any) -> Any:
            return np.ceil(np.asarray(reads) / 4) * np.ceil(np.asarray(makes) / 4)

        def computed(reads: Any, makes: Any) -> Any:
            return np.asarray(reads, np.float64) * np.asarray(makes)

        found = []
        for product in self.traced.products:
            made, read = product.dims[:2]
            found.append(CostPart(read, made, (4, 4), cost, computed))
        return found

    def of(self, kept: Any) -> float:
        sizes = [[d if isinstance(d, int) else int(kept[d].sum()) for d in (p.reads, p.makes)] for p in self.parts()]
        return float(sum(part.cost(*size) for part, size in zip(self.parts(), sizes)))


@pytest.mark.parametrize("budget", [slim.Flops(0.6), slim.Params(0.6), slim.Channels(0.6), slim.Flops(0.3)])
def test_with_a_runtime_layers_keep_whole_steps_of_it(budget: slim.Budget) -> None:
    torch.manual_seed(0)
    rows = [(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o)) for i, o in ((3, 16), (16, 12), (12, 16))]
    model = nn.Sequential(*(layer for row in rows for layer in row), nn.Conv2d(16, 2, 1)).eval()
    plan = slim.plan(model, X, budget, score=slim.Magnitude(), floor=0, round_to=Stairs())
    assert all(layer.after % 4 == 0 for layer in plan.layers) and any(
        layer.after < layer.before for layer in plan.layers
    )
    assert plan.rounding == "layers keep numbers of channels that suit blocks of 4"
    assert plan.achieved[budget.name] <= budget.asked


def test_a_budget_that_whole_steps_can_not_reach_is_reached_without_them() -> None:
    model = network()
    plan = slim.plan(model, X, slim.Channels(0.2), score=slim.Magnitude(), floor=0, round_to=Stairs())
    assert plan.achieved["channels"] <= 0.2 and any(layer.after % 4 for layer in plan.layers)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_a_ratio_stops_short_with_a_runtime_too(ratio: float) -> None:
    """The last steps are smaller ones, so that the ratio is reached to within a channel."""
    plan = slim.plan(network(), X, ratio=ratio, score=slim.Magnitude(), floor=0, round_to=Stairs())
    assert ratio - 1 / sum(WIDTHS) < plan.ratio_achieved <= ratio
