"""`slim.compress`: one call that does what the single ones do."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from deploy.made_up import MadeUp
from digits_net import accuracy, batches, digits, trained
from torch import Tensor, nn

import slim
from slim import compression
from slim.deploy import guard
from slim.deploy.guard import Compared
from slim.errors import SlimError

pytestmark = pytest.mark.usefixtures("in_place_of_onnxruntime")
learnt = cache(trained)
X = digits()[0][:1]


def test_each_stage_is_measured_and_the_end_is_nearly_as_good_as_the_beginning() -> None:
    model = copy.deepcopy(learnt())
    made = slim.compress(model, X, slim.Flops(0.3), batches(), evaluate=accuracy, epochs=2, round_to=None)
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


def test_the_network_is_timed_and_faster_by_default(in_place_of_onnxruntime: MadeUp) -> None:
    model, machine = learnt(), in_place_of_onnxruntime
    made = slim.compress(model, X, slim.Flops(0.5), finetune=False)
    for each, batch in zip(made.compared, (1, 32, 1, 32), strict=True):  # on one thread, and on all
        assert each.setting.endswith(f"batch {batch}")
        truth = machine.ms(model, X, batch) / machine.ms(made.model, X, batch)
        assert each.speedup == pytest.approx(truth, rel=1e-3) and truth > 1
    expected = slim.plan(
        model, X, slim.Flops(0.5), score="auto", round_to=slim.Runtimes([slim.Runtime(machine, b) for b in (1, 32)])
    )
    assert made.plan.removed == expected.removed and not made.notes
    assert "faster than the unpruned network in all 4 settings" in str(made)


def test_a_plan_by_which_it_is_slower_is_revised_unless_sizes_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_unless_wide(plan: slim.PruningPlan) -> list[Compared]:
        speedup = 1.5 if plan.rounding == "layers keep a multiple of 4" else 0.5
        return [Compared("here", speedup, speedup, speedup)]

    monkeypatch.setattr(compression, "against", lambda *_: slow_unless_wide)
    monkeypatch.setattr(guard, "WIDER", (4, 8))  # the network is small
    model = learnt()
    made = slim.compress(model, X, slim.Flops(0.5), finetune=False)
    assert made.plan.removed == slim.plan(model, X, slim.Flops(0.5), score="auto", round_to=4).removed
    assert [each.speedup for each in made.compared] == [1.5]
    assert "layers keep a multiple of 4 in its place" in str(made)
    for round_to in (1, None):
        given = slim.compress(model, X, slim.Flops(0.5), finetune=False, round_to=round_to)
        assert given.plan.removed == slim.plan(model, X, slim.Flops(0.5), score="auto", round_to=round_to).removed
        assert not given.compared
    by_time = slim.compress(model, X, slim.Latency(0.6), finetune=False)
    assert not by_time.compared and "share" in by_time.plan.timing  # it has measured networks itself


def test_without_onnxruntime_multiples_of_8_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise SlimError("onnxruntime isn't installed: expected pip install")

    monkeypatch.setattr(compression, "usual_runtimes", missing)
    made = slim.compress(learnt(), X, slim.Flops(0.6), finetune=False)
    assert made.plan.removed == slim.plan(learnt(), X, slim.Flops(0.6), score="auto").removed
    assert "onnxruntime isn't installed" in str(made)


def test_ones_own_finetuning_and_none() -> None:
    seen: list[nn.Module] = []

    def in_place(network: nn.Module) -> None:
        seen.append(network)
        next(network.parameters()).data.zero_()

    model = learnt()
    made = slim.compress(model, X, train_batches=batches()[:2], finetune=in_place)
    assert made.model is seen[0] and next(made.model.parameters()).abs().sum() == 0
    assert not made.metrics and "metric" not in str(made)
    for tune in (copy.deepcopy, lambda network: (copy.deepcopy(network), [0.3, 0.2])):
        other = slim.compress(model, X, train_batches=batches()[:2], finetune=tune)
        assert other.model is not other.recovery.model  # type: ignore[union-attr]
    told = slim.compress(model, X, train_batches=batches()[:2], finetune=lambda network: [in_place(network), 0.3])  # type: ignore[func-returns-value]
    assert told.model is seen[1]
    none = slim.compress(model, X, slim.Params(0.5), train_batches=iter(batches()[:2]), finetune=False)
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
    losses = losses[1:]  # of a trial before the work
    assert len(losses) == 80 and sum(losses[-4:]) < 0.5 * sum(losses[:4])
    plain = slim.compress(model, X, train_batches=data, epochs=1)
    assert "fine-tuned" in plain.seconds


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"budget": 0.5}, "budget 0.5: expected one such as"),
        ({"train_batches": []}, "there are no images"),
        ({"evaluate": lambda _: {"accuracy": 1}}, "evaluate returned {'accuracy': 1}: expected a number"),
        (
            {"train_batches": batches()[:1], "loss": lambda o, t: o.sum() * float("nan")},
            "the loss is nan after 0 steps",
        ),
        ({"budget": batches()}, r"budget \[\(tensor.{50,55}: expected one such as"),
        ({"evaluate": 0.5}, "evaluate 0.5: expected a function"),
        ({"finetune": True}, "finetune True: expected a function"),
        ({"train_batches": iter(batches())}, "a list_iterator, which ends after it was gone through once"),
        ({"train_batches": batches(), "epochs": 0}, "epochs 0: expected a whole number of at least 1"),
        ({"train_batches": batches(), "loss": lambda o, t: 1.0}, "the loss is float: expected a tensor of one"),
        ({"train_batches": batches(), "loss": lambda o, t: o}, r"the loss is \[64, 10\]: expected a tensor of one"),
        ({"train_batches": batches(), "loss": lambda o, t: t / "a"}, r"outputs \[64, 10\] and targets \[64\] have no"),
        ({"train_batches": [(x, y[:3]) for x, y in batches()]}, r"and targets \[3\] have no such loss \(ValueError"),
        ({"train_batches": [(x, y.tolist()) for x, y in batches()]}, "targets of type list have no loss by default"),
    ],
)
def test_mistakes(settings: Any, said: str) -> None:
    with pytest.raises(SlimError, match=said):
        slim.compress(learnt(), X, **settings)


def not_reached(network: nn.Module) -> float:
    raise AssertionError("work has begun")


def test_what_is_wrong_is_said_before_the_work() -> None:
    with pytest.raises(SlimError, match=r"no parameter takes a gradient: expected model\.requires_grad_"):
        slim.compress(copy.deepcopy(learnt()).requires_grad_(False), X, train_batches=batches())
    with pytest.raises(SlimError, match="and targets"):
        slim.compress(learnt(), X, train_batches=[(x, y + 5) for x, y in batches()], evaluate=not_reached)


def test_batches_as_others_have_them() -> None:
    """Arrays of numpy's, labels of 32 bits, no gradients around the call: all the same."""
    weights = []
    for data in (batches()[:2], [(x.numpy(), y.int().numpy()) for x, y in batches()[:2]]):
        with torch.no_grad():
            made = slim.compress(learnt(), X, slim.Flops(0.5), data, epochs=1, round_to=None)
        weights.append(next(made.model.parameters()))
    assert torch.equal(*weights)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(trained(1).children())[:-1])
        self.last = nn.Linear(33, 10)

    def forward(self, images: Tensor, more: Tensor) -> Tensor:
        return self.last(torch.cat([self.features(images), more], 1))


def test_several_inputs_as_a_loader_gives_them() -> None:
    images, labels, _, _ = digits()
    samples = [((image, torch.ones(1)), label) for image, label in zip(images[:64], labels)]
    loader: Any = torch.utils.data.DataLoader(samples, 32)  # type: ignore[arg-type]
    made = slim.compress(TwoInputs().eval(), (X, torch.ones(1, 1)), slim.Flops(0.5), loader, epochs=1, round_to=None)
    assert list(made.seconds) == ["original", "pruned", "recovered", "fine-tuned"]


@pytest.mark.parametrize("batches", [[torch.randn(8, 3, 8, 8)], torch.randn(8, 3, 8, 8)])
def test_images_without_targets_recover_and_tune_nothing(batches: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(16, 2)).eval()
    made = slim.compress(model, torch.randn(1, 3, 8, 8), slim.Channels(0.5), batches)
    assert list(made.seconds) == ["original", "pruned", "recovered"]
