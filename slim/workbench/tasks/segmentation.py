"""A class for each pixel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.nested import described
from slim.workbench.tasks.classification import distillation
from slim.workbench.tasks.metric import Metric
from slim.workbench.tasks.task import Task

IGNORED = 255  # the number of pixels that don't count, as in PASCAL VOC and Cityscapes
AUXILIARY = 0.5  # weight of an auxiliary head's loss, as in torchvision's references


@dataclass(frozen=True)
class Segmentation(Task):
    """Learn maps of class numbers, whole numbers [N, H, W] or [N, 1, H, W] with 255, or one below 0, where nothing
    counts, by cross entropy.

    The network gives scores [N, classes, h, w], or a dict of them as torchvision's do: `out`, and `aux` in training.
    Scores of another size are scaled to that of the maps. The metric is the mean over classes of intersection over
    union, each counted over all images, 0 to 1; classes that are neither there nor found don't take part.
    """

    classes: int | None = None

    metric = Metric("mean_iou", "max")

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the cross entropy over pixels, with that of an auxiliary head where there is one."""
        targets = _maps(targets)
        loss = _cross_entropy(scores(outputs), targets)
        if isinstance(outputs, Mapping) and "aux" in outputs:
            loss = loss + AUXILIARY * _cross_entropy(outputs["aux"], targets)
        return loss

    def tally(self, outputs: Any, targets: Tensor) -> Tensor:
        """Count for each class the pixels of the intersection, and those of the union."""
        targets = _maps(targets)
        found = _scaled(scores(outputs), targets).argmax(1)
        classes = scores(outputs).shape[1]
        counted = targets != IGNORED
        pairs = torch.bincount(targets[counted] * classes + found[counted], minlength=classes**2)
        confusion = pairs.reshape(classes, classes)  # true class, class found
        both = confusion.diagonal()
        return torch.stack([both, confusion.sum(0) + confusion.sum(1) - both])

    def value(self, sums: Tensor) -> float:
        """Return the mean over the classes that occur."""
        both, either = sums.double()
        there = either > 0
        return float((both[there] / either[there]).mean()) if there.any() else 1.0

    def predict(self, outputs: Any) -> Tensor:
        """Return the probability of each class at each pixel, [N, classes, h, w]."""
        return scores(outputs).softmax(1)

    def check(self, outputs: Any, targets: Tensor) -> None:
        """Raise SlimError where there aren't maps of one score for each class."""
        found = scores(outputs)
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        expected = f"expected [N, {self.classes or 'classes'}, height, width]"
        if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[1] != (self.classes or found.shape[1]):
            raise SlimError(f"the network's output is {shape}: {expected}")
        if not isinstance(targets, Tensor) or targets.is_floating_point() or _maps(targets).ndim != 3:
            raise SlimError(f"the targets are {described(targets)}: expected maps of class numbers [N, H, W]")

    def distillation(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """Return T²·KL(softmax(teacher/T) ‖ softmax(student/T)), the mean over pixels."""
        return distillation(scores(outputs), scores(taught), temperature)


def scores(outputs: Any) -> Any:
    """Return the scores of a network's own output, beside those of an auxiliary head."""
    if isinstance(outputs, Mapping):
        return outputs.get("out", outputs.get("logits"))
    return getattr(outputs, "logits", outputs)


def _maps(targets: Tensor) -> Tensor:
    """Return maps of class numbers, int64 [N, H, W], with 255 wherever nothing counts."""
    maps = (targets[:, 0] if targets.ndim == 4 and targets.shape[1] == 1 else targets).long()
    return maps.where(maps >= 0, IGNORED)


def _scaled(found: Tensor, targets: Tensor) -> Tensor:
    if found.shape[2:] == targets.shape[1:]:
        return found
    return F.interpolate(found, size=targets.shape[1:], mode="bilinear", align_corners=False)


def _cross_entropy(found: Tensor, targets: Tensor) -> Tensor:
    total = F.cross_entropy(_scaled(found, targets), targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)  # a batch in which nothing counts teaches nothing
