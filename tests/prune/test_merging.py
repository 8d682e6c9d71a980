"""`slim.merge`: removed channels go to their nearest, without any image."""

import copy

import torch
from digits_net import accuracy, digits, trained
from torch import nn

import slim


def twins() -> nn.Sequential:
    """The second half of the channels is 1.5 times the first, by γ and β."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(80, 4),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.startswith(("0.", "1.")) and tensor.dim():
                tensor.uniform_(0.5, 1.5)
                tensor[4:] = tensor[:4]
            if name in ("1.weight", "1.bias"):
                tensor[4:] *= 1.5
    return model


def test_a_channel_that_is_a_multiple_of_another_goes_for_nothing() -> None:
    model, x = twins(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    first = {"1": torch.arange(8.0), "4": torch.ones(5)}
    plan = slim.plan(model, x, layer_ratios={"1": 0.5}, ratio=0.0, score=first)
    assert plan.removed == {"1": [0, 1, 2, 3]}
    thin = plan.apply(model)
    kept = copy.deepcopy(thin.state_dict())
    merged = slim.merge(model, thin, plan, x)
    assert (thin(x) - model(x)).abs().max() > 1e-2
    torch.testing.assert_close(merged(x), model(x), rtol=1e-9, atol=1e-9)
    for network, were in ((model, before), (thin, kept)):
        assert all(torch.equal(tensor, were[name]) for name, tensor in network.state_dict().items())


def test_a_network_that_learnt_keeps_more_of_it() -> None:
    model, x = trained(), digits()[0][:1]
    plan = slim.plan(model, x, slim.Flops(0.7), score=slim.Magnitude())
    thin = plan.apply(model)
    assert accuracy(slim.merge(model, thin, plan, x)) > accuracy(thin) + 0.05


class ReadsOneMinus(nn.Module):
    """What reads the removed channels reads 1 of each, and not 0."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.reader = twins()[:3], nn.Conv2d(8, 5, 1).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reader(1 - self.front(x))


def test_what_reads_a_constant_of_a_channel_reads_no_other_in_its_place() -> None:
    model, x = ReadsOneMinus().eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    plan = slim.plan(model, x, ratio=0.5, score={"front.1": torch.arange(8.0)}, round_to=1)
    assert plan.removed == {"front.1": [0, 1, 2, 3]} and set(plan.constants) == {"reader"}
    thin = plan.apply(model)
    assert torch.equal(slim.merge(model, thin, plan, x)(x), thin(x))
