"""The penalty on γ, against finite differences and the usual Python loop over modules."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sparsity.training import batch, gammas, network, same, train
from torch import nn

from slim import L1, SlimError, sparsify


def test_the_step_follows_the_gradient_of_the_penalised_loss() -> None:
    model = network()
    strength, eps = 0.03, 1e-6
    images, labels = batch()

    def penalised() -> float:
        loss = F.cross_entropy(model(images), labels)
        return float(loss + strength * sum(gamma.abs().sum() for gamma in gammas(model)))

    expected: list[float] = []
    with torch.no_grad():
        for gamma in gammas(model):
            for i in range(len(gamma)):
                value = gamma[i].item()
                gamma[i] = value + eps
                above = penalised()
                gamma[i] = value - eps
                below = penalised()
                gamma[i] = value
                expected.append((above - below) / (2 * eps))
    before = torch.cat(gammas(model)).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    sparsify(model, optimizer, L1(strength))
    train(model, optimizer, steps=1)
    np.testing.assert_allclose((before - torch.cat(gammas(model)).detach()).numpy(), expected, rtol=1e-6, atol=1e-8)


def test_a_zero_scale_feels_no_penalty() -> None:
    plain, penalised = network(), network()
    for model in (plain, penalised):
        with torch.no_grad():
            gammas(model)[0][:3] = torch.tensor([0.0, -0.0, 0.5])
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if model is penalised:
            sparsify(model, optimizer, L1(1.0))
        train(model, optimizer, steps=1)
    difference = gammas(plain)[0][:3] - gammas(penalised)[0][:3]
    assert difference[:2].tolist() == [0.0, 0.0]
    assert difference[2].item() == pytest.approx(0.1)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "sgd fused": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "sgd foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, 0.01),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_as_a_loop_over_modules(name: str) -> None:
    """The way of the paper's authors, and bit for bit."""
    ours, reference = network(dtype=torch.float32), network(dtype=torch.float32)
    strength = 0.013

    def add() -> None:
        for module in reference.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
                assert module.weight.grad is not None
                module.weight.grad.data.add_(strength * torch.sign(module.weight.data))

    optimizer = OPTIMIZERS[name](ours.parameters())
    sparsify(ours, optimizer, L1(strength))
    train(ours, optimizer)
    train(reference, OPTIMIZERS[name](reference.parameters()), after_backward=add)
    assert same(ours, reference)
    assert not same(ours, network(dtype=torch.float32))


def test_remove_takes_it_off() -> None:
    removed, plain = network(), network()
    optimizer = torch.optim.SGD(removed.parameters(), 0.1)
    sparsity = sparsify(removed, optimizer, L1(0.1))
    sparsity.remove()
    sparsity.remove()
    train(removed, optimizer)
    train(plain, torch.optim.SGD(plain.parameters(), 0.1))
    assert same(removed, plain)
    assert not optimizer._optimizer_step_pre_hooks


def test_one_penalty_per_step_whatever_the_accumulation() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsify(model, optimizer, L1(0.25))
    before = torch.cat(gammas(model)).detach().clone()
    for _ in range(4):
        (0 * F.cross_entropy(model(batch()[0]), batch()[1])).backward()  # gradients of zero
    optimizer.step()
    assert torch.equal(torch.cat(gammas(model)), before - 0.25 * before.sign())


@pytest.mark.parametrize("positional", [True, False])
def test_a_closure_computes_its_gradients_first(positional: bool) -> None:
    ours, reference = network(), network()
    optimizer = torch.optim.SGD(ours.parameters(), 0.1, momentum=0.9)
    sparsify(ours, optimizer, L1(0.05))
    for step in range(5):

        def closure(step: int = step) -> float:
            images, labels = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(ours(images), labels)
            loss.backward()
            return loss.item()

        loss = optimizer.step(closure) if positional else optimizer.step(closure=closure)
        assert math.isfinite(loss)
    other = torch.optim.SGD(reference.parameters(), 0.1, momentum=0.9)
    sparsify(reference, other, L1(0.05))
    train(reference, other)
    assert same(ours, reference)


@pytest.mark.parametrize("name", ["sgd", "sgd fused", "adamw fused"])
@pytest.mark.parametrize("unscale_first", [False, True])
def test_grad_scaler(name: str, unscale_first: bool) -> None:
    """A scale that is a power of two changes no bit of what happens."""
    scaled, plain = network(dtype=torch.float32), network(dtype=torch.float32)
    optimizer = OPTIMIZERS[name](scaled.parameters())
    sparsify(scaled, optimizer, L1(0.02))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        images, labels = batch(step, torch.float32)
        scaler.scale(F.cross_entropy(scaled(images), labels)).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    optimizer = OPTIMIZERS[name](plain.parameters())
    sparsify(plain, optimizer, L1(0.02))
    train(plain, optimizer, steps=4)
    for a, b in zip(scaled.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "sgd fused"])
