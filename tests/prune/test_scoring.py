"""The score `Residual` against least squares: what is missed for good when others stand in for channels that go."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.prune import residual as scoring
from slim.prune.budgets import Budget, Costs
from slim.prune.groups import Groups
from slim.trace.traced import trace

C = 7


def correlated(reader: Sequence[nn.Module], seed: int = 0) -> Any:
    """A BatchNorm whose channels depend on each other, and what reads it."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(C)
    model = nn.Sequential(nn.Conv2d(3, C, 3, padding=1), norm, nn.ReLU(), *reader).double().eval()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)  # so that ReLU leaves no channel dead
    return model


def missed(model: Any, images: Tensor, gone: list[int], norm: int = 1) -> float:
    """By least squares: the share of the variance of the 1×1 reader of a BatchNorm that is lost when others stand in
    for `gone`."""
    with torch.no_grad():
        x = model[: norm + 2](images).movedim(1, -1).reshape(-1, C)
        x = x - x.mean(0)
        y = x @ model[norm + 2].weight.flatten(1).T
        rest = x[:, [c for c in range(C) if c not in gone]]
        left = y - rest @ torch.linalg.lstsq(rest, y).solution
    return float(left.square().sum() / y.square().sum())


def by_layer(model: nn.Module, images: Tensor, budget: Budget | None = None) -> dict[str, NDArray[np.float64]]:
    """The residual score of each channel of each BatchNorm."""
    groups = Groups(trace(model, images[:1]), model)
    if budget is not None:
        groups.savings = budget.savings(Costs(groups))
    scores = slim.Residual(images)(groups)
    return dict(zip(groups.names, np.split(scores[groups.member], np.cumsum(groups.widths)[:-1])))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("gathered", [2, 64])
