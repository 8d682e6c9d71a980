"""Images with their labels, in memory or in files, and what a data set is made of."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slim.images import ImageSpec
from slim.workbench.data.files import ImageFiles
from slim.workbench.tasks import Classification, Task

STATISTICS_FROM = 4096  # training images that give mean and deviation, where not all are in memory
PARTS = {  # usual names of splits
    **{word: "train" for word in ("train", "training")},
    **{word: "val" for word in ("val", "validation", "valid", "dev")},
    **{word: "test" for word in ("test", "testing")},
}


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, C, H, W] in memory or in files, and their targets, such as class numbers int64 [N]."""

    images: Tensor | ImageFiles
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        return Split(self.images[index], self.labels[index])

    @property
    def nbytes(self) -> int:
        """Return what the images take in memory, or would take."""
        return math.prod(self.images.shape)

    @property
    def home(self) -> torch.device:
        """Return where the images are in memory; files are read by the CPU."""
        return self.images.device if isinstance(self.images, Tensor) else torch.device("cpu")

    def to(self, device: torch.device | str) -> "Split":
        """Return the same split on a device; no copy where it is there already. Files stay files."""
        return Split(self.images.to(device), self.labels.to(device))

    def decoded(self) -> Tensor:
        """Return all images as a tensor."""
        return self.images if isinstance(self.images, Tensor) else self.images.decoded()

    def sample(self, count: int) -> Tensor:
        """Return the images, or of those in files `count` at even distances: the classes follow one another."""
        if isinstance(self.images, Tensor) or len(self) <= count:
            return self.decoded()
        return self[torch.arange(count) * len(self) // count].decoded()

    def take(self, indices: Sequence[Tensor | slice], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each index of a batch its images, uint8 [B, C, H, W], and labels, on `device`."""
        if isinstance(self.images, ImageFiles):
            brought = self.images.stream(indices, device)
        else:
            brought = (_bring(self.images, index, torch.device(device)) for index in indices)
        for index, images in zip(indices, brought):
            place = index.to(self.labels.device) if isinstance(index, Tensor) else index
            yield images, self.labels[place].to(device)


def _bring(images: Tensor, index: Tensor | slice, device: torch.device) -> Tensor:
    part = images[index.to(images.device) if isinstance(index, Tensor) else index]
    if device.type == "cuda" and part.device.type == "cpu":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits, with what normalises them.

    spec: the shape of an image, class names, and one mean and std per channel, from the training images alone (from a
        sample of them where they stay in files)
    augment: what is done to training images: see `slim.workbench.data.augment`
    storage: where images live, as DataConfig has it
    batch_size: images in a training step
    task: what the labels are for; None: the classification of `spec.classes`
    """

    name: str
    spec: ImageSpec
    train: Split
    val: Split
    test: Split
    augment: str = "none"
    storage: str = "auto"
    batch_size: int = 64
    task: Task = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.task is None:
            object.__setattr__(self, "task", Classification(len(self.classes) or None))

    @property
    def classes(self) -> list[str]:
        """Return the names of the classes, where there are any."""
        return list(self.spec.classes or ())

    @property
    def channels(self) -> int:
        """Return the channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]

    def to(self, device: torch.device | str) -> "Dataset":
        """Return the data set with training and validation on the device that trains.

        Images stay in host memory, and are brought there batch by batch, where they would take more than half of what
        is free on the device (`storage` "auto"), or if `storage` is "host"."""
        device = torch.device(device)
        size = self.train.nbytes + self.val.nbytes
        fits = self.storage != "host" and (self.storage == "device" or size <= 0.5 * _free_on(device))
        train, val = (
            split.to(device) if fits else replace(split, labels=split.labels.to(device))
            for split in (self.train, self.val)
        )
        return replace(self, train=train, val=val)


def _free_on(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return math.inf  # images in host memory are where the CPU wants them


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and (population) standard deviation per channel of uint8 images [N, C, H, W], where white is 1.

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


def spec_of(train: Split, classes: Sequence[str] | None, sample: int) -> ImageSpec:
    """Return what is said of a data set's images, with the statistics of its training images."""
    mean, std = statistics(train.sample(sample))
    return ImageSpec(tuple(train.images.shape[1:]), tuple(classes) if classes else None, mean, std)


def hold_out(split: Split, fraction: float, generator: torch.Generator) -> tuple[Split, Split]:
    """Return what stays and what is held out. Walking through the shuffled images class by class and taking one
    whenever the running share passes a whole number gives every class its share to within one image."""
    shuffled = torch.randperm(len(split), generator=generator)
    by_class = shuffled
    if split.labels.ndim == 1 and not split.labels.is_floating_point():
        by_class = shuffled[split.labels[shuffled].argsort(stable=True)]
    offset = torch.rand((), generator=generator, dtype=torch.float64)  # else the last classes give more
    share = (torch.arange(len(split) + 1, dtype=torch.float64) * fraction + offset).floor()
    held = torch.zeros(len(split), dtype=torch.bool)
    held[by_class] = share[1:] > share[:-1]
    return split[~held], split[held]
