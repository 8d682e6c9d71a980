"""Whole residual blocks under a budget of time."""

import pytest
import torch
from deploy.made_up import WHOLE, MadeUp
from residual import Block, Wanted, around

import slim
from slim.trace.traced import trace

X = torch.randn(1, 3, 64, 64)


def test_a_budget_of_time_that_channels_alone_cannot_keep(made_up: MadeUp) -> None:
    """And what the cost model says of the plan is what it says of the thin network."""
    net = around(*(Block(16) for _ in range(8)))
    runtime = slim.Runtime(made_up)
    names = [str(number) for number in range(1, 7)]
    by_channels, plan = (
        slim.plan(net, X, slim.Latency(0.45, runtime), score=Wanted(names), blocks=blocks) for blocks in (False, True)
    )
    assert by_channels.shortfall and not plan.shortfall
    assert plan.blocks and {*plan.blocks} <= {*names}
    thin = plan.apply(net)
    assert slim.verify(net, thin, plan, X) < 1e-10
    whole, left = (runtime.cost_model(trace(each, X)).of(WHOLE) for each in (net, thin))
    assert plan.timing["predicted_share"] == pytest.approx(left / whole, rel=0.02)


def test_no_block_goes_where_channels_do(made_up: MadeUp) -> None:
    net = around(*(Block(32) for _ in range(4)), width=32)
    runtime = slim.Runtime(made_up)
    plan = slim.plan(net, X, slim.Latency(0.8, runtime), score=Wanted([]), blocks=True)
    assert not plan.blocks and not plan.shortfall
