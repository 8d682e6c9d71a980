"""A network with an operation of a test's choice between two layers, and the independent truth it is held to."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import slim

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Operation = Callable[[Tensor], Tensor]


class Scaled(nn.Module):
    """Two layers of eight channels; an operation on what the second one gives."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1, bias=False)
        self.operation = operation
        for norm in (self.first[1], self.second[1]):
            nn.init.uniform_(norm.weight, 0.1, 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(self.second(self.first(x))))


@torch.no_grad()
def difference(model: nn.Module, thin: nn.Module, removed: dict[str, list[int]]) -> float:
    for name, gone in removed.items():
        norm = model.get_submodule(name)
        norm.weight[gone], norm.bias[gone] = 0, 0  # type: ignore[operator]
    expected, found = model.double().eval()(X.double()), thin.double().eval()(X.double())
    return float((expected - found).abs().max() / expected.abs().max())


def assert_half_goes(model: Scaled) -> None:
    """Half of the channels are pruned, none is frozen, and the thin network equals the masked one."""
    plan = slim.plan(model, X, ratio=0.5)
    assert plan.ratio_achieved == 0.5 and not plan.frozen
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert difference(model, thin, plan.removed) < 1e-10
