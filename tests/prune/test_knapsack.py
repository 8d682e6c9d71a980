"""Value for cost against brute force."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from slim.prune import knapsack


def blocks(n: Any) -> Any:
    """Blocks of 16 channels that hold `n`."""
    return -(-n // 16)


def case(seed: int, chained: bool) -> Any:
    """Three items of up to 5 steps of 16, a value for each group, and costs that are products (chained) or sums."""
    random = np.random.default_rng(seed)
    sizes = [16 * int(n) for n in random.integers(3, 6, 3)]
    worth = [np.r_[0, np.cumsum(np.sort(random.random(n))[::-1])] for n in sizes]
    weight = random.random(4) + 0.2
    extent = knapsack.Extent
    ends = [extent(3, {}), *[extent(0, {i: 1.0}) for i in range(3)], extent(10, {})]

    def product(k: int) -> Callable[[Any, Any], Any]:
        return lambda r, m: weight[k] * blocks(np.asarray(r)) * blocks(np.asarray(m))

    def alone(k: int) -> Callable[[Any, Any], Any]:
        return lambda r, m: weight[k] * blocks(np.asarray(m)) + 0.0 * r

    if chained:
        terms = [knapsack.Term(product(k), ends[k], ends[k + 1]) for k in range(4)]
    else:
        terms = [knapsack.Term(alone(k), ends[0], ends[k + 1]) for k in range(3)]
    return sizes, worth, terms


def cost_of(keep: Any, terms: Any) -> Any:
    keep = np.array(keep)
    return sum(float(t.surface(t.reads.at(keep, -1, keep[:1]), t.makes.at(keep, -1, keep[:1]))[0]) for t in terms)


def value_of(keep: Any, worth: Any) -> Any:
    return sum(w[n] for w, n in zip(worth, keep))


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("chained", [False, True])
def test_value_for_cost_against_brute_force(seed: int, chained: bool) -> None:
    sizes, worth, terms = case(seed, chained)
    order = knapsack.by_value_for_cost(worth, sizes, [1] * 3, [16] * 3, terms)
    states = [list(sizes)]
    for item, left in order:
        states.append([left if i == item else n for i, n in enumerate(states[-1])])
        assert 0 < left < states[-2][item] and left % 16 == 0
    assert states[-1] == [16, 16, 16]
    costs = [cost_of(s, terms) for s in states]
    assert all(b <= a for a, b in itertools.pairwise(costs))
    values = [sum(w[n] for w, n in zip(worth, s)) for s in states]
    every = list(itertools.product(*[range(16, n + 1, 16) for n in sizes]))
    every_cost = np.array([cost_of(s, terms) for s in every])
    every_value = np.array([sum(w[n] for w, n in zip(worth, s)) for s in every])
    for cost, value in zip(costs, values):  # at the cost that each step reaches, how far from the best there is?
        best = every_value[every_cost <= cost + 1e-9].max()
        assert value >= (0.85 if chained else 1 - 1e-9) * best


@pytest.mark.parametrize("seed", range(5))
def test_where_time_follows_flops_the_order_is_that_of_the_values(seed: int) -> None:
    """With a budget of FLOPs and a machine on which they all take the same time, a step's price is its mean value."""
    sizes, worth, terms = case(seed, chained=True)
    for term in terms:
        term.flops = term.surface
    order = knapsack.by_value_for_cost(worth, sizes, [1] * 3, [16] * 3, terms, by_flops=True)
    means = [(w[n] - w[n - 16]) / 16 for w, n in zip(worth, sizes)]
    keep, expected = list(sizes), []
    while any(n > 16 for n in keep):
        means = [(w[n] - w[n - 16]) / 16 if n > 16 else np.inf for w, n in zip(worth, keep)]
        keep[int(np.argmin(means))] -= 16
        expected.append((int(np.argmin(means)), keep[int(np.argmin(means))]))
    assert order == expected


