"""A budget of one's own: what a choice of channels costs. Here the widest layer."""

import torch
from torch import nn

import slim


class Widest(slim.Budget):
    """At most so many output channels in any layer, or that share of the widest."""

    name = "widest"  # in the plan and in messages

    def cost(self, costs):
        return lambda kept: max(costs.shape(name, kept)[0] for name in costs.traced.parameters)


torch.manual_seed(0)
layers = [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.BatchNorm2d(32), nn.ReLU()]
net = nn.Sequential(*layers, nn.Conv2d(32, 4, 1)).eval()
for layer in (net[1], net[4]):
    nn.init.uniform_(layer.weight)
x = torch.randn(2, 3, 16, 16)
plan = slim.plan(net, x, Widest(24), round_to=1)
thin = plan.apply(net)
assert max(thin[0].out_channels, thin[3].out_channels) <= 24
print(plan)
