"""A rule of one's own for an operator of one's own, held to the masked network; and what happens without one."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from networks import cbr, difference, net, randomise
from torch import Tensor, nn

import slim
from slim.trace.rules import builtin, registry

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.library.custom_op("slimtest::swish_clip", mutates_args=())
def swish_clip(x: Tensor, limit: float) -> Tensor:
    return (x * x.sigmoid()).clamp(max=limit)


@swish_clip.register_fake
def _(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("slimtest::mix", mutates_args=())
def mix(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("nchw,oc->nohw", x, weight)


@mix.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])


@pytest.fixture
def rules() -> Iterator[None]:
    """The rules as they were, after the test."""
    assert builtin.rule is slim.rule  # slim's own are there, so that they are in what is put back
    before = dict(registry._rules)
    yield
    registry._rules.clear()
    registry._rules.update(before)
    registry._known.clear()


def clipped() -> nn.Module:
    torch.manual_seed(0)
    return randomise(net(lambda s, x: s.a(torch.ops.slimtest.swish_clip(x, 0.5)), a=cbr(16, 16))).eval()


def test_an_operator_without_a_rule_freezes_what_it_touches() -> None:
    plan = slim.plan(clipped(), X, ratio=0.4)
    assert "stem.1" not in plan.removed
    assert any("no rule for swish_clip after stem.1" in reason for reason in plan.frozen)


def test_a_rule_frees_it(rules: None) -> None:
    @slim.rule("slimtest::swish_clip")
    def per_channel(op: slim.Op) -> Any:
        assert op["limit"] == 0.5 and op.name == "swish_clip"
        return op.label(op.run(), op.codes(op["x"]))

    model = clipped()
    plan = slim.plan(model, X, ratio=0.4)
    thin = plan.apply(model)
    assert "stem.1" in plan.removed and not plan.frozen
    assert difference(model, thin, plan.removed, X) < 1e-12
    assert slim.verify(model, thin, plan, X) < 1e-10


def test_a_rule_that_mixes_channels(rules: None) -> None:
    @slim.rule("slimtest::mix")
    def mixing(op: slim.Op) -> Any:
        read = op.codes(op["x"])[1]
        op.axis(op["weight"], 1, read)
        op.mix(read)
        made = op.made(op["weight"], 0)
        assert made is not None
        return op.label(op.run(), {1: made})

    torch.manual_seed(0)
    model = net(lambda s, x: s.a(s.norm(torch.ops.slimtest.mix(x, s.weight))), a=cbr(24, 16), norm=nn.BatchNorm2d(24))
    model.weight = nn.Parameter(torch.randn(24, 16))
    randomise(model).eval()
    plan = slim.plan(model, X, ratio=0.4)
    thin: Any = plan.apply(model)
    assert {"stem.1", "norm"} <= plan.removed.keys()
    assert list(thin.weight.shape) == [24 - len(plan.removed["norm"]), 16 - len(plan.removed["stem.1"])]
    assert difference(model, thin, plan.removed, X) < 1e-12


def test_a_users_rule_replaces_slims(rules: None) -> None:
    slim.rule("relu", "relu_")(registry.no_rule)
    plan = slim.plan(randomise(net(lambda s, x: s.a(x), a=cbr(16, 16, act=nn.SiLU))), X, ratio=0.3)
    assert "stem.1" not in plan.removed and "a.1" in plan.removed


@pytest.mark.parametrize("name", ["", "my op", "torch.relu", "a::b::c", 3])
def test_what_cannot_be_an_operator_is_refused(name: Any) -> None:
    with pytest.raises(slim.SlimError, match="can't be an operator"):
        slim.rule(name)
