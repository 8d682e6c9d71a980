"""What a training is fed with: batches on its device, from a data set of images or from loaders."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.data.epoch import batches, steps_per_epoch
from slim.workbench.data.loaders import Batches, Loaders, pair
from slim.workbench.data.splits import Dataset, Split
from slim.workbench.data.workers import watched
from slim.workbench.nested import Samples, joined, length, moved, part
from slim.workbench.tasks import Task

Data = Dataset | Loaders
MOST_COUNTED = 100_000  # batches of an iterable without length: more may be without end
Shard = tuple[int, int]  # (i, n): the part of process i of n


class Batch(NamedTuple):
    """A process's part of a training batch, and how many samples the batch has in all processes."""

    inputs: Any
    targets: Any
    samples: int


class Feed(Protocol):
    """Batches for a training, on its device."""

    name: str
    task: Task
    batch_size: int  # samples of a training batch, in all processes
    steps_per_epoch: int

    def few(self) -> tuple[Any, Any]:
        """Return two samples or one, as a batch."""

    def epoch(self, seed: int, start: int, shard: Shard) -> Iterator[Batch]:
        """Go through the training data once, in an order and with an augmentation that follow from `seed`; without
        the first `start` batches, which are the same however an epoch is entered."""

    def held_out(self, batch_size: int, shard: Shard) -> Iterator[tuple[Any, Any]] | None:
        """Go through the validation data in order; None where there are none."""


def feed(data: Dataset | Loaders | Batches, device: torch.device) -> Feed:
    """Return what `fit` asks for batches, from what it may be given."""
    if isinstance(data, Dataset):
        return ImageFeed(data, device)
    return LoaderFeed(data if isinstance(data, Loaders) else Loaders(data), device)


class ImageFeed:
    """A data set of images: see `slim.workbench.data.batches`."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        self.dataset, self.device = dataset.to(device), device
        self.name, self.task = dataset.name, dataset.task
        self.batch_size = min(dataset.batch_size, len(dataset.train))
        self.steps_per_epoch = steps_per_epoch(len(dataset.train), dataset.batch_size)

    def few(self) -> tuple[Any, Any]:
        few = self.dataset.train[:2]
        return next(batches(few, self.dataset, 2, device=self.device))

    def epoch(self, seed: int, start: int, shard: Shard) -> Iterator[Batch]:
        drawn = batches(
            self.dataset.train,
            self.dataset,
            self.batch_size,
            shuffle_seed=seed,
            augment=True,
            device=self.device,
            start=start,
            shard=shard,
        )
        return (Batch(images, labels, self.batch_size) for images, labels in drawn)

    def held_out(self, batch_size: int, shard: Shard) -> Iterator[tuple[Any, Any]] | None:
        val = self.dataset.val
        return batches(val, self.dataset, batch_size, device=self.device, shard=shard) if len(val) else None


class LoaderFeed:
    """Iterables of batches. Whatever shuffles by torch's global generator follows from the seed of the epoch."""

    def __init__(self, loaders: Loaders, device: torch.device) -> None:
        self.loaders, self.device = loaders, device
        self.name, self.task = loaders.name, loaders.task
        self.train: Iterable[Any] = loaders.train
        first = next(watched(self.train, self.name), None)
        if first is None:
            raise SlimError(f"{self.name} has no training batch: expected at least one")
        if isinstance(self.train, Iterator):
            self.train = itertools.chain([first], self.train)  # it can't be asked for that again
        self.first = pair(first, self.name)
        self.batch_size = length(self.first[0])
        self.steps_per_epoch = self._steps()

    def few(self) -> tuple[Any, Any]:
        inputs, targets = (part(half, slice(2)) for half in self.first)
        return self.loaders.prepared(moved(inputs, self.device)), moved(targets, self.device)

    def epoch(self, seed: int, start: int, shard: Shard) -> Iterator[Batch]:
        if start and isinstance(self.train, Iterator):
            raise SlimError(f"the batches of {self.name} can be had once only: expected an iterable, to resume from it")
        torch.manual_seed(seed)  # DataLoaders draw their order from it as they start
        given = 0
        for batch in itertools.islice(watched(self.train, self.name), start, self.steps_per_epoch):
            inputs, targets = pair(batch, self.name)
            samples = length(inputs)
            if samples < shard[1]:
                raise SlimError(
                    f"a batch has {samples} samples: expected at least one for each of {shard[1]} processes"
                )
            given += 1
            yield Batch(*_own(self.loaders, inputs, targets, shard, self.device), samples)
        if given < self.steps_per_epoch - start:
            raise SlimError(
                f"{self.name} gave {given + start} training batches in an epoch: expected {self.steps_per_epoch}"
            )

    def held_out(self, batch_size: int, shard: Shard) -> Iterator[tuple[Any, Any]] | None:
        val = self.loaders.val
        return None if val is None else _ordered(self.loaders, val, self.device, shard)

    def _steps(self) -> int:
        if self.loaders.steps_per_epoch is not None:
            return self.loaders.steps_per_epoch
        try:
            return len(self.loaders.train)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):  # no length, or the method of a DataLoader over an iterable
            count = 0
            if not isinstance(self.train, Iterator):
                count = sum(1 for _ in itertools.islice(watched(self.train, self.name), MOST_COUNTED + 1))
            if not 0 < count <= MOST_COUNTED:
                raise SlimError(f"{self.name} has no length: expected Loaders(…, steps_per_epoch=N)") from None
            return count


