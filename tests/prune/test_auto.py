"""`score="auto"`, the warning where γ say nothing, and ranking within kinds of layers."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from networks import randomise
from torch import Tensor, nn

import slim
from slim.errors import SlimError, SlimWarning
from slim.prune.choosing import structures
from slim.prune.groups import Groups
from slim.trace.traced import trace

X = torch.randn(8, 3, 12, 12)


def network(gamma: str = "as made", norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(16, 16, 3),
        nn.BatchNorm2d(16) if norm else nn.Identity(), nn.ReLU(), nn.Conv2d(16, 4, 3),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if gamma != "as made":
                nn.init.uniform_(module.weight, 0.4, 1.0)
            if gamma == "penalised":
                module.weight.data[::4] *= 1e-4
    return model.eval()


@pytest.mark.parametrize(
    ("model", "score", "ranked_by"),
    [
        (network("penalised"), slim.Auto(X), "Gamma: 25% of 32 γ are near zero"),
        (network("penalised"), "auto", "Gamma: 25% of 32 γ are near zero"),
        (network("trained"), slim.Auto(X), "Residual: 0% of 32 γ are near zero"),
        (network(), "auto", "Magnitude: all 32 γ are equal"),
        (network(norm=False), "auto", "Magnitude: the network has no γ"),
        (network(norm=False), slim.Auto(X), "Residual: the network has no γ"),
        (network("trained"), slim.Auto(X, penalised=True), "Gamma: a penalty has acted on γ"),
        (network("penalised"), slim.Auto(X, penalised=False), "Residual: a penalty has not acted on γ"),
        (network("penalised"), slim.Auto(penalised=False), "Magnitude: a penalty has not acted on γ"),
        (network(norm=False), slim.Auto(penalised=True), "Magnitude: the network has no γ"),
    ],
)
def test_auto_takes_what_suits_and_says_why(model: nn.Module, score: Any, ranked_by: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = slim.plan(model, X, ratio=0.25, score=score)
    assert plan.ranked_by == f"ranked by {ranked_by}"
    assert plan.ranked_by in str(plan)
    assert slim.PruningPlan.from_dict(plan.to_dict()).ranked_by == plan.ranked_by
    by_hand: dict[str, Any] = {
        "Gamma": slim.Gamma(),
        "Residual": slim.Residual(X),
        "Magnitude": slim.Magnitude(),
    }
    with warnings.catch_warnings(action="ignore"):
        expected = slim.plan(model, X, ratio=0.25, score=by_hand[ranked_by.partition(":")[0]])
    assert plan.removed == expected.removed


@pytest.mark.parametrize(
    ("gamma", "said"), [("as made", "all 32 γ are equal"), ("trained", "0% of 32 γ are near zero"), ("penalised", "")]
)
def test_plan_warns_where_gamma_says_little(gamma: str, said: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        slim.plan(network(gamma), X, ratio=0.25)
    ours = [str(warning.message) for warning in caught if warning.category is SlimWarning]
    assert len(ours) == bool(said)
    assert all(said in text and "\n" not in text for text in ours)


def test_another_word_is_an_error() -> None:
    with pytest.raises(SlimError, match=r"score 'atuo': expected .*'auto'"):
        slim.plan(network(), X, score="atuo")  # type: ignore[arg-type]


class Inverted(nn.Module):
    """A stem, and two blocks of expansion, depthwise convolution and projection to a stream."""

    def __init__(self) -> None:
        super().__init__()

        def block(wide: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(8, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(),
                nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU(),
                nn.Conv2d(wide, 8, 1), nn.BatchNorm2d(8),
            )  # fmt: skip

        self.stem = nn.Sequential(nn.Conv2d(3, 12, 5), nn.BatchNorm2d(12), nn.ReLU())
        self.into = nn.Sequential(nn.Conv2d(12, 8, 3), nn.BatchNorm2d(8))
        self.one, self.two = block(24), block(40)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(self.stem(x))
        x = x + self.one(x)
        x = x + self.two(x)
        return self.head(x.mean((2, 3)))


def test_each_kind_of_layer_loses_the_same_share() -> None:
    model = randomise(Inverted()).eval()
    with torch.no_grad():
        for name in ("one.1", "one.4", "two.1", "two.4"):  # small scales of all expansions, smaller ones of the first
            model.get_parameter(f"{name}.weight").mul_(1e-3 if name.startswith("two") else 1e-4)
    groups = Groups(trace(model, X), model)
    kinds = structures(groups)
    of_layer = {name: set(kinds[groups.member[groups.layer == i]]) for i, name in enumerate(groups.names)}
    assert all(len(kind) == 1 for kind in of_layer.values())
    assert of_layer["one.1"] == of_layer["one.4"] == of_layer["two.1"] == of_layer["two.4"]
    assert of_layer["into.1"] == of_layer["one.7"] == of_layer["two.7"]
    assert len({*of_layer["stem.1"], *of_layer["into.1"], *of_layer["one.1"]}) == 3
    plan = slim.plan(model, X, ratio=0.5, scope="isomorphic", floor=1, round_to=1)
    gone = {name: len(plan.removed.get(name, [])) for name in groups.names}
    assert gone["stem.1"] == 6 and gone["into.1"] == 4
    assert gone["one.1"] + gone["two.1"] == 32 and gone["one.1"] >= 20  # within the kind, the lowest go
    slim.verify(model, plan.apply(model), plan, X)
    assert np.isclose(plan.ratio_achieved, 0.5, atol=0.02)
