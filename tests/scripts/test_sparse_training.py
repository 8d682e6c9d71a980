"""What scripts/sparse_training.py counts."""

import pytest
import sparse_training
import torch
from torch import nn

import slim


def test_zeros_that_the_plan_leaves_are_in_vain() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    x, weight = torch.randn(2, 1, 3, 3), model.get_parameter("1.weight")
    plan = slim.plan(model, x, ratio=0.5, score={"1": range(8)}, round_to=1)
    assert plan.cuts["1.weight"][0] == [0, 1, 2, 3]
    assert sparse_training.in_vain(model, plan) is None
    with torch.no_grad():
        weight[[0, 1, 6]] = 0  # two of them go
    assert sparse_training.in_vain(model, plan) == pytest.approx(1 / 3)
