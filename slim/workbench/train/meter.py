"""Means and times over an epoch."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from slim.workbench.tasks import Task
from slim.workbench.train.guard import diverged

Item = TypeVar("Item")


class Meter:
    """Means of the loss and of a task's metric, read off the device only when asked, and where the time goes.

    `training` is the time in s that the epoch's steps took so far, `waiting` the part of it in which they waited for
    images; on a GPU, which works on while Python prepares the next step, that is the time in which no work came.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self.images = 0  # that this process has seen
        self.training = self.waiting = 0.0
        self.elapsed = 0.0  # in s, of the epoch before it was resumed
        self.loss = 0.0  # summed over images
        self.sums: Tensor | None = None  # of the metric, where the outputs of training say something of it
        self._started: float | None = None  # when the time of the step that runs was last taken
        self._recent: list[tuple[Tensor, Tensor | None]] = []
        self._where: list[tuple[int, int, float]] = []  # step, images and learning rate of those

    def add(self, loss: Tensor, sums: Tensor | None, images: int, step: int, lr: float) -> None:
        """Add the mean `loss` of a batch, or of a part of one, and what it adds to the metric."""
        self._recent.append((loss, sums))
        self._where.append((step, images, lr))
        self.images += images

    def read(self) -> None:
        """Take in the recent losses. Raises `SlimError` if one isn't finite."""
        if not self._recent:
            return
        losses = torch.stack([loss for loss, _ in self._recent]).tolist()
        known = [sums for _, sums in self._recent if sums is not None]
        for loss, (step, _, lr) in zip(losses, self._where):
            if not math.isfinite(loss):
                raise diverged("training loss", loss, step, lr)
        self.loss = math.fsum([self.loss, *(loss * n for loss, (_, n, _) in zip(losses, self._where))])
        if known:
            sums = torch.stack(known).cpu().double().sum(0)
            self.sums = sums if self.sums is None else self.sums + sums
        self._recent.clear()
        self._where.clear()

    def close(self) -> None:
        """Take in the last losses of an epoch; a GPU may still have steps of it to do."""
        started = time.perf_counter()
        self.read()
        self.training += time.perf_counter() - started

    def means(self) -> tuple[float, float | None]:
        """Return loss and metric so far, of this process."""
        self.read()
        return self.loss / self.images, None if self.sums is None else self._task.value(self.sums)

    def unite(self, device: torch.device) -> None:
        """Make this the meter of all processes together."""
        self.read()
        totals = torch.tensor([self.loss, self.images], dtype=torch.float64, device=device)
        dist.all_reduce(totals)
        self.loss, self.images = float(totals[0]), int(totals[1])
        if self.sums is not None:
            sums = self.sums.to(device)
            dist.all_reduce(sums)
            self.sums = sums.cpu()

    def timed(self, batches: Iterable[Item]) -> Iterator[Item]:
        """Yield the same batches; the time is taken while they are asked for and used."""
        iterator = iter(batches)
        while True:
            self._started = started = time.perf_counter()
            batch = next(iterator, None)
            came = time.perf_counter()
            if batch is None:
                self._started = None
                return
            self.waiting += came - started
            yield batch
            self._take_time()

    def _take_time(self) -> None:
        """Add what a step that runs has taken since this was last done."""
        if self._started is not None:
            now = time.perf_counter()
            self.training += now - self._started
            self._started = now

    def state_dict(self) -> dict[str, Any]:
        """Return what a snapshot keeps; it may be taken within a step."""
        self.read()
        self._take_time()
        return {key: value for key, value in vars(self).items() if not key.startswith("_")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a snapshot kept."""
        vars(self).update(state)
