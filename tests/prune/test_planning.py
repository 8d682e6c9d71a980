"""The plan itself: which channels, how many, and what it says."""

import copy
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torchvision
from networks import ZOO, randomise
from torch import nn

import slim
from slim.prune.budgets import Budget, Cost, Costs, Ratio
from slim.prune.plan_format import hash_of
from slim.prune.planner import check_prunable
from slim.prune.rebuild import Change, rebuild
from slim.trace.size import network_size
from slim.workbench.models import build

X = torch.randn(1, 3, 32, 32)


def vgg(seed: int = 0) -> nn.Module:
    return randomise(build("slim:vgg11", num_classes=10, gamma=None), seed)


def gammas(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: m.weight.detach().abs() for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


@pytest.mark.parametrize("ratio", [0.1, 0.37, 0.5, 0.8])
def test_global_threshold_is_a_plain_sort(ratio: float) -> None:
    model = vgg()
    every = gammas(model)
    ordered = torch.cat(list(every.values())).sort().values
    threshold = ordered[int(ratio * len(ordered)) - 1]
    expected = {n: torch.nonzero(g <= threshold).flatten().tolist() for n, g in every.items()}
    plan = slim.plan(model, X, ratio=ratio, floor=0, round_to=1)
    assert plan.removed == {n: gone for n, gone in expected.items() if gone}


def test_group_scores() -> None:
    model = randomise(ZOO["residual"]())
    stem, last = model.stem[1], model.a[1][1]
    model.a[0][1].weight.data.fill_(9.0)  # keep the inner layer out of it
    expected: dict[Literal["mean", "sum", "max"], torch.Tensor] = {
        "mean": (stem.weight + last.weight) / 2,
        "sum": stem.weight + last.weight,
        "max": torch.maximum(stem.weight, last.weight),
    }
    for how, value in expected.items():
        plan = slim.plan(model, X, ratio=8 / 48, score=slim.Gamma(how))
        assert plan.removed["stem.1"] == plan.removed["a.1.1"] == sorted(value.argsort()[:4].tolist())


def test_equal_gammas_are_broken_the_same_way_each_time() -> None:
    model = build("slim:vgg11", num_classes=10, gamma=0.5)
    plans = [slim.plan(copy.deepcopy(model), X, ratio=0.3).removed for _ in range(2)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize("floor", [0.1, 0.3, 5, 5.0])
def test_floor_holds_and_is_told(floor: float) -> None:
    model = vgg()
    weak = model.get_parameter(f"{next(iter(gammas(model)))}.weight")
    weak.data *= 1e-6
    plan = slim.plan(model, X, ratio=0.6, floor=floor, round_to=1)
    first = plan.layers[0]
    assert first.after == (floor if floor >= 1 else int(np.ceil(floor * first.before)))
    assert first.floor == first.after
    kept = set(range(first.before)) - set(plan.removed[first.name])
    assert kept == set(weak.argsort()[-first.after :].tolist())  # the best ones
    assert abs(plan.ratio_achieved - 0.6) < 0.01


def test_no_layer_empties_when_everything_is_zero() -> None:
    model = vgg()
    for bn in gammas(model):
        model.get_parameter(f"{bn}.weight").data.zero_()
    plan = slim.plan(model, X, ratio=0.99, floor=0)
    assert all(layer.after >= 1 for layer in plan.layers)
    plan.apply(model)(X)


def test_short_of_the_request_says_so() -> None:
    plan = slim.plan(vgg(), X, ratio=0.95, floor=0.2)
    assert plan.ratio_achieved < 0.85
    assert "asked for ratio 0.95" in plan.shortfall and "floors keep" in plan.shortfall
    assert plan.shortfall in str(plan)


@pytest.mark.parametrize("budget", [slim.Flops, slim.Params, slim.Channels])
@pytest.mark.parametrize("share", [0.7, 0.4, 0.2])
def test_budgets_are_met_from_below(budget: type[Budget], share: float) -> None:
    model = randomise(torchvision.models.resnet18())
    x = torch.randn(1, 3, 64, 64)
    plan = slim.plan(model, x, budget(share))
    kind = budget.name
    whole, thin = getattr(network_size(model, x), kind), getattr(network_size(plan.apply(model), x), kind)
    assert plan.totals[kind] == (whole, thin)  # predicted exactly
    assert share - 0.01 < thin / whole <= share
    absolute = slim.plan(model, x, budget(int(share * whole)))
    assert absolute.removed == plan.removed


@pytest.mark.parametrize("round_to", [1, 8])
def test_budgets_leave_no_room_for_another_channel(round_to: int) -> None:
    model = vgg()
    plan = slim.plan(model, X, slim.Flops(0.45), round_to=round_to)
    whole, kept = plan.totals["flops"]
    assert kept <= 0.45 * whole
    for layer in plan.layers:
        if layer.after < layer.before:
            sizes = {other.name: other.after + round_to * (other is layer) for other in plan.layers}
            shares = {other.name: 1 - min(1, sizes[other.name] / other.before) for other in plan.layers}
            more = slim.plan(model, X, ratio=0.1, layer_ratios=shares, round_to=1)
            assert {other.name: other.after for other in more.layers} == sizes
            assert more.totals["flops"][1] > 0.45 * whole


@pytest.mark.parametrize("n", [8, 16])
def test_round_to(n: int) -> None:
    model = randomise(torchvision.models.mobilenet_v3_small())
    x = torch.randn(1, 3, 64, 64)
    plan = slim.plan(model, x, ratio=0.5, round_to=n)
    assert all(layer.after % n == 0 or layer.after == layer.before for layer in plan.layers)
    assert abs(plan.ratio_achieved - 0.5) < 0.02
    assert slim.verify(model, plan.apply(model), plan, x) < 1e-10


def default_ends(before: int, after: int) -> bool:
    """Whether a layer may have `after` channels by default."""
    return after % 8 == 0 or before < 32 or after == before


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vgg11_bn"])
@pytest.mark.parametrize("budget", [Ratio(0.5), slim.Flops(0.5)])
def test_by_default_wide_layers_keep_multiples_of_8_and_budgets_are_reached(name: str, budget: Budget) -> None:
    model = randomise(torchvision.models.get_model(name))
    plan = slim.plan(model, torch.randn(1, 3, 64, 64), budget)
    assert all(default_ends(layer.before, layer.after) for layer in plan.layers)
    assert any(layer.before != layer.after for layer in plan.layers) and "multiple of 8" in str(plan)
    assert abs(plan.achieved[budget.name] - 0.5) <= 0.01 and not plan.shortfall


def test_by_default_narrow_layers_keep_any_number() -> None:
    model = randomise(build("slim:lenet", num_classes=10, in_channels=1))
    plan = slim.plan(model, torch.randn(1, 1, 28, 28), ratio=0.3, layer_ratios={"bn1": 0.25})
    layers = {layer.name: (layer.before, layer.after) for layer in plan.layers}
    assert {name: before for name, (before, _) in layers.items()} == {"bn1": 20, "bn2": 50, "bn3": 500}
    assert all(default_ends(*sizes) for sizes in layers.values()) and layers["bn1"] == (20, 15)
    exact = slim.plan(model, torch.randn(1, 1, 28, 28), ratio=0.3, round_to=1)
    assert not exact.rounding and exact.ratio_achieved == pytest.approx(0.3, abs=1 / 570)


def test_keep_layer_ratios_and_scope() -> None:
    model = vgg()
    names = list(gammas(model))
    plan = slim.plan(model, X, ratio=0.5, keep=[names[0]])
    assert names[0] not in plan.removed and plan.frozen == {"kept on request": {names[0]: 64}}
    plan = slim.plan(model, X, ratio=0.5, layer_ratios={names[2]: 0.25})
    layer = plan.layers[2]
    assert layer.after == layer.before * 0.75
    plan = slim.plan(model, X, ratio=0.5, scope="layer")
    assert all(abs(layer.after / layer.before - 0.5) < 0.02 for layer in plan.layers)


def test_json_round_trip(tmp_path: Path) -> None:
    model = randomise(build("slim:preresnet164", num_classes=10, gamma=None))
    plan = slim.plan(model, X, ratio=0.4, mode="select")
    plan.save(tmp_path / "plan.json")
    again = slim.PruningPlan.load(tmp_path / "plan.json")
    assert again == plan and again.digest == plan.digest
    a, b = plan.apply(model).eval(), again.apply(model).eval()
    assert torch.equal(a(X), b(X))
    text = (tmp_path / "plan.json").read_text()
    assert json.loads(text)["version"] == 1
    plan.save(tmp_path / "plan.json")
    assert (tmp_path / "plan.json").read_text() == text  # stable order


@pytest.mark.parametrize("cut", [{1: [0]}, {7: [0]}, {0: [4]}])
def test_cuts_that_a_tensor_has_no_place_for_are_refused(cut: dict[int, list[int]]) -> None:
    with pytest.raises(slim.SlimError, match=r"'0\.weight' has shape \(4,\)"):
        rebuild(nn.Sequential(nn.BatchNorm2d(4)), Change({"0.weight": cut}))


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    plan = slim.plan(vgg(), X, ratio=0.4)
    for other in (build("slim:vgg13", num_classes=10), build("slim:resnet20", num_classes=10)):
        with pytest.raises(slim.SlimError, match="doesn't fit this model"):
            plan.apply(other)
    averaged = torch.optim.swa_utils.AveragedModel(vgg())
    with pytest.raises(slim.SlimError, match=r"it has no conv1\.weight: expected its 'module', which it fits"):
        plan.apply(averaged)
    averaged.module = plan.apply(averaged.module)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(slim.SlimError, match="isn't a plan"):
        slim.PruningPlan.load(tmp_path / "broken.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(slim.SlimError, match="isn't a plan"):
        slim.PruningPlan.load(tmp_path / "list.json")
    with pytest.raises(slim.SlimError, match="can't be read"):
        slim.PruningPlan.load(tmp_path / "none.json")
    future = {**plan.to_dict(), "version": 99}
    with pytest.raises(slim.SlimError, match="version 99"):
        slim.PruningPlan.from_dict(future)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"ratio": 1.0}, "ratio 1.0 is out of range"),
        ({"ratio": -0.1}, "ratio -0.1 is out of range"),
        ({"ratio": 0.5, "budget": slim.Flops(0.5)}, "one budget at a time: got ratio 0.5 and Flops"),
        ({"budget": 0.5}, "budget 0.5: expected one such as slim.Flops"),
        ({"floor": 1.5}, "floor 1.5: expected a share from 0 to below 1, or a whole number"),
        ({"floor": -0.1}, "floor -0.1: expected a share from 0 to below 1, or a whole number"),
        ({"score": "mean"}, "score 'mean': expected slim.Gamma"),
        ({"round_to": "even"}, "round_to 'even': expected a whole number"),
        ({"round_to": 0}, "round_to 0: expected a whole number"),
        ({"round_to": True}, "round_to True: expected a whole number"),
        ({"mode": "both"}, "unknown mode 'both'"),
        ({"ratio": "half"}, "ratio 'half' is not a number"),
        ({"floor": None}, "floor None is not a number"),
        ({"layer_ratios": {"*": "a"}}, "layer_ratios '\\*' 'a' is not a number"),
        ({"scope": "all"}, "unknown scope 'all'"),
        ({"grouped": "some"}, "unknown grouped 'some'"),
        ({"keep": ["nothing.*"]}, "matches no layer"),
        ({"layer_ratios": {"*": 2}}, "out of range"),
    ],
)
def test_bad_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(slim.SlimError, match=words):
        slim.plan(vgg(), X, **settings)


