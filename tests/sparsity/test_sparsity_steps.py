"""Proximal steps: their step size against what a steady gradient does, and where they end against scikit-learn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet, Lasso
from sparsity.training import batch, gammas, network, same, train
from torch import Tensor, nn

import slim
from slim import L1, Penalty, SlimError, sparsify
from slim.sparsity.steps import StepSizes

Make = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "dampening": lambda p: torch.optim.SGD(p, 0.05, momentum=0.8, dampening=0.4),
    "fused": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, 0.02),
    "amsgrad": lambda p: torch.optim.Adam(p, 0.02, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.0, betas=(0.8, 0.99)),
    "adamw fused": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.0, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_size_is_how_far_a_steady_gradient_goes(name: str) -> None:
    """Under a gradient that never changes, every step is α times it: from the first, through a learning rate that
    falls, and for a group with a rate of its own."""
    parameters = [nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (3, 4, 2)]
    optimizer = OPTIMIZERS[name]([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.004}])
    steps = StepSizes(optimizer, parameters, [0, 0, 1])
    gradients = [torch.randn_like(p) for p in parameters]
    for _ in range(12):
        before = torch.cat(tuple(parameters)).detach()
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.clone()
        steps.before_step(optimizer)
        optimizer.step()
        moved = before - torch.cat(tuple(parameters)).detach()
        torch.testing.assert_close(steps.after_step(optimizer) * torch.cat(gradients), moved, rtol=1e-6, atol=1e-12)
        optimizer.param_groups[0]["lr"] *= 0.8


def test_a_parameter_without_a_gradient_has_step_zero_and_a_history_of_its_own() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]
    for make in (OPTIMIZERS["momentum"], OPTIMIZERS["adam"]):
        optimizer = make(parameters)
        steps = StepSizes(optimizer, parameters, [0, 0])
        for number in range(4):
            before = torch.cat(tuple(parameters)).detach()
            parameters[0].grad = torch.ones(2)
            parameters[1].grad = torch.ones(1) if number >= 2 else None
            steps.before_step(optimizer)
            optimizer.step()
            torch.testing.assert_close(steps.after_step(optimizer), before - torch.cat(tuple(parameters)).detach())


def test_momentum_that_was_there_before_counts_as_settled() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], 0.1, momentum=0.9)
    for number in range(300):
        parameter.grad = torch.ones(3)
        if number == 299:
            steps = StepSizes(optimizer, [parameter], [0])
            steps.before_step(optimizer)
        before = parameter.detach().clone()
        optimizer.step()
    assert steps.after_step(optimizer) == pytest.approx(float((before - parameter.detach())[0]), rel=1e-4)
    assert steps.after_step(optimizer) == pytest.approx(0.1 / (1 - 0.9))


def regression() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 20)) @ (np.eye(20) + 0.3 * rng.normal(size=(20, 20)) / math.sqrt(20))
    truth = np.where(np.arange(20) < 6, rng.normal(size=20) * 2, 0)
    return x, x @ truth + 0.1 * rng.normal(size=60)


def solved(penalty: Penalty, make: Make, steps: int) -> Tensor:
    """The weights that minimise ‖y − Xw‖²/(2n) + penalty, by full-batch proximal steps."""
    x, y = (torch.from_numpy(a) for a in regression())
    model = nn.Linear(20, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = make(model.parameters())
    sparsify(model, optimizer, penalty, method="proximal", types="linear")
    for _ in range(steps):
        loss = (model(x)[:, 0] - y).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.weight.detach()[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_proximal_steps_end_at_scikit_learns_lasso(name: str) -> None:
    x, y = regression()
    expected = Lasso(alpha=0.2, fit_intercept=False, tol=1e-12, max_iter=100000).fit(x, y).coef_
    ours = solved(L1(0.2), OPTIMIZERS[name], 2500).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert 5 <= (expected == 0).sum() <= 15
    assert ((ours == 0) == (expected == 0)).all()  # zeros are exact, and the same


def test_proximal_steps_end_at_scikit_learns_elastic_net() -> None:
    x, y = regression()
    settings: Any = {"l1_ratio": 0.6, "fit_intercept": False, "tol": 1e-12, "max_iter": 100000}
    expected = ElasticNet(alpha=0.3, **settings).fit(x, y).coef_
    for name in ("nesterov", "adam"):
        ours = solved(slim.ElasticNet(0.3, l1_ratio=0.6), OPTIMIZERS[name], 2500).numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-5)
        assert ((ours == 0) == (expected == 0)).all() and (ours == 0).any()


def test_group_lasso_with_adam_meets_its_optimality_conditions() -> None:
    """Unequal steps within groups: where a group is 0, ‖∇f‖ ≤ λ√n; elsewhere ∇f = −λ√n·x/‖x‖."""
    x, y = (torch.from_numpy(a) for a in regression())
    groups = torch.arange(20) // 4
    w = solved(slim.GroupLasso(0.4, groups), OPTIMIZERS["adamw"], 2500)
    gradient = (x.T @ (x @ w - y) / len(y)).view(5, 4)
    w = w.view(5, 4)
    zero = (w == 0).all(1)
    assert 1 <= zero.sum() <= 4 and ((w == 0).any(1) == zero).all()
    assert (gradient[zero].norm(dim=1) <= 0.4 * 2 + 1e-9).all()
    torch.testing.assert_close(gradient[~zero], -0.8 * w[~zero] / w[~zero].norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_the_subgradient_alone_never_gets_there() -> None:
    x, y = (torch.from_numpy(a) for a in regression())
    model = nn.Linear(20, 1, bias=False).double()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    sparsity = sparsify(model, optimizer, L1(0.2), types="linear")
    for _ in range(2000):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y).square().mean() / 2).backward()
        optimizer.step()
    assert sparsity.zero() == 0
    assert sparsity.near_zero(0.1) > 0.2


def test_the_loss_method_is_the_subgradient_method() -> None:
    """Two penalties, each with a kink, put through autograd and put through the hook."""
    for penalty in (L1(0.05), slim.GroupLasso(0.05), slim.Lp(0.05, p=0.5), slim.Polarization(0.05)):
        hooked, termed = network(), network()
        for model in (hooked, termed):
            with torch.no_grad():
                gammas(model)[0][:2] = 0.0
        optimizer = torch.optim.SGD(hooked.parameters(), 0.1, momentum=0.9)
        sparsify(hooked, optimizer, penalty, schedule="ramp", steps=5)
        train(hooked, optimizer)
        optimizer = torch.optim.SGD(termed.parameters(), 0.1, momentum=0.9)
        sparsity = sparsify(termed, optimizer, penalty, method="loss", schedule="ramp", steps=5)
        train(termed, optimizer, after_backward=lambda sparsity=sparsity: sparsity.loss().backward())  # type: ignore
        for a, b in zip(hooked.parameters(), termed.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
        assert not same(hooked, network())


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_and_proximal_steps(fused: bool) -> None:
    """Scaled and plain training end alike; a skipped step shrinks nothing."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=fused)

    scaled, plain = network(dtype=torch.float32), network(dtype=torch.float32)
    optimizer = make(scaled)
    sparsity = sparsify(scaled, optimizer, L1(0.2), method="proximal")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        images, labels = batch(step, torch.float32)
        scaler.scale(nn.functional.cross_entropy(scaled(images), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    other = make(plain)
    sparsify(plain, other, L1(0.2), method="proximal")
    train(plain, other, steps=4)
    for a, b in zip(scaled.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert 0 < sparsity.zero() < 1
    before = torch.cat(gammas(scaled)).detach().clone()
    scaler.scale(nn.functional.cross_entropy(scaled(images), labels)).backward()
    grad = next(scaled.parameters()).grad
    assert grad is not None
    grad[0] = math.inf
    scaler.step(optimizer)
    assert torch.equal(torch.cat(gammas(scaled)), before)


@pytest.mark.parametrize(
    "optimizer, penalty, method",
    [
        (torch.optim.AdamW, L1(1.0), "proximal"),
        (torch.optim.RMSprop, L1(1.0), "subgradient"),
        (torch.optim.SGD, slim.Polarization(1.0), "subgradient"),
    ],
)
def test_auto_is_the_proximal_method_where_that_can_act(optimizer: Any, penalty: Any, method: str) -> None:
    model = network()
    assert sparsify(model, optimizer(model.parameters()), penalty, method="auto").method == method


def test_proximal_keeps_zeros_and_needs_an_optimizer_it_knows() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparsity = sparsify(model, optimizer, L1(5.0), method="proximal")
    train(model, optimizer, steps=10)
    assert sparsity.zero() == 1.0
    sparsity.remove()
    train(model, optimizer, steps=3)
    assert sparsity.zero() < 1.0
    with pytest.raises(SlimError, match="RMSprop: expected SGD, Adam or AdamW"):
        sparsify(model, torch.optim.RMSprop(model.parameters()), L1(1.0), method="proximal")
    with pytest.raises(SlimError, match="'proximal' can't act with Polarization: expected subgradient or loss"):
        sparsify(model, optimizer, slim.Polarization(1.0), method="proximal")
    with pytest.raises(SlimError, match="'subgradient' can't act with L0: expected proximal"):
        sparsify(model, optimizer, slim.L0(1.0))
    with pytest.raises(SlimError, match="twice"):
        sparsify(model, optimizer, L1(1.0)).loss()
