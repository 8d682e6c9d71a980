"""Optimizers, schedules, averages and losses, against closed forms, torch's own, and loops written out."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.errors import SlimError
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Dataset
from slim.workbench.tasks.classification import Classification, distillation
from slim.workbench.train import Callbacks, Distillation, fit, learning_rate
from slim.workbench.train.average import Average
from slim.workbench.train.recipe import Objective, optimizer_of

ON_CPU = ComputeConfig(device="cpu", precision="32-true")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))


@pytest.mark.parametrize(("steps", "warmup"), [(40, 0.3), (1000, 0.3), (200, 0.05)])
def test_onecycle_is_torchs(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, steps, pct_start=warmup, cycle_momentum=False)
    optim = OptimConfig(lr=0.3, schedule="onecycle", warmup=warmup)
    for step in range(steps):
        assert learning_rate(optim, step, steps) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9, abs=1e-12)
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_onecycle_without_a_rise_only_falls() -> None:
    rates = [learning_rate(OptimConfig(lr=1.0, schedule="onecycle", warmup=0.0), step, 10) for step in range(10)]
    assert rates[0] == 1.0 and rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(1 / 250_000)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_follow_their_equations(name: str) -> None:
    """One weight, three steps, by the update rules as published."""
    layer = nn.Linear(1, 1, bias=False)
    optimizer = optimizer_of(layer, OptimConfig(optimizer=name, lr=0.1, momentum=0.8, weight_decay=0.01))  # type: ignore[arg-type]
    m = v = 0.0
    x = w = float(layer.weight.detach())
    for step, gradient in enumerate((0.5, -1.0, 2.0), start=1):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
        if name == "sgd":
            gradient += 0.01 * w
            m = 0.8 * m + gradient
            w -= 0.1 * (gradient + 0.8 * m)
            continue
        if name == "adamw":
            w -= 0.1 * 0.01 * w
        else:
            gradient += 0.01 * w
        m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.8**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    assert float(layer.weight.detach()) == pytest.approx(w, rel=1e-5) and w != x


def test_the_average_is_the_weighted_sum_of_all_states() -> None:
    layer = nn.BatchNorm1d(2)
    average = Average(layer, 0.3)
    values = [1.0, 5.0, -2.0, 4.0, 7.0]
    for step, value in enumerate(values[1:], start=1):
        with torch.no_grad():
            layer.weight.fill_(value)
            layer.running_mean.fill_(10 * value)  # type: ignore[union-attr]
        average.weigh(step)
        average.update()
    decays = [min(0.3, (1 + step) / (10 + step)) for step in range(1, 5)]
    assert decays[0] < decays[1] < decays[2] == decays[3] == 0.3
    expected = sum(
        value * (1 - decay) * math.prod(decays[index + 1 :])
        for index, (value, decay) in enumerate(zip(values, [0.0, *decays]), start=-1)
    )
    with average.in_place():
        assert float(layer.weight[0]) == pytest.approx(expected, rel=1e-6)
        assert float(layer.running_mean[1]) == pytest.approx(expected * 10 - 10 * math.prod(decays), rel=1e-5)  # type: ignore[index]
    assert float(layer.weight[0]) == 7.0


def test_the_average_is_what_remains(digits: Dataset) -> None:
    """Of two steps on the whole set, the average that is left, from networks trained for one and for two."""
    optim = OptimConfig(epochs=2, schedule="constant", warmup=0.0, lr=0.01)
    states = [network().state_dict()]
    for epochs in (1, 2):
        model = network()
        fit(model, replace(digits, batch_size=512), replace(optim, epochs=epochs), compute=ON_CPU)
        states.append(model.state_dict())
    model = network()
    fit(model, replace(digits, batch_size=512), replace(optim, ema=0.25), compute=ON_CPU)
    first, second = 2 / 11, 3 / 12
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            after_one = first * states[0][name] + (1 - first) * states[1][name]
            torch.testing.assert_close(tensor, second * after_one + (1 - second) * states[2][name])


def test_distillation_against_sums_over_classes() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    p, q = (t.div(3).exp() / t.div(3).exp().sum(1, keepdim=True) for t in (teacher, student))
    by_hand = 9 * (p * (p / q).log()).sum() / 6
    loss = distillation(student, teacher, 3.0)
    torch.testing.assert_close(loss, by_hand)
    loss.backward()
    torch.testing.assert_close(student.grad, 3 * (q - p).detach() / 6)  # Hinton et al., equation 2, times T²
    assert float(distillation(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-6)


def test_the_objective_weighs_labels_and_teacher() -> None:
    torch.manual_seed(0)
    images, scores, labels = torch.randn(4, 7), torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    teacher = nn.Linear(7, 3)
    mixed = Objective(Classification(3, 0.1), Distillation(teacher, 0.3, 2.0))(images, scores, labels)
    expected = 0.7 * F.cross_entropy(scores, labels, label_smoothing=0.1) + 0.3 * distillation(
        scores, teacher(images), 2.0
    )
    torch.testing.assert_close(mixed, expected)
    alone = Objective(Classification(3, 0.1))(images, scores, labels)
    torch.testing.assert_close(alone, F.cross_entropy(scores, labels, label_smoothing=0.1))


def test_a_student_of_itself_stays(digits: Dataset) -> None:
    """With all weight on a teacher that is the network itself, in evaluation mode on both sides, nothing is learned;
    with a teacher of other labels, those are."""
    model, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in "12")
    teacher.load_state_dict(model.state_dict())
    weight = model.get_parameter("1.weight")
    before = weight.detach().clone()
    optim = OptimConfig(epochs=1, weight_decay=0.0, lr=0.5)
    fit(model, digits, optim, compute=ON_CPU, distillation=Distillation(teacher, 1.0))
    torch.testing.assert_close(weight, before, atol=1e-5, rtol=0)
    fit(model, digits, optim, compute=ON_CPU, distillation=Distillation(teacher, 0.5))
    assert float((weight.detach() - before).abs().max()) > 0.01


def test_mixing_keeps_each_images_share_in_its_label() -> None:
    torch.manual_seed(0)
    images = torch.eye(6)[:, :, None, None].expand(6, 6, 8, 8).contiguous()  # channel i marks image i
    labels = torch.arange(6)
    for optim in (OptimConfig(mixup=0.4), OptimConfig(cutmix=1.0), OptimConfig(mixup=0.4, cutmix=1.0)):
        mix = Classification(6).mixing(optim)
        assert mix is not None
        changed = 0
        for _ in range(5):
            mixed, shares = mix(images, labels)
            torch.testing.assert_close(mixed.mean((2, 3)), shares, atol=1e-5, rtol=0)
            changed += int((shares.max(1).values < 0.999).any())
        assert changed >= 2
    assert Classification(6).mixing(OptimConfig()) is None


def test_clipping_bounds_the_step(digits: Dataset) -> None:
    """With plain SGD a step is lr times the gradient, which is at most `clip_norm` long."""
    moved = {}
    for clip in (0.0, 0.01):
        model = network()
        optim = OptimConfig(
            epochs=1, lr=1.0, warmup=0.0, schedule="constant", momentum=0.0, weight_decay=0.0, clip_norm=clip
        )
        fit(model, replace(digits, batch_size=512), optim, compute=ON_CPU)
        change = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), network().parameters())])
        moved[clip] = float(change.detach().norm())
    assert moved[0.01] == pytest.approx(0.01, rel=1e-3) and moved[0.0] > 0.1


def test_accumulated_parts_are_the_whole(digits: Dataset) -> None:
    """Without BatchNorm, which sees the parts, they only round differently; also where they aren't equal."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    models = {}
    for parts in (1, 3):
        models[parts] = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        models[parts].load_state_dict(first.state_dict())
        records = fit(models[parts], digits, OptimConfig(epochs=1), compute=replace(ON_CPU, accumulate=parts))
        assert records[0]["images"] == 512
    for a, b in zip(models[1].parameters(), models[3].parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_early_stopping_goes_back_to_the_best(digits: Dataset) -> None:
    class Spoiled(nn.Module):
        """Says the same of all images from the third epoch on, in evaluation."""

        def __init__(self) -> None:
            super().__init__()
            self.net = network()
            self.steps: Tensor
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, images: Tensor) -> Tensor:
            if self.training:
                self.steps += 1
            out = self.net(images)
            return out * 0 + torch.arange(10.0) if not self.training and self.steps > 16 else out

    model = Spoiled()
    records = fit(model, digits, OptimConfig(epochs=9, patience=2), compute=ON_CPU)
    assert len(records) in (3, 4)  # the best is epoch 1 or 2
    best = max(records, key=lambda r: (r["val_accuracy"], -r["epoch"]))["epoch"]
    assert len(records) == best + 2 and int(model.steps) == 8 * best
    assert (
        len(fit(network(), digits, OptimConfig(epochs=4, patience=1), compute=ON_CPU, sparsity=SparsityConfig())) == 4
    )
    empty = replace(digits, val=digits.val[:0])
    with pytest.raises(SlimError, match="no image is held out"):
        fit(network(), empty, OptimConfig(epochs=1, patience=1), compute=ON_CPU)


def test_tensorboard_holds_scalars_histograms_and_text(tmp_path: Path, digits: Dataset) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from slim.workbench.train import TensorBoard

    model, board = network(), TensorBoard(tmp_path)
    records = fit(
        model,
        digits,
        OptimConfig(epochs=2),
        compute=ON_CPU,
        callbacks=Callbacks(on_epoch=lambda record: board.epoch(record, model)),
    )
    board.text("plan", "a table")
    board.close()
    found = events.EventAccumulator(str(tmp_path))
    found.Reload()
    losses = [(event.step, event.value) for event in found.Scalars("train_loss")]
    assert losses == [(r["epoch"], pytest.approx(r["train_loss"], rel=1e-6)) for r in records]
    histogram = found.Histograms("gamma/1")[-1].histogram_value
    assert histogram.num == 8 and histogram.sum == pytest.approx(
        float(model.get_parameter("1.weight").abs().sum()), rel=1e-5
    )
    assert b"a table" in found.Tensors("plan/text_summary")[0].tensor_proto.string_val[0]
