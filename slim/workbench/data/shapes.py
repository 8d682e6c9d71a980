"""Rendered shapes: images whose truth is known because they were made from it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CLASSES = ("background", "disc", "square", "triangle")


MOST = 3  # shapes in an image
SEEN = 0.3  # share of a shape that has to be visible for its box to count


class Shapes(NamedTuple):
    """Images, uint8 [N, 3, size, size], the class number of each pixel, int64 [N, size, size], and the boxes of what
    can be seen of the shapes, float32 [N, 3, 5]: x1, y1, x2, y2 in pixels and the class number, zeros where there are
    fewer."""

    images: Tensor
    maps: Tensor
    boxes: Tensor

    @property
    def presence(self) -> Tensor:
        """Return which shapes are in each image: 0 or 1, [N, 3], for the task multilabel."""
        return torch.stack([(self.maps == number).flatten(1).any(1) for number in range(1, len(CLASSES))], 1).float()

    @property
    def coverage(self) -> Tensor:
        """Return the share of each image that shapes cover, in percent, [N], for the task regression."""
        return 100 * (self.maps > 0).flatten(1).float().mean(1)


def render_shapes(count: int, size: int = 48, seed: int = 0) -> Shapes:
    """Draw up to three shapes of random place, size and colour in each image, the later ones over the others, on a
    slanted background with noise.

    >>> render_shapes(2, size=32).images.shape
    torch.Size([2, 3, 32, 32])
    """
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    images, maps = np.empty((count, size, size, 3), np.uint8), np.zeros((count, size, size), np.int64)
    boxes = np.zeros((count, MOST, 5), np.float32)
    for image, classes, found in zip(images, maps, boxes):
        shapes: list[tuple[int, np.ndarray]] = []
        slope = draw.uniform(-1, 1, (2, 3))
        pixels = draw.uniform(60, 200, 3) + 40 * (rows[..., None] * slope[0] + columns[..., None] * slope[1]) / size
        for _ in range(draw.integers(1, MOST + 1)):
            kind, radius = int(draw.integers(1, len(CLASSES))), draw.uniform(0.12, 0.3) * size
            row, column = draw.uniform(radius, size - radius, 2)
            inside = _inside(kind, (rows - row) / radius, (columns - column) / radius)
            pixels[inside] = draw.uniform(0, 255, 3)
            classes[inside] = kind
            shapes.append((kind, inside))
        image[:] = (pixels + draw.normal(0, 12, pixels.shape)).clip(0, 255)
        boxes_of = _boxes(shapes)
        found[: len(boxes_of)] = boxes_of
    as_images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Shapes(as_images, torch.from_numpy(maps), torch.from_numpy(boxes))


def _boxes(shapes: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Return the box of each shape, [K, 5], given class and pixels of each, the later ones over the others. One of
    which little can be seen has none."""
    boxes = np.zeros((0, 5), np.float32)
    for number, (kind, inside) in enumerate(shapes):
        hidden = np.logical_or.reduce([other for _, other in shapes[number + 1 :]], initial=False)
        seen = inside & ~hidden
        if seen.sum() >= SEEN * inside.sum():
            rows, columns = seen.any(1).nonzero()[0], seen.any(0).nonzero()[0]
            box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, kind]
            boxes = np.vstack([boxes, np.array(box, np.float32)])
    return boxes


def _inside(kind: int, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return which points lie inside a shape of radius 1 around the origin; y points down."""
    if CLASSES[kind] == "disc":
        return x**2 + y**2 <= 1
    if CLASSES[kind] == "square":
        return np.maximum(abs(x), abs(y)) <= 0.8
    return (y <= 0.8) & (abs(x) <= (y + 1) / 1.8)  # a triangle with its tip up
