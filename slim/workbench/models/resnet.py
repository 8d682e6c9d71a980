"""Residual networks for small images: ResNet (He et al., CVPR 2016) and pre-activation ResNet (ECCV 2016)."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import relu


def resnet(depth: int, *, num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """Return ResNet of `depth` = 6n + 2 layers: three stages of n basic blocks with 16, 32, 64 channels (§4.2).

    Takes [N, in_channels, H, W], made for 32×32, and any other size; gives [N, num_classes].

    Where a stage begins with more channels, the shortcut is a 1×1 convolution with BatchNorm (option B of
    the paper) instead of padding with zeros (option A), so that each stage can be pruned by itself. This
    adds 2,752 parameters: with 10 classes ResNet-20 has 272,474 and ResNet-56 855,770 (option A, as
    published: 269,722 and 853,018, or 0.27 M and 0.85 M).
    """
    blocks = (depth - 2) // 6
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu1=nn.ReLU(inplace=True),
            layer1=_stage(BasicBlock, blocks, 16, 16, stride=1),
            layer2=_stage(BasicBlock, blocks, 16, 32, stride=2),
            layer3=_stage(BasicBlock, blocks, 32, 64, stride=2),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(64, num_classes),
        )
    )


def preresnet(depth: int, *, num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """Pre-activation ResNet of `depth` = 9n + 2 layers: three stages of n bottlenecks, 64, 128, 256 channels.

    Takes [N, in_channels, H, W], made for 32×32, and any other size; gives [N, num_classes].

    The network that Network Slimming (Liu et al., ICCV 2017, §4.2) prunes. ResNet-164 with 10 classes has
    1,703,258 parameters (paper: 1.70 M). On 32×32 `torch.utils.flop_counter` counts 4.953e8 FLOPs (2 per
    multiply-add). The paper's 4.99e8 follows if each output value of a convolution costs one more: 4.986e8.
    """
    blocks = (depth - 2) // 9
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 16, 3, padding=1, bias=False),
            layer1=_stage(PreBottleneck, blocks, 16, 64, stride=1),
            layer2=_stage(PreBottleneck, blocks, 64, 128, stride=2),
            layer3=_stage(PreBottleneck, blocks, 128, 256, stride=2),
            bn=nn.BatchNorm2d(256),
            relu=nn.ReLU(inplace=True),
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(256, num_classes),
        )
    )


class BasicBlock(nn.Module):
    """relu(shortcut(x) + two 3×3 convolutions of x), BatchNorm after each.

    [N, inputs, H, W] -> [N, outputs, H/stride, W/stride].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return relu(out + self.shortcut(x), inplace=True)


class PreBottleneck(nn.Module):
    """shortcut(x) + 1×1, 3×3 and 1×1 convolutions of x, BatchNorm and ReLU before each.

    [N, inputs, H, W] -> [N, outputs, H/stride, W/stride], a quarter of `outputs` in between.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(relu(self.bn1(x), inplace=True))
        out = self.conv2(relu(self.bn2(out), inplace=True))
        out = self.conv3(relu(self.bn3(out), inplace=True))
        return out + self.shortcut(x)


def _stage(
    block: type[BasicBlock] | type[PreBottleneck], count: int, inputs: int, outputs: int, stride: int
) -> nn.Sequential:
    first = block(inputs, outputs, stride)
    return nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(count - 1)))
