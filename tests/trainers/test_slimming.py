"""`slim.Slimming`: pruned in place within anybody's training, against the same steps done by hand."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from digits_net import accuracy, batches, digits, untrained
from torch import nn

import slim
from slim.errors import SlimError


def train(network: nn.Module, epochs: int, at: list[int], **settings: Any) -> tuple[slim.Slimming, list[int]]:
    optimizer = torch.optim.AdamW(slim.parameter_groups(network, 1e-2), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * 21)
    slimming = slim.Slimming(network, optimizer, digits()[0][:1], slim.Flops(0.3), at=at, **settings)
    pruned = []
    for _ in range(epochs):
        network.train()
        for images, labels in batches():
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            schedule.step()
            if slimming.after_step():
                pruned.append(slimming.step)
    return slimming, pruned


def test_it_reaches_the_budget_in_place_and_trains_on() -> None:
    network = untrained()
    whole = copy.deepcopy(network)
    slimming, pruned = train(
        network,
        6,
        [42, 63, 84],
        penalty=slim.L1(1e-3),
        images=digits()[0][:256],
        rules={"score": "auto", "round_to": 1},
    )
    assert pruned == [42, 63, 84] and slimming.network is network
    flops = [plan.totals["flops"] for plan in slimming.plans]
    assert flops[0][0] > flops[1][0] > flops[2][0]
    assert 0.25 * flops[0][0] < flops[2][1] <= 0.3 * flops[0][0]
    assert accuracy(network) > 0.9
    expected = whole
    for plan in slimming.plans:
        expected = plan.apply(expected)
    assert [p.shape for p in network.parameters()] == [p.shape for p in expected.parameters()]
    held = {id(p) for group in slimming.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in network.parameters()}
    moments = [slimming.optimizer.state[p]["exp_avg"].shape == p.shape for p in network.parameters()]
    assert all(moments)
    assert slimming.sparsity is not None and slimming.sparsity.step == 84  # the penalty ended with the last prune


def test_without_penalty_and_images_it_only_prunes() -> None:
    network = untrained()
    slimming, pruned = train(network, 1, [10])
    assert pruned == [10] and len(slimming.plans) == 1 and slimming.sparsity is None
    before, after = slimming.plans[0].totals["flops"]
    assert after <= 0.3 * before


@pytest.mark.parametrize("how", ["around", "within", "in place"])
def test_a_compiled_network_gets_thinner_and_stays_compiled(how: str) -> None:
    """Whichever of the two is given: who holds the network within its compiled wrapper saves what was trained."""
    runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        def run(*inputs: Any) -> Any:
            runs.append(len(inputs))
            return graph(*inputs)

        return run

    network = untrained()
    compiled: Any = network
    if how == "in place":
        network.compile(backend=backend)
    else:
        compiled = torch.compile(network, backend=backend)
    given = network if how == "within" else compiled
    slimming, _ = train(given, 1, [10], images=digits()[0][:64])
    assert sum(p.numel() for p in network.parameters()) == slimming.plans[0].totals["params"][1]
    torch._dynamo.reset()
    runs.clear()
    x = digits()[0][:8]
    plain = nn.Sequential(*network.children()).eval()
    assert torch.equal(compiled.eval()(x), plain(x)) and runs


@pytest.mark.parametrize("at", [[], [20, 10], [10, 10], [1.5]])
def test_steps_that_can_t_be(at: list[Any]) -> None:
    with pytest.raises(SlimError, match="expected steps in increasing order"):
        train(untrained(), 1, at)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(SlimError, match=r"a training of 2 processes: expected one, or slim\.sparsify"):
        train(untrained(), 1, [10])
