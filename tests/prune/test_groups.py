"""Groups, costs and rules of a small network, number by number."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.prune.budgets import Chosen, Costs, Ratio
from slim.prune.choosing import _last, _places, fixed_sizes, matching, structures
from slim.prune.groups import Groups, Vectors
from slim.prune.rules import Rules, checked_number
from slim.trace.traced import trace

X = torch.zeros(1, 3, 4, 4)


class Net(nn.Module):
    """stem (6) and a block (6) share a stream, a wide layer (40) reads it, halves of another (8) are added."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = self.layer(3, 6), self.layer(6, 6)
        self.wide, self.halves = self.layer(6, 40), self.layer(40, 8)
        self.out = nn.Conv2d(4, 2, 1)

    @staticmethod
    def layer(read: int, made: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(read, made, 3, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        first, second = self.halves(self.wide(x + self.block(x))).chunk(2, 1)
        return self.out(first + second)


NAMES = ["stem.1", "block.1", "wide.1", "halves.1"]


def grouped(**settings: Any) -> Groups:
    model = Net()
    return Groups(trace(model, X), model, **settings)


def test_vectors_count_and_find() -> None:
    one, two = np.array([0, 2, 5]), np.array([5, 1])
    vectors = Vectors([one, two, one, np.array([], np.int64)])
    true = np.array([True, False, False, False, False, True])
    assert vectors.of.tolist() == [0, 1, 0, 2] and vectors.lengths.tolist() == [3, 2, 0]
    assert vectors.count(true).tolist() == [2, 1, 2, 0]
    assert vectors.where(true) == [[0, 2], [0], [0, 2], []] and vectors.where(~true) == [[1], [1], [1], []]


def test_groups() -> None:
    groups = grouped()
    assert groups.names == NAMES and groups.widths.tolist() == [6, 6, 40, 8]
    assert sorted(groups.size.tolist()) == 40 * [1] + 10 * [2]  # 6 of the stream, 4 of the halves
    by_name = {name: groups.pattern[groups.member[groups.layer == i]] for i, name in enumerate(groups.names)}
    stream, wide, halves = (by_name[name][0] for name in ("stem.1", "wide.1", "halves.1"))
    assert (
        (by_name["stem.1"] == stream).all()
        and (by_name["block.1"] == stream).all()
        and len({stream, wide, halves}) == 3
    )
    assert groups.pattern_size[[stream, wide, halves]].tolist() == [6, 40, 4]
    assert groups.multiple[[stream, wide, halves]].tolist() == [1, 1, 2]
    assert groups.pattern_size_before[[stream, wide, halves]].tolist() == [6, 40, 4]
    assert not groups.frozen.any() and groups.least.tolist() == [1, 1, 1]
    assert groups.savings.tolist() == groups.size.tolist()
    grown = grouped(before={"stem.1": 12, "block.1": 6, "wide.1": 50})
    assert grown.pattern_size_before[[stream, wide, halves]].tolist() == [12, 50, 4]  # of the most that a layer had


def test_values_of_channels_make_those_of_groups() -> None:
    groups = grouped()
    values = {name: np.arange(float(width)) for name, width in zip(NAMES, (6, 6, 40, 8))}
    values["block.1"] = values["block.1"] * 10
    in_stem, in_halves = groups.member[groups.layer == 0], groups.member[groups.layer == 3][:4]
    for how, stream, halves in (
        ("mean", [5.5 * i for i in range(6)], [i + 2.0 for i in range(4)]),
        ("sum", [11.0 * i for i in range(6)], [2 * i + 4.0 for i in range(4)]),
        ("max", [10.0 * i for i in range(6)], [i + 4.0 for i in range(4)]),
    ):
        found = groups.reduce(values, how)  # type: ignore[arg-type]
        assert found[in_stem].tolist() == stream and found[in_halves].tolist() == halves
    for wrong, said in (
        (values | {"wide.1": np.zeros(39)}, r"scores of shape \[39\] for wide\.1: expected one for each of its 40"),
        (values | {"wide.1": np.full(40, np.inf)}, r"scores that aren't finite for wide\.1: expected numbers"),
    ):
        with pytest.raises(SlimError, match=said):
            groups.reduce(wrong)


def ranked(groups: Groups) -> Groups:
    groups.rank_by(np.arange(50.0) % 7)
    return groups


def test_ranks_and_what_is_protected() -> None:
    groups = ranked(grouped())
    for pattern in range(3):
        mine = np.flatnonzero(groups.pattern == pattern)
        best_first = sorted(mine, key=lambda g: (-groups.score[g], g))
        assert groups.rank[best_first].tolist() == list(range(len(mine)))
    every = sorted(range(50), key=lambda g: (-groups.score[g], g))
    assert groups.place[every].tolist() == list(range(50))
    safe = groups.protected([2, 3, 1, 1])
    per_layer = [int(safe[groups.member[groups.layer == i]].sum()) for i in range(4)]
    assert per_layer == [3, 3, 1, 2]  # the stream keeps what the block asks for; a half has its like
    stream = groups.member[groups.layer == 1]
    assert set(stream[safe[stream]]) == {g for g in sorted(stream, key=lambda g: (-groups.score[g], g))[:3]}
    lowest = np.array(every[::-1])
    more = groups.protected([0, 0, 0, 0], [lowest[:3], lowest[3:5]])
    assert set(np.flatnonzero(more)) == {
        min(lowest[:3], key=lambda g: groups.place[g]),
        min(lowest[3:5], key=lambda g: groups.place[g]),
    }


def test_what_runs_empty() -> None:
    groups = ranked(grouped())
    stream = np.zeros(50, bool)
    stream[groups.member[groups.layer == 0]] = True
    [lost] = groups.emptied(stream)
    assert sorted(lost) == sorted(set(groups.member[groups.layer == 0]))
    stream[groups.member[0]] = False
    assert groups.emptied(stream) == []


def test_blocks_as_groups() -> None:
    groups = ranked(grouped())
    labels = groups.traced.classes.fresh(2)
    groups.root_of = groups.traced.classes.roots(np.arange(len(groups.traced.classes)))
    groups.add_blocks(labels.tolist(), np.array([3.5, np.inf]))
    assert (
        groups.blocks == slice(50, 52) and groups.size[50:].tolist() == [1, 1] and groups.rank[50:].tolist() == [0, 0]
    )
    assert groups.pattern[50:].tolist() == [3, 4] and groups.pattern_size[3:].tolist() == [1, 1]
    assert groups.pattern_size_before[3:].tolist() == [1, 1] and groups.multiple[3:].tolist() == [1, 1]
    assert groups.score[50:].tolist() == [3.5, 6.0] and groups.frozen[50:].tolist() == [False, True]
    assert groups.least.tolist() == [1, 1, 1, 0, 0]
    pruned = np.zeros(52, bool)
    pruned[50] = True
    assert np.flatnonzero(~groups.kept(pruned)).tolist() == [labels[0]]


# -- what they cost ----------------------------------------------------------------------------------------------------

WEIGHTS = 9 * (3 * 6 + 6 * 6 + 6 * 40 + 40 * 8) + 4 * 2


def pruned(groups: Groups) -> np.ndarray:
    """One channel of the stream, ten of the wide layer, one of both halves."""
    gone = np.zeros(50, bool)
    gone[groups.member[groups.layer == 0][:1]] = True
    gone[groups.member[groups.layer == 2][:10]] = True
    gone[groups.member[groups.layer == 3][:1]] = True
    return gone


def test_costs_are_sums_of_products() -> None:
    groups = grouped()
    costs, all_, some = Costs(groups), groups.kept(), groups.kept(pruned(groups))
    weights = 9 * (3 * 5 + 5 * 5 + 5 * 30 + 30 * 6) + 3 * 2
    assert (costs.channels(all_), costs.channels(some)) == (60, 5 + 5 + 30 + 6)
    assert (costs.params(all_), costs.params(some)) == (WEIGHTS + 2 * 60 + 2, weights + 2 * 46 + 2)
    assert (costs.flops(all_), costs.flops(some)) == (2 * 16 * WEIGHTS, 2 * 16 * weights)
    assert costs.shape("wide.0.weight", some) == (30, 5, 3, 3) and costs.shape("out.weight", all_) == (2, 4, 1, 1)


def test_what_a_group_saves() -> None:
    """Its share of each product: of the 3×6 weights of the stem, the 6×6 of the block twice, and the 6×40 after it."""
    groups = grouped()
    costs = Costs(groups)
    stream, wide, halves = (groups.member[groups.layer == i][0] for i in (0, 2, 3))
    assert costs.channels.shares()[[stream, wide, halves]].tolist() == [2, 1, 2]
    weights = np.array([9 * (3 + 2 * 6 + 40), 9 * (6 + 8), 2 * 9 * 40 + 2])
    np.testing.assert_allclose(costs.flops.shares()[[stream, wide, halves]], 32 * weights)
    np.testing.assert_allclose(costs.params.shares()[[stream, wide, halves]], weights + np.array([4, 2, 4]))
    for budget, shares in (
        (slim.Flops(0.5), costs.flops),
        (slim.Params(0.5), costs.params),
        (Ratio(0.5), costs.channels),
    ):
        assert budget.savings(costs).tolist() == shares.shares().tolist()
    assert slim.Channels(0.5).savings(costs).tolist() == costs.channels.shares().tolist()


def test_budgets_bound_to_a_network() -> None:
    groups = grouped()
    costs, before = Costs(groups), Costs(groups, {"channels": 120, "params": 10_000})
    for budget, given, limit, whole, short in (
        (slim.Channels(0.5), costs, 30, 60, False),
        (slim.Channels(1.0), costs, 60, 60, False),
        (slim.Channels(17), costs, 17, 60, False),
        (slim.Channels(0.25), before, 30, 120, False),
        (slim.Params(0.5), before, 5000, 10_000, False),
        (Ratio(0.25), costs, 45, 60, True),
        (Ratio(0.25), before, 90, 120, True),
    ):
        bound = budget.bind(given)
        assert (bound.limit, bound.whole, bound.stops_short) == (limit, whole, short)
    with pytest.raises(
        SlimError, match=r"^flops can't be planned after other plans: expected ratio, Channels, Flops or P"
    ):
        slim.Flops(0.5).bind(before)


@pytest.mark.parametrize(
    ("budget", "achieved", "missed"),
    [
        (slim.Flops(0.5), 0.55, 0.1),
        (slim.Flops(0.5), 0.5, 0.0),
        (slim.Flops(200), 100.0, -0.5),
        (Ratio(0.5), 0.3, 0.2),
        (Ratio(0.5), 0.6, -0.1),
    ],
)
def test_how_far_a_plan_falls_short(budget: Any, achieved: float, missed: float) -> None:
    assert budget.missed(achieved) == pytest.approx(missed)
    assert budget.requested == {budget.name: budget.asked}


def test_what_was_achieved_and_budgets_in_parts() -> None:
    assert (slim.Flops(0.5).achieved(30, 120), slim.Flops(50).achieved(30, 120), slim.Flops(1).achieved(30, 120)) == (
        0.25,
        30.0,
        0.25,
    )
    assert Ratio(0.5).achieved(30, 120) == 0.75
    assert [slim.Flops(0.4).part(done, 100).asked for done in (0, 0.5, 1)] == pytest.approx([1, 0.7, 0.4])
    assert [slim.Flops(40).part(done, 100).asked for done in (0, 0.5, 1)] == pytest.approx([1, 0.7, 0.4])
    assert slim.Flops(300).part(0.5, 100).asked == 1.0
    assert [Ratio(0.6).part(done, 100).asked for done in (0, 0.5, 1)] == pytest.approx([0, 0.3, 0.6])
    assert not slim.Flops(0.5).by_time and Chosen(np.zeros(0, bool), True).next_step == 0.0


@pytest.mark.parametrize("make", [slim.Flops, slim.Params, slim.Channels])
def test_numbers_that_no_budget_has(make: Any) -> None:
    assert [make(asked).asked for asked in (1e-9, 1, 10**12)] == [1e-9, 1, 10**12]
    for asked, said in (
        (0, "0 is out of range: expected a share above 0, up to 1, or an absolute number"),
        (-2.5, "-2.5 is out of range: expected a share above 0, up to 1, or an absolute number"),
        (math.nan, "nan is not a finite number: expected one"),
        ("1", "'1' is not a number: expected one"),
    ):
        with pytest.raises(SlimError) as error:
            make(asked)
        assert str(error.value) == f"{make.name} {said}"


@pytest.mark.parametrize("ratio", [0, 0.0, 0.999])
def test_ratios(ratio: float) -> None:
    assert Ratio(ratio).asked == ratio
    for wrong in (1, 1.0, -1e-9):
        with pytest.raises(SlimError) as error:
            Ratio(wrong)
        assert str(error.value) == f"ratio {wrong!r} is out of range: expected 0 <= ratio < 1"


# -- how they are chosen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("round_to", "stream", "wide", "halves", "said"),
    [
        (None, 1, 8, 1, "layers of 32 channels and more keep a multiple of 8 (round_to 1: any number)"),
        (1, 1, 1, 1, ""),
        (2, 2, 2, 1, "layers keep a multiple of 2"),
        (4, 4, 4, 2, "layers keep a multiple of 4"),
        (3, 3, 3, 3, "layers keep a multiple of 3"),
        (4096, 4096, 4096, 2048, "layers keep a multiple of 4096"),
    ],
)
def test_whole_steps(round_to: int | None, stream: int, wide: int, halves: int, said: str) -> None:
    groups, rules = grouped(), Rules(round_to=round_to)
    patterns = [groups.pattern[groups.member[groups.layer == i]][0] for i in (0, 2, 3)]
    assert rules.units(groups)[patterns].tolist() == [stream, wide, halves]
    assert rules.rounding(groups) == said and not rules.by_cost


@pytest.mark.parametrize(("width", "unit"), [(31, 1), (32, 8)])
def test_steps_by_default_are_of_layers_that_were_wide(width: int, unit: int) -> None:
    groups = grouped(before={"stem.1": width})
    assert Rules().units(groups)[groups.pattern[groups.member[0]]] == unit


@pytest.mark.parametrize(
    ("floor", "before", "kept"),
    [
        (0.0, {}, [1, 1, 1]),
        (0.1, {}, [1, 4, 1]),
        (0.1, {"wide": 50}, [1, 5, 1]),
        (0.11, {}, [1, 5, 1]),
        (0.5, {"wide": 100}, [3, 40, 1]),
        (1, {}, [1, 1, 1]),
        (5, {}, [5, 5, 1]),
        (5.0, {"wide": 100}, [5, 5, 1]),
    ],
)
def test_floors(floor: float, before: dict[str, int], kept: list[int]) -> None:
    assert Rules(floor=floor).floors({"stem": 6, "wide": 40, "one": 1}, before) == kept


@pytest.mark.parametrize("value", [0, -1.5, 1e308, 10**308, np.float64(2.0)])
def test_numbers(value: Any) -> None:
    assert checked_number("x", value) == value


def test_layers_of_a_pattern() -> None:
    assert matching(NAMES, "*e*.1", "keep") == ["stem.1", "wide.1", "halves.1"]
    with pytest.raises(SlimError, match=r"^keep 'x' matches no layer: expected a name such as 'stem\.1'$"):
        matching(NAMES, "x", "keep")


def test_sizes_that_are_fixed() -> None:
    groups = grouped()
    stream, wide, halves = (groups.pattern[groups.member[groups.layer == i]][0] for i in (0, 2, 3))
    for ratios, sizes in (
        ({}, [-1, -1, -1]),
        ({"block.1": 0.5}, [3, -1, -1]),
        ({"wide.1": 0.1, "halves.1": 0.25}, [-1, 36, 3]),
        ({"wide.1": 0.11}, [-1, 36, -1]),
        ({"*": 0}, [6, 40, 4]),
        ({"wide.1": 0.1, "*": 0.5}, [3, 20, 2]),
    ):
        assert fixed_sizes(groups, ratios)[[stream, wide, halves]].tolist() == sizes


@pytest.mark.parametrize("last", [0, 1, 4, 9, 10])
def test_the_last_step_that_holds(last: int) -> None:
    assert _last(10, lambda k: k <= last) == last


def test_places_among_those_of_a_kind() -> None:
    found = _places(np.array([3.0, 1.0, 2.0, 5.0, 5.0]), np.array([1, 1, 1, 0, 0]), np.arange(5))
    assert found.tolist() == pytest.approx([1, 1 / 3, 2 / 3, 1, 0.5])


def test_kinds_of_layers() -> None:
    """Those that are read and made alike are of a kind, whatever their number: here each pattern is its own."""
    groups = grouped()
    kinds = structures(groups)
    assert [len(set(kinds[groups.pattern == p])) for p in range(3)] == [1, 1, 1]
    twins = nn.Sequential(*Net.layer(3, 8), *Net.layer(8, 4), *Net.layer(4, 6), nn.Conv2d(6, 2, 3))
    groups = Groups(trace(twins, X), twins)
    each = [structures(groups)[groups.member[groups.layer == i]] for i in range(3)]
    assert len({*np.concatenate(each)}) == 1