def test_costs_add_up_to_the_error_of_least_squares(
    gathered: int, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "GATHERED", gathered)
    monkeypatch.setattr(scoring, "RIDGE", 1e-12)
    more = [nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.ReLU()] * (layers - 1)
    model = correlated([*more, nn.Conv2d(C, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    images = torch.randn(30, 3, 6, 6, dtype=torch.float64)
    scores = {int(name): values for name, values in by_layer(model, images).items()}
    assert len(scores) == layers
    order = sorted(((n, c) for n in scores for c in range(C)), key=lambda place: scores[place[0]][place[1]])
    # the first is the cheapest of all, and so on; what has been missed so far is the sum of the scores
    gone: dict[int, list[int]] = {n: [] for n in scores}
    so_far = dict.fromkeys(scores, 0.0)
    last = 0.0
    for norm, channel in order[: layers * C - 2 * layers]:
        left = [(n, c) for n in scores for c in range(C) if c not in gone[n]]
        cheapest = min(missed(model, images, [*gone[n], c], n) - so_far[n] for n, c in left)
        gone[norm].append(channel)
        now, score = missed(model, images, gone[norm], norm), scores[norm][channel]
        assert now - so_far[norm] == pytest.approx(cheapest, rel=1e-4, abs=1e-9)
        assert now - so_far[norm] <= score + 1e-6
        if score > 1.001 * last:  # else it was raised to keep the order
            assert now - so_far[norm] == pytest.approx(score, rel=1e-3, abs=1e-7)
        so_far[norm], last = now, score


@pytest.mark.parametrize(
    "reader",
    [
        [nn.Conv2d(C, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.ConvTranspose2d(C, 5, 2, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, 4)],
    ],
    ids=["3×3", "transposed", "linear"],
)
def test_one_of_two_twins_goes(reader: list[nn.Module]) -> None:
    """Two equal channels with the largest γ: one can go for nothing, the other can't, whatever |γ| says."""
    model = correlated(reader)
    with torch.no_grad():
        model[1].weight[[2, 5]] = 3.0
        model[1].bias[[2, 5]] = 0.5
        model[0].weight[5] = model[0].weight[2]
        model[0].bias[5] = model[0].bias[2]
    images, other = torch.randn(2, 40, 3, 8, 8, dtype=torch.float64)
    plan = slim.plan(model, images[:1], ratio=1 / C, score=slim.Residual(images))
    assert plan.removed in ({"1": [2]}, {"1": [5]})
    assert set(slim.plan(model, images[:1], ratio=1 / C).removed["1"]).isdisjoint({2, 5})
    two = slim.plan(model, images[:1], ratio=2 / C, score=slim.Residual(images))
    assert not {2, 5} <= set(two.removed["1"])
    recovered = slim.recover(model, plan.apply(model), plan, images).model
    with torch.no_grad():
        assert (recovered(other) - model(other)).abs().max() < 1e-5 * model(other).abs().max()


def test_groups_share_a_score_and_nothing_changes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8))
            self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU())
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc(self.deep(x + self.grouped(x)).mean((2, 3)))

    torch.manual_seed(0)
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    images = torch.randn(20, 3, 8, 8)
    traced = trace(model, images[:1])
    scores = by_layer(model, images)
    assert scores.keys() == traced.norms.keys()
    by_class: dict[int, set[float]] = {}
    for bn, values in scores.items():
        for root, value in zip(traced.classes.roots(traced.norms[bn]).tolist(), values.tolist()):
            by_class.setdefault(root, set()).add(value)
    assert all(len(values) == 1 for values in by_class.values())
    assert len({next(iter(values)) for values in by_class.values()}) == len(by_class)  # an order without ties
    assert model.training and all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_flattened_map_is_read_like_a_large_kernel() -> None:
    """A linear layer over a map gives the scores of the convolution that does the same; no matrix of all its features
    is made."""
    torch.manual_seed(0)
    linear = correlated([nn.Flatten(), nn.Linear(C * 64, 4)])
    conv = correlated([nn.Conv2d(C, 4, 8), nn.Flatten()])
    with torch.no_grad():
        conv[3].weight.copy_(linear[4].weight.view(4, C, 8, 8))
        conv[3].bias.copy_(linear[4].bias)
    images = torch.randn(40, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(linear(images), conv(images))
    scores = [by_layer(model, images)["1"] for model in (linear, conv)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-9)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.randn(16, 2, 8, 8), "can't run on these images"),
        ("photo.jpg", "a str images: expected one batch"),
        (torch.full((4, 3, 8, 8), torch.nan), "image 0 has values that aren't finite"),
    ],
)
def test_mistakes_in_one_line(images: Tensor, said: str) -> None:
    model = correlated([nn.Conv2d(C, 5, 3)]).float()
    with pytest.raises(SlimError, match=said) as error:
        slim.plan(model, torch.randn(1, 3, 8, 8), score=slim.Residual(images))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("budget", [slim.Flops(0.5), slim.Params(0.5)])
def test_what_costs_more_is_worth_more(budget: Budget) -> None:
    """Two branches of which one does the same work twice over: a channel there is more expensive to keep."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
            self.large = nn.Sequential(nn.Conv2d(3, 6, 5, padding=2), nn.BatchNorm2d(6), nn.ReLU())
            self.fc = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.cat([self.small(x), self.large(x)], 1).mean((2, 3)))

    torch.manual_seed(0)
    model, images = Net(), torch.randn(64, 3, 8, 8)
    by_channel, by_cost = by_layer(model, images), by_layer(model, images, budget)
    groups = Groups(trace(model, images[:1]), model)
    saved = dict(zip(groups.roots.tolist(), budget.savings(Costs(groups))))
    for bn in ("small.1", "large.1"):  # removing one channel, measured on the thin network
        plan = slim.plan(model, images[:1], layer_ratios={bn: 1 / 6}, ratio=0.0, keep=())
        before, after = plan.totals[budget.total]
        expected = before - after
        assert saved[int(groups.labels[bn][0])] == pytest.approx(expected, rel=1e-6)
    ratio = {bn: by_channel[bn].min() / by_cost[bn].min() for bn in by_cost}
    assert ratio["large.1"] > 5 * ratio["small.1"]
