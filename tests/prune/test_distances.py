"""How far outputs are apart, by what they mean, against torch.distributions and sums written out; and refinement."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from digits_net import accuracy, digits, trained
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

import slim
from slim.errors import SlimError
from slim.prune.recovery import distance as distances
from slim.prune.recovery.distance import Measure, distance

torch.manual_seed(0)
CLASSES, LABELS, VALUES, MAPS = (
    torch.randn(2, 9, *shape, dtype=torch.float64) for shape in ((4,), (5,), (3,), (4, 6, 6))
)
VALUES = VALUES * torch.tensor([1.0, 100.0, 0.01], dtype=torch.float64) + 7


class Table(nn.Module):
    """Returns a row of its table for each image, which is the row's number."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, number: Tensor) -> Tensor:
        return self.rows[number[:, 0].long()]


def apart(outputs: Tensor, measure: Measure) -> float:
    return distance(Table(outputs[0]), Table(outputs[1]), torch.arange(9.0)[:, None], measure).distance


def by_spread(outputs: Tensor) -> Tensor:
    return ((outputs[0] - outputs[1]) ** 2).mean(0).div(outputs[0].var(0, correction=0)).mean()


@pytest.mark.parametrize("at_once", [256, 4])
@pytest.mark.parametrize(
    ("outputs", "measure", "expected"),
    [
        (CLASSES, "classes", kl_divergence(*(Categorical(logits=x) for x in CLASSES)).mean()),
        (CLASSES, "auto", kl_divergence(*(Categorical(logits=x) for x in CLASSES)).mean()),
        (MAPS, "classes", kl_divergence(*(Categorical(logits=x.movedim(1, -1)) for x in MAPS)).mean()),
        (LABELS, "labels", kl_divergence(*(Bernoulli(logits=x) for x in LABELS)).sum(1).mean()),
        (VALUES, "values", by_spread(VALUES)),
        (MAPS, "values", by_spread(MAPS.movedim(2, -1).flatten(1, 3))),
        (MAPS, "auto", (MAPS[0] - MAPS[1]).square().sum() / MAPS[0].square().sum()),
        (CLASSES, "squared", (CLASSES[0] - CLASSES[1]).square().sum() / CLASSES[0].square().sum()),
        (VALUES, lambda a, b: (a - b).abs().max(1).values.mean(), (VALUES[0] - VALUES[1]).abs().max(1).values.mean()),
    ],
)
def test_against_the_definition(
    outputs: Tensor, measure: Measure, expected: Tensor, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "BATCH", at_once)
    assert apart(outputs, measure) == pytest.approx(float(expected), rel=1e-9)
    assert apart(torch.stack([outputs[0], outputs[0]]), measure) == pytest.approx(0, abs=1e-12)


def test_a_target_of_small_scale_counts_as_much_as_one_of_large_scale() -> None:
    """Off by its own spread in one target alone: the same whichever target it is."""
    off = []
    for target in range(3):
        other = VALUES[0].clone()
        other[:, target] += VALUES[0][:, target].std(correction=0)
        off.append(apart(torch.stack([VALUES[0], other]), "values"))
    assert off == pytest.approx([1 / 3] * 3)


def pruned(measure: Measure = "auto", steps: Any = 0, n: int = 1024) -> slim.Recovery:
    model, images = copy.deepcopy(learnt()), digits()[0][:n]
    plan = slim.plan(model, images[:1], slim.Flops(0.3), score=slim.Magnitude())
    found = slim.recover(model, plan.apply(model), plan, images, distance=measure, steps=steps)
    assert all(torch.equal(a, b) for a, b in zip(learnt().parameters(), model.parameters()))
    return found


learnt = cache(trained)


@pytest.mark.parametrize("measure", ["auto", "labels", "values"])
def test_refinement_comes_closer_than_regression(measure: Measure) -> None:
    refined = pruned(measure, steps=100)
    assert refined.chosen == "refinement"
    assert refined.distance["refinement"] < 0.9 * refined.distance["regression"] < 0.5 * refined.distance["none"]
    assert "recovered by refinement" in str(refined)
    assert all(p.requires_grad and p.grad is None for p in refined.model.parameters())
    assert accuracy(refined.model) > accuracy(learnt()) - 0.15
    plain = pruned(measure)
    assert plain.chosen == "regression"
    assert refined.distance["regression"] == pytest.approx(plain.distance["regression"], rel=1e-5)


def test_mistakes() -> None:
    with pytest.raises(SlimError, match="unknown distance 'valeus': did you mean 'values'"):
        pruned("valeus", n=16)  # type: ignore[arg-type]
    with pytest.raises(SlimError, match="steps -1: expected a whole number"):
        pruned(steps=-1, n=16)
