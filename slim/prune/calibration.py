"""The images, without labels, by which channels are scored and layers refitted: checked, shuffled, no more than fit."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.batches import as_one
from slim.errors import SlimError

MOST = 1024  # images taken from what gives batches
PIXELS = 128 * 224**2  # all activations of all images are held at once: about 3 GB for a ResNet-50


def fitting(images: int, image_size: Sequence[int]) -> int:
    """Return how many of the `images` asked for fit in memory; `image_size` in pixels, (H, W)."""
    return min(images, max(8, PIXELS // math.prod(image_size)))


def drawn(images: Any, least: int, purpose: str) -> tuple[Any, int]:
    """Return the images in a random order, the same each time, and how many there are; of more than fit in memory some.

    `images`: a batch, as the network takes it: a tensor [N, …], or a tuple or dict of tensors with N first; or batches,
    such as a DataLoader, of which the first ones are taken, `MOST` images or more. Raises SlimError where it is no such
    thing, has fewer than `least` images, or values that aren't finite.
    """
    images = as_one(images, MOST)
    tensors = [t for t in tree_leaves(images) if isinstance(t, Tensor) and t.dim()]
    sizes = {t.shape[0] for t in tensors}
    if len(sizes) != 1 or min(sizes) < least:
        found = sorted(sizes) if tensors else f"a {type(images).__name__}"
        expected = f"one batch of at least {least}" if least > 1 else "one batch, a tensor [N, C, H, W] for example"
        raise SlimError(f"{purpose} from {found} images: expected {expected}")
    for tensor in tensors:
        bad = (~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()
        if len(bad):
            raise SlimError(f"{purpose}: image {int(bad[0])} has values that aren't finite: expected numbers")
    count = sizes.pop()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    order = order[: fitting(count, max((t.shape[2:] for t in tensors), key=math.prod))]
    return part(images, order), len(order)


def part(images: Any, which: slice | Tensor | EllipsisType, device: torch.device | None = None) -> Any:
    """Return some of a batch of images."""

    def of(tensor: Tensor) -> Tensor:
        if tensor.dim():
            tensor = tensor[which.to(tensor.device) if isinstance(which, Tensor) else which]
        return tensor.to(device)

    return tree_map_only(Tensor, of, images)


@contextmanager
def running(who: str) -> Iterator[None]:
    """Return a forward pass over the images. What it raises becomes a SlimError of one line: `who` can't run on
    them."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, ArithmeticError) as error:
        raise SlimError(f"{who} can't run on these images: {' '.join(str(error).split())}") from error
