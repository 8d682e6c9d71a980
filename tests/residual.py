"""Networks of residual blocks, and a score that says which of them go."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from networks import cbr, randomise
from torch import Tensor, nn


class Block(nn.Module):
    """x + bn(conv(relu(bn(conv x)))), as ResNet has it: in place, with one ReLU for both."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.conv2, self.bn2 = nn.Conv2d(c, c, 3, 1, 1, bias=False), nn.BatchNorm2d(c)
        self.relu = nn.ReLU(inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return out

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += x
        made: Tensor = self.relu(out)
        return made


def around(*blocks: nn.Module, width: int = 16) -> nn.Sequential:
    """A stem of `width` channels, blocks, a head."""
    return randomise(
        nn.Sequential(
            cbr(3, width), *blocks, cbr(width, 32, s=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
        )
    ).eval()


class Wanted:
    """A score by which the blocks of these names are worth nothing, and others everything."""

    ranks_all = True

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __call__(self, groups: Any) -> Any:
        return 1 + np.random.default_rng(0).random(len(groups.roots))

    def missed_without(self, groups: Any, branches: Any) -> list[float]:
        return [0.0 if branch.name in self.names else np.inf for branch in branches]
