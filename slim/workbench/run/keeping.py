"""Fine-tuning is undone where validation images show that it made the network worse."""

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

from slim.workbench import train
from slim.workbench.run.folder import Run
from slim.workbench.run.networks import Trained, validation_of
from slim.workbench.tasks import Task

PARTS = 20  # of the validation images, by which the spread is estimated
SHOWN = 2  # standard errors by which a network has to be worse


class Keeper:
    """What a network was before it was trained on: its weights, and how it did on validation images. It judges nothing
    where there are none, or no labels, and only in the process that saves."""

    def __init__(self, run: Run, network: Trained) -> None:
        self.run, self.network = run, network
        self.before = self._judged()
        if self.before:
            self.weights = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}

    def restore_if_worse(self) -> bool:
        """Give the network its weights back where it was better with them, and say so."""
        dataset = self.network.dataset
        if not self.before or dataset is None:
            return False
        after, task = self._judged(), dataset.task
        if not is_worse(task, self.before, after):
            return False
        self.network.model.load_state_dict(self.weights)
        change = " → ".join(task.metric.format(task.value(reduce(add, parts))) for parts in (self.before, after))
        self.run.console.print(
            f"fine-tuning made it worse on validation images ({task.metric.title} {change}): the {self.network.stage} "
            "network is kept; a lower finetune.lr may do better"
        )
        return True

    def _judged(self) -> list[Any]:
        dataset = self.network.dataset
        split = validation_of(dataset) if train.is_rank_zero() else None
        if dataset is None or split is None:
            return []
        return train.tallies(self.network.model, split, dataset, PARTS, compute=self.run.settings.compute)


def is_worse(task: Task, before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Say whether a network is worse after than before by more than SHOWN standard errors of the difference, given what
    the same parts of the images count for the metric. Of a single part no spread is known, and nothing is shown."""
    lost = _lost(task, before, after)
    return lost > 0 and lost > SHOWN * standard_error(task, before, after)


def standard_error(task: Task, before: Sequence[Any], after: Sequence[Any]) -> float:
    """Return the standard error of the difference of the metric by the jackknife (Efron & Stein, 1981): how it varies
    as each part of the images is left out. It takes any metric, and compares on the same images."""
    count = min(PARTS, len(before))
    if count < 2:
        return math.inf
    groups = [[reduce(add, parts[number::count]) for number in range(count)] for parts in (before, after)]
    without = [_lost(task, *(parts[:number] + parts[number + 1 :] for parts in groups)) for number in range(count)]
    mean = math.fsum(without) / count
    return math.sqrt((count - 1) / count * math.fsum((lost - mean) ** 2 for lost in without))


def _lost(task: Task, before: Sequence[Any], after: Sequence[Any]) -> float:
    """Return how much worse the metric is after than before."""
    return task.metric.loss(task.value(reduce(add, before)), task.value(reduce(add, after)))
