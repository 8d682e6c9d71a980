"""A penalty of one's own: value, subgradient and proximal operator. Here log(1 + |γ|/ε), which spares large γ."""

from dataclasses import dataclass

import torch
from torch import nn

import slim


@dataclass
class LogSum(slim.Penalty):
    """λ·Σ log(1 + |x|/ε) (Candès, Wakin and Boyd, 2008): near 0 as steep as λ/ε, flat far from it."""

    eps: float = 0.1

    def value(self, x):
        return self.strength * (x.abs() / self.eps).log1p().sum()

    def subgradient(self, x):
        return self.strength * x.sign() / (self.eps + x.abs())

    def prox(self, x, step):
        # one step of the majorant that is tangent at |x|, which is a weighted L1
        return x.sign() * (x.abs() - step * self.strength / (self.eps + x.abs())).clamp(min=0)


torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
with torch.no_grad():
    net[1].weight.copy_(torch.tensor([0.05, 0.05, 0.05, 0.05, 1.0, 1.0, 1.0, 1.0]))
optimizer = torch.optim.SGD(net.parameters(), 0.01)
sparsity = slim.sparsify(net, optimizer, LogSum(0.1), method="proximal")
for _ in range(20):
    optimizer.zero_grad()
    net(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
sparsity.remove()
gamma = net[1].weight.detach()
assert (gamma[:4] == 0).all() and (gamma[4:] > 0.8).all()
print(gamma)
