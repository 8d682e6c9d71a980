"""The file of a thin network cut from the original's is the thin network: onnxruntime says what PyTorch says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ZOO, randomise
from torch import nn

import slim
from slim.deploy.cost.network import Network
from slim.workbench.models import build
from slim.workbench.models.densenet import densenet

X = torch.randn(1, 3, 32, 32)
TARGET = slim.OnnxRuntime("cpu", 1)
RUNTIME = slim.Runtime(TARGET)
NETWORKS: dict[str, Any] = {
    "residual stream": lambda: build("slim:resnet20", num_classes=10),
    "BatchNorm before convolution": lambda: densenet(10, num_classes=10),
    "depthwise": ZOO["depthwise"],
    "grouped": ZOO["grouped"],
    "flattened": lambda: nn.Sequential(
        *(nn.Conv2d(3, 48, 3, 4), nn.BatchNorm2d(48), nn.ReLU(), nn.Flatten(), nn.Linear(48 * 64, 40, bias=False)),
        *(nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 5)),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_file_is_the_thin_network(name: str) -> None:
    torch.manual_seed(0)
    net = randomise(NETWORKS[name]()).eval()
    plan = slim.plan(net, X, ratio=0.4)
    original = Network(net, X, RUNTIME)
    thin = Network(plan.apply(net), X, RUNTIME, original, plan)
    assert thin.is_cut and plan.removed
    assert TARGET.check(thin.path, thin.model, X) < 1e-4  # it raises where it is more
    assert thin.path.stat().st_size < original.path.stat().st_size


@pytest.mark.parametrize("mode", ["couple", "select"])
def test_what_cannot_be_cut_is_exported(mode: Any, tmp_path: Path) -> None:
    """In mode select an index is new, and a stored size is a constant of the graph."""
    net = ZOO["stored split size"]() if mode == "couple" else densenet(10, num_classes=10)
    randomise(net).eval()
    plan = slim.plan(net, X, ratio=0.4, mode=mode)
    assert plan.selects or plan.sizes
    original = Network(net, X, RUNTIME)
    thin = Network(plan.apply(net), X, RUNTIME, original, plan)
    assert not thin.is_cut and not TARGET.cut(original.path, plan, thin.model, tmp_path / "cut.onnx")
    assert TARGET.check(thin.path, thin.model, X) < 1e-4
