"""What a plan's file may hold, value by value, and what a plan says of itself, to the letter: no network needed."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slim.errors import SlimError
from slim.prune.plan import PlannedLayer, PruningPlan
from slim.prune.plan_format import hash_of, mismasked
from slim.tables import render

GONE = [1, 3]
PLAN = PruningPlan(
    requested={"ratio": 0.25},
    achieved={"ratio": 0.25},
    removed={"bn": GONE, "group.bn": [0]},
    cuts={
        "conv.weight": {0: GONE},
        "bn.weight": {0: GONE},
        "bn.bias": {0: GONE},
        "next.weight": {1: GONE},
        "group.bn.weight": {0: [0]},
        "group.bn.bias": {0: [0]},
    },
    shapes={
        "conv.weight": [4, 3, 1, 1],
        "bn.weight": [4],
        "bn.bias": [4],
        "next.weight": [5, 4, 1, 1],
        "group.bn.weight": [1],
        "group.bn.bias": [1],
    },
    masks={"bn.weight": {0: GONE}, "bn.bias": {0: GONE}, "group.bn.weight": {0: [0]}},
    kinds={"BatchNorm": 6, "Conv": 6},
    selects=["bn"],
    blocks={"b": {"b.m": [1, 0]}},
    sizes={"m.width": 2, "m.shape": [2, 3]},
    constants={"next": [0.0, 1.5, 0.0, -2.0]},
    totals={"channels": (1012, 759), "params": (2000, 1500), "flops": (0, 0)},
    layers=[
        PlannedLayer("bn", 4, 2, 1, 0),
        PlannedLayer("group.bn", 1, 0, 0, 0),
        PlannedLayer("last", 1000, 1000, 0, 1000),
    ],
    frozen={"the model's output": {"last": 1000}},
    shortfall="asked for ratio 0.3, reached 0.25: floors keep 1 channels",
    score="Magnitude",
    reason="the network has no γ",
    rounding="multiples of 8",
)


def tampered(path: str, value: Any) -> dict[str, Any]:
    """The plan's record with another value, and the hash that belongs to it."""
    record = json.loads(json.dumps(PLAN.to_dict()))
    *steps, last = path.split("/")
    at = record
    for step in steps:
        at = at[int(step) if isinstance(at, list) else step]
    at[int(last) if isinstance(at, list) else last] = value
    return record | {"hash": hash_of(record)}


LARGEST = 2**31 - 1
TIMING = {"runtime": "ort", "original_ms": 2.0, "ms": 1.0, "share": 0.5}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("requested", {"loss": 1e300, "least": -1e300, "zero": 0}),
        ("achieved", {}),
        ("totals/params", [1500, 1500]),
        ("totals/flops", [5.0, 0]),
        ("totals/channels", [1, 0]),
        ("kinds/BatchNorm", LARGEST),
        ("kinds/BatchNorm", 0),
        ("masks", {"bn.weight": {"0": 0}, "group.bn.weight": {"0": 1}}),
        ("cuts/elsewhere", {"-1": 0, "999": 0}),  # of a tensor in a plain attribute, whose shape isn't known
        ("cuts/bn.weight/-1", 0),
        ("indices", [[1, 3], [0], [0, LARGEST]]),
        ("indices", [[1, 3], [0], []]),
        ("sizes", {"m.a": 0, "m.b": LARGEST, "m.c": [0, LARGEST], "m.d": []}),
        ("constants", {"next": [1, 2.5], "other": []}),
        ("blocks", {"b": {"b.m": [0, 0]}}),
        ("selects", []),
        ("frozen", {}),
        ("timing", {}),
        ("timing", TIMING),
        ("timing", TIMING | {"unused": 0.1, "next_step": 0.2}),
    ],
)
def test_values_that_a_plan_may_have(path: str, value: Any) -> None:
    record = tampered(path, value)
    read = PruningPlan.from_dict(record)
    assert json.loads(json.dumps(read.to_dict()))[path.partition("/")[0]] == record[path.partition("/")[0]] or (
        path.startswith(("cuts", "indices", "masks"))
    )


