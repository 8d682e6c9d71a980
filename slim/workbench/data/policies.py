"""RandAugment and TrivialAugment on whole batches: images for which the same was drawn are changed together.

The operations are torchvision's (v2), with the ranges of torchvision's classes of these names.
"""

from collections.abc import Callable

import torch
from torch import Tensor

LEVELS = 31  # strengths of each operation, from none to full

# operation -> its argument at level 0 and at the last, whether its sign is drawn too; none where it takes no argument
Ranges = dict[str, tuple[float, float, bool] | None]


def _ranges(shear: float, shift: tuple[float, float], degrees: float, colour: float, bits: float) -> Ranges:
    return {
        "identity": None,
        "shear_x": (0, shear, True),
        "shear_y": (0, shear, True),
        "translate_x": (0, shift[0], True),
        "translate_y": (0, shift[1], True),
        "rotate": (0, degrees, True),
        "brightness": (0, colour, True),
        "colour": (0, colour, True),
        "contrast": (0, colour, True),
        "sharpness": (0, colour, True),
        "posterize": (8, bits, False),
        "solarize": (1, 0, False),
        "autocontrast": None,
        "equalize": None,
    }


# policy -> the number of operations on each image, the level of all (None: drawn), ranges for images of (height, width)
POLICIES: dict[str, tuple[int, int | None, Callable[[int, int], Ranges]]] = {
    "randaugment": (2, 9, lambda h, w: _ranges(0.3, (150 / 331 * w, 150 / 331 * h), 30, 0.9, 4)),
    "trivialaugment": (1, None, lambda h, w: _ranges(0.99, (32, 32), 135, 0.99, 2)),
}


class Policy:
    """Operations drawn for `size` positions of an epoch."""

    def __init__(self, name: str, size: int, image_size: tuple[int, int], generator: torch.Generator) -> None:
        layers, level, ranges = POLICIES[name]
        self.ranges = ranges(*image_size)

        def draw(high: int) -> Tensor:
            return torch.randint(high, (size, layers), generator=generator)

        self.operation, self.sign = draw(len(self.ranges)), draw(2)
        self.level = torch.full((size, layers), level) if level is not None else draw(LEVELS)

    def __call__(self, images: Tensor, here: slice) -> Tensor:
        """uint8 images [B, C, H, W], those at the positions `here`, changed."""
        drawn = torch.stack([self.operation[here], self.level[here], self.sign[here]], 2)
        for layer in drawn.unbind(1):
            images = images.clone()
            kinds, which = layer.unique(dim=0, return_inverse=True)
            for number, (operation, level, sign) in enumerate(kinds.tolist()):
                chosen = (which == number).nonzero()[:, 0].to(images.device)
                images[chosen] = self._changed(images[chosen], list(self.ranges)[operation], level, sign)
        return images

    def _changed(self, images: Tensor, operation: str, level: int, sign: int) -> Tensor:
        limits = self.ranges[operation]
        if limits is None:
            return apply(images, operation)
        low, high, signed = limits
        value = torch.linspace(low, high, LEVELS)[level].item()  # rounded as torchvision's: edges are pixels apart
        return apply(images, operation, -value if signed and sign else value)


def apply(images: Tensor, operation: str, value: float = 0.0) -> Tensor:
    """One operation on uint8 images [B, C, H, W]; what moves in from outside is black.

    `value`: a shear's tangent, pixels, degrees, a change of a factor that is 1, bits that stay, or the share of white
    from which on pixels are inverted.
    """
    from torchvision.transforms.v2 import functional as v2

    def moved(angle: float = 0.0, shift: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
        corner = [0.0, 0.0] if any(shear) else None  # images lean from their top left corner, as in the papers
        degrees = [torch.tensor(tangent).atan().rad2deg().item() for tangent in shear]
        return v2.affine(images, angle, [int(pixels) for pixels in shift], 1.0, degrees, center=corner)

    match operation:
        case "identity":
            return images
        case "shear_x":
            return moved(shear=(value, 0))
        case "shear_y":
            return moved(shear=(0, value))
        case "translate_x":
            return moved(shift=(value, 0))
        case "translate_y":
            return moved(shift=(0, value))
        case "rotate":
            return v2.rotate(images, value)
        case "brightness":
            return v2.adjust_brightness(images, 1 + value)
        case "colour":
            return v2.adjust_saturation(images, 1 + value)
        case "contrast":
            return v2.adjust_contrast(images, 1 + value)
        case "sharpness":
            return v2.adjust_sharpness(images, 1 + value)
        case "posterize":
            return v2.posterize(images, round(value))
        case "solarize":
            return v2.solarize(images, 255 * value)
        case "autocontrast":
            return v2.autocontrast(images)
        case "equalize":
            return v2.equalize(images)
    raise ValueError(f"no operation {operation!r}")
