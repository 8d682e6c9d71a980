"""Augmentation of whole batches, on the device where they are.

What happens to the image at each position of an epoch is drawn before the epoch begins, on the CPU: the draws are then
the same on every device, for every split among processes, and wherever the epoch is entered.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from slim.errors import SlimError, unknown
from slim.workbench.data.policies import POLICIES, Policy

OUTSIDE = 255  # of a map of classes: doesn't count
OPERATIONS = ("crop", "flip", *POLICIES, "cutout")  # in the order of their use


def operations(names: str) -> list[str]:
    """Return the operations in a text such as "crop+flip". SlimError for one that there isn't."""
    named = [] if names == "none" else names.split("+")
    for name in named:
        if name not in OPERATIONS:
            raise unknown("augmentation", name, ["none", *OPERATIONS])
    return named


class Augmentation:
    """The changes to the images of one epoch, drawn for `size` positions.

    names: what to do, joined by "+"; done in the order of this list, whatever that of the names:
    - crop: pad with black by an eighth of the side, cut to the old size at a random place (He et al., 2016);
    - flip: mirror left and right, every second time;
    - randaugment: two of 14 operations, drawn for each image, at strength 9 of 30 (Cubuk et al., 2020,
      arXiv:1909.13719);
    - trivialaugment: one operation at a strength drawn for each image (Müller and Hutter, 2021, arXiv:2103.10158);
    - cutout: set a square, half as wide as the shorter side, to the mean; its centre is anywhere in the image, so that
      it may stick out (DeVries and Taylor, 2017, arXiv:1708.04552).
    """

    def __init__(
        self,
        names: str,
        size: int,
        image_size: tuple[int, int],
        generator: torch.Generator,
        device: torch.device | str,
    ) -> None:
        self.names = operations(names)

        def draw(high: int) -> Tensor:
            return torch.randint(high, (size,), generator=generator).to(device)

        height, width = self.size = image_size
        self.pads = max(1, height // 8), max(1, width // 8)  # 4 pixels for CIFAR's 32, 1 for the digits' 8
        self.top, self.left = (draw(2 * pad + 1) for pad in self.pads)
        self.mirrored = draw(2).bool()
        self.policies = [
            Policy(name, size, image_size, generator) for name in OPERATIONS if name in POLICIES and name in self.names
        ]
        if "cutout" in self.names:
            self.hole = max(1, min(height, width) // 2)
            self.centre = draw(height), draw(width)

    def pixels(self, images: Tensor, here: slice) -> Tensor:
        """Return what is done to uint8 images [B, C, H, W], those at the positions `here` of the epoch."""
        if "crop" in self.names:
            images = crop(images, self.top[here], self.left[here], self.pads)
        if "flip" in self.names:
            images = torch.where(self.mirrored[here, None, None, None], images.flip(3), images)
        for policy in self.policies:
            images = policy(images, here)
        return images

    def targets(self, targets: Tensor, here: slice) -> Tensor:
        """Return the targets of those images: maps [B, H, W] move with them, and what comes in from outside is 255; so
        do boxes [B, M, 5], of which what sticks out is cut off, and what is left of none gets class 0."""
        if targets.ndim != 3:
            return targets
        for name in POLICIES.keys() & set(self.names):
            raise SlimError(f"data.augment {name} would move images without their maps: expected crop, flip or cutout")
        if targets.is_floating_point():
            return self._boxes(targets, here)
        if "crop" in self.names:
            targets = crop(targets[:, None], self.top[here], self.left[here], self.pads, fill=OUTSIDE)[:, 0]
        if "flip" in self.names:
            targets = torch.where(self.mirrored[here, None, None], targets.flip(2), targets)
        return targets

    def _boxes(self, targets: Tensor, here: slice) -> Tensor:
        boxes, classes = targets[..., :4], targets[..., 4:]
        height, width = self.size
        if "crop" in self.names:
            moved = torch.stack([self.pads[1] - self.left[here], self.pads[0] - self.top[here]], 1)
            boxes = boxes + moved.repeat(1, 2)[:, None].to(boxes)
        if "flip" in self.names:
            x1, y1, x2, y2 = boxes.unbind(-1)
            boxes = torch.where(
                self.mirrored[here, None, None], torch.stack([width - x2, y1, width - x1, y2], -1), boxes
            )
        boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
        there = ((boxes[..., 2:] - boxes[..., :2]) >= 1).all(-1, keepdim=True)
        return torch.cat([boxes, classes], -1) * (there & (classes > 0))

    def normalised(self, images: Tensor, here: slice) -> Tensor:
        """Return what is done to normalised images, in place: there the mean is 0."""
        if "cutout" in self.names:
            inside = []
            for side, centre in zip(images.shape[2:], self.centre):
                offset = torch.arange(side, device=images.device) - (centre[here, None] - self.hole // 2)
                inside.append((offset >= 0) & (offset < self.hole))
            rows, columns = inside
            images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)
        return images


def crop(images: Tensor, top: Tensor, left: Tensor, pads: tuple[int, int], fill: int = 0) -> Tensor:
    """Shift each image of [B, C, H, W]: pad it with `fill`, black, by `pads` = (rows, columns) on each side, then
    cut it to its old size with the corner at (top[i], left[i]), both int64 [B] in 0 … 2·pad."""
    height, width = images.shape[2:]
    padded = F.pad(images, (pads[1], pads[1], pads[0], pads[0]), value=fill)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view [B, C, top, left, H, W]
    return windows[torch.arange(len(images), device=images.device), :, top, left]
