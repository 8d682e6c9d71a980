"""Schedules in closed form, the target on a known problem and on digits, statistics against NumPy, targets by name."""

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sparsity.training import gammas, network, train
from torch import nn

import slim
from slim import L1, SlimError, parameter_groups, sparsify
from slim.sparsity import scheduled
from slim.sparsity.control import TargetShare
from slim.workbench import data, models
from slim.workbench.config import DataConfig, OptimConfig, SparsityConfig
from slim.workbench.train import fit


def test_schedules() -> None:
    def curve(name: str) -> list[float]:
        return [scheduled(name, 2.0, step, 20) for step in range(20)]

    assert curve("constant") == [2.0] * 20
    assert curve("ramp") == pytest.approx([0.1 * k for k in range(1, 21)])
    assert curve("decay") == pytest.approx([0.1 * k for k in range(20, 0, -1)])
    assert curve("warmup") == pytest.approx([1.0, 2.0] + [2.0] * 18)
    assert scheduled("warmup", 2.0, 0, 3) == 2.0
    assert scheduled("ramp", 2.0, 25, 20) == 2.0 and scheduled("decay", 2.0, 25, 20) == 0.0


def test_a_schedule_counts_the_optimizers_steps() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsity = sparsify(model, optimizer, L1(0.4), schedule="ramp", steps=4)
    for step in range(1, 5):
        before = torch.cat(gammas(model)).detach().clone()
        optimizer.zero_grad()
        (0 * model(torch.randn(2, 2, 6, 6).double()).sum()).backward()
        optimizer.step()
        assert sparsity.strength == pytest.approx(0.1 * step)
        torch.testing.assert_close(torch.cat(gammas(model)), before - 0.1 * step * before.sign())