def test_grad_scaler_skips_the_penalty_with_the_step(name: str) -> None:
    model = network(dtype=torch.float32)
    optimizer = OPTIMIZERS[name](model.parameters())
    sparsify(model, optimizer, L1(0.02))
    before = torch.cat(gammas(model)).detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    images, labels = batch(0, torch.float32)
    scaler.scale(F.cross_entropy(model(images), labels)).backward()
    grad = next(model.parameters()).grad
    assert grad is not None
    grad[0] = math.inf
    scaler.step(optimizer)
    assert torch.equal(torch.cat(gammas(model)), before)


def test_targets_are_names() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsity = sparsify(model, optimizer, L1(0.25), targets="[14]")
    assert list(sparsity.parameters) == ["1.weight", "4.weight"]
    before = [gamma.detach().clone() for gamma in gammas(model)]
    (0 * model(batch()[0]).sum()).backward()
    optimizer.step()
    moved = [not torch.equal(gamma, old) for gamma, old in zip(gammas(model), before)]
    assert moved == [True, True, False]


def test_only_trained_scales_are_penalised() -> None:
    model: Any = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3, affine=False),
        nn.InstanceNorm2d(3, affine=True),
        nn.BatchNorm2d(3),
    )
    model[3].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsity = sparsify(model, optimizer, L1(0.25))
    assert list(sparsity.parameters) == ["0.weight"]
    optimizer.step()  # no gradients at all: nothing happens
    assert torch.equal(model[0].weight, torch.ones(3))


def test_a_shared_scale_is_penalised_once() -> None:
    model: Any = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    sparsity = sparsify(model, optimizer, L1(0.25))
    model[0].weight.grad = torch.zeros(3)
    optimizer.step()
    assert model[0].weight.tolist() == [0.75] * 3
    assert sparsity.value() == pytest.approx(0.25 * 3 * 0.75)


def test_strength_may_change_and_is_checked() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    penalty = L1(0.1)
    sparsity = sparsify(model, optimizer, penalty)
    for strength in (0.1, 0.0, 0.3):
        sparsity.strength = strength
        before = torch.cat(gammas(model)).detach().clone()
        (0 * model(batch()[0]).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(torch.cat(gammas(model)), before - strength * before.sign())
    assert penalty.strength == 0.1  # the caller's penalty stays
    for wrong in (-1e-4, math.nan, math.inf):
        with pytest.raises(SlimError, match="≥ 0"):
            sparsity.strength = wrong
        with pytest.raises(SlimError, match="≥ 0"):
            L1(wrong)


def test_nothing_is_penalised_twice() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    first = sparsify(model, optimizer, L1(0.1), targets="1")
    sparsify(model, optimizer, L1(0.1), targets="4")
    with pytest.raises(SlimError, match=r"1\.weight is penalised already: expected \.remove\(\)"):
        sparsify(model, optimizer, L1(0.1))
    first.remove()
    sparsify(model, optimizer, L1(0.1), targets="1")


def test_value_and_near_zero_against_numpy() -> None:
    model = network()
    with torch.no_grad():
        gammas(model)[0][:4] = torch.tensor([0.0, 0.009, -0.0099, 0.0101])
    sparsity = sparsify(model, torch.optim.SGD(model.parameters(), 1.0), L1(0.3))
    values = np.concatenate([gamma.detach().numpy() for gamma in gammas(model)])
    assert sparsity.value() == pytest.approx(0.3 * np.abs(values).sum(), rel=1e-12)
    assert sparsity.near_zero() == (np.abs(values) < 0.01).mean() >= 3 / 15
    assert sparsity.near_zero(0.5) == (np.abs(values) < 0.5).mean()


def test_mistakes() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    with pytest.raises(SlimError, match=r"'layer1\.\*'"):
        sparsify(model, optimizer, L1(0.1), targets="layer1.*")
    with pytest.raises(SlimError, match="no BatchNorm"):
        sparsify(nn.Linear(2, 2), optimizer, L1(0.1))
    unhashable: Any = [["*"]]
    with pytest.raises(SlimError, match="a pattern of targets is of type list"):
        sparsify(model, optimizer, L1(0.1), targets=unhashable)
    with pytest.raises(SlimError, match="targets is empty"):
        sparsify(model, optimizer, L1(0.1), targets=[])
    with pytest.raises(SlimError, match=r"strength of '\*' is inf"):
        sparsify(model, optimizer, L1(0.1), targets={"*": float("inf")})
    with pytest.raises(SlimError, match="did you mean 'subgradient'"):
        sparsify(model, optimizer, L1(0.1), method="subgradients")
    with pytest.raises(SlimError, match=r"lacks 1\.weight"):
        sparsify(model, torch.optim.SGD(model[4].parameters(), 1.0), L1(0.1))
    assert not optimizer._optimizer_step_pre_hooks
