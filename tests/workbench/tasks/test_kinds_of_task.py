"""Multi-label, regression and segmentation, against sums written out and on rendered shapes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor, nn

from slim.errors import SlimError
from slim.images import ImageSpec
from slim.prune.budgets import Ratio
from slim.workbench import models, tasks
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Dataset, Split, batches, spec_of
from slim.workbench.data.shapes import CLASSES, Shapes, render_shapes
from slim.workbench.tasks import MultiLabel, Regression, Segmentation, Task
from slim.workbench.train import Callbacks, Distillation, evaluate, fit
from slim.workbench.train.gradual import Pruning

ON_CPU = ComputeConfig(device="cpu", precision="32-true")


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return render_shapes(1240, size=24)


# The truth of the shapes


def test_shapes_are_what_their_maps_say(shapes: Shapes) -> None:
    """A seed gives the same images; pixels of one shape have one colour but for noise; nothing is out of range."""
    again = render_shapes(1240, size=24)
    assert torch.equal(shapes.images, again.images) and not torch.equal(
        shapes.maps, render_shapes(1240, 24, seed=1).maps
    )
    assert shapes.maps.unique().tolist() == [0, 1, 2, 3] and shapes.images.dtype == torch.uint8
    one = next(i for i in range(1240) if (shapes.maps[i] > 0).sum() > 40 and len(shapes.maps[i].unique()) == 2)
    inside = shapes.images[one].float()[:, shapes.maps[one] > 0]
    assert inside.std(1).max() < 40 < shapes.images.float().std()
    assert shapes.presence.shape == (1240, 3) and shapes.presence.sum(1).min() >= 1
    assert torch.equal(shapes.coverage, 100 * (shapes.maps > 0).double().mean((1, 2)).float())


def test_maps_move_with_their_images(shapes: Shapes) -> None:
    """An image that shows its own map stays one, however it is cropped and mirrored; outside it, nothing counts."""
    painted = (60 * shapes.maps[:, None]).to(torch.uint8)
    split = Split(painted, shapes.maps)
    data = Dataset("painted", ImageSpec((1, 24, 24), CLASSES, (0.0,), (1 / 255,)), split, split, split, "crop+flip")
    moved = 0
    for images, maps in batches(data.train, data, 62, shuffle_seed=3, augment=True):
        counted = maps != 255
        assert torch.equal((images[:, 0] / 60).round()[counted], maps[counted].float())
        assert not images[:, 0][~counted].any()
        moved += int((~counted).any())
    assert moved == 20
    turned = Dataset("painted", data.spec, split, split, split, "randaugment")
    with pytest.raises(SlimError, match="randaugment would move images without their maps: expected crop, flip"):
        next(batches(turned.train, turned, 62, shuffle_seed=3, augment=True))


# What they add up


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def over_batches(task: Task, outputs: Tensor, targets: Tensor) -> float:
    """The metric from three unequal batches."""
    parts = zip(outputs.split([1, 3, len(outputs) - 4]), targets.split([1, 3, len(outputs) - 4]))
    return task.value(torch.stack([task.tally(some, wanted) for some, wanted in parts]).sum(0))


def test_multilabel_against_scikit_learn() -> None:
    outputs, targets = random(20, 4), (random(20, 4, seed=1) > 0.5).float()
    expected = f1_score(targets.numpy(), (outputs > 0).numpy(), average="micro")
    assert over_batches(MultiLabel(4), outputs, targets) == pytest.approx(expected)
    by_hand = -(targets * outputs.sigmoid().log() + (1 - targets) * (1 - outputs.sigmoid()).log()).mean()
    torch.testing.assert_close(MultiLabel(4).loss(outputs, targets), by_hand)
    assert MultiLabel().value(torch.zeros(2)) == 1


def test_segmentation_against_scikit_learn() -> None:
    outputs, targets = random(9, 4, 5, 6), torch.randint(3, (9, 5, 6), generator=torch.Generator().manual_seed(1))
    outputs[:, 3] -= 100  # a class that is neither there nor found
    targets[:, 0] = 255
    found, wanted = outputs.argmax(1)[:, 1:].flatten(), targets[:, 1:].flatten()
    expected = jaccard_score(wanted.numpy(), found.numpy(), average="macro")
    assert over_batches(Segmentation(4), outputs, targets) == pytest.approx(expected)
    counted = F.cross_entropy(outputs[:, :, 1:], targets[:, 1:])
    torch.testing.assert_close(Segmentation(4).loss(outputs, targets), counted)


@pytest.mark.parametrize(
    "as_given",
    [torch.Tensor.int, lambda maps: maps[:, None].byte(), lambda maps: maps.where(maps != 255, -100)],
    ids=["int32", "bytes with a channel", "ignored below 0"],
)
def test_maps_of_every_kind_mean_the_same(as_given: Callable[[Tensor], Tensor]) -> None:
    outputs, targets = random(9, 4, 5, 6), torch.randint(3, (9, 5, 6), generator=torch.Generator().manual_seed(1))
    targets[:, 0] = 255
    task = Segmentation(4)
    task.check(outputs, as_given(targets))
    assert torch.equal(task.loss(outputs, targets), task.loss(outputs, as_given(targets)))
    assert torch.equal(task.tally(outputs, targets), task.tally(outputs, as_given(targets)))
    assert task.loss(outputs, torch.full_like(targets, 255)) == 0


def test_segmentation_scales_and_weighs_what_torchvisions_networks_give() -> None:
    small, targets = random(2, 3, 4, 4), torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    large = F.interpolate(small, size=(8, 8), mode="bilinear")
    task = Segmentation(3)
    both = task.loss({"out": small, "aux": small * 2}, targets)
    torch.testing.assert_close(both, F.cross_entropy(large, targets) + 0.5 * F.cross_entropy(2 * large, targets))
    assert torch.equal(task.tally({"out": small}, targets), task.tally(large, targets))


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3)])
def test_regression(shape: tuple[int, ...]) -> None:
    outputs, targets = random(20, *(shape[1:] or (1,))), random(*shape, seed=1)
    error = outputs.reshape(shape) - targets
    assert over_batches(Regression(), outputs, targets) == pytest.approx(float(error.abs().mean()), rel=1e-6)
    torch.testing.assert_close(Regression().loss(outputs, targets), error.square().mean())


@pytest.mark.parametrize(
    ("task", "shape"), [(MultiLabel(3), (4, 3)), (Segmentation(3), (4, 3, 5, 5)), (Regression(), (4, 1))], ids=str
)
def test_distillation_is_least_at_the_teacher(task: Task, shape: tuple[int, ...]) -> None:
    teacher, student = random(*shape), random(*shape, seed=1).requires_grad_()
    loss = task.distillation(student, teacher, 2.0)
    assert loss > 0.01 and float(task.distillation(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, student)
    assert task.distillation(student - 0.1 * gradient, teacher, 2.0) < loss


@pytest.mark.parametrize(
    ("task", "outputs", "targets", "message"),
    [
        (MultiLabel(), random(4, 3), torch.zeros(4, 2), r"shape \[4, 3\] for targets, float32 \[4, 2\]: expected one"),
        (MultiLabel(), random(4, 3), [torch.zeros(4)] * 3, r"for targets, a list of float32 \[4\] and"),
        (Regression(), random(4, 3), {"x": torch.zeros(4)}, r"the targets are a dict of float32 \[4\]: expected num"),
        (Regression(), random(4, 3), torch.zeros(4, 2), r"is \[4, 3\] for targets \[4, 2\]: expected as many"),
        (Regression(), {"a": 1}, torch.zeros(4, 2), r"is dict for targets"),
        (Segmentation(3), random(4, 3), torch.zeros(4, 2, 2), r"is \[4, 3\]: expected \[N, 3, height, width\]"),
        (Segmentation(), random(4, 3, 2, 2), torch.zeros(4), r"targets are float32 \[4\]: expected maps"),
        (Segmentation(), random(4, 3, 2, 2), torch.zeros(4, 2, 2), r"targets are float32 \[4, 2, 2\]: expected maps"),
        (Segmentation(5), random(4, 3, 2, 2), torch.zeros(4, 2, 2), r"expected \[N, 5, height, width\]"),
    ],
)
def test_what_does_not_fit_is_named(task: Task, outputs: Any, targets: Tensor, message: str) -> None:
    with pytest.raises(SlimError, match=message):
        task.check(outputs, targets)


# Trained, pruned on the way, and evaluated


def labelled(shapes: Shapes, targets: Tensor, task: str) -> Dataset:
    whole = Split(shapes.images, targets)
    made = tasks.build_task(task, classes=4 if task == "segmentation" else 3)
    spec = spec_of(whole[:1000], None, 1000)
    return Dataset("shapes", spec, whole[:1000], whole[1000:1040], whole[1040:], batch_size=20, task=made)


def classifier(outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 12), (12, 24)):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(24 * 9, outputs))


def unet() -> nn.Module:
    return models.build("slim:unet", num_classes=4, width=8, depth=2)


def thirds(shapes: Shapes) -> Tensor:
    """Which thirds of an image have shapes on a quarter of it: left, middle, right."""
    return torch.stack([(part > 0).flatten(1).float().mean(1) > 0.25 for part in shapes.maps.chunk(3, 2)], 1).float()


# Targets, network, metric, and how much better it must be than the best answer without a look at the image
KINDS: dict[str, tuple[Callable[[Shapes], Tensor], Callable[[], nn.Module], str, float]] = {
    "multilabel": (thirds, lambda: classifier(3), "f1", 0.15),
    "regression": (lambda s: s.coverage / 10, lambda: classifier(1), "mae", -0.1),
    "segmentation": (lambda s: s.maps, unet, "mean_iou", 0.08),
}


def blind(task: str, targets: Tensor) -> float:
    """The metric of the best answer without a look at the image."""
    if task == "multilabel":
        return float(f1_score(targets.numpy(), torch.ones_like(targets).numpy(), average="micro"))
    if task == "regression":
        return float((targets - targets.median()).abs().mean())
    return float((targets == 0).double().mean() / 4)


@pytest.mark.parametrize("task", KINDS)
def test_each_is_learned_and_pruned(task: str, shapes: Shapes) -> None:
    targets, build, metric, margin = KINDS[task]
    data = labelled(shapes, targets(shapes), task)
    torch.manual_seed(0)
    model, plans = build(), []
    optim = (
        OptimConfig(epochs=5, lr=0.1) if task == "segmentation" else OptimConfig(epochs=5, optimizer="adamw", lr=0.01)
    )
    records = fit(
        model,
        data,
        optim,
        compute=ON_CPU,
        sparsity=SparsityConfig(strength=1e-3, gradual=2),
        pruning=Pruning(Ratio(0.3)),
        callbacks=Callbacks(on_prune=lambda step, plan: plans.append(plan)),
    )
    better = data.task.metric.is_better
    assert len(plans) == 2 and records[-1]["channels"] < 0.75 * records[0]["channels"]
    found, without_looking = evaluate(model, data.test, data, compute=ON_CPU)[metric], blind(task, data.test.labels)
    assert better(found, than=without_looking + margin), (found, without_looking)
    student = build()
    fit(student, data, replace(optim, epochs=1), compute=ON_CPU, distillation=Distillation(model))
