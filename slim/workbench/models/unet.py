"""U-Net for segmentation, with BatchNorm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """Scores of each class at each pixel, [N, classes, H, W], of images of any size.

    As in Ronneberger, Fischer and Brox, https://arxiv.org/abs/1505.04597, with padding, BatchNorm, and nearest
    neighbours instead of transposed convolutions on the way up. `width` channels at the top, twice as many at each of
    `depth` steps down.
    """

    def __init__(self, num_classes: int, in_channels: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_twice(a, b) for a, b in zip([in_channels, *widths], widths))
        self.up = nn.ModuleList(_twice(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1]))
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x, passed = images, []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2, ceil_mode=True) if level else x)
            passed.append(x)
        passed.pop()
        for block in self.up:
            other = passed.pop()
            x = block(torch.cat([other, F.interpolate(x, size=other.shape[2:])], 1))
        return self.head(x)


def _twice(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs in (before, after):
        layers += [nn.Conv2d(inputs, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def unet(num_classes: int = 21, in_channels: int = 3, width: int = 16, depth: int = 3) -> UNet:
    """Return a U-Net."""
    return UNet(num_classes, in_channels, width, depth)
