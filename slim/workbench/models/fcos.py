"""FCOS for detection, small and with BatchNorm."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def fcos(
    num_classes: int = 91, in_channels: int = 3, image_size: int | Sequence[int] = 48, width: int = 16
) -> nn.Module:
    """Return torchvision's FCOS (Tian et al., https://arxiv.org/abs/1904.01355) for small images: on six convolutions
    of `width` to 4 `width` channels and one map of features, a quarter as large as the image, with BatchNorm in its
    heads. Images of 0 to 1 in a list, scaled to `image_size` pixels; num_classes counts the background. Needs
    torchvision."""
    from torchvision.models.detection import anchor_utils, fcos

    top, pixels = 4 * width, [image_size] if isinstance(image_size, int) else image_size
    layers = [
        *_layer(in_channels, width),
        *_layer(width, 2 * width, stride=2),
        *_layer(2 * width, 2 * width),
        *_layer(2 * width, top, stride=2),
        *_layer(top, top),
        *_layer(top, top),
    ]
    backbone: Any = nn.Sequential(*layers)
    backbone.out_channels = top
    head = fcos.FCOSHead(top, 1, num_classes, num_convs=2)  # then the same with BatchNorm, for which it takes no word
    head.classification_head = fcos.FCOSClassificationHead(top, 1, num_classes, 2, norm_layer=nn.BatchNorm2d)
    head.regression_head = fcos.FCOSRegressionHead(top, 1, 2, norm_layer=nn.BatchNorm2d)
    return fcos.FCOS(
        backbone,
        num_classes,
        head=head,
        anchor_generator=anchor_utils.AnchorGenerator(((8,),), ((1.0,),)),  # things are learned around their centres
        min_size=min(pixels),
        max_size=max(pixels),
        image_mean=[0.5] * in_channels,
        image_std=[0.25] * in_channels,
        score_thresh=0.05,
        detections_per_img=20,
        size_divisible=4,  # of 32, most of a small image would be border
    )


def _layer(before: int, after: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
