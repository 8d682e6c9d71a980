"""What the thin network repeats isn't worked out a second time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import SE, cbr, net
from torch import Tensor, nn

import slim
from slim.trace import tracer

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: net(lambda s, x: s.a(x), a=cbr(16, 16)),
    "residual, in place": lambda: net(lambda s, x: s.a(x).add_(x), a=cbr(16, 16)),
    "concatenated": lambda: net(lambda s, x: s.b(torch.cat([x, s.a(x)], 1)), a=cbr(16, 8), b=cbr(24, 16)),
    "depthwise": lambda: net(lambda s, x: s.b(s.a(x)), a=cbr(16, 16, g=16), b=cbr(16, 16)),
    "squeeze-excite": lambda: net(lambda s, x: s.b(s.se(x)), se=SE(16), b=cbr(16, 16)),
}


class Looking(nn.Sequential):
    """Looks at values, so that it is traced with data."""

    def forward(self, x: Tensor) -> Any:
        if x.isnan().any():
            raise ValueError("not a number")
        return super().forward(x)


@pytest.mark.parametrize("around", [nn.Sequential, Looking])
@pytest.mark.parametrize("case", NETWORKS)
def test_each_rule_is_asked_once(case: str, around: type[nn.Sequential], monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of times that the rules of convolutions and norms are asked for, beside the number of layers. The
    first layer reads what no step made, and is worked out again."""
    model = around(NETWORKS[case]()).eval()
    asked: list[str] = []
    rule_for = tracer.rule_for

    def counting(func: Any) -> Any:
        asked.append(func.overloadpacket.__name__)
        return rule_for(func)

    monkeypatch.setattr(tracer, "rule_for", counting)
    plan = slim.plan(model, X, ratio=0.5)
    assert plan.ratio_achieved > 0.4
    for layer, name, again in ((nn.Conv2d, "convolution", 1), (nn.BatchNorm2d, "native_batch_norm", 0)):
        assert asked.count(name) == again + sum(isinstance(m, layer) for m in model.modules()), asked


class CountsZeros(nn.Module):
    """Takes another way where a third of its channels are zero, as they are in the masked network alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = cbr(3, 12, act=nn.Identity), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        channels = self.body(x).mean((2, 3))
        return self.fc(channels * 2 if channels[0].tolist().count(0) > 4 else channels)


def test_the_masked_network_may_take_another_way() -> None:
    with pytest.raises(slim.SlimError, match="another path"):
        slim.plan(CountsZeros(), X, ratio=0.5)
