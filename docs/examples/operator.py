"""An operator of one's own: without a rule what it touches stays whole; with one its channels are pruned."""

import torch
from torch import Tensor, nn

import slim


@torch.library.custom_op("mylib::swish_clip", mutates_args=())
def swish_clip(x: Tensor, limit: float) -> Tensor:
    return (x * x.sigmoid()).clamp(max=limit)


@swish_clip.register_fake
def _(x: Tensor, limit: float) -> Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.ops.mylib.swish_clip(self.bn(self.conv(x)), 6.0))


torch.manual_seed(0)
net, x = Net().eval(), torch.randn(2, 3, 8, 8)
nn.init.uniform_(net.bn.weight)
print(slim.explain(net, x))  # bn is frozen: no rule for swish_clip


@slim.rule("mylib::swish_clip")
def per_channel(op: slim.Op) -> Tensor:
    """Each channel by itself, and zero stays zero: what comes out follows the channels of what went in."""
    return op.label(op.run(), op.codes(op["x"]))


plan = slim.plan(net, x, ratio=0.5)
thin = plan.apply(net)
slim.verify(net, thin, plan, x)  # a rule that is wrong fails here
print(plan)