NUMBERS, PLACES = "numbers by name", "numbers of index lists by tensor and dimension"
TOTALS = "numbers before and after by name, of channels at least one"
LAYERS = "layers with name, before, after, floor and frozen"
BLOCKS = "blocks with modules, each with a dimension and a number of channels"
TIMED = "runtime, original_ms, ms and share, and other numbers by name"
LAYER = {"name": "bn", "before": 4, "after": 2, "floor": 1, "frozen": 0}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("requested", None, NUMBERS),
        ("requested/ratio", 1.1e300, NUMBERS),
        ("requested/ratio", -1.1e300, NUMBERS),
        ("requested/ratio", math.nan, NUMBERS),
        ("requested/ratio", True, NUMBERS),
        ("requested/ratio", "1", NUMBERS),
        ("achieved/ratio", [1], NUMBERS),
        ("totals", {"params": [1, 1]}, TOTALS),
        ("totals/params", [3, 2, 1], TOTALS),
        ("totals/params", [3], TOTALS),
        ("totals/params", [1, -1], TOTALS),
        ("totals/params", [1, 2], TOTALS),
        ("totals/params", ["2", "1"], TOTALS),
        ("totals/channels", [0, 0], TOTALS),
        ("removed/bn", -1, "numbers of index lists by layer"),
        ("removed/bn", 0.0, "numbers of index lists by layer"),
        ("removed", [0], "numbers of index lists by layer"),
        ("cuts/bn.weight", {"": 0}, PLACES),
        ("cuts/bn.weight", {"1000": 0}, PLACES),
        ("cuts/bn.weight", {"0.0": 0}, PLACES),
        ("cuts/bn.weight", [0], PLACES),
        ("masks/bn.weight", {"-3": 0}, PLACES),
        ("masks", [], PLACES),
        ("kinds/Conv", LARGEST + 1, "numbers by kind of layer"),
        ("kinds/Conv", -1, "numbers by kind of layer"),
        ("indices", {"0": [1, 3]}, "lists of whole numbers"),
        ("indices/0", [1, LARGEST + 1], "lists of whole numbers"),
        ("shapes/bn.weight", [4.0], "shapes by tensor"),
        ("shapes/bn.weight", 4, "shapes by tensor"),
        ("selects", [1], "names of layers"),
        ("selects", "bn", "names of layers"),
        ("sizes/m.width", -1, "numbers by the name of what keeps them"),
        ("sizes/m.shape", [2, -3], "numbers by the name of what keeps them"),
        ("sizes/m.shape", [[2]], "numbers by the name of what keeps them"),
        ("constants/next", 1.5, "numbers by layer"),
        ("constants/next", ["x"], "numbers by layer"),
        ("blocks/b", [1], BLOCKS),
        ("blocks/b/b.m", [1], BLOCKS),
        ("blocks/b/b.m", [1, 0, 0], BLOCKS),
        ("blocks/b/b.m", [1, -1], BLOCKS),
        ("layers/0", [], LAYERS),
        ("layers/0", LAYER | {"more": 1}, LAYERS),
        ("layers/0", LAYER | {"name": 3}, LAYERS),
        ("layers/0", LAYER | {"after": 5}, LAYERS),
        ("layers/0", LAYER | {"floor": -1}, LAYERS),
        ("layers/0", LAYER | {"frozen": 0.5}, LAYERS),
        ("layers", {}, LAYERS),
        ("frozen", {"why": {"bn": -1}}, "numbers of channels by reason and layer"),
        ("frozen", {"why": 1}, "numbers of channels by reason and layer"),
        ("shortfall", 1, "text"),
        ("score", None, "text"),
        ("reason", 1, "text"),
        ("rounding", [], "text"),
        ("timing", [], TIMED),
        ("timing", TIMING | {"runtime": 1}, TIMED),
        ("timing", TIMING | {"unused": 0.1}, TIMED),
        ("timing", TIMING | {"ms": "fast"}, TIMED),
        ("timing", {k: v for k, v in TIMING.items() if k != "share"}, TIMED),
        ("timing", {k: v for k, v in TIMING.items() if k != "runtime"}, TIMED),
    ],
)
def test_values_that_a_plan_may_not_have(path: str, value: Any, expected: str) -> None:
    record, key = tampered(path, value), path.partition("/")[0]
    with pytest.raises(SlimError) as error:
        PruningPlan.from_dict(record)
    assert str(error.value) == f"a broken pruning plan: {key} is {record[key]!r:.40}: expected {expected}"


