"""DenseNet for small images (Huang et al., CVPR 2017): each layer reads the outputs of all before it."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


def densenet(depth: int, *, num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """Return DenseNet of `depth` = 3n + 4 layers, growth 12: three blocks of n layers, no bottleneck or compression.

    Takes [N, in_channels, H, W], made for 32×32, and any size from 4×4; gives [N, num_classes].

    The network that Network Slimming (Liu et al., ICCV 2017, §4.2) prunes. DenseNet-40 with 10 classes has
    1,019,722 parameters (paper: 1.02 M). That fixes the first convolution at 16 channels, as in the DenseNet
    paper; the PyTorch code of Network Slimming has 24 there, and so 1.06 M in all.

    On 32×32 `torch.utils.flop_counter` counts 5.296e8 FLOPs (2 per multiply-add). One more for each
    output value of a convolution, which gives the paper's counts of VGG-19 and ResNet-164, makes 5.301e8:
    still 0.6 % below the paper's 5.33e8. No single price for BatchNorm, ReLU and pooling that we tried
    gives all three counts.
    """
    growth, layers = 12, (depth - 4) // 3
    channels = 16
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv1"] = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    for block in (1, 2, 3):
        parts[f"dense{block}"] = nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers)))
        channels += layers * growth
        if block < 3:
            parts[f"transition{block}"] = nn.Sequential(
                OrderedDict(
                    bn=nn.BatchNorm2d(channels),
                    relu=nn.ReLU(inplace=True),
                    conv=nn.Conv2d(channels, channels, 1, bias=False),
                    pool=nn.AvgPool2d(2),
                )
            )
    parts["bn"] = nn.BatchNorm2d(channels)
    parts["relu"] = nn.ReLU(inplace=True)
    parts["average"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts)


class DenseLayer(nn.Module):
    """x, then `growth` new channels, conv(relu(bn(x))): [N, inputs, H, W] -> [N, inputs + growth, H, W]."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(relu(self.bn(x), inplace=True))], dim=1)
