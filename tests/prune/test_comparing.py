"""How a proof compares: place by place, relative to the largest value, and what it runs both networks on."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.prune.proof.comparing import compare, differing, resized
from slim.prune.proof.inputs import candidates
from slim.prune.proof.layers import activations, fitting, statistics_of

ONES = torch.ones(2, 3)


def gives(**named: Any) -> list[tuple[str, Tensor]]:
    """What layers give, in order; a list for one that is called several times."""
    calls = [(name, each if isinstance(each, list) else [each]) for name, each in named.items()]
    return [(name, torch.as_tensor(tensor)) for name, each in calls for tensor in each]


A = torch.tensor([[4.0, -8.0, 0.0], [1.0, 2.0, 3.0]])


@pytest.mark.parametrize(
    ("expected", "found", "error"),
    [
        (gives(a=A), gives(a=A), 0.0),
        (gives(a=A), gives(a=A + torch.tensor([0.0, 0.0, 0.5])), 0.5 / 8),
        (gives(a=A, b=ONES), gives(a=A - 0.5, b=ONES * 1.25), 0.25),
        (gives(a=A, b=ONES), gives(b=ONES * 1.25, a=A), 0.25),
        (gives(a=0 * A), gives(a=0 * A + 0.125), 0.125),
        (gives(a=A[:0]), gives(a=A[:0]), 0.0),
        (gives(a=[A, ONES]), gives(a=[A, ONES * 1.5, A]), 0.5),
        (gives(a=torch.tensor([1, 2])), gives(a=torch.tensor([1, 2])), 0.0),
        (gives(), gives(a=A), 0.0),
    ],
)
def test_the_largest_relative_difference(expected: Any, found: Any, error: float) -> None:
    assert compare(expected, found, 1.0) == pytest.approx(error, rel=1e-6)
    assert differing(expected, expected, 0.0) == set()


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        (gives(a=A), gives(b=A), "the masked original: a isn't used"),
        (gives(a=[A, A]), gives(a=[A]), "the masked original: a isn't used"),
        (gives(a=A), gives(a=A[:, :2]), "the masked original: a gives [2, 2], expected [2, 3]"),
        (gives(b=A, a=A), gives(b=A, a=1.5 * A), "first in a: relative error 5.0e-01, expected at most 1e-01"),
        (gives(a=torch.tensor([1, 2])), gives(a=torch.tensor([1, 3])), "first in a: relative error inf"),
        (gives(a=A), gives(a=A * math.nan), "first in a: relative error nan"),
        (gives(a=0 * A), gives(a=0 * A + 0.5), "first in a: relative error 5.0e-01"),
    ],
)
def test_what_differs_is_named(expected: Any, found: Any, said: str) -> None:
    with pytest.raises(SlimError) as error:
        compare(expected, found, 0.1)
    assert str(error.value).startswith("the thin network differs from the masked original")
    assert said in str(error.value)


def test_places_that_are_left_out_are_not_compared_but_have_to_be_there() -> None:
    expected = gives(a=[A, A], b=A)
    assert compare(expected, gives(a=[A, 2 * A], b=A), 0.1, {1}) == 0.0
    assert compare(expected, gives(a=[A, A[:1]], b=A), 0.1, {1}) == 0.0
    for left_out in ({0}, {2}, set()):
        with pytest.raises(SlimError, match="first in a"):
            compare(expected, gives(a=[A, 2 * A], b=A), 0.1, left_out)
    with pytest.raises(SlimError, match="a isn't used"):
        compare(expected, gives(a=[A], b=A), 0.1, {1})


@pytest.mark.parametrize(
    ("otherwise", "places"),
    [
        (gives(a=[A, A], b=A), set()),
        (gives(a=[A, A * 1.05], b=A), set()),
        (gives(a=[A, A * 1.2], b=A), {1}),
        (gives(a=[A, A], c=A), {2}),
        (gives(a=[A, A]), {2}),
        (gives(a=[A[:1]]), {0, 1, 2}),
        (gives(), {0, 1, 2}),
    ],
)
def test_what_hangs_on_rounding(otherwise: Any, places: set[int]) -> None:
    assert differing(gives(a=[A, A], b=A), otherwise, 0.1) == places


def test_layers_that_run_over_less() -> None:
    expected = gives(a=[A, A], b=A, c=A, out=A)
    found = gives(a=[A, A[:1]], b=A[:, :1], out=A[:1])
    assert resized(expected, found, {"a", "b", "c"}) == {1}
    assert resized(expected, found, {"a", "out"}) == {1, 4}
    assert resized(found, expected, {"a", "out"}) == set()


class Counts(nn.Module):
    """A convolution, its weights not near zero, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        self.conv.weight.data = torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)

    def forward(self, x: Tensor, places: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(x))