def test_nothing_to_prune() -> None:
    with pytest.raises(slim.SlimError, match=r"nothing to prune: all channels are frozen \(the model's output\)"):
        slim.plan(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), X)
    with pytest.raises(slim.SlimError, match="would remove nothing"):
        slim.plan(vgg(), X, ratio=1e-6)
    with pytest.raises(slim.SlimError, match="can't be run on example_inputs"):
        slim.plan(vgg(), torch.randn(1, 5, 32, 32))
    broken = vgg()
    broken.get_parameter(f"{next(iter(gammas(broken)))}.weight").data[0] = float("nan")
    with pytest.raises(slim.SlimError, match="finite"):
        slim.plan(broken, X)


def stack(*widths: int) -> nn.Module:
    """Layers in a row, named 1, 4, …"""
    rows = [(nn.Conv2d(i, o, 1), nn.BatchNorm2d(o), nn.ReLU()) for i, o in zip((3, *widths), widths)]
    return randomise(nn.Sequential(*(layer for row in rows for layer in row), nn.Conv2d(widths[-1], 2, 1))).eval()


SMALL = X[..., :4, :4]
BY_DEFAULT = "layers of 32 channels and more keep a multiple of 8 (round_to 1: any number)"


@pytest.mark.parametrize(
    ("settings", "rounding", "shortfall"),
    [
        ({"ratio": 0.9, "floor": 0.5}, BY_DEFAULT, "ratio 0.9, reached 0.4167: floors keep 28 channels"),
        ({"ratio": 0.9, "floor": 0.5, "round_to": 1}, "", "ratio 0.9, reached 0.5: floors keep 24 channels"),
        (
            {"ratio": 0.9, "floor": 0.5, "round_to": 16},
            "layers keep a multiple of 16",
            "ratio 0.9, reached 0.1667: floors keep 40 channels",
        ),
        ({"ratio": 0.99, "floor": 20, "round_to": 1}, "", "ratio 0.99, reached 0.4167: floors keep 28 channels"),
        (
            {"ratio": 0.9, "keep": "1", "round_to": 1},
            "",
            "ratio 0.9, reached 0.75: floors keep 4 channels; 8 channels are frozen (kept on request)",
        ),
        ({"budget": slim.Flops(0.05)}, BY_DEFAULT, "flops 0.05, reached 0.06368: floors keep 9 channels"),
        (
            {"budget": slim.Flops(2000), "round_to": 8},
            "layers keep a multiple of 8",
            "flops 2000, reached 3328: floors keep 16 channels",
        ),
        ({"ratio": 0.5, "round_to": 1}, "", ""),
        ({"ratio": 0.512, "floor": 0.5, "round_to": 1}, "", "ratio 0.512, reached 0.5: floors keep 24 channels"),
        ({"ratio": 0.508, "floor": 0.5, "round_to": 1}, "", ""),  # to within a point
    ],
)  # fmt: skip
def test_what_holds_a_plan_back(settings: dict[str, Any], rounding: str, shortfall: str) -> None:
    plan = slim.plan(stack(8, 40), SMALL, **settings)
    assert (plan.rounding, plan.shortfall) == (rounding, shortfall and f"asked for {shortfall}")


