"""Batches from anywhere: a DataLoader, a list, a generator."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from slim.images import ImageSpec
from slim.workbench.tasks import Classification, Task

Batches = Iterable[tuple[Any, Any]]  # of (inputs, targets), as the network and the task take them


def _as_they_are(inputs: Any) -> Any:
    return inputs


@dataclass(frozen=True)
class Loaders:
    """Iterables of batches (inputs, targets) for `fit` and `evaluate`, beside data sets of images in memory.

    train, val, test: a DataLoader, a list, or any iterable; `val` and `test` may be missing
    steps_per_epoch: batches of `train` in an epoch; None: all of them, which needs a length
    task: what the targets are
    spec: what is known of the inputs
    transform: what is done to the inputs of each batch on the device where they are used, such as to normalise them

    Batches come as the network takes them, normalised, or get so by `transform`. Several processes share each batch:
    every one must get the same ones, and takes every n-th sample.

    >>> import torch
    >>> Loaders([(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))] * 5).steps_per_epoch
    """

    train: Batches
    val: Batches | None = None
    test: Batches | None = None
    steps_per_epoch: int | None = None
    task: Task = field(default_factory=Classification)
    name: str = "the data"
    spec: ImageSpec = field(default_factory=ImageSpec)
    transform: Callable[[Any], Any] = _as_they_are
