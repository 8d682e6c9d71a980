"""`slim.compress`: one call that does what the single ones do."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from digits_net import accuracy, batches, digits, trained
from torch import Tensor, nn

import slim
from slim.errors import SlimError

learnt = cache(trained)
X = digits()[0][:1]


def test_each_stage_is_measured_and_the_end_is_nearly_as_good_as_the_beginning() -> None:
    model = copy.deepcopy(learnt())
    made = slim.compress(model, X, slim.Flops(0.3), batches(), evaluate=accuracy, epochs=2)
    assert list(made.metrics) == list(made.seconds) == ["original", "pruned", "recovered", "fine-tuned"]
    assert made.metrics["original"] == accuracy(learnt()) and made.metrics["fine-tuned"] == accuracy(made.model)
    assert made.metrics["pruned"] < made.metrics["recovered"] - 0.1
    assert made.metrics["fine-tuned"] > made.metrics["original"] - 0.03
    before, after = made.plan.totals["flops"]
    assert after <= 0.3 * before and sum(p.numel() for p in made.model.parameters()) == made.plan.totals["params"][1]
    assert made.error < 1e-10
    images = torch.cat([batch for batch, _ in batches()])
    plan = slim.plan(model, X, slim.Flops(0.3), score=slim.Auto(images[:1024]))
    assert plan.removed == made.plan.removed
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), learnt().state_dict().values()))
    for word in (
        "original",
        "fine-tuned",
        "FLOPs",
        "ranked by Residual",
        "recovered by",
        f"{made.metrics['pruned']:.4g}",
    ):
        assert word in str(made)


def test_ones_own_finetuning_and_none() -> None:
    seen: list[nn.Module] = []

    def in_place(network: nn.Module) -> None:
        seen.append(network)
        next(network.parameters()).data.zero_()

    model = learnt()
    made = slim.compress(model, X, train_batches=batches()[:2], finetune=in_place)
    assert made.model is seen[0] and next(made.model.parameters()).abs().sum() == 0
    assert not made.metrics and "metric" not in str(made)
    other = slim.compress(model, X, train_batches=batches()[:2], finetune=copy.deepcopy)
    assert other.model is not other.recovery.model  # type: ignore[union-attr]
    none = slim.compress(model, X, slim.Params(0.5), train_batches=batches()[:2], finetune=False)
    assert list(none.seconds) == ["original", "pruned", "recovered"]
    bare = slim.compress(model, X, slim.Params(0.5), evaluate=accuracy)
    assert list(bare.metrics) == ["original", "pruned"]


def test_targets_that_are_numbers_and_a_loss_of_ones_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    images = digits()[0][:128]
    data = [(part, part.mean((2, 3)).expand(-1, 2).contiguous()) for part in images.split(32)]
    losses: list[float] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        losses.append(nn.functional.mse_loss(outputs, targets).item())
        return nn.functional.mse_loss(outputs, targets)

    slim.compress(model, X, train_batches=data, loss=loss, epochs=20)
    assert len(losses) == 80 and sum(losses[-4:]) < 0.5 * sum(losses[:4])
    plain = slim.compress(model, X, train_batches=data, epochs=1)
    assert "fine-tuned" in plain.seconds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0.5}, "budget 0.5: expected one such as"),
        ({"train_batches": []}, "there are no images"),
        (
            {"train_batches": batches()[:1], "loss": lambda o, t: o.sum() * float("nan")},
            "the loss is nan after 0 steps",
        ),
    ],
)
def test_mistakes(settings: Any, said: str) -> None:
    with pytest.raises(SlimError, match=said):
        slim.compress(learnt(), X, **settings)


@pytest.mark.parametrize("batches", [[torch.randn(8, 3, 8, 8)], torch.randn(8, 3, 8, 8)])
def test_images_without_targets_recover_and_tune_nothing(batches: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(16, 2)).eval()
    made = slim.compress(model, torch.randn(1, 3, 8, 8), slim.Channels(0.5), batches)
    assert list(made.seconds) == ["original", "pruned", "recovered"]