CPU = torch.device("cpu")


def test_small_inputs_are_repeated_and_have_noise_or_are_taken_as_they_are() -> None:
    x, places = torch.randn(2, 1, 4, 4), torch.arange(3)
    noisy, once, repeated, plain = candidates(Counts(), (x, places), CPU, torch.float64)
    assert [c[0].shape[0] for c in (noisy, once, repeated, plain)] == [6, 2, 6, 2]
    assert all(c[0].dtype == torch.float64 and torch.equal(c[1], places) for c in (noisy, once, repeated, plain))
    assert torch.equal(repeated[0], x.double().repeat(3, 1, 1, 1)) and torch.equal(plain[0], x.double())
    noise = (noisy[0] - repeated[0]) / repeated[0].std()
    assert 0.35 < noise.std() < 0.65 and len({float(image.sum()) for image in noisy[0]}) == 6
    assert candidates(Counts(), x.bool(), CPU, torch.float64)[0].dtype == torch.bool
    [*_, none] = candidates(Counts(), x, CPU, None)
    assert none.dtype == torch.float32
    flat = candidates(Counts(), torch.full((2, 1, 4, 4), 3.0), CPU, None)[0]
    assert 0.35 < flat.std() < 0.65  # whose spread is none: noise of one half


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1, 1, 256, 256), [(3, 1, 256, 256), (1, 1, 256, 256)]),  # as many values as are enough
        ((3, 1, 256, 256), [(9, 1, 64, 64), (3, 1, 256, 256), (9, 1, 256, 256)]),
        ((1, 1, 400, 400), [(3, 1, 64, 64), (1, 1, 400, 400), (3, 1, 400, 400)]),
        ((100, 1, 64, 64), [(100, 1, 64, 64), (300, 1, 64, 64)]),  # of which no part is smaller
    ],
)
def test_of_large_images_a_part_is_enough(shape: tuple[int, ...], sizes: list[tuple[int, ...]]) -> None:
    found = candidates(Counts(), torch.zeros(shape), CPU, None)
    assert [tuple(each.shape) for each in found] == [*sizes, *sizes]


def test_norms_are_fitted_to_what_they_are_first_given() -> None:
    model, x = Counts().double().eval(), torch.randn(4, 1, 3, 3).double()
    before = statistics_of(model)
    with torch.no_grad(), fitting(model):
        first = activations(model, x, None, keep_statistics=True)
        given = dict(first)["conv"]
    assert [name for name, _ in first] == ["conv", "norm", "output"]
    var, mean = torch.var_mean(given, (0, 2, 3))
    torch.testing.assert_close(model.norm.running_mean, mean)
    torch.testing.assert_close(model.norm.running_var, var)
    assert not torch.equal(before["norm.running_mean"], mean)
    with torch.no_grad(), fitting(model):
        activations(model, 2 * x, None)
        torch.testing.assert_close(model.norm.running_mean, mean)  # put back
    with torch.no_grad(), fitting(model), pytest.raises(ValueError, match="one value for each channel has no spread"):
        model(x[:1, :, :1, :1])


def test_statistics_of_what_has_no_spread_do_not_blow_rounding_up() -> None:
    model = Counts().double().eval()
    with torch.no_grad(), fitting(model):
        activations(model, torch.ones(4, 1, 3, 3).double(), None, keep_statistics=True)
    assert model.norm.running_var is not None and model.norm.running_var.tolist() == [1e-3, 1e-3]


def test_rounding_otherwise_is_some_last_bits() -> None:
    model, x = Counts().double().eval(), torch.randn(4, 1, 3, 3).double()
    with torch.no_grad():
        plain, other = (dict(activations(model, x, None, noise)) for noise in (None, torch.Generator().manual_seed(0)))
    change = ((other["conv"] - plain["conv"]) / plain["conv"]).abs()
    assert 1e-16 < change.mean() < 2e-15 and change.max() < 1e-14
    assert not torch.equal(other["output"], plain["output"])
