"""One pass over a split, as batches on the device that trains."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from slim.workbench.data.augment import Augmentation
from slim.workbench.data.splits import Dataset, Split
from slim.workbench.nested import arranged

AT_ONCE = 2**26  # bytes of float32 images that a GPU changes at once: a few batches of small images, one of large ones


def batches(
    split: Split,
    dataset: Dataset,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    augment: bool = False,
    device: torch.device | str = "cpu",
    start: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Go through a split once: normalised float32 images [B, C, H, W] and labels [B], on `device`.

    Without `shuffle_seed` the order is the split's own and the last batch may be smaller. With it the order
    is random and all batches have the same size: the images left over, fewer than a batch and others in each
    epoch, are skipped (a tiny last batch would give BatchNorm bad statistics). A split smaller than a batch
    is one batch.

    `augment` applies the data set's augmentation and needs `shuffle_seed`: order, crops and flips all follow
    from it, and are the same on every device.

    `start` leaves out that many batches, for a training that goes on within an epoch: the rest is the same, bit for
    bit. `shard` = (i, n) gives every n-th image of each batch, from the i-th on: the part of process i of n.
    `batch_size` counts the images of all of them. A part without images, as the last batch in order may give, is
    left out.
    """
    if augment and shuffle_seed is None:
        raise ValueError("augment needs shuffle_seed: without it the crops would not be reproducible")
    size = len(split)
    if shuffle_seed is None:
        bounds = [(first, min(first + batch_size, size)) for first in range(0, size, batch_size)]
    else:
        whole = min(batch_size, size)
        if whole < shard[1]:
            raise ValueError(f"a batch has {whole} images: expected at least one for each of {shard[1]} processes")
        bounds = [(step * whole, (step + 1) * whole) for step in range(steps_per_epoch(size, batch_size))]
    parts = [slice(first + shard[0], end, shard[1]) for first, end in bounds[start:] if first + shard[0] < end]
    device = torch.device(device)

    std = torch.tensor(dataset.spec.std)
    scale, shift = (
        values.reshape(1, -1, 1, 1).to(device) for values in (1 / (255 * std), -torch.tensor(dataset.spec.mean) / std)
    )
    if shuffle_seed is None:
        for images, labels in split.take(parts, device):
            yield arranged(images.float().mul_(scale).add_(shift), torch.contiguous_format), labels
        return

    generator = torch.Generator().manual_seed(shuffle_seed)  # on the CPU: the same draws whatever the device
    order = torch.randperm(size, generator=generator).to(split.home)  # at once: a copy a batch would make a GPU wait
    changes = Augmentation(dataset.augment if augment else "none", size, dataset.image_size, generator, device)
    together = _joined(parts, _at_once(split, whole, device) if shard[1] == 1 else 1)
    taken = split.take([order[part] for part in together], device)
    for here, (images, labels) in zip(together, taken):
        images = changes.pixels(images, here).float().mul_(scale).add_(shift)
        images, labels = changes.normalised(images, here), changes.targets(labels, here)
        images = arranged(images, torch.contiguous_format)
        yield from zip(images.split(whole), labels.split(whole), strict=True)


def _at_once(split: Split, batch_size: int, device: torch.device) -> int:
    """Return how many batches are changed together: on a GPU, where a call costs as much for few images as for many, as
    many as memory is no matter for."""
    if device.type != "cuda" or split.home.type != "cuda":
        return 1
    return max(1, AT_ONCE // (4 * batch_size * math.prod(split.images.shape[1:])))


def _joined(parts: list[slice], count: int) -> list[slice]:
    """Join each `count` batches that follow one another."""
    some = [parts[first : first + count] for first in range(0, len(parts), count)]
    return [slice(each[0].start, each[-1].stop, each[0].step) for each in some]


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Return the number of shuffled batches that `batches` cuts from `size` images."""
    return max(1, size // batch_size)
