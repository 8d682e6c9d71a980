"""What the page shows of |γ|, of a network in which other layers lose channels, too."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import slim
from slim.trace.traced import trace
from slim.workbench.run.evidence.gamma import gamma


def test_layers_without_gamma_are_left_out() -> None:
    torch.manual_seed(0)
    bn = nn.BatchNorm2d(16)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), bn, nn.ReLU()),
        *(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)),
    )
    nn.init.uniform_(bn.weight)
    x = torch.randn(2, 3, 8, 8)
    plan = slim.plan(net, x, ratio=0.5, score=slim.Magnitude(), round_to=1)
    assert plan.removed.keys() == {"1", "3"}
    networks: Any = SimpleNamespace(decided_on=net, plans=[plan], trace=lambda net: trace(net, x), score="magnitude")
    shown = gamma(networks)
    sizes = bn.weight.detach().abs().tolist()
    removed = [sizes[i] for i in plan.removed["1"]]
    assert shown["layers"].keys() == {"1"} and shown["threshold"] is None
    assert shown["layers"]["1"]["removed"] == pytest.approx(sorted(removed), rel=1e-3)
