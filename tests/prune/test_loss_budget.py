"""A budget of a metric, against metrics whose best cut is known."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from digits_net import accuracy, digits, trained
from networks import randomise
from torch import nn

import slim
from slim.errors import NothingToPrune, SlimError

X = torch.randn(200, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    return randomise(model).eval()


def share_of(model: nn.Module) -> Callable[[nn.Module], float]:
    """A metric that is the share of the parameters that are left, and counts how often it was asked for."""
    whole = sum(p.numel() for p in model.parameters())

    def evaluate(other: nn.Module) -> float:
        evaluate.calls += 1  # type: ignore[attr-defined]
        return sum(p.numel() for p in other.parameters()) / whole

    evaluate.calls = 0  # type: ignore[attr-defined]
    return evaluate


@pytest.mark.parametrize("loss", [0.05, 0.3, 0.62, 0.9])
@pytest.mark.parametrize("sign", [1, -1])
def test_finds_the_largest_cut_in_a_dozen_evaluations(loss: float, sign: int) -> None:
    model = network()
    metric = share_of(model)
    budget = slim.Loss(loss, lambda m: sign * metric(m), by=slim.Params, larger_is_better=sign > 0)
    plan = slim.plan(model, X[:1], budget, round_to=1)
    before, after = plan.totals["params"]
    assert loss - 0.02 <= 1 - after / before <= loss
    assert plan.achieved["loss"] == pytest.approx(1 - after / before)
    assert plan.achieved["metric"] == pytest.approx(sign * after / before)
    assert plan.achieved["baseline"] == sign and plan.requested == {"loss": loss}
    assert metric.calls <= 12  # type: ignore[attr-defined]
    assert f"metric {sign} → {sign * after / before:.4g}" in plan.summary()
    again = slim.PruningPlan.from_dict(plan.to_dict())
    assert again.achieved == plan.achieved
    slim.verify(model, plan.apply(model), plan, X[:2])


def test_nothing_below_a_cut_that_lost_too_much() -> None:
    """A metric that is lucky at a tenth of the parameters: half of them were too few, so it isn't asked."""
    model = network()
    metric = share_of(model)

    def lucky(other: nn.Module) -> float:
        share = metric(other)
        return 1.0 if share > 0.6 or share < 0.2 else 0.0

    plan = slim.plan(model, X[:1], slim.Loss(0.01, lucky, by=slim.Params), round_to=1)
    before, after = plan.totals["params"]
    assert 0.6 < after / before < 0.63


def test_with_images_it_is_the_recovered_network_that_counts() -> None:
    model, images = trained(), digits()[0][:512]
    before = copy.deepcopy(model.state_dict())
    plain = slim.plan(model, images[:1], slim.Loss(0.1, accuracy))
    plan = slim.plan(model, images[:1], slim.Loss(0.1, accuracy, images))
    recovered = slim.recover(model, plan.apply(model), plan, images).model
    assert plan.achieved["metric"] == pytest.approx(accuracy(recovered))
    assert accuracy(model) - accuracy(recovered) <= 0.1
    assert plan.totals["flops"][1] < 0.7 * plain.totals["flops"][1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_another_share_may_be_bisected() -> None:
    model = network()
    plan = slim.plan(model, X[:1], slim.Loss(0.4, share_of(model), by=lambda share: slim.Channels(share)), round_to=1)
    assert 0.38 <= plan.achieved["loss"] <= 0.4


def constant(value: Any) -> Callable[[nn.Module], Any]:
    return lambda _: value


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: slim.Loss(-0.1, constant(1)), r"loss -0.1 is out of range"),
        (lambda: slim.Loss("a little", constant(1)), r"loss 'a little' is not a number"),  # type: ignore[arg-type]
        (lambda: slim.Loss(0.1), "expected a function of a network"),
        (lambda: slim.Loss(0.1, constant(1), evaluations=1), "evaluations 1: expected"),
        (lambda: slim.Loss(0.1, constant(None)), "evaluate returned None: expected a number"),
        (lambda: slim.Loss(0.1, constant(float("nan"))), "evaluate returned nan: expected a number"),
        (lambda: slim.Loss(0.1, constant(10**400)), "evaluate returned 1000"),
    ],
)
def test_mistakes(make: Any, said: str) -> None:
    with pytest.raises(SlimError, match=said):
        slim.plan(network(), X[:1], make(), round_to=1)


def test_where_any_cut_loses_too_much_it_says_so() -> None:
    model = network()
    whole = sum(p.numel() for p in model.parameters())
    with pytest.raises(NothingToPrune, match=r"loss 0.01 allows no cut that was tried"):
        slim.plan(
            model, X[:1], slim.Loss(0.01, lambda m: float(sum(p.numel() for p in m.parameters()) == whole)), round_to=1
        )


def test_where_nothing_can_go_it_says_what_was_tried() -> None:
    """Each share would remove nothing, so none is evaluated."""
    model = network()
    with pytest.raises(NothingToPrune) as error:
        slim.plan(model, X[:1], slim.Loss(0.01, constant(1)), floor=0.999, round_to=1)
    assert str(error.value) == "loss 0.01 allows no cut that was tried: the smallest keeps 0.0% and loses 0"


def test_the_smallest_cut_that_lost_too_much_is_told() -> None:
    model = network()
    whole = share_of(model)
    budget = slim.Loss(0.01, lambda m: 1.0 if whole(m) == 1 else 0.75 - 0.5 * whole(m), evaluations=2)
    with pytest.raises(NothingToPrune) as error:
        slim.plan(model, X[:1], budget, round_to=1)
    assert str(error.value).startswith("loss 0.01 allows no cut that was tried: the smallest keeps 50.0% and loses 0.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"asked": float("inf")}, "loss inf is not a finite number: expected one"),
        ({"asked": -1}, "loss -1 is out of range: expected what may be lost of the metric, such as 0.01"),
        ({"evaluate": 3}, "evaluate 3: expected a function of a network that returns its metric"),
        ({"evaluations": True}, "evaluations True: expected a whole number of at least 2"),
        ({"evaluations": 2.0}, "evaluations 2.0: expected a whole number of at least 2"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SlimError) as error:
        slim.Loss(**{"asked": 0.1, "evaluate": constant(1), **settings})
    assert str(error.value) == said


def test_what_a_loss_is() -> None:
    assert (slim.Loss(0, constant(1)).asked, slim.Loss(0.1, constant(1)).evaluations) == (0, 12)
    assert slim.Loss(0.1, constant(1), evaluations=2).evaluations == 2 and not slim.Loss(0.1, constant(1)).by_time
    with pytest.raises(SlimError, match=r"^a loss can't be reached in steps: expected Flops, Params or Channels$"):
        slim.Loss(0.1, constant(1)).part(0.5, 10)
    model = network()
    plan = slim.plan(model, X[:1], ratio=0.5, round_to=1)
    with pytest.raises(
        SlimError, match=r"^loss can't be planned after other plans: expected ratio, Channels, Flops or"
    ):
        slim.plan(plan.apply(model), X[:1], slim.Loss(0.1, constant(1)), after=[plan])
