"""An importance score of one's own: one number for each channel group, larger for what should stay."""

import numpy as np
import torch
from torch import nn

import slim


class BatchNormShift:
    """|γ| weighed by how far a channel's mean lies from zero."""

    def __call__(self, groups):  # groups: slim.prune.groups.Groups
        values = {}
        for name in groups.names:  # a BatchNorm each, unless the score asks for all layers with ranks_all = True
            norm = groups.model.get_submodule(name)
            values[name] = (norm.weight.abs() * (1 + norm.bias.abs())).detach().double().numpy()
        return groups.reduce(values, "mean")  # over the channels that are coupled


torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1)).eval()
nn.init.uniform_(net[1].weight)
nn.init.normal_(net[1].bias)
x = torch.randn(2, 3, 8, 8)
plan = slim.plan(net, x, ratio=0.5, score=BatchNormShift())
slim.verify(net, plan.apply(net), plan, x)

expected = np.argsort((net[1].weight.abs() * (1 + net[1].bias.abs())).detach().numpy())[:8]
assert sorted(plan.removed["1"]) == sorted(expected.tolist())
print(plan)
