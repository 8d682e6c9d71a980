"""Any number of classes for each image."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.nested import described
from slim.workbench.tasks.classification import logits
from slim.workbench.tasks.metric import Metric
from slim.workbench.tasks.task import Task


@dataclass(frozen=True)
class MultiLabel(Task):
    """Learn which classes are there, 0 or 1 in [N, classes], by binary cross entropy.

    The metric is F1 over all answers together: 2·hits / (2·hits + false alarms + misses), 0 to 1; a class is said to be
    there from a probability of one half on. Where nothing is there and nothing is said to be, it is 1.
    """

    classes: int | None = None

    metric = Metric("f1", "max")

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the binary cross entropy, the mean over classes and images."""
        return F.binary_cross_entropy_with_logits(logits(outputs), targets.float())

    def tally(self, outputs: Any, targets: Tensor) -> Tensor:
        """Count twice the hits, and that with false alarms and misses."""
        said, there = logits(outputs) > 0, targets > 0.5
        hits = (said & there).sum()
        return torch.stack([2 * hits, 2 * hits + (said != there).sum()])

    def value(self, sums: Tensor) -> float:
        """Return F1."""
        return float(sums[0]) / float(sums[1]) if float(sums[1]) else 1.0

    def predict(self, outputs: Any) -> Tensor:
        """Return the probability of each class, [N, classes], each for itself."""
        return logits(outputs).sigmoid()

    def check(self, outputs: Any, targets: Tensor) -> None:
        """Raise SlimError where there isn't one score for each class of each image."""
        if not isinstance(targets, Tensor) or logits(outputs).shape != targets.shape:
            raise SlimError(
                f"the network's output has shape {list(logits(outputs).shape)} for targets, {described(targets)}: "
                "expected one number for each class of each image"
            )

    def distillation(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """Return T² times the divergence of the softened probabilities, each class for itself."""
        student, teacher = logits(outputs).float() / temperature, logits(taught).float() / temperature
        shares = teacher.sigmoid()
        own = F.binary_cross_entropy_with_logits(teacher, shares)  # what can't be learned away
        return temperature**2 * (F.binary_cross_entropy_with_logits(student, shares) - own)