def test_a_group_that_is_too_large_holds_a_plan_back() -> None:
    """Groups of 13 channels each: a ratio stops before the one that would lead over it, and so do four of them."""
    models = [randomise(Stream(width)).eval() for width in (8, 16)]
    for model, width in zip(models, (8, 16)):
        model.last = nn.Sequential(nn.Conv2d(width, 2, 1))
    one, four = (slim.plan(m, SMALL, ratio=r, round_to=n) for m, r, n in zip(models, (0.24, 0.45), (1, 4)))
    assert one.shortfall == "asked for ratio 0.24, reached 0.125: the next group of channels is too large"
    assert four.shortfall == (
        "asked for ratio 0.45, reached 0.25: the next group of channels is too large, as layers keep a multiple of 4"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"ratio": 0.9, "keep": ["1", "4"]},
            "ratio 0.9 would remove nothing: all channels are frozen (kept on request)",
        ),
        ({"ratio": 1e-4}, "ratio 0.0001 would remove nothing: the smallest group that may go holds 1 of 48 channels"),
        ({"ratio": 0.3, "floor": 0.999}, "ratio 0.3 would remove nothing: every group of channels would empty a layer"),
        ({"layer_ratios": {"0": 0.5}}, "layer_ratios '0': 0 isn't ranked by itself: expected one such as '1'"),
        (
            {"layer_ratios": {"6": 0.5}},
            "layer_ratios '6': 6 isn't ranked by itself, as its channels are frozen (the model's output): expected one "
            "such as '1'",
        ),
        ({"layer_ratios": {"z": 0.5}}, "layer_ratios 'z' matches no layer: expected a name such as '1'"),
        ({"layer_ratios": {"*": 1.0}}, "layer_ratios '*': 1.0 is out of range: expected 0 <= ratio < 1"),
        ({"layer_ratios": {"*": -0.1}}, "layer_ratios '*': -0.1 is out of range: expected 0 <= ratio < 1"),
        ({"layer_ratios": {1: 0.5}}, "a pattern is of type int: expected a shell pattern of layers"),
        ({"keep": "z"}, "keep 'z' matches no layer: expected a name such as '0'"),
        ({"keep": 1}, "keep is of type int: expected a shell pattern or several"),
        ({"after": [3]}, "after is of type int: expected what slim.plan returned"),
        ({"after": 3}, "after is of type int: expected the plans that made the model, in a list"),
        ({"floor": 2.5}, "floor 2.5: expected a share from 0 to below 1, or a whole number of channels"),
        ({"floor": 10**400}, f"floor 1{39 * '0'} is not a finite number: expected one"),
        ({"round_to": 4097}, "round_to 4097: expected a whole number from 1 to 4096, or a slim.Runtime"),
    ],
)
def test_plans_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(slim.SlimError) as error:
        slim.plan(stack(8, 40), SMALL, **settings)
    assert str(error.value) == said


