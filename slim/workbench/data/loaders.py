"""Batches from anywhere: a DataLoader, a list, a generator."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slim.batches import as_tensors, inputs_of
from slim.errors import SlimError
from slim.images import ImageSpec
from slim.workbench.nested import length
from slim.workbench.tasks import Classification, Task

Batches = Iterable[tuple[Any, Any]]  # of (inputs, targets), as the network and the task take them


TARGETS = ("label", "labels", "target", "targets", "y", "mask", "masks")  # usual names in batches that are dicts


def pair(batch: Any, name: str) -> tuple[Any, Any]:
    """Return inputs and targets of a batch: of a dict what has a usual name, and the rest. Arrays become tensors.

    Raises SlimError for what isn't such a batch; `name` is that of the data."""
    if isinstance(batch, Mapping):
        keys = [key for key in batch if key in TARGETS]
        if len(keys) != 1 or len(batch) < 2:
            raise SlimError(
                f"a batch of {name} is a dict of {', '.join(map(str, batch))}: expected (inputs, targets), or one of "
                f"{', '.join(TARGETS)} beside the inputs"
            )
        rest = {key: value for key, value in batch.items() if key != keys[0]}
        batch = (next(iter(rest.values())) if len(rest) == 1 else rest), batch[keys[0]]
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"type {type(batch).__name__}"
        raise SlimError(f"a batch of {name} has {found}: expected (inputs, targets)")
    inputs, targets = inputs_of(batch), as_tensors(batch[1])
    try:
        length(inputs)
    except TypeError as error:
        raise SlimError(f"the inputs of a batch of {name} can't be used: {error}") from None
    return inputs, targets


def _as_they_are(inputs: Any) -> Any:
    return inputs


@dataclass(frozen=True)
class Loaders:
    """Iterables of batches (inputs, targets) for `fit` and `evaluate`, beside data sets of images in memory.

    train, val, test: a DataLoader, a list, or any iterable; `val` and `test` may be missing
    steps_per_epoch: batches of `train` in an epoch; None: all of them, which are counted where they have no length
    task: what the targets are
    spec: what is known of the inputs
    transform: what is done to the inputs of each batch on the device where they are used, such as to normalise them

    Batches come as the network takes them, normalised, or get so by `transform`; where `spec` has mean and std, uint8
    images [N, C, H, W] are normalised by these. Several processes share each batch:
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

    def prepared(self, inputs: Any) -> Any:
        """Return the inputs of a batch as the network takes them."""
        inputs = self.transform(inputs)
        if self.spec.mean is None or self.spec.std is None or not is_raw(inputs):
            return inputs
        mean, std = (
            inputs.new_tensor(each, dtype=torch.float32)[:, None, None] for each in (self.spec.mean, self.spec.std)
        )
        return (inputs / 255 - mean) / std


def is_raw(inputs: Any) -> bool:
    """Say whether inputs are images as files have them: uint8 [N, C, H, W] with at most 4 channels."""
    return isinstance(inputs, Tensor) and inputs.dtype == torch.uint8 and inputs.ndim == 4 and inputs.shape[1] <= 4
