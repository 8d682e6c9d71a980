"""Numbers that forward computes from a number of channels: the channels stay, whatever form the number has."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scaled import Operation, Scaled, X, assert_half_goes, difference
from torch import Tensor

import slim
from slim.trace.constants import same
from slim.trace.traced import Trace


class LooksAtValues(Scaled):
    """The same, with forward code that needs data."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) < 1e9 else x


FOLLOW: dict[str, Operation] = {
    "divided": lambda x: x / x.shape[1],
    "times": lambda x: x * x.shape[1],
    "times, from the left": lambda x: x.shape[1] * x,
    "divided in place": lambda x: x.div_(x.shape[1]),
    "a root": lambda x: x * x.shape[1] ** -0.5,
    "a numpy number": lambda x: x / np.sqrt(x.shape[1]),
    "a numpy integer": lambda x: x / np.int64(x.shape[1]),  # type: ignore[operator]
    "elements of a sample": lambda x: x / x[0].numel(),
    "a mean by hand": lambda x: x * (x.sum(1, keepdim=True) / x.shape[1]).sigmoid(),
    "a power": lambda x: (x + 1).pow(x.shape[1] / 8) * x,
    "alpha": lambda x: torch.add(x, x, alpha=x.shape[1]),
    "value": lambda x: torch.addcmul(x, x, x, value=x.shape[1]),
    "a divisor of a pool": lambda x: F.avg_pool2d(x, 2, divisor_override=x.shape[1]),
    "a slope": lambda x: F.leaky_relu(x - x.amax((2, 3), keepdim=True), 1 / x.shape[1]),
    "a bound": lambda x: x.clamp(max=x.shape[1] / 10),
    "a scalar tensor": lambda x: x / torch.tensor(x.shape[1]),
    "the root of one": lambda x: x / torch.sqrt(torch.tensor(float(x.shape[1]))),
    "one on the device": lambda x: x / torch.tensor(x.shape[1], device=x.device),
    "one that is moved there": lambda x: x / torch.tensor(x.shape[1]).to(x.device),
    "numpy's on the device": lambda x: x / torch.as_tensor(np.array(x.shape[1]), device=x.device),
    "new_tensor": lambda x: x * x.new_tensor(x.shape[1]),
    "new_tensor of a list": lambda x: x * x.new_tensor([x.shape[1]]).rsqrt(),
    "as_tensor": lambda x: x * torch.as_tensor(1 / x.shape[1]),
    "full": lambda x: x * torch.full((1,), x.shape[1]).log(),
    "full on the device": lambda x: x * torch.full((1,), 1.0 * x.shape[1], device=x.device).log(),
    "new_full": lambda x: x * x.new_full((1, 1, 1, 1), x.shape[1]),
    "where": lambda x: torch.where(x > 0, x, x.shape[1]) * x,
    "a shift": lambda x: x.roll(x.shape[1] // 4, 2),
    "a window": lambda x: F.avg_pool2d(x, x.shape[1] // 4 + 1, 1, x.shape[1] // 8),
    "a place": lambda x: x * x[:, :, x.shape[1] // 4].unsqueeze(2),
    "a part": lambda x: x * x[:, :, x.shape[1] // 4 : x.shape[1] // 4 + 2].mean(2, keepdim=True),
    "a large table": lambda x: x * torch.linspace(0, x.shape[1], 4 * 36).view(4, 1, 6, 6),
    "one filled in": lambda x: x * torch.zeros(()).fill_(x.shape[1]),
    "a sum of two": lambda x: x * (torch.tensor(1.0) + x.shape[1]),
}
CONSTANT: dict[str, Operation] = {
    "divided": lambda x: x / 8,
    "by the size of the map": lambda x: x / x.shape[2],
    "a scalar tensor": lambda x: x / torch.tensor(8),
    "new_tensor": lambda x: x * x.new_tensor([0.1, 0.2]).sum(),
    "ones": lambda x: x * torch.ones((), device=x.device),
    "a value that isn't a number": lambda x: torch.where(x > math.inf, torch.tensor(math.nan), x),
    "one value for each": lambda x: x * torch.full((x.shape[1], 1, 1), 2.0),
    "a large table": lambda x: x * torch.linspace(0, 1, 4 * 36).view(4, 1, 6, 6),
    "channels elsewhere": lambda x: x * torch.tensor([1, 2, 3]).float().mean(),
}


@pytest.mark.parametrize("kind", [Scaled, LooksAtValues])
@pytest.mark.parametrize("case", FOLLOW)
def test_what_a_number_counts_stays(case: str, kind: type[Scaled]) -> None:
    model = kind(FOLLOW[case]).eval()
    plan = slim.plan(model, X, ratio=0.25)
    assert set(plan.removed) == {"first.1"}
    assert any("a constant that follows a size" in reason for reason in plan.frozen), plan.frozen
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert difference(model, thin, plan.removed) < 1e-10


def test_a_number_from_data_is_the_same_up_to_rounding() -> None:
    model = Scaled(lambda x: x * float(x.amax())).eval()
    plan = slim.plan(model, X, ratio=0.25)
    assert set(plan.removed) == {"first.1"}
    assert difference(model, plan.apply(model), plan.removed) < 1e-10


@pytest.mark.parametrize("kind", [Scaled, LooksAtValues])
@pytest.mark.parametrize("case", CONSTANT)
def test_a_number_that_stays_holds_nothing(case: str, kind: type[Scaled]) -> None:
    assert_half_goes(kind(CONSTANT[case]).eval())


def test_masked_networks_that_take_the_same_steps_are_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of one value, whose length may vary, is known for it in runs that ask no rules."""
    model = LooksAtValues(lambda x: x + torch.zeros(9, 1, 36).expand(9, 4, 36)[:4, 0].reshape(4, 1, 6, 6)).eval()
    taken: list[None] = []
    take_in = Trace.take_in
    monkeypatch.setattr(Trace, "take_in", lambda *args: taken.append(take_in(*args)))
    assert slim.plan(model, X, ratio=0.5).ratio_achieved == 0.5
    assert len(taken) == 1


NAN = math.nan
PAIRS: list[tuple[object, object, bool]] = [
    (2, 2, True),
    (2, 3, False),
    (NAN, NAN, True),
    (NAN, 1.0, False),
    (1.0, NAN, False),
    (0.3058588206768036, 0.3058619201183319, True),  # a score that docTR returns, with fewer channels and with masked
    (1 / 4096, 1 / 4095, False),
    ((1, NAN), (1, NAN), True),
    ((1, 2), (1, 2, 3), False),
]


@pytest.mark.parametrize(("a", "b", "expected"), PAIRS)
def test_numbers_of_two_runs_are_the_same_up_to_rounding(a: object, b: object, expected: bool) -> None:
    assert same([a], [b]) is expected and same([a, 0], [b, 0]) is expected and not same([a], [b, b])