@pytest.mark.parametrize("key", [*PLAN.to_dict()])
def test_what_a_plan_has_to_hold(key: str) -> None:
    """Older plans lack what is newer; of those that know BatchNorms alone the masks are their γ and β."""
    record = {name: value for name, value in PLAN.to_dict().items() if name != key}
    record |= {} if key == "hash" else {"hash": hash_of(record)}
    newer: Mapping[str, Any] = {
        "masks": {f"{bn}.{name}": {0: gone} for bn, gone in PLAN.removed.items() for name in ("weight", "bias")},
        "kinds": {"BatchNorm": 1012}, "constants": {}, "blocks": {}, "score": "", "reason": "", "rounding": "",
        "timing": {},
    }  # fmt: skip
    if key in newer:
        assert PruningPlan.from_dict(record) == replace(PLAN, **{key: newer[key]})
    else:
        with pytest.raises(SlimError, match=rf"plan.*{key}|{key}.*plan|version None"):
            PruningPlan.from_dict(record)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("indices/0", [3, 3], "indices [3, 3]: expected whole numbers from 0, each larger than the one before"),
        ("indices/0", [3, 1], "indices [3, 1]: expected whole numbers from 0, each larger than the one before"),
        ("removed/bn", 2, "it names list 2 of 2"),
        ("masks/bn.bias/0", 7, "it names list 7 of 2"),
        ("cuts/bn.bias/0", 3, "it names list 3 of 2"),
        ("cuts/bn.weight/1", 0, "the cut of bn.weight doesn't fit its shape [4]"),
        ("indices/0", [1, 4], "the cut of conv.weight doesn't fit its shape [4, 3, 1, 1]"),
        ("masks/conv.weight", {"1": 0}, "the mask of conv.weight doesn't fit its shape [4, 3, 1, 1]"),
        ("masks/conv.weight", {"2": 1, "4": 1}, "the mask of conv.weight doesn't fit its shape [4, 3, 1, 1]"),
        ("shapes/a.b", [1], "a.b has a shape, and no cut"),
        ("removed/bn", 1, "what is removed of bn isn't what its tensors lose"),
        ("removed/b", 0, "what is removed of b isn't what its tensors lose"),
        ("masks/bn.bias/0", 1, "its masks zero other channels than it removes, of 'bn.bias'"),
        ("masks", {}, "its masks zero other channels than it removes, of 'bn'"),
        ("layers/0/after", 3, "bn goes from 4 to 3 channels by other indices"),
        ("layers/2/after", 999, "last goes from 1000 to 999 channels by other indices"),
        ("selects", ["bn", "conv.weight"], "'conv.weight' selects channels, and its weight has no shape"),
    ],
)
def test_what_contradicts_itself(path: str, value: Any, said: str) -> None:
    with pytest.raises(SlimError) as error:
        PruningPlan.from_dict(tampered(path, value))
    assert str(error.value) == f"a broken pruning plan: {said}"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ([], "not a pruning plan: expected an object with 'format': 'slim-plan'"),
        ({"format": "plan"}, "not a pruning plan: expected an object with 'format': 'slim-plan'"),
        ({"format": "slim-plan", "version": 2}, "a pruning plan of version 2: this slim reads version 1"),
        (
            {"format": "slim-plan", "version": "a version without end"},
            "a pruning plan of version 'a version without e: this slim reads version 1",
        ),
        (
            PLAN.to_dict() | {"rounding": "other"},
            "a broken pruning plan: its content doesn't have the hash that it was written with",
        ),
        ({"format": "slim-plan", "version": 1, "x": {1}}, "a broken pruning plan: TypeError: Object of type set is"),
    ],
)
def test_records_of_something_else(record: Any, said: str) -> None:
    with pytest.raises(SlimError, match=re.escape(said)):
        PruningPlan.from_dict(record)


