"""Plans for a runtime: whole steps, and budgets of latency that are kept."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from deploy.made_up import WHOLE, MadeUp
from networks import ZOO, randomise
from torch import nn

import slim
from slim.deploy.cost import network
from slim.prune.budgets import Ratio
from slim.trace.traced import trace
from slim.workbench.models import build

X = torch.randn(1, 3, 32, 32)


ONE_THREAD = slim.OnnxRuntime("cpu", 1)
CPU = slim.Runtime(ONE_THREAD)


def middle(reads: int, makes: int, groups: int = 1) -> nn.Sequential:
    """A convolution between two others."""
    return nn.Sequential(
        *(nn.Conv2d(3, reads, 3, bias=False), nn.BatchNorm2d(reads), nn.ReLU()),
        *(nn.Conv2d(reads, makes, 3, groups=groups, bias=False), nn.BatchNorm2d(makes), nn.ReLU()),
        nn.Conv2d(makes, 8, 3),
    )


@pytest.mark.parametrize("budget", [slim.Flops(0.4), slim.Params(0.4), slim.Channels(0.7), Ratio(0.3)])
@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x1_0"])
def test_auto_keeps_whole_steps(made_up: MadeUp, name: str, budget: Any) -> None:
    net = randomise(torchvision.models.get_model(name))
    x = torch.randn(1, 3, 64, 64)
    plan = slim.plan(net, x, budget, round_to=slim.Runtime(made_up))
    assert not plan.shortfall
    assert all(layer.after % 8 == 0 or layer.after == layer.before for layer in plan.layers)
    assert slim.verify(net, plan.apply(net), plan, x) < 1e-10
    assert abs(plan.achieved[budget.name] - budget.asked) < 0.03


def test_auto_gives_more_value_for_the_time(made_up: MadeUp) -> None:
    """With the same time predicted, the channels that stay are worth more than with one threshold for all."""
    net = randomise(torchvision.models.resnet18())
    x = torch.randn(1, 3, 64, 64)
    runtime = slim.Runtime(made_up)
    before = runtime.cost_model(trace(net, x)).of(WHOLE)

    def value(plan: slim.PruningPlan) -> float:
        bns = {n: m.weight.detach().abs() for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
        return sum(float(g.sum() - g[plan.removed.get(n, [])].sum()) for n, g in bns.items())

    def latency(plan: slim.PruningPlan) -> float:
        return runtime.cost_model(trace(plan.apply(net), x)).of(WHOLE) / before

    plain = slim.plan(net, x, slim.Flops(0.4), round_to=16)
    auto = [slim.plan(net, x, slim.Flops(share), round_to=runtime) for share in (0.5, 0.6, 0.7, 0.8)]
    faster = max((plan for plan in auto if latency(plan) <= latency(plain)), key=latency)
    assert value(faster) > 1.05 * value(plain)


@pytest.mark.parametrize("latency", [0.8, 0.6, 0.4, "0.25", "ms"])
def test_a_latency_budget_is_kept(made_up: MadeUp, latency: float | str, tmp_path: Path) -> None:
    net = randomise(torchvision.models.resnet18())
    x = torch.randn(1, 3, 64, 64)
    runtime = slim.Runtime(made_up, 2)
    before = made_up.ms(net, x, 2)
    latency = f"{0.5 * before:.3f}ms" if latency == "ms" else latency
    plan = slim.plan(net, x, slim.Latency(latency, runtime))
    after = made_up.ms(plan.apply(net), x, 2)
    share = float(latency) if "ms" not in str(latency) else float(str(latency)[:-2]) / before
    off = after / before / share - 1
    assert off <= 0.03 and not plan.shortfall
    if off < -0.03:  # the budget is left in part only where the next step wouldn't fit
        assert plan.timing["next_step"] > plan.timing["unused"] == pytest.approx(-off)
    assert plan.timing["ms"] == pytest.approx(after) and plan.timing["original_ms"] == pytest.approx(before)
    assert "the made-up machine, batch 2" in plan.summary()
    plan.save(tmp_path / "plan.json")
    assert slim.PruningPlan.load(tmp_path / "plan.json") == plan


def test_a_budget_that_steps_are_too_coarse_for(made_up: MadeUp) -> None:
    """The plan says how much of the budget is left and why; 3 % more of it and a larger network would not fit."""
    net = randomise(torchvision.models.resnet18())
    x, runtime = torch.randn(1, 3, 64, 64), slim.Runtime(made_up)
    plan = slim.plan(net, x, slim.Latency(0.9, runtime))
    share = made_up.ms(plan.apply(net), x) / made_up.ms(net, x)
    assert share < 0.97 * 0.9 and not plan.shortfall
    assert plan.timing["unused"] == pytest.approx(1 - share / 0.9) and plan.timing["next_step"] > plan.timing["unused"]
    assert f"{1 - share / 0.9:.1%} of the budget is left, and the next step of channels takes" in plan.summary()


def test_a_time_that_the_network_keeps_as_it_is(made_up: MadeUp) -> None:
    net, runtime = randomise(build("slim:vgg7", num_classes=10)), slim.Runtime(made_up)
    ms = made_up.ms(net, X)
    with pytest.raises(slim.SlimError, match=f"latency {ms + 1:.8g}ms: the network takes {ms:.4g} ms as it is"):
        slim.plan(net, X, slim.Latency(f"{ms + 1}ms", runtime))
    assert not made_up.asked  # told before a minute of measuring


def test_only_the_network_that_is_kept_is_checked(made_up: MadeUp) -> None:
    net = randomise(torchvision.models.resnet18())
    plan = slim.plan(net, torch.randn(1, 3, 64, 64), slim.Latency(0.5, slim.Runtime(made_up)))
    assert len(made_up.networks) > 2  # the original, and several thin ones
    [checked] = made_up.checked
    kept = plan.apply(net).state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in checked.state_dict().items())


def test_a_network_that_was_timed_is_checked_in_onnxruntime() -> None:
    net = randomise(middle(16, 128))
    another: Any = copy.deepcopy(net)
    another[0].weight.data.neg_()
    ours, other = (network.Network(each, X, CPU) for each in (net, another))
    ours.check()
    ours.path = other.path
    with pytest.raises(slim.SlimError, match="differs from the network"):
        ours.check()


def test_a_latency_budget_of_whole_groups(made_up: MadeUp) -> None:
    net = middle(64, 64, groups=16)
    runtime = slim.Runtime(made_up)
    plan = slim.plan(randomise(net), X, slim.Latency(0.6, runtime), grouped="whole")
    thin: Any = plan.apply(net)
    assert slim.verify(net, thin, plan, X) < 1e-10
    assert abs(made_up.ms(thin, X) / made_up.ms(net, X) / 0.6 - 1) <= 0.03
    assert 0 < thin[3].groups < 16 and thin[3].out_channels == 4 * thin[3].groups


def test_a_latency_that_cannot_be_reached(made_up: MadeUp) -> None:
    net = randomise(build("slim:vgg11", num_classes=10))
    plan = slim.plan(net, X, slim.Latency(0.01, slim.Runtime(made_up)), floor=0.8)
    assert "asked for latency 0.01, measured" in plan.shortfall
    with pytest.raises(slim.SlimError, match="whole step"):  # 16 channels are a single block
        slim.plan(randomise(ZOO["residual"]()), X, slim.Latency(0.5, slim.Runtime(made_up)))


@pytest.mark.parametrize(
    "holds, weights, kind",
    [("worst", None, "share"), ("worst", None, "ms"), ("mean", None, "ms"), ("mean", [3, 1], "share")],
)
def test_a_budget_for_several_settings(made_up: MadeUp, holds: Any, weights: Any, kind: str) -> None:
    """It holds for the worst of them, or for their weighted mean."""
    net, x = randomise(build("slim:vgg11", num_classes=10)), X
    settings = slim.Runtimes([slim.Runtime(made_up, size) for size in (1, 4)], holds, weights)
    before = np.array([made_up.ms(net, x, size) for size in (1, 4)])
    weight = np.array(weights or [1, 1]) / sum(weights or [1, 1])

    def taken(values: Any) -> float:
        return float(max(values) if holds == "worst" else weight @ values)

    asked = 0.6 if kind == "share" else f"{0.6 * taken(before)}ms"
    plan = slim.plan(net, x, slim.Latency(asked, settings))
    thin = plan.apply(net)
    after = np.array([made_up.ms(thin, x, size) for size in (1, 4)])
    share = taken(after / before) if kind == "share" else taken(after) / taken(before)
    assert abs(share / 0.6 - 1) <= 0.03 and not plan.shortfall
    assert [each["ms"] for each in plan.timing["settings"]] == pytest.approx(after)
    assert "batch 1" in plan.summary() and "batch 4" in plan.summary()


def test_sizes_follow_the_weighted_mean_of_several_settings(made_up: MadeUp) -> None:
    net, x = randomise(build("slim:vgg11", num_classes=10)), X
    traced, each = trace(net, x), [slim.Runtime(made_up, size) for size in (1, 4)]
    found = slim.Runtimes(each, "mean", [3, 1]).cost_model(traced)
    kept = np.random.default_rng(0).random(len(traced.classes)) < 0.6
    shares = [one.cost_model(traced).of(kept) / one.cost_model(traced).of(WHOLE[: len(kept)]) for one in each]
    assert found.of(kept) == pytest.approx(0.75 * shares[0] + 0.25 * shares[1])

    def count(side: Any) -> Any:
        return side if isinstance(side, int) else kept[side].sum()

    parts = sum(float(part.cost(count(part.reads), count(part.makes))) for part in found.parts())
    assert parts == pytest.approx(found.of(kept), rel=0.02)


@pytest.mark.slow
def test_a_real_budget() -> None:
    """In onnxruntime itself. Other work on the machine makes times vary, so the check is looser than the promise."""
    net = randomise(torchvision.models.resnet18())
    x = torch.randn(1, 3, 96, 96)
    runtime = CPU
    plan = slim.plan(net, x, slim.Latency(0.5, runtime))
    assert abs(plan.timing["share"] - 0.5) < 0.03 and not plan.shortfall
    times = network.in_turn([network.Network(each, x, runtime) for each in (net, plan.apply(net))])
    assert abs(network.share_of(times) - 0.5) < 0.1