class Noisy(nn.Module):
    """Scales of two layers, one with much stronger values than the other; each is drawn to a value of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm1d(60), nn.BatchNorm1d(40)

    def loss(self) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        goals = torch.rand(100, generator=generator)
        goals[60:] *= 0.02  # all of b would go first
        gamma = torch.cat([self.a.weight, self.b.weight])
        return (gamma - goals - 0.1 * torch.randn(100)).square().sum() / 2


@pytest.mark.parametrize("target", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("make", ["sgd", "adam"])
def test_target_is_met_from_any_strength_and_leaves_no_layer_empty(target: float, make: str) -> None:
    for start in (1e-6, 1e-3, 1.0):
        torch.manual_seed(0)
        model = Noisy()
        optimizer: Any = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        if make == "adam":
            optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.0)
        sparsity = sparsify(model, optimizer, L1(start), method="proximal", target=target, steps=400)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
        shares = []
        for _ in range(400):
            optimizer.zero_grad()
            model.loss().backward()
            optimizer.step()
            schedule.step()
            shares.append(sparsity.zero())
        assert abs(shares[-1] - target) <= 0.02
        assert max(shares) <= target + 1e-9
        assert shares[39] == 0
        assert int((model.b.weight != 0).sum()) >= 4 and int((model.a.weight != 0).sum()) >= 6


def test_a_penalty_that_makes_no_zeros_stays_finite() -> None:
    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    penalty = slim.DeadZoneL1(1.0, a=0.05)
    sparsity = sparsify(model, optimizer, penalty, method="proximal", target=0.5, steps=100)
    for _ in range(100):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    assert sparsity.zero() == 0 and sparsity.strength == TargetShare.LIMIT
    gamma = torch.cat([model.a.weight, model.b.weight]).detach()
    assert torch.isfinite(gamma).all()
    assert 50 <= (gamma.abs() <= 0.05 + 1e-6).sum() < 100  # those that were pushed are in the zone


def test_only_the_lowest_are_pushed_and_floors_hold() -> None:
    """Against a plain loop over layers."""
    generator = torch.Generator().manual_seed(0)
    sizes = [5, 30, 1, 64]
    layers = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    magnitude = torch.rand(100, generator=generator)
    magnitude[:5] *= 0.01
    magnitude[35] = 0.0
    found = TargetShare(0.6, 0.2, 100, layers).pushed(magnitude)
    allowed = []
    for layer, size in enumerate(sizes):
        mine = [i for i in range(100) if layers[i] == layer]
        best = sorted(mine, key=lambda i: -magnitude[i])[: max(1, math.ceil(0.2 * size))]
        allowed += [i for i in mine if i not in best]
    expected = sorted(allowed, key=lambda i: magnitude[i])[:60]
    assert sorted(found.nonzero()[:, 0].tolist()) == sorted(expected)
    assert found[:5].sum() == 4 and not found[35]


def test_what_is_not_pushed_is_not_touched() -> None:
    torch.manual_seed(0)
    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    sparsity = sparsify(model, optimizer, L1(0.5), method="proximal", target=0.5, steps=100)
    reference = Noisy()
    other = torch.optim.SGD(reference.parameters(), 0.02)
    for _ in range(100):
        for m, o in ((model, optimizer), (reference, other)):
            torch.manual_seed(len(m.state_dict()) + sparsity.step // 2)
            o.zero_grad()
            m.loss().backward()
        other.step()
        optimizer.step()
    ours, plain = (torch.cat([m.a.weight, m.b.weight]).detach() for m in (model, reference))
    untouched = torch.isclose(ours, plain, atol=1e-6)
    assert 0.3 < untouched.float().mean() <= 0.5 + 1e-6
    assert (ours[~untouched] < plain[~untouched]).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target_on_digits(seed: int) -> None:
    dataset = data.load(DataConfig(), seed)
    torch.manual_seed(seed)
    model = models.build("slim:vgg7", num_classes=10, in_channels=1)
    records = fit(
        model, dataset, OptimConfig(epochs=5), seed=seed, sparsity=SparsityConfig(method="proximal", target=0.6)
    )
    scales = [m.weight.detach() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    share = float((torch.cat(scales) == 0).double().mean())
    assert abs(share - 0.6) <= 0.02
    assert records[-1]["zero"] == pytest.approx(share, abs=1e-6)
    assert all((scale != 0).sum() >= 0.1 * len(scale) for scale in scales)
    assert records[-1]["val_accuracy"] > 0.85


def test_it_can_be_resumed() -> None:
    """Stopped half-way and taken up in new objects: the same as straight through, bit for bit."""

    def begin() -> tuple[Any, Any, Any]:
        model = Noisy()
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        return model, optimizer, sparsify(model, optimizer, L1(1e-3), method="proximal", target=0.5, steps=60)

    def some(model: Any, optimizer: Any, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            optimizer.zero_grad()
            model.loss().backward()
            optimizer.step()

    model, optimizer, _ = begin()
    some(model, optimizer, range(60))
    first = begin()
    some(*first[:2], range(30))
    state = json.loads(json.dumps(first[2].state_dict()))
    second = begin()
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    second[2].load_state_dict(state)
    some(*second[:2], range(30, 60))
    assert torch.equal(second[0].a.weight, model.a.weight) and torch.equal(second[0].b.weight, model.b.weight)
    assert 0.4 < (model.a.weight == 0).float().mean() < 0.9


def test_statistics_against_numpy() -> None:
    model = network()
    with torch.no_grad():
        gammas(model)[0][:4] = torch.tensor([0.0, 0.009, -0.0, 0.0101])
    sparsity = sparsify(model, torch.optim.SGD(model.parameters(), 1.0), L1(0.3))
    stats = json.loads(json.dumps(sparsity.statistics(bins=8)))
    each = [gamma.detach().abs().numpy() for gamma in gammas(model)]
    flat = np.concatenate(each)
    assert stats["zero"] == pytest.approx((flat == 0).mean()) and stats["zero"] == sparsity.zero() == 2 / 15
    assert stats["near_zero"] == pytest.approx((flat < 0.01).mean())
    assert list(stats["layers"]) == ["1.weight", "4.weight", "8.weight"]
    for values, (zero, near) in zip(each, stats["layers"].values()):
        assert (zero, near) == pytest.approx(((values == 0).mean(), (values < 0.01).mean()))
    counts, edges = np.histogram(flat, bins=8, range=(0, flat.max()))
    assert stats["histogram"] == {"max": pytest.approx(edges[-1]), "counts": counts.tolist()}
    with torch.no_grad():
        for gamma in gammas(model):
            gamma.zero_()
    assert sparsity.statistics()["histogram"]["counts"][0] == 15


def test_targets_types_and_strengths_of_their_own() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsity = sparsify(model, optimizer, L1(0.1), targets={"0": 2.0, "[37]": 0.5}, types=["conv", nn.Linear])
    assert set(sparsity.parameters) == {"0.weight", "3.weight", "7.weight"}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (0 * model(torch.randn(4, 2, 6, 6).double()).sum()).backward()
    optimizer.step()
    relative = {"0.weight": 2.0, "3.weight": 0.5, "7.weight": 0.5}
    for name, parameter in model.named_parameters():
        moved = before[name] - parameter.detach()
        torch.testing.assert_close(moved, 0.1 * relative.get(name, 0.0) * before[name].sign())
    expected = 0.1 * sum(relative[n] * float(dict(model.named_parameters())[n].detach().abs().sum()) for n in relative)
    assert sparsity.value() == pytest.approx(expected)


def test_biases_only_when_asked() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsity = sparsify(model, optimizer, L1(0.1), types=["batchnorm", "linear"])
    weights = sparsity.parameters
    sparsity.remove()
    assert len(weights) == 5 and not any("bias" in name for name in weights)
    names = set(sparsify(model, optimizer, L1(0.1), targets="[18]", types=("batchnorm", "bias")).parameters)
    assert names == {"1.weight", "1.bias", "8.weight", "8.bias"}


def test_channels_last_weights_are_stepped_in_place() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsify(model, optimizer, L1(0.05), method="proximal", types="conv")
    (0 * model(torch.randn(1, 3, 5, 5)).sum()).backward()
    optimizer.step()
    expected = before.sign() * (before.abs() - 0.05).clamp(min=0)
    torch.testing.assert_close(model.weight.detach(), expected)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_weight_decay_is_kept_off_what_is_penalised() -> None:
    model = network()
    with pytest.warns(UserWarning, match="3 of the 3 penalised parameters too, such as 1.weight"):
        sparsify(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-4), L1(0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    for kwargs in ({}, {"types": ["batchnorm", "conv"]}, {"types": "linear", "targets": "7"}):
        groups = parameter_groups(model, 1e-2, **kwargs)
        optimizer = torch.optim.SGD(groups, 0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            penalised = set(sparsify(model, optimizer, L1(0.1), **kwargs).parameters)
        decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert decay.keys() == set(names.values())
        for name, parameter in model.named_parameters():
            assert decay[name] == (1e-2 if parameter.ndim >= 2 and name not in penalised else 0.0)


def test_coupled_groups_of_a_residual_network() -> None:
    """The stem's and both blocks' last BatchNorms share a residual stream: their γ form one group per channel."""
    model = models.build("slim:resnet20", num_classes=10)
    groups = slim.coupled(model, torch.zeros(1, 3, 32, 32))
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    wide = [name for name, m in norms.items() if m.num_features == 16]
    labels = {name: groups[f"{name}.weight"] for name in wide}
    shared = [name for name in wide if labels[name] == labels[wide[0]]]
    assert len(shared) == 4 and len(wide) == 7  # the stem and three blocks; the first of each block is its own
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparsity = sparsify(model, optimizer, slim.GroupLasso(1.0, groups), method="proximal")
    with torch.no_grad():
        for name in shared:
            norms[name].weight[:3] = 0.01
    expected = 0.0
    seen: dict[int, list[float]] = {}
    for name, norm in norms.items():
        for label, gamma in zip(groups[f"{name}.weight"], norm.weight.tolist()):
            seen.setdefault(label, []).append(gamma)
    expected = sum(math.sqrt(len(v)) * math.sqrt(sum(g * g for g in v)) for v in seen.values())
    assert sparsity.value() == pytest.approx(expected, rel=1e-5)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    for p in model.parameters():
        p.grad.zero_()  # type: ignore[union-attr]
    optimizer.step()
    for name in shared:
        assert (norms[name].weight[:3] == 0).all() and (norms[name].weight[3:] != 0).all()


def test_penalties_run_through_the_training_loop() -> None:
    dataset = data.load(DataConfig(), 0)
    small = OptimConfig(epochs=1)
    for config in (
        SparsityConfig(penalty="group_lasso", method="proximal", strength=0.1),
        SparsityConfig(penalty="lp", penalty_kwargs={"p": 0.5}, method="proximal", strength=0.1),
        SparsityConfig(penalty="l1", method="loss", strength=0.1),
        SparsityConfig(penalty="polarization", strength=0.01),
    ):
        torch.manual_seed(0)
        model = models.build("slim:vgg7", num_classes=10, in_channels=1, gamma=0.05)
        [record] = fit(model, dataset, small, sparsity=config)
        assert (record["zero"] > 0) == (config.method == "proximal")
        assert sum(record["gamma"]["histogram"]["counts"]) == sum(g.numel() for g in gammas(model))


def test_mistakes() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for kwargs, message in (
        ({"target": 0.5, "steps": 10}, "method 'subgradient'"),
        ({"target": 0.5, "method": "proximal"}, "steps is None"),
        ({"target": 1.5, "method": "proximal", "steps": 10}, "target is 1.5"),
        ({"target": 0.85, "method": "proximal", "steps": 10}, "at most 0.800"),
        ({"target": 0.5, "method": "proximal", "steps": 10, "floor": 1.0}, "floor is 1.0"),
        ({"target": 0.5, "method": "proximal", "steps": 10, "schedule": "ramp"}, "schedule 'ramp'"),
        ({"penalty": L1(0.0), "target": 0.5, "method": "proximal", "steps": 10}, "strength is 0"),
        ({"schedule": "ramp"}, "steps is None"),
        ({"schedule": "rampp", "steps": 3}, "did you mean 'ramp'"),
        ({"types": "convolution"}, "layer type 'convolution'"),
        ({"types": "conv", "targets": ["0", "nope"]}, "'nope'"),
        ({"targets": {"1": -2.0}}, "'1' is -2.0"),
    ):
        with pytest.raises(SlimError, match=message):
            sparsify(model, optimizer, **{"penalty": L1(0.1)} | kwargs)
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    train(model, optimizer, 1)