def test_a_plan_goes_through_json(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    again = PruningPlan.load(str(tmp_path / "plan.json"))
    assert again == PLAN and again.digest == PLAN.digest
    assert PLAN.to_dict()["indices"] == [[1, 3], [0]]  # each list once
    assert (PLAN.ratio_requested, PLAN.ratio_achieved) == (0.25, 0.25)
    assert replace(PLAN, requested={"flops": 0.5}).ratio_requested is None


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"removed": {}}, False),
        ({"cuts": {}}, False),
        ({"sizes": {}}, False),
        ({"constants": {}}, False),
        ({"score": "Gamma", "shortfall": "", "totals": {"channels": (2, 1)}, "timing": TIMING}, True),
    ],
)
def test_the_digest_is_of_what_goes(change: dict[str, Any], alike: bool) -> None:
    assert (replace(PLAN, **change).digest == PLAN.digest) == alike


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "isn't a plan: expected JSON (Expecting"), ("[]", "isn't a plan: expected a JSON object")],
)
def test_files_that_hold_no_plan(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(SlimError, match=re.escape(f"{str(tmp_path / 'plan.json')!r} {said}")):
        PruningPlan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("removed", "masks", "name"),
    [
        ({"t": [1, 3, 5, 7]}, {"t.weight": {1: [1, 3]}}, None),  # both of four, in each of two groups
        ({"t": [1, 3, 5, 6]}, {"t.weight": {1: [1, 3]}}, "t"),
        ({"t": [1, 3, 4, 7]}, {"t.weight": {1: [1, 3]}}, "t"),
        ({"t": [1, 3]}, {"t.weight": {1: [1, 3]}}, None),
        ({"t": [2, 3, 6, 7]}, {"t.weight": {1: [1, 3]}}, None),  # both of two that each group makes
        ({"t": [2, 3, 6, 6]}, {"t.weight": {1: [1, 3]}}, "t"),
        ({"t": [2, 3, 7]}, {"t.weight": {1: [1, 3]}}, "t"),
        ({"t": [1, 2]}, {"t.weight": {1: [1, 3]}}, "t"),
        ({"t": [1, 3, 5, 7]}, {"t.weight": {4: [1, 3]}}, "t"),
        ({"t": [1, 3]}, {"t.weight": {1: [1, 2, 3]}, "t.bias": {0: [1, 3]}}, "t.weight"),
        ({"t": [1, 3]}, {"t.weight": {1: [1]}, "t.bias": {0: [1, 3]}}, None),
        ({"t": [1, 3]}, {"other": {1: [1, 3]}}, "other"),
        ({}, {}, None),
    ],
)
def test_masks_are_those_of_what_is_removed(removed: Any, masks: Any, name: str | None) -> None:
    cuts = {"t.weight": {1: [1, 3], 4: [1, 3]}, "t.bias": {0: [1, 3, 5, 7]}}
    assert mismasked(removed, cuts, masks, {"t.weight": [8, 4, 3, 3], "t.bias": [8]}) == name


# -- in words ----------------------------------------------------------------------------------------------------------


PRINTED = """\
pruning plan: 25.0% of all BatchNorm and Conv channels go

 layer      before   after   held by floor   frozen   stays
 ─────────────────────────────────────────────────────────────────────────
 bn              4       2               1            ██████████░░░░░░░░░░
 group.bn        1       0                            ░░░░░░░░░░░░░░░░░░░░
 last        1,000   1,000                    1,000   ████████████████████
channels 1,012 → 759 (25.0% fewer); params 2,000 → 1,500 (25.0% fewer); flops 0 → 0 (0.0% fewer); \
1 whole block goes: b; constants that are left of channels go into the bias of next; multiples of 8
ranked by Magnitude: the network has no γ
asked for ratio 0.3, reached 0.25: floors keep 1 channels"""


def test_the_plan_in_print() -> None:
    assert str(PLAN) == PRINTED


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (75, ["layer", "before", "after", "held by floor", "frozen", "stays"]),
        (60, ["layer", "before", "after", "held by floor", "frozen"]),
        (40, ["layer", "before", "after", "frozen"]),
        (30, ["layer", "before", "after"]),
    ],
)
def test_narrow_tables_lose_columns_and_no_numbers(width: int, columns: list[str]) -> None:
    lines = render(PLAN.table(), width).splitlines()
    names = next(line for line in lines if "before" in line)
    every = ("layer", "before", "after", "held by floor", "frozen", "stays")
    assert [column for column in every if column in names] == columns
    assert any("1,000   1,000" in line for line in lines)


