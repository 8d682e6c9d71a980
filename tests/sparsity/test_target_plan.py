"""A plan as the target: what it removes reaches zero, what it keeps feels nothing, and pruning it costs nothing."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from networks import ZOO
from sparsity.training import gammas, network, train
from torch import nn

import slim
from slim import L1, SlimError, sparsify
from slim.prune.groups import Groups
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
from slim.workbench.train import fit
from slim.workbench.train.gradual import Pruning

X = torch.randn(2, 2, 6, 6, dtype=torch.float64)
STEPS = 60


def planned(model: nn.Module, seed: int = 0) -> slim.PruningPlan:
    return slim.plan(model, X, ratio=0.4, score=slim.Random(seed), floor=1, round_to=1)


def zeros(model: nn.Module) -> list[list[int]]:
    return [(gamma == 0).nonzero()[:, 0].tolist() for gamma in gammas(model)]


def removed(plan: slim.PruningPlan) -> list[list[int]]:
    return [plan.cuts.get(f"{name}.weight", {}).get(0, []) for name in ("1", "4", "8")]


def test_what_the_plan_removes_reaches_zero_and_nothing_else() -> None:
    """Each γ has a goal of its own, so that what isn't pushed must go as if there were no penalty."""

    def towards(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            optimizer.zero_grad()
            for gamma in gammas(model):
                goal = 1 + torch.rand(len(gamma), generator=generator, dtype=torch.float64)
                (gamma - goal).square().sum().backward()
            optimizer.step()

    model, free = network(), network()
    plan = planned(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparsity = sparsify(model, optimizer, L1(1e-3), method="proximal", target=plan, steps=STEPS)
    towards(model, optimizer)
    towards(free, torch.optim.SGD(free.parameters(), 0.05, momentum=0.9))
    assert zeros(model) == removed(plan)
    assert sparsity.zero() == pytest.approx(sum(map(len, removed(plan))) / 15) and sparsity.zero() > 0.2
    for ours, other, gone in zip(gammas(model), gammas(free), removed(plan)):
        kept = [i for i in range(len(ours)) if i not in gone]
        torch.testing.assert_close(ours[kept], other[kept], rtol=0, atol=0)


def test_a_plan_is_asked_for_once_when_the_push_begins() -> None:
    model, asked = network(), []
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0)
    sparsity = sparsify(model, optimizer, L1(0.1), method="proximal", target=lambda: make(), steps=40)

    def make() -> slim.PruningPlan:
        asked.append(sparsity.step)
        return slim.plan(model, X, ratio=0.4, score=slim.Taylor([X]), floor=1, round_to=1)  # by gradients

    train(model, optimizer, 40)
    assert asked == [12]  # after three tenths
    assert any(zeros(model))


def test_what_was_pushed_is_pruned_for_nothing() -> None:
    """A residual network: γ of its stream go together. The same budget finds the same channels by their γ, and the
    thin network is the sparse one once their shifts are zero, too."""
    torch.manual_seed(0)
    model, x = ZOO["residual"]().double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    ranks = np.random.default_rng(0)

    def score(groups: Groups) -> Any:
        return ranks.random(len(groups.roots))

    plan = slim.plan(model.eval(), x, ratio=0.4, score=score, round_to=1)
    optimizer = torch.optim.SGD(model.train().parameters(), 0.01, momentum=0.9)
    kinds = ["batchnorm", "bias"]
    sparsify(model, optimizer, L1(1.0), method="proximal", types=kinds, target=plan, steps=STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    found = slim.plan(model.eval(), x, ratio=0.4, score=slim.Gamma(), round_to=1)
    assert found.cuts == plan.cuts and plan.cuts
    torch.testing.assert_close(found.apply(model)(x), model(x))


def test_it_can_be_resumed_without_a_plan() -> None:
    def begin(target: Callable[[], slim.PruningPlan] | slim.PruningPlan) -> tuple[Any, Any, Any]:
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
        return model, optimizer, sparsify(model, optimizer, L1(1e-2), method="proximal", target=target, steps=STEPS)

    def steps(model: nn.Module, optimizer: Any, of: range) -> None:
        for step in of:
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(torch.randn(4, 2, 6, 6, dtype=torch.float64)).square().sum().backward()
            optimizer.step()

    def refuse() -> slim.PruningPlan:
        raise AssertionError("asked for a plan twice")

    plan = planned(network())
    straight, first, second = begin(plan), begin(plan), begin(refuse)
    steps(*straight[:2], range(STEPS))
    steps(*first[:2], range(30))
    for new, old in zip(second, first):
        new.load_state_dict(json.loads(json.dumps(old.state_dict())) if new is second[2] else old.state_dict())
    steps(*second[:2], range(30, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(gammas(straight[0]), gammas(second[0])))
    assert zeros(second[0]) == removed(plan)


def test_pruning_on_the_way_leaves_the_rest_of_the_target() -> None:
    model = network()
    plan, early = planned(model), slim.plan(model, X, ratio=0.15, score=slim.Random(0), floor=1, round_to=1)
    assert all(set(some) <= set(more) for some, more in zip(removed(early), removed(plan))) and any(removed(early))
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    sparsity = sparsify(model, optimizer, L1(1e-2), method="proximal", target=plan, steps=STEPS)
    train(model, optimizer, 30)
    thin = early.apply(model)
    early.prune_optimizer(optimizer, model, thin)
    sparsity.prune(early, model, thin)
    train(thin, optimizer, 30)
    left = [len(more) - len(some) for some, more in zip(removed(early), removed(plan))]
    assert list(map(len, zeros(thin))) == left and sum(left) > 0


def other_plan() -> slim.PruningPlan:
    wider = nn.Sequential(nn.Conv2d(2, 7, 3), nn.BatchNorm2d(7), nn.ReLU(), nn.Flatten(), nn.Linear(112, 3)).double()
    return slim.plan(wider, X, ratio=0.4, score=slim.Random())


@pytest.mark.parametrize(
    ("target", "told"),
    [
        (other_plan, r"the target's plan isn't of this model: 1\.weight is \[5\]: expected \[7\]"),
        (lambda: 3, r"target\(\) is of type int: expected what slim\.plan returned"),
        (lambda: slim.PruningPlan({}, {}, {}, {}, {}), "removes none of the penalised values"),
    ],
)
def test_plans_that_cannot_be_a_target(target: Callable[[], Any], told: str) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    sparsify(model, optimizer, L1(1e-2), method="proximal", target=target, steps=10)
    with pytest.raises(SlimError, match=told):
        train(model, optimizer, 10)


def test_what_is_no_target() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.02)
    with pytest.raises(SlimError, match="target is of type str: expected a share of zeros, a plan, or None"):
        sparsify(model, optimizer, L1(1e-2), method="proximal", target="plan", steps=10)  # type: ignore[arg-type]


def test_a_training_that_plans() -> None:
    """The channels that its budget of FLOPs removes are zero at the end, and no others."""
    torch.manual_seed(0)
    images = torch.randn(64, 2, 6, 6)
    data = [(images[i : i + 8], (images[i : i + 8].mean((1, 2, 3)) > 0).long()) for i in range(0, 64, 8)]
    model, pruning = network(dtype=torch.float32), Pruning(slim.Flops(0.5), {"score": slim.Residual(images)})
    how = SparsityConfig(method="proximal", strength=1e-2, target="plan")
    records = fit(
        model, data, OptimConfig(epochs=12), compute=ComputeConfig(device="cpu"), sparsity=how, pruning=pruning
    )
    plan = slim.plan(model, images[:1], slim.Flops(0.5), score=slim.Gamma())
    assert zeros(model) == removed(plan)
    assert 0.1 < records[-1]["zero"] == sum(map(len, removed(plan))) / 15
    assert records[2]["zero"] == 0 and records[2]["strength"] == 1e-2  # not before three tenths


def test_a_training_cannot_have_two_plans() -> None:
    how = SparsityConfig(method="proximal", target="plan", gradual=2)
    data = [(torch.randn(4, 2, 6, 6), torch.tensor([0, 1, 2, 0]))] * 8
    with pytest.raises(SlimError, match=r"sparsity\.target is 'plan', whose channels stay until the end"):
        fit(network(dtype=torch.float32), data, OptimConfig(), compute=ComputeConfig(device="cpu"), sparsity=how)