def test_plans_after_plans_that_are_refused() -> None:
    plan = slim.plan(stack(8, 40), SMALL, ratio=0.5, round_to=1)
    with pytest.raises(slim.SlimError, match=r"^the model has 48 prunable channels: expected the 24 that the plans in"):
        slim.plan(stack(8, 40), SMALL, ratio=0.6, after=[plan])
    with pytest.raises(slim.SlimError, match=r"^layer_ratios can't be planned after other plans: expected a budget"):
        slim.plan(plan.apply(stack(8, 40)), SMALL, after=[plan], layer_ratios={"1": 0.2})


SOFTMAX = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Softmax(1), nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (stack(8, 40), ["40 groups: 4", "8 groups: 1"]),
        (SOFTMAX, ["frozen: 4 groups in 1: _softmax after 1 needs all of its channels"]),
        (nn.Conv2d(3, 4, 1), ["nothing to prune: all channels are frozen (the model's output)"]),
        (
            nn.Softmax(1),
            [
                "nothing to prune: no layer makes channels: expected convolutions or linear layers as modules of the "
                "network"
            ],
        ),
    ],
)
def test_networks_explained(model: nn.Module, said: list[str]) -> None:
    assert sorted(slim.explain(model, SMALL).splitlines()) == sorted(said)
    if not said[0].startswith("nothing"):
        return
    with pytest.raises(slim.SlimError, match=re.escape(said[0])):
        check_prunable(model, SMALL)