def test_what_holds_nothing_back_has_no_column() -> None:
    layers = [PlannedLayer("bn", 40, 1, 0, 0)]
    plain = replace(PLAN, layers=layers, blocks={"b": {}, "c": {}}, constants={}, rounding="")
    assert [line.split() for line in render(plain.table()).splitlines()[-3::2]] == [
        ["layer", "before", "after", "stays"],
        ["bn", "40", "1", "█" + 19 * "░"],
    ]
    assert plain.summary().endswith("; 2 whole blocks go: b, c")
    unranked = replace(plain, score="", reason="", shortfall="")
    assert str(unranked).splitlines()[-1] == unranked.summary()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"timing": TIMING}, ["measured 2 → 1 ms (50.0% of it; ort)"]),
        (
            {"timing": TIMING | {"settings": [TIMING, TIMING | {"ms": 1.23456, "share": 0.61728}]}},
            ["measured 2 → 1 ms (50.0% of it; ort)", "measured 2 → 1.23 ms (61.7% of it; ort)"],
        ),
        (
            {"timing": TIMING | {"unused": 0.0312, "next_step": 0.25}},
            [
                "measured 2 → 1 ms (50.0% of it; ort)",
                "3.1% of the budget is left, and the next step of channels takes 25.0% of it",
            ],
        ),
        (
            {"achieved": {"loss": 0.01234, "metric": 0.987654, "baseline": 1.0}},
            ["metric 1 → 0.9877 (loses 0.0123)"],
        ),
    ],
)
def test_what_was_measured_is_in_the_summary(given: dict[str, Any], said: list[str]) -> None:
    plan = replace(PLAN, **{"blocks": {}, "constants": {}, "rounding": "", "totals": {"channels": (4, 2)}, **given})
    assert plan.summary() == "; ".join(["channels 4 → 2 (50.0% fewer)", *said])


def test_the_plan_in_one_line() -> None:
    assert PLAN.headline() == (
        "25.0% of all BatchNorm and Conv channels go; 75.0% of the channels stay, 75.0% of the params stay, "
        "100.0% of the flops stay"
    )
    assert PLAN.ranked_by == "ranked by Magnitude: the network has no γ"
    assert [replace(PLAN, reason="").ranked_by, replace(PLAN, score="", reason="").ranked_by] == [
        "ranked by Magnitude", ""
    ]  # fmt: skip


# -- the model that a plan fits ----------------------------------------------------------------------------------------


def planned() -> tuple[nn.Module, PruningPlan]:
    """Two layers, a cache that grows, and the plan for them."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.register_buffer("cache", torch.zeros(5, 3))
    model.register_buffer("rows", torch.zeros(3, 2))
    cuts = {"0.weight": {0: [1]}, "0.bias": {0: [1]}, "1.weight": {1: [1]}, "cache": {1: [1]}, "rows": {0: [1]}}
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items() if name in cuts}
    masks = {name: cuts[name] for name in ("0.weight", "0.bias")}
    return model, PruningPlan({"ratio": 0.3}, {}, {"0": [1]}, cuts, shapes, masks)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"cache": torch.zeros(9, 3)}, None),
        ({"rows": torch.zeros(3, 9)}, None),
        ({"rows": torch.zeros(9, 2)}, r"rows has shape \[9, 2\], expected \[3, 2\]"),
        ({"cache": torch.zeros(5, 4)}, r"cache has shape \[5, 4\], expected \[5, 3\]"),
        ({"cache": torch.zeros(5)}, r"cache has shape \[5\], expected \[5, 3\]"),
        ({"cache": None}, "it has no cache"),
        ({"0": nn.Linear(5, 3)}, r"0\.weight has shape \[3, 5\], expected \[3, 4\]"),
        ({"1": nn.Linear(4, 2)}, r"1\.weight has shape \[2, 4\], expected \[2, 3\]"),
        ({"0": nn.Linear(4, 3, bias=False)}, r"it has no 0\.bias"),
    ],
)
def test_models_that_a_plan_fits(changed: dict[str, Any], said: str | None) -> None:
    model, plan = planned()
    for name, value in changed.items():
        setattr(model, name, value)
    if said is None:
        plan.check_fits(model)
        return
    with pytest.raises(SlimError, match=f"^the plan doesn't fit this model: {said}$"):
        plan.check_fits(model)


def test_the_part_of_a_model_that_a_plan_fits_is_named() -> None:
    model, plan = planned()
    within = nn.ModuleDict({"a": nn.ReLU(), "b": nn.ModuleDict({"c": model})})
    with pytest.raises(
        SlimError, match=r"^the plan doesn't fit this model: it has no .*: expected its 'b\.c', which it"
    ):
        plan.apply(within)


def test_what_a_plan_does_to_a_model() -> None:
    _, plan = planned()
    plan.selects, plan.blocks, plan.sizes = ["0"], {"a": {"m": [1, 2]}, "b": {"n": [0, 3]}}, {"0.out_features": 2}
    plan.cuts["apart"] = {0: [7]}
    change = plan.change
    assert change.cuts is plan.cuts and change.sizes is plan.sizes and change.masks is plan.masks
    assert change.selects == {"0": [0, 2]} and change.emptied == {"m": [1, 2], "n": [0, 3]}
    assert change.optional == {"apart"}
