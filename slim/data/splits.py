"""Images with their labels, in memory or in files, and what a data set is made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, C, H, W], and their class numbers, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        """The same split on a device; no copy where it is there already."""
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, indices: Iterable[Tensor | slice], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """For each index of a batch its images, uint8 [B, C, H, W], and labels, on `device`."""
        for index in indices:
            if isinstance(index, Tensor):
                index = index.to(self.labels.device)
            yield self.images[index].to(device), self.labels[index].to(device)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, with the statistics that normalise them.

    `mean` and `std` hold one number per channel, in units where black is 0 and white is 1, from the training
    images alone. `augment` is "none", "crop" or "crop+flip".
    """

    name: str
    classes: list[str]
    train: Split
    val: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation per channel of uint8 images [N, C, H, W], where white is 1.

    The sums are whole numbers, so the result doesn't depend on their order. A constant channel gets the
    deviation of one grey level, 1/255, so that normalising it stays finite.
    """
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for chunk in images.split(4096):  # int64 copies of everything would be large
        values = chunk.to(torch.int64)
        total += values.sum((0, 2, 3))
        squares += (values * values).sum((0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total.double() / count
    std = (squares.double() / count - mean * mean).clamp(min=0).sqrt().clamp(min=1)
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def hold_out(split: Split, fraction: float, generator: torch.Generator) -> tuple[Split, Split]:
    """What stays and what is held out. Walking through the shuffled images class by class and taking one
    whenever the running share passes a whole number gives every class its share to within one image."""
    shuffled = torch.randperm(len(split), generator=generator)
    by_class = shuffled[split.labels[shuffled].argsort(stable=True)]
    offset = torch.rand((), generator=generator, dtype=torch.float64)  # else the last classes give more
    share = (torch.arange(len(split) + 1, dtype=torch.float64) * fraction + offset).floor()
    held = torch.zeros(len(split), dtype=torch.bool)
    held[by_class] = share[1:] > share[:-1]
    return split[~held], split[held]