def test_networks_none_of_whose_channels_can_go_are_told_before_a_plan() -> None:
    check_prunable(stack(8, 40), SMALL)
    with pytest.raises(slim.SlimError, match=r"all channels are frozen \(_softmax after 1 .*; the model's output\)"):
        check_prunable(SOFTMAX, SMALL)


def test_ratio_zero_is_a_copy() -> None:
    model = vgg().eval()
    plan = slim.plan(model, X, ratio=0.0)
    assert plan.removed == {} and torch.equal(plan.apply(model)(X), model(X))


def test_measure_is_the_flop_counter_on_real_tensors() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = torchvision.models.mobilenet_v3_small().eval()
    x = torch.randn(2, 3, 64, 64)
    with FlopCounterMode(display=False) as counter:
        model(x)
    size = network_size(model.train(), x)
    assert size.flops == counter.get_total_flops() and model.training
    assert size.params == sum(p.numel() for p in model.parameters())
    assert size.channels == sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_print() -> None:
    text = str(slim.plan(vgg(), X, ratio=0.5))
    assert "50.0%" in text and "channels 2,752 → 1,376" in text


# -- scores and budgets of one's own -----------------------------------------------------------------------------------


SCORES: dict[str, Callable[[nn.Module], Any]] = {
    "function": lambda model: lambda groups: groups.reduce({n: -g for n, g in gammas(model).items()}),
    "mapping of tensors": lambda model: {n: -g for n, g in gammas(model).items()},
    "mapping of lists": lambda model: {n: (-g).tolist() for n, g in gammas(model).items()},
}


