"""The file of a thin network cut from the original's is the thin network: onnxruntime says what PyTorch says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ZOO, randomise
from torch import nn

import slim
from slim.deploy.cost.network import Network
from slim.errors import SlimError
from slim.workbench.models import build
from slim.workbench.models.densenet import densenet

X = torch.randn(1, 3, 32, 32)
TARGET = slim.OnnxRuntime("cpu", 1)
RUNTIME = slim.Runtime(TARGET)


def with_unread_size() -> nn.Module:
    """A network that keeps its width, which forward code doesn't read, as torchvision's MobileNetV2 does."""
    net: Any = build("slim:resnet20", num_classes=10)
    net.layer1[0].width = 16
    return nn.Sequential(net)


NETWORKS: dict[str, Any] = {
    "a size that nothing reads": with_unread_size,
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


def test_what_cannot_be_cut_is_exported(tmp_path: Path) -> None:
    """In mode select an index is new."""
    net = randomise(densenet(10, num_classes=10)).eval()
    plan = slim.plan(net, X, ratio=0.4, mode="select")
    original = Network(net, X, RUNTIME)
    thin = Network(plan.apply(net), X, RUNTIME, original, plan)
    assert plan.selects and not thin.is_cut
    assert not TARGET.cut(original.path, plan, thin.model, tmp_path / "cut.onnx")
    assert TARGET.check(thin.path, thin.model, X) < 1e-4


def test_sizes_that_modules_keep_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be constants of the graph, by which a file is another network's although it runs: then it is exported,
    before anything is timed."""
    net = randomise(ZOO["stored split size"]()).eval()
    plan = slim.plan(net, X, ratio=0.4)
    assert plan.sizes
    original, compared = Network(net, X, RUNTIME), []

    def check(self: Network) -> None:
        compared.append(self)
        raise SlimError("another network")

    monkeypatch.setattr(Network, "check", check)
    thin = Network(plan.apply(net), X, RUNTIME, original, plan)
    assert compared == [thin] and not thin.is_cut
    monkeypatch.undo()
    assert TARGET.check(thin.path, thin.model, X) < 1e-4
