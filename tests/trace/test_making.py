"""Tensors that forward makes after another's size or type, and fills: they hold nothing that needn't be held."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from scaled import Scaled, X, assert_half_goes, difference
from torch import Tensor

import slim

Operation = Callable[[Tensor], Tensor]


def filled(x: Tensor) -> Tensor:
    """The same, written into memory that wasn't set."""
    out = torch.empty_like(x)
    out[:, :, ::2] = x[:, :, ::2]
    out[:, :, 1::2] = 2 * x[:, :, 1::2]
    return out


def shifted(x: Tensor) -> Tensor:
    out = x.new_zeros(x.shape)
    out[:, :, 1:] = x[:, :, :-1]
    return out


FREE: dict[str, Operation] = {
    "a number of its type": lambda x: x * (1 + x.new_zeros(1)),
    "a zero added": lambda x: x + x.new_zeros(1) - torch.zeros((), dtype=x.dtype),
    "one number for each channel": lambda x: x * (x.new_ones(x.shape[1]) * 2)[:, None, None],
    "ones of its type": lambda x: x * x.new_ones(1),
    "its shape": shifted,
    "memory filled": filled,
    "circular padding": lambda x: F.pad(x, (1, 1, 2, 0), mode="circular"),
    "zeros like it": lambda x: x + torch.zeros_like(x),
    "dropout that stays on": lambda x: F.dropout(x, 0.0, training=True),
    "dropout drawn by hand": lambda x: x * torch.empty_like(x).bernoulli_(1.0),
    "zeros of its shape": lambda x: x + torch.zeros(x.shape),
    "zeros where it is small": lambda x: torch.where(x > 0.1, x, 0.0),
    "ones where it is small": lambda x: torch.where(x > 0.1, x, 1.0),
    "a zero in a tensor": lambda x: torch.where(x > 0.1, x, torch.tensor(0.0)),
    "a filter of ones": lambda x: F.conv2d(x, torch.ones(x.shape[1], 1, 3, 3, dtype=x.dtype) / 9, groups=x.shape[1]),
    "a filter for images of one channel": lambda x: F.conv2d(
        x.reshape(-1, 1, *x.shape[2:]), torch.linspace(0, 1, 9, dtype=x.dtype).view(1, 1, 3, 3), padding=1
    ).view(x.shape),
    "out=": lambda x: torch.add(x, x.square(), alpha=2, out=torch.empty_like(x)),
    "out= memory without a size": lambda x: torch.mul(x, 2, out=x.new_empty(0)),
    "out= what is added to": lambda x: torch.add(y := x * 2, x, out=y),
    "two results, out=": lambda x: torch.max(x, 2, out=(x.new_empty(0), torch.empty(0, dtype=torch.long)))[0][
        :, :, None
    ],
    "noise of its size, times": lambda x: x * torch.ones_like(x),
}
HELD: dict[str, Operation] = {
    "ones added": lambda x: x + torch.ones_like(x),
    "one number added for each channel": lambda x: x + x.new_ones(x.shape[1])[:, None, None],
    "a view of zeros written over": lambda x: x + (zeros := x.new_zeros(8), zeros.add_(1))[0][:, None, None],
    "new_ones added": lambda x: x + x.new_ones(x.shape),
    "half of it, out= itself": lambda x: (torch.sigmoid(x, out=x), x)[1],
    "ones written": lambda x: shifted(x).index_fill_(2, torch.tensor([0]), 1.0),
    "noise drawn over it": lambda x: x + x.clone().bernoulli_(1.0),
    "a fixed number of channels": lambda x: x + x.new_zeros(4, 8, 1, 1),
}


@pytest.mark.parametrize("case", FREE)
def test_free(case: str) -> None:
    assert_half_goes(Scaled(FREE[case]).eval())


@pytest.mark.parametrize("case", HELD)
def test_held(case: str) -> None:
    model = Scaled(HELD[case]).eval()
    plan = slim.plan(model, X, ratio=0.25)
    assert set(plan.removed) == {"first.1"} and plan.frozen
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert difference(model, thin, plan.removed) < 1e-10


def eight(x: Tensor) -> Tensor:
    if x.shape[1] != 8:
        raise ValueError("expected eight channels")
    return x


class LooksBack(Scaled):
    """Forward code that looks at the width of a layer once all operators have run."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if len(self.second.get_parameter("0.weight")) != 8:
            raise ValueError("expected eight channels")
        return y


@pytest.mark.parametrize(
    ("model", "where"),
    [(Scaled(eight), "convolution after second.1"), (LooksBack(lambda x: x), "forward after head")],
    ids=["between operators", "after the last"],
)
def test_forward_code_that_fails_is_told_by_the_operator_that_comes_next(model: Scaled, where: str) -> None:
    plan = slim.plan(model.eval(), X, ratio=0.25)
    assert f"forward code holds a size: {where} fails with fewer channels" in plan.frozen
