"""Networks that are one straight stack of layers: VGG, LeNet and the MLP.

Each is an `nn.Sequential` whose parts have names (`conv3`, `bn3`, …), because a plan's table shows them.
A layer that a BatchNorm follows has no bias: the BatchNorm's β takes its place.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from slim.errors import SlimError

# Output channels of each 3×3 convolution; "M" halves the height and width.
VGG_WIDTHS: dict[int, list[int | str]] = {
    7: [32, 32, "M", 64, 64, "M", 128, 128],
    11: [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512],
    13: [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512],
    16: [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3],
    19: [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4],
}


def vgg(depth: int, *, num_classes: int, in_channels: int = 3) -> nn.Sequential:
    """Build the VGG of Network Slimming (Liu et al., ICCV 2017, §4.2): convolutions, mean, one linear layer.

    Takes [N, in_channels, H, W], made for 32×32, and any other size; gives [N, num_classes].

    depth 11, 13, 16, 19: the published widths. VGG-19 with 10 classes has 20,035,018 parameters (paper:
    20.04 M). On 32×32 `torch.utils.flop_counter` counts 7.963e8 FLOPs (2 per multiply-add). The paper's
    7.97e8 follows if each output value of a convolution costs one more (the shift of the BatchNorm folded
    into it): 7.966e8.

    depth 7: a small one of ours for images of 8×8 to 28×28; 288,170 parameters with 1 channel and 10 classes.
    """
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels, conv, pool = in_channels, 0, 0
    for width in VGG_WIDTHS[depth]:
        if isinstance(width, str):
            pool += 1
            # As in the paper's Lua code; changes nothing at 32×32, and lets images of any size through.
            parts[f"pool{pool}"] = nn.MaxPool2d(2, ceil_mode=True)
        else:
            conv += 1
            parts[f"conv{conv}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            parts[f"bn{conv}"] = nn.BatchNorm2d(width)
            parts[f"relu{conv}"] = nn.ReLU(inplace=True)
            channels = width
    parts["average"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["classifier"] = nn.Linear(channels, num_classes)
    return nn.Sequential(parts)


def lenet(*, num_classes: int, in_channels: int = 1, image_size: int | Sequence[int] = 28) -> nn.Sequential:
    """Return LeNet with the widths 20-50-500 of Caffe, as pruning papers use it, and BatchNorm after each layer.

    Takes [N, in_channels, H, W] with (H, W) = `image_size` pixels (one number: a square), at least 16; gives
    [N, num_classes]. On MNIST it has 431,650 parameters: the 431,080 of Caffe's, and 570 more because each of
    the 570 hidden channels and units has γ and β in place of a bias.
    """
    height, width = _height_width(image_size)
    if min(height, width) < 16:
        raise SlimError(f"slim:lenet needs images of at least 16×16 pixels, not {height}×{width}")
    # A 5×5 convolution without padding takes 4 pixels off each side, the pooling after it halves the rest.
    cells = (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 20, 5, bias=False),
            bn1=nn.BatchNorm2d(20),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5, bias=False),
            bn2=nn.BatchNorm2d(50),
            relu2=nn.ReLU(inplace=True),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear3=nn.Linear(50 * cells, 500, bias=False),
            bn3=nn.BatchNorm1d(500),
            relu3=nn.ReLU(inplace=True),
            classifier=nn.Linear(500, num_classes),
        )
    )


def mlp(*, num_classes: int, in_channels: int = 1, image_size: int | Sequence[int] = 28) -> nn.Sequential:
    """Build the fully connected 784-500-300-10 network of Network Slimming (§4.2), with BatchNorm before each ReLU.

    Takes [N, in_channels, H, W] with (H, W) = `image_size` pixels (one number: a square), or the same values
    flattened; gives [N, num_classes]. On MNIST it has 546,610 parameters.
    """
    height, width = _height_width(image_size)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            linear1=nn.Linear(in_channels * height * width, 500, bias=False),
            bn1=nn.BatchNorm1d(500),
            relu1=nn.ReLU(inplace=True),
            linear2=nn.Linear(500, 300, bias=False),
            bn2=nn.BatchNorm1d(300),
            relu2=nn.ReLU(inplace=True),
            classifier=nn.Linear(300, num_classes),
        )
    )


def _height_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    sizes = [image_size] * 2 if isinstance(image_size, int) else list(image_size)
    if len(sizes) != 2 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise SlimError(f"image_size {image_size!r}: expected pixels, one whole number or [height, width]")
    return sizes[0], sizes[1]