@pytest.mark.parametrize("chained", [False, True])
def test_a_budget_is_used_up_against_brute_force(chained: bool) -> None:
    better = 0
    for seed, share in itertools.product(range(12), (0.9, 0.75, 0.6, 0.45)):
        sizes, worth, terms = case(seed, chained)
        start = np.array(sizes)
        cost, value = partial(cost_of, terms=terms), partial(value_of, worth=worth)
        order = knapsack.by_value_for_cost(worth, sizes, [1] * 3, [16] * 3, terms)
        states = [sizes, *(knapsack.sizes_after(order[: k + 1], start) for k in range(len(order)))]
        budget = share * cost(sizes)
        found = knapsack.within(budget, order, start, worth, cost)
        cut = next((s for s in states if cost(s) <= budget), None)
        if cut is None:
            assert found.exhausted and found.keep.tolist() == [16, 16, 16]
            continue
        every = itertools.product(*[range(16, n + 1, 16) for n in sizes])
        assert value(found.keep) >= 0.9 * max(value(s) for s in every if cost(s) <= budget)
        assert value(found.keep) == pytest.approx(found.value) and found.value >= value(cut) - 1e-9
        better += found.value > value(cut) + 1e-9
        assert cost(found.keep) == pytest.approx(found.cost) and found.cost <= budget and not found.exhausted
        larger = [found.keep + 16 * np.eye(3, dtype=int)[i] for i in range(3) if found.keep[i] < sizes[i]]
        next_step = min(cost(s) for s in larger) - found.cost
        assert next_step == pytest.approx(found.next_step) and next_step > budget - found.cost
    assert better >= 12


def test_a_step_too_large_makes_way_for_others() -> None:
    """The cheapest channels are in one step that saves four times what is missing; the others' steps save as much."""
    worth = [np.arange(17, dtype=np.float64) * 0.1, np.arange(129, dtype=np.float64) * 0.012]
    one, other, none = knapsack.Extent(0, {0: 1.0}), knapsack.Extent(0, {1: 1.0}), knapsack.Extent(1, {})
    large = knapsack.Term(lambda r, m: np.where(np.asarray(m) > 8, 40.0, 0.0), none, one)
    small = knapsack.Term(lambda r, m: blocks(np.asarray(m)) * 1.0, none, other)
    order = knapsack.by_value_for_cost(worth, [16, 128], [1, 1], [8, 16], [large, small])
    assert order[0] == (0, 8)
    cost = partial(cost_of, terms=[large, small])
    found = knapsack.within(46.0, order, np.array([16, 128]), worth, cost)
    assert found.keep.tolist() == [16, 96] and found.cost == 46
    # where the others are worth more, a part of the budget is better left
    found = knapsack.within(46.0, order, np.array([16, 128]), [worth[0], 10 * worth[1]], cost)
    assert found.keep.tolist() == [8, 128] and found.cost == 8 and found.next_step == 40


def test_a_step_too_large_makes_way_with_all_that_follow_it() -> None:
    """As above, and the item of the large step has many more that save a little each: all of them need that one."""
    worth = [np.arange(33, dtype=np.float64) * 0.1, np.arange(129, dtype=np.float64) * 0.012]
    one, other, none = knapsack.Extent(0, {0: 1.0}), knapsack.Extent(0, {1: 1.0}), knapsack.Extent(1, {})
    large = knapsack.Term(lambda r, m: np.where(np.asarray(m) > 24, 64.0, np.asarray(m)), none, one)
    small = knapsack.Term(lambda r, m: blocks(np.asarray(m)) * 1.0, none, other)
    order = knapsack.by_value_for_cost(worth, [32, 128], [1, 1], [2, 16], [large, small])
    assert order[:6] == [(0, 30), (0, 28), (0, 26), (0, 24), (0, 22), (0, 20)]
    found = knapsack.within(70.0, order, np.array([32, 128]), worth, partial(cost_of, terms=[large, small]))
    assert found.keep.tolist() == [32, 96] and found.cost == 70


def test_steps_that_save_nothing_are_seen_through() -> None:
    """An item whose cost is flat for two steps and then falls steeply goes before one that falls a little each step."""
    worth = [np.arange(65, dtype=np.float64), np.arange(65, dtype=np.float64)]
    one, other = knapsack.Extent(0, {0: 1.0}), knapsack.Extent(0, {1: 1.0})
    none = knapsack.Extent(1, {})
    flat = knapsack.Term(lambda r, m: np.where(np.asarray(m) > 32, 100.0, 1.0), none, one)
    slope = knapsack.Term(lambda r, m: np.asarray(m) / 16.0, none, other)
    order = knapsack.by_value_for_cost(worth, [64, 64], [1, 1], [16, 16], [flat, slope])
    assert order[:2] == [(0, 48), (0, 32)]
    assert sorted(order) == sorted([(0, 48), (0, 32), (0, 16), (1, 48), (1, 32), (1, 16)])


@pytest.mark.parametrize("step", [1, 8, 16])
@pytest.mark.parametrize("least", [0, 1, 15, 16, 17, 40])
@pytest.mark.parametrize("now", [16, 17, 40, 64])
def test_an_item_stops_at_the_multiples_that_its_floor_leaves(now: int, least: int, step: int) -> None:
    expected = [n for n in range(now - 1, -1, -1) if n >= least and n % step == 0]
    assert knapsack._stops(now, least, step).tolist() == expected
