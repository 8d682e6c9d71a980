"""Means and times over an epoch."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from slim.workbench.train.guard import diverged

Item = TypeVar("Item")


class Meter:
    """Means of loss and accuracy, read off the device only when asked, and where the time goes.

    `training` is the time in s that the epoch's steps took so far, `waiting` the part of it in which they waited for
    images; on a GPU, which works on while Python prepares the next step, that is the time in which no work came.
    """

    def __init__(self) -> None:
        self.images = 0  # that this process has seen
        self.training = self.waiting = 0.0
        self.elapsed = 0.0  # in s, of the epoch before it was resumed
        self._loss, self._correct = 0.0, 0
        self._recent: list[tuple[Tensor, Tensor]] = []
        self._where: list[tuple[int, int, float]] = []  # step, images and learning rate of those

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor, step: int, lr: float) -> None:
        """The mean `loss` of a batch, or of a part of one, and its class scores."""
        right = labels if labels.ndim == 1 else labels.argmax(1)  # of mixed images, what there is most of
        self._recent.append((loss.detach(), (scores.detach().argmax(1) == right).sum()))
        self._where.append((step, len(labels), lr))
        self.images += len(labels)

    def read(self) -> None:
        """Take in the recent losses. Raises `SlimError` if one isn't finite."""
        if not self._recent:
            return
        losses, correct = (torch.stack(values).tolist() for values in zip(*self._recent))
        for loss, (step, _, lr) in zip(losses, self._where):
            if not math.isfinite(loss):
                raise diverged("training loss", loss, step, lr)
        self._loss = math.fsum([self._loss, *(loss * n for loss, (_, n, _) in zip(losses, self._where))])
        self._correct += sum(correct)
        self._recent.clear()
        self._where.clear()

    def means(self) -> tuple[float, float]:
        """Loss and accuracy so far, of this process."""
        self.read()
        return self._loss / self.images, self._correct / self.images

    def unite(self, device: torch.device) -> None:
        """Make this the meter of all processes together."""
        self.read()
        sums = torch.tensor([self._loss, self._correct, self.images], dtype=torch.float32, device=device)
        dist.all_reduce(sums)
        loss, correct, images = sums.tolist()
        self._loss, self._correct, self.images = loss, int(correct), int(images)

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """The same batches; the time is taken while they are asked for and used."""
        iterator = iter(batches)
        while True:
            started = time.perf_counter()
            batch = next(iterator, None)
            came = time.perf_counter()
            if batch is None:
                return
            self.waiting += came - started
            yield batch
            self.training += time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        self.read()
        return {key: value for key, value in vars(self).items() if key not in ("_recent", "_where")}

    def load(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
