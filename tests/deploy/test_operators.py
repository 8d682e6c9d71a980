"""The operators of a traced network, and how their sizes follow a plan."""

from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from networks import randomise
from torch import nn

import slim
from slim.deploy.cost.operators import operators
from slim.deploy.target import Kernel
from slim.trace.size import network_size
from slim.trace.traced import trace
from slim.workbench.models import build

X = torch.randn(1, 3, 32, 32)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121", "googlenet"])
def test_operators_follow_the_plan(name: str) -> None:
    """Their FLOPs are those that torch counts on the thin network; and the thin network's own operators."""
    more = {"init_weights": False} if name == "googlenet" else {}
    net = randomise(torchvision.models.get_model(name, **more))
    x = torch.randn(2, 3, 64, 64)
    traced = trace(net, x)
    found = operators(traced, batch_size=6)
    everything = np.ones(len(traced.classes), bool)
    assert sum(o.kernel.flops(*o.counts(everything)) for o in found) == 3 * network_size(net.eval(), x).flops
    plan = slim.plan(net, x, ratio=0.4)
    thin = plan.apply(net)
    kept = everything.copy()
    for bn, gone in plan.removed.items():
        lost = traced.classes.roots(traced.norms[bn][gone])
        kept &= ~np.isin(traced.classes.roots(np.arange(len(kept))), lost)
    again = operators(trace(thin, x), batch_size=6)
    assert [o.kernel for o in found] == [o.kernel for o in again]
    whole = np.ones(10**6, bool)
    assert [o.counts(kept) for o in found] == [o.counts(whole) for o in again]


def middle(layer: Any, channels: Any) -> Any:
    """A layer of 16 channels read and some made, between two convolutions."""
    first = [nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*first, layer, nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 8, 3))


@pytest.mark.parametrize("name", ["grouped", "transposed", "depthwise transposed", "resnext50_32x4d"])
def test_operators_of_whole_groups_follow_the_plan(name: str) -> None:
    """Fewer groups of the same size: the FLOPs are torch's, and so is the number of groups."""
    nets = {
        "transposed": lambda: middle(nn.ConvTranspose2d(16, 24, 2, 2, groups=4, bias=False), 24),
        "depthwise transposed": lambda: middle(nn.ConvTranspose2d(16, 16, 2, 2, groups=16, bias=False), 16),
        "grouped": lambda: middle(nn.Conv2d(16, 24, 3, groups=4, bias=False), 24),
    }
    net = randomise(nets[name]() if name in nets else torchvision.models.get_model(name))
    x = torch.randn(2, 3, 64, 64)
    traced = trace(net, x, whole_groups=True)
    found = operators(traced, batch_size=2)
    plan = slim.plan(net, x, ratio=0.4, grouped="whole")
    thin = plan.apply(net)
    kept = np.ones(len(traced.classes), bool)
    for bn, gone in plan.removed.items():
        lost = traced.classes.roots(traced.norms[bn][gone])
        kept &= ~np.isin(traced.classes.roots(np.arange(len(kept))), lost)
    assert sum(o.kernel.flops(*o.counts(kept)) for o in found) == network_size(thin.eval(), x).flops
    groups = [o.kernel.group_count(*o.counts(kept)) for o in found if o.kernel.whole]
    layers = (nn.Conv2d, nn.ConvTranspose2d)
    truth = [m.groups for m in thin.modules() if isinstance(m, layers) and m.groups > 1]
    before = [m.groups for m in net.modules() if isinstance(m, layers) and m.groups > 1]
    assert groups == truth and sum(truth) < sum(before)


def test_pointwise_operators_join_what_they_follow() -> None:
    found = operators(trace(torchvision.models.resnet18(), X), 1)
    convolutions = [o.kernel for o in found if o.kernel.kind == "conv"]
    assert len(convolutions) == 20 and all(k.tail[0][0] == "BatchNormalization" for k in convolutions)
    sums = [k for k in convolutions if ("Add", "same") in k.tail]
    assert len(sums) == 8 and all(k.tail[-1] == ("Relu", "") for k in sums)
    assert [o.kernel.kind for o in found if o.kernel not in convolutions] == ["MaxPool", "Copy", "gemm"]


def test_resizing_is_an_operator_of_its_own() -> None:
    """It takes several passes over memory."""
    x = torch.zeros(1, 3, 32, 32)
    found = [o.kernel for o in operators(trace(build("slim:unet", num_classes=5, in_channels=3), x), 4)]
    assert [(k.kind, k.shape, k.window) for k in found if k.kind.startswith("Resize")] == [
        ("Resize-nearest", (4, size, size), ((2, 2),)) for size in (4, 8, 16)
    ]
    linear = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Upsample(size=(40, 50), mode="bilinear"), nn.Conv2d(8, 8, 1))
    assert operators(trace(linear, x), 1)[1].kernel == Kernel("Resize-linear", (1, 32, 32), ((2, 2),))


class Scaled(nn.Module):
    """A convolution whose result is scaled by the mean of a parameter: a number without dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 8, 3), nn.Parameter(torch.rand(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x) * (x.mean() * self.scale.mean()).tanh()
        return out


def test_numbers_without_dimensions_are_no_operators() -> None:
    found = operators(trace(Scaled(), torch.randn(2, 3, 16, 16)), batch_size=2)
    assert [operator.kernel.kind for operator in found] == ["conv"]