def ordered(
    data: Dataset | Loaders, chosen: Split | Batches, batch_size: int, device: torch.device
) -> Iterator[tuple[Any, Any]]:
    """Go through a split of a data set, or through batches as they are, once and in order."""
    if isinstance(data, Dataset):
        assert isinstance(chosen, Split)
        return batches(chosen.to(device), data, batch_size, device=device)
    return _ordered(data, chosen, device)  # type: ignore[arg-type]  # loaders have no splits


def sample_inputs(data: Data, count: int, seed: int) -> Any:
    """Return so many training inputs, or all there are, without augmentation: of a data set drawn by `seed`, of loaders
    the first. Raises SlimError where those are of several sizes."""
    if isinstance(data, Dataset):
        return next(batches(data.train, data, count, shuffle_seed=seed))[0]
    torch.manual_seed(seed)
    found: list[Any] = []
    for inputs, _ in _ordered(data, data.train, torch.device("cpu")):
        found.append(inputs)
        count -= length(inputs)
        if count <= 0:
            break
    images = [image for batch in found if isinstance(batch, Tensor | Samples) for image in batch]
    sizes = list(dict.fromkeys(tuple(image.shape) for image in images if isinstance(image, Tensor)))
    if len(sizes) > 1:
        raise SlimError(
            f"{data.name} has images of several sizes, such as {list(sizes[0])} and {list(sizes[1])}: expected one, as "
            "channels are pruned by batches of them"
        )
    found = [torch.stack(batch) if isinstance(batch, Samples) else batch for batch in found]
    return part(joined(found), slice(None, count or None))


def _ordered(
    loaders: Loaders, given: Batches, device: torch.device, shard: Shard = (0, 1)
) -> Iterator[tuple[Any, Any]]:
    name = loaders.name
    for batch in watched(given, name):
        inputs, targets = pair(batch, name)
        if length(inputs) > shard[0]:
            yield _own(loaders, inputs, targets, shard, device)


def _own(loaders: Loaders, inputs: Any, targets: Any, shard: Shard, device: torch.device) -> tuple[Any, Any]:
    """Return this process's samples of a batch, on its device, as the network takes them."""
    if shard[1] > 1:
        inputs, targets = (part(half, slice(shard[0], None, shard[1])) for half in (inputs, targets))
    return loaders.prepared(moved(inputs, device)), moved(targets, device)
