"""The recipes for trainers, run against their packages."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_net import accuracy, batches, untrained

import slim

sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "recipes"))


def reached(slimming: slim.Slimming, keep: float) -> None:
    """The plans end at the budget, and the network is what they made."""
    whole = slimming.plans[0].totals["flops"][0]
    assert slimming.plans[-1].totals["flops"][1] <= keep * whole
    size = sum(p.numel() for p in slimming.network.parameters())
    assert size == slimming.plans[-1].totals["params"][1]


def test_plain_pytorch() -> None:
    recipe: Any = importlib.import_module("plain_pytorch")
    network = untrained()
    reached(recipe.train(network, batches(), 6, 0.3), 0.3)
    assert accuracy(network) > 0.85


def test_timm() -> None:
    timm: Any = pytest.importorskip("timm")
    recipe: Any = importlib.import_module("timm_train")
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", in_chans=1, num_classes=10)
    larger = [(torch.nn.functional.interpolate(images, 32), labels) for images, labels in batches()][:8]
    averaged, slimming = recipe.train(network, larger, 2, 0.6, classes=10)
    reached(slimming, 0.6)
    assert [p.shape for p in averaged.parameters()] == [p.shape for p in network.parameters()]
    assert averaged(larger[0][0]).isfinite().all()


def test_torchvision_detection() -> None:
    detection: Any = pytest.importorskip("torchvision.models.detection")
    recipe: Any = importlib.import_module("torchvision_detection")
    torch.manual_seed(0)
    network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=96, max_size=96
    )
    boxes = torch.tensor([[10.0, 12, 60, 70]])
    target = {"boxes": boxes, "labels": torch.tensor([1])}
    data = [([torch.rand(3, 96, 96), torch.rand(3, 96, 96)], [target, target]) for _ in range(3)]
    slimming = recipe.train(network, data, 1, 0.7, at=[1])
    reached(slimming, 0.7)
    [found] = network.eval()([torch.rand(3, 96, 96)])
    assert set(found) == {"boxes", "labels", "scores"}