@pytest.mark.parametrize("name", SCORES)
def test_a_score_of_ones_own_decides(name: str) -> None:
    """The negative of |γ|: the channels with the largest go."""
    model = vgg()
    every = torch.cat(list(gammas(model).values())).sort(descending=True).values
    threshold = every[len(every) // 4 - 1]
    plan = slim.plan(model, X, ratio=0.25, floor=0, round_to=1, score=SCORES[name](model))
    expected = {n: torch.nonzero(g >= threshold).flatten().tolist() for n, g in gammas(model).items()}
    assert plan.removed == {n: gone for n, gone in expected.items() if gone}


@pytest.mark.parametrize("p", [1, 2])
def test_magnitude_is_the_norm_of_filters_within_their_layer(p: int) -> None:
    model = vgg()
    for scale, conv in enumerate(m for m in model.modules() if isinstance(m, nn.Conv2d)):
        conv.weight.data *= 10.0**scale  # which must not matter
    pairs = [
        (conv, name) for conv, name in zip((m for m in model.modules() if isinstance(m, nn.Conv2d)), gammas(model))
    ]
    norms = {name: conv.weight.detach().double().flatten(1).abs().pow(p).sum(1).pow(1 / p) for conv, name in pairs}
    norms = {name: norm / norm.mean() for name, norm in norms.items()}
    ordered = torch.cat(list(norms.values())).sort().values
    threshold = ordered[len(ordered) // 2 - 1]
    plan = slim.plan(model, X, ratio=0.5, floor=0, round_to=1, score=slim.Magnitude(p))
    assert plan.removed == {n: torch.nonzero(norm <= threshold).flatten().tolist() for n, norm in norms.items()}


def test_magnitude_of_coupled_channels_is_the_mean_over_all_that_make_them() -> None:
    model = randomise(ZOO["residual"]())
    norms = [conv.weight.detach().double().flatten(1).norm(dim=1) for conv in (model.stem[0], model.a[1][0])]
    expected = sum(norm / norm.mean() for norm in norms).argsort()[:4]
    plan = slim.plan(model, X, ratio=8 / 48, score=slim.Magnitude(), keep=["a.0.1"])
    assert plan.removed["stem.1"] == plan.removed["a.1.1"] == sorted(expected.tolist())


def test_random_follows_its_seed_alone() -> None:
    plans = [slim.plan(vgg(weights), X, score=slim.Random(seed)).removed for weights, seed in ((0, 1), (5, 1), (0, 2))]
    assert plans[0] == plans[1] != plans[2]


@dataclass(frozen=True)
class Widest(slim.Budget):
    """A budget of one's own: the channels of the widest layer."""

    name = "widest"

    def cost(self, costs: Costs) -> Cost:
        norms = [f"{name}.weight" for name in costs.groups.names]
        return lambda kept: max(costs.shape(name, kept)[0] for name in norms)


@pytest.mark.parametrize("asked, most", [(0.25, 128), (100, 100)])
def test_a_budget_of_ones_own(asked: float, most: int) -> None:
    model = vgg()
    plan = slim.plan(model, X, Widest(asked), round_to=1)
    widths = [m.num_features for m in plan.apply(model).modules() if isinstance(m, nn.BatchNorm2d)]
    assert max(widths) == most and plan.requested == {"widest": asked}
    assert plan.achieved["widest"] == (most / 512 if asked < 1 else most)
    with pytest.raises(slim.SlimError, match="widest can't be planned after other plans"):
        slim.plan(plan.apply(model), X, Widest(0.1), after=[plan])


@pytest.mark.parametrize(
    "score, words",
    [
        (lambda groups: [1.0, 2.0], r"gave an array of shape \[2\]: expected a finite number for each of 2752 groups"),
        (lambda groups: np.full(len(groups.roots), np.nan), "expected a finite number"),
        ({}, r"scores of shape \[0\] for bn1: expected one for each of its 64 channels"),
        (slim.Gamma, "score .*Gamma.*: expected slim.Gamma"),
    ],
)
def test_scores_that_are_none(score: Any, words: str) -> None:
    with pytest.raises(slim.SlimError, match=words) as error:
        slim.plan(vgg(), X, score=score)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("budget", [slim.Flops, slim.Params, slim.Channels])
@pytest.mark.parametrize(
    "asked, words", [(0, "out of range"), (-1, "out of range"), ("half", "not a number"), (True, "not a number")]
)
def test_budgets_that_are_none(budget: type[slim.Budget], asked: Any, words: str) -> None:
    with pytest.raises(slim.SlimError, match=words):
        budget(asked)


def test_what_scores_and_budgets_refuse() -> None:
    with pytest.raises(slim.SlimError, match="unknown reduce 'min'"):
        slim.Gamma("min")  # type: ignore[arg-type]
    with pytest.raises(slim.SlimError, match="p 0 of Magnitude"):
        slim.Magnitude(0)


# -- the file ----------------------------------------------------------------------------------------------------------


def rehashed(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"hash": hash_of(record)}


def tampered(record: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The record with another value, and the hash that belongs to it."""
    changed = json.loads(json.dumps(record))
    *path, last = key.split("/")
    at = changed
    for step in path:
        at = at[int(step)] if isinstance(at, list) else at[step]
    at[int(last) if isinstance(at, list) else last] = value
    return rehashed(changed)


def test_a_changed_bit_of_a_plans_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    slim.plan(vgg(), X, ratio=0.3).save(path)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    for bit in random.integers(0, 8 * len(content), 100):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(slim.SlimError) as error:
            slim.PruningPlan.load(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("indices/0", [3, 2], "each larger than the one before"),
        ("indices/0", [-5, 2], "expected lists of whole numbers"),
        ("indices/0", [1.0, 2.0], "expected lists of whole numbers"),
        ("indices/0", [True], "expected lists of whole numbers"),
        ("indices/0", [10**9], "doesn't fit its shape"),
        ("indices/0", [10**400], "expected lists of whole numbers"),
        ("indices/0", 7, "expected lists of whole numbers"),
        ("achieved/ratio", float("inf"), "expected numbers by name"),
        ("achieved/ratio", 10**400, "expected numbers by name"),
        ("requested", [], "expected numbers by name"),
        ("totals/channels", [0, 0], "of channels at least one"),
        ("totals/channels", [-999_999, 1], "of channels at least one"),
        ("totals/channels", [2, 3], "numbers before and after by name"),
        ("totals", {}, "of channels at least one"),
        ("masks/bn1.weight/0", 1, r"its masks zero other|doesn't fit its shape"),
        ("masks", {}, "its masks zero other channels"),
        ("masks/bn1.weight", {"9": 0}, "doesn't fit its shape"),
        ("masks/bn1.weight", {"x": 0}, "by tensor and dimension"),
        ("cuts/bn1.weight", {"-1": 0}, "its masks zero other channels"),
        ("cuts/bn1.weight", {"-2": 0}, "by tensor and dimension"),
        ("cuts/bn1.weight/0", 10**6, "it names list 1000000"),
        ("cuts/bn1.weight/0", [[]], "by tensor and dimension"),
        ("layers/0", {}, "expected layers with name"),
        ("layers/0/before", -1, "expected layers with name"),
        ("selects", ["nowhere"], "selects channels, and its weight has no shape"),
        ("sizes", {"conv1.forward": "x"}, "by the name of what keeps them"),
        ("timing", {"ms": 1}, "runtime, original_ms"),
        ("shortfall", None, "expected text"),
        ("frozen", {"kept": []}, "by reason and layer"),
        ("removed/bn1", 1, "what is removed of bn1 isn't what its tensors lose"),
        ("removed/other", 0, "what is removed of other isn't"),
        ("layers/0/after", 3, "by other indices"),
        ("cuts", {}, "isn't what its tensors lose|has a shape, and no cut"),
        ("shapes/bn1.weight", [2], "doesn't fit its shape"),
    ],
)
def test_plans_that_contradict_themselves(key: str, value: Any, words: str) -> None:
    record = slim.plan(vgg(), X, ratio=0.3).to_dict()
    assert slim.PruningPlan.from_dict(json.loads(json.dumps(record))).to_dict() == record
    with pytest.raises(slim.SlimError, match=words) as error:
        slim.PruningPlan.from_dict(tampered(record, key, value))
    assert "\n" not in str(error.value)


def test_a_plan_sets_nothing_but_sizes() -> None:
    model = vgg()
    plan = slim.plan(model, X, ratio=0.3)
    for name in ("conv1.forward", "conv1.weight", "training", "conv1.bias", "conv1.kernel_size"):
        record = tampered(plan.to_dict(), "sizes", {name: 3})
        if getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) is None:
            continue
        with pytest.raises(slim.SlimError, match=r"isn't a size such as 3"):
            slim.PruningPlan.from_dict(record).apply(model)


def test_text_that_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for text in ("", "[]", "3", "[" * 100_000, '{"format": "slim-plan", "version": 1}', "9" * 5000):
        path.write_text(text)
        with pytest.raises(slim.SlimError, match="plan") as error:
            slim.PruningPlan.load(path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


# -- a ratio goes on below a group that is too large -------------------------------------------------------------------


class Stream(nn.Module):
    """A stream of channels that 12 layers share, all small, and one layer of its own with larger scales."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))
        layers = (nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)) for _ in range(12))
        self.blocks = nn.ModuleList(layers)
        self.last = nn.Sequential(nn.Conv2d(width, 40, 1), nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        out: torch.Tensor = self.last(x)
        return out


@pytest.mark.parametrize("ratio, removed", [(0.12, 17), (0.2, 28)])
def test_a_ratio_takes_smaller_groups_below_one_that_is_too_large(ratio: float, removed: int) -> None:
    """144 channels, of which groups of 13 are the lowest: 17 is one of them and 4 others, 28 is two and 2 others."""
    model = randomise(Stream())
    last = model.get_parameter("last.1.weight")
    last.data.uniform_(2, 3)
    plan = slim.plan(model, X, ratio=ratio, round_to=1)
    assert plan.totals["channels"][0] - plan.totals["channels"][1] == removed and not plan.shortfall
    lowest = last.argsort()[: len(plan.removed["last.1"])]
    assert plan.removed["last.1"] == sorted(lowest.tolist())
    assert slim.verify(model, plan.apply(model), plan, X) < 1e-10
