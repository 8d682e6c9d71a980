"""One convention for images wherever slim takes them."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import slim
from slim.batches import as_one, first_batch, in_batches
from slim.errors import SlimError

IMAGES = torch.arange(48 * 3 * 36, dtype=torch.float32).reshape(48, 3, 6, 6).sin()
LABELS = torch.arange(48) % 4

FORMS: dict[str, Callable[[], Any]] = {
    "a tensor": lambda: IMAGES,
    "a list of batches": lambda: list(IMAGES.split(16)),
    "a generator": lambda: (batch for batch in IMAGES.split(20)),
    "a DataLoader with labels": lambda: DataLoader(TensorDataset(IMAGES, LABELS), 16),
    "a DataLoader without": lambda: DataLoader(TensorDataset(IMAGES), 16),
    "numpy's": lambda: [(batch.double().numpy(), None) for batch in IMAGES.split(12)],
    "pairs": lambda: [(batch, None) for batch in IMAGES.split(12)],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_means_the_same_images(form: str) -> None:
    assert torch.equal(torch.cat(list(in_batches(FORMS[form]()))), IMAGES)
    assert torch.equal(as_one(FORMS[form](), 1000), IMAGES)
    first = first_batch(FORMS[form]())
    assert torch.equal(first, IMAGES[: len(first)]) and len(first) >= 12


def test_inputs_of_several_parts_join() -> None:
    both = [{"a": IMAGES[:8], "b": (LABELS[:8],)}, {"a": IMAGES[8:], "b": (LABELS[8:],)}]
    joined = as_one(both, 1000)
    assert torch.equal(joined["a"], IMAGES) and torch.equal(joined["b"][0], LABELS)
    assert as_one((IMAGES, LABELS), 1)[1] is LABELS  # a tuple alone is a batch
    assert len(as_one(list(IMAGES.split(16)), 20)) == 32


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "there are no images"),
        (3, "of type int: expected a tensor, or batches"),
        ([IMAGES, IMAGES[..., :4]], "don't join"),
        ([()], "a batch of images is empty"),
        ([IMAGES, []], "a batch of images is empty"),
    ],
)
def test_what_is_no_images_is_refused(images: Any, message: str) -> None:
    with pytest.raises(SlimError, match=message):
        as_one(images, 1000)


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "conv": nn.Conv2d(3, 16, 3),
        "norm": nn.BatchNorm2d(16),
        "relu": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
    }
    return nn.Sequential(OrderedDict(layers | {"flat": nn.Flatten(), "out": nn.Linear(16, 4)})).eval()


@pytest.mark.parametrize("form", ["a list of batches", "a DataLoader with labels"])
def test_scores_recovery_and_export_take_them_all(form: str, tmp_path: Path) -> None:
    """They give what they give for the same images in one tensor."""
    model, some = network(), IMAGES[:1]

    def planned(images: Any) -> slim.PruningPlan:
        return slim.plan(model, some, ratio=0.5, score=slim.Residual(images))

    plan = planned(IMAGES)
    assert planned(FORMS[form]()).to_dict() == plan.to_dict()
    thin = plan.apply(model)

    def weights(images: Any) -> Tensor:
        return slim.recover(model, thin, plan, images).model.get_parameter("out.weight")

    assert torch.equal(weights(FORMS[form]()), weights(IMAGES))
    pytest.importorskip("onnx")
    slim.export_onnx(thin, FORMS[form](), tmp_path / "thin.onnx")
    batches = FORMS[form]()
    made = slim.quantize_onnx(tmp_path / "thin.onnx", tmp_path / "int8.onnx", batches, [(IMAGES, None)], max_loss=1.0)
    again = slim.quantize_onnx(tmp_path / "thin.onnx", tmp_path / "again.onnx", IMAGES, [(IMAGES, None)], max_loss=1.0)
    assert made.accuracy == again.accuracy


NET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
PLAN: Any = slim.plan(NET, IMAGES, ratio=0.5)
UNTYPED: Any = slim  # whose types would name the mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: UNTYPED.plan(NET, IMAGES, ratio=0.5, score=UNTYPED.Taylor(torch.sum, [])),
            "expected slim.Taylor.batches, lo",
        ),
        (lambda: UNTYPED.sensitivity(NET, IMAGES, 3), "evaluate is of type int: expected a function"),
        (lambda: UNTYPED.benchmark(NET), "benchmark got a Sequential: expected networks by name"),
        (lambda: PLAN.save(NET), "path is of type Sequential: expected the plan's file"),
    ],
)
def test_swapped_arguments_are_one_line(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SlimError, match=message):
        call()
