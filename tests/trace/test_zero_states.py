"""Cells that begin with a state of zeros, which they lay beside what they read: their channels can go."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import slim

HIDDEN = 8
X = torch.randn(2, 3, 3, 6, 6, generator=torch.Generator().manual_seed(0))  # image, step, channel
State = Callable[["Cell", Tensor], Tensor]


class Cell(nn.Module):
    """A convolutional recurrent cell over all steps, with a reader of its last state."""

    def __init__(self, state: State, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.state = HIDDEN, state
        self.conv = nn.Conv2d(3 + HIDDEN, self.gates * HIDDEN, 3, padding=1, bias=bias)
        self.head = nn.Conv2d(HIDDEN, 2, 1)

    gates = 1

    def forward(self, x: Tensor) -> Tensor:
        states = [self.state(self, x[:, 0])] * 2
        for step in x.unbind(1):
            states = self.step(step, *states)
        return self.head(states[0])

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        return [torch.tanh(self.conv(torch.cat([x, h], 1))), c]


class LSTM(Cell):
    gates = 4

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        i, f, o, g = self.conv(torch.cat([x, h], 1)).split(self.hidden, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return [o.sigmoid() * c.tanh(), c]


class GRU(Cell):
    gates = 2

    def __init__(self, state: State, bias: bool = True) -> None:
        super().__init__(state, bias)
        self.new = nn.Conv2d(3 + HIDDEN, HIDDEN, 3, padding=1, bias=bias)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
        z, r = self.conv(torch.cat([x, h], 1)).sigmoid().chunk(2, 1)
        return [(1 - z) * h + z * self.new(torch.cat([x, r * h], 1)).tanh(), c]


STATES: dict[str, State] = {
    "zeros": lambda cell, x: torch.zeros(len(x), cell.hidden, *x.shape[2:], dtype=x.dtype),
    "new_zeros": lambda cell, x: x.new_zeros(len(x), cell.hidden, *x.shape[2:]),
}
HELD: dict[str, State] = {
    "ones": lambda cell, x: torch.ones(len(x), cell.hidden, *x.shape[2:], dtype=x.dtype),
    "a number of zeros": lambda cell, x: x.new_zeros(len(x), 8, *x.shape[2:]),
    "zeros, one of which is written": lambda cell, x: STATES["zeros"](cell, x).index_fill_(1, torch.tensor([3]), 1.0),
}


@torch.no_grad()
def difference(model: nn.Module, thin: nn.Module, removed: dict[str, list[int]]) -> float:
    """From the original, whose rows and biases are masked in place."""
    for name, gone in removed.items():
        layer = model.get_submodule(name)
        layer.weight[gone] = 0  # type: ignore[operator]
        if layer.bias is not None:
            layer.bias[gone] = 0  # type: ignore[operator]
    expected, found = model(X.double()), thin(X.double())
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Cell, LSTM, GRU])
@pytest.mark.parametrize("case", STATES)
def test_half_of_the_state_goes(case: str, kind: type[Cell], bias: bool) -> None:
    model = kind(STATES[case], bias).double().eval()
    plan = slim.plan(model, X.double(), ratio=0.5)
    thin = plan.apply(model)
    assert plan.ratio_achieved == 0.5 and thin.state_dict()["head.weight"].shape[1] == HIDDEN // 2
    assert slim.verify(model, thin, plan, X.double()) < 1e-10
    assert difference(model, thin, plan.removed) < 1e-10


@pytest.mark.parametrize("kind", [Cell, LSTM, GRU])
@pytest.mark.parametrize("case", HELD)
def test_what_no_channel_can_leave_stays(case: str, kind: type[Cell]) -> None:
    with pytest.raises(slim.SlimError, match="all channels are frozen"):
        slim.plan(kind(HELD[case]), X, ratio=0.5)
