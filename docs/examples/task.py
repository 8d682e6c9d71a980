"""A task and data of one's own: the angle at which a bar lies, by a loss and a metric of a few lines.

    slim-run --data.name docs/examples/task.py:bars --task docs/examples/task.py:Angle --model.arch slim:resnet20 \
        --model.kwargs "{num_classes: 2}"
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import TensorDataset

from slim.workbench.tasks import Metric, Task


class Angle(Task):
    """The network returns a point (x, y) whose direction is twice the bar's: 0° and 180° are the same bar."""

    metric = Metric("error", "min", share=False, unit="°")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, torch.stack([(2 * targets).cos(), (2 * targets).sin()], 1))

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        off = torch.atan2(outputs[:, 1], outputs[:, 0]) / 2 - targets
        off = (off + math.pi / 2) % math.pi - math.pi / 2
        return torch.stack([off.abs().sum() * 180 / math.pi, off.new_tensor(len(off))])


def bars(seed: int = 0) -> tuple[TensorDataset, None, TensorDataset]:
    """Images of a bar through the middle, 512 to train on and 128 to test; validation data are held out by slim."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(640, generator=generator) * math.pi
    axis = torch.linspace(-1, 1, 16)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = (x * angles.sin()[:, None, None] - y * angles.cos()[:, None, None]).abs()
    images = (-(8 * distance**2)).exp()[:, None] - 0.3
    return TensorDataset(images[:512], angles[:512]), None, TensorDataset(images[512:], angles[512:])
