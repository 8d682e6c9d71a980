"""One class for each image."""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.config import OptimConfig
from slim.workbench.nested import described
from slim.workbench.tasks.metric import ACCURACY
from slim.workbench.tasks.task import Mixing, Task


@dataclass(frozen=True)
class Classification(Task):
    """Learn class numbers, int64 [N], by cross entropy; the metric is the accuracy, 0 to 1.

    classes: how many there are, or None for whatever the network has
    label_smoothing: share of each label spread over all classes, in training
    """

    classes: int | None = None
    label_smoothing: float = 0.0

    metric = ACCURACY

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the cross entropy of class scores and class numbers [N], or of probabilities [N, classes]."""
        return F.cross_entropy(logits(outputs), numbers(targets), label_smoothing=self.label_smoothing)

    def tally(self, outputs: Any, targets: Tensor) -> Tensor:
        """Count the images that are right, and all images."""
        right = targets if targets.ndim == 1 else targets.argmax(1)  # of mixed images, what there is most of
        correct = (logits(outputs).argmax(1) == right).sum()
        return torch.stack([correct, torch.full_like(correct, len(targets))])

    def predict(self, outputs: Any) -> Tensor:
        """Return the probability of each class, [N, classes]."""
        return logits(outputs).softmax(1)

    def check(self, outputs: Any, targets: Tensor) -> None:
        """Raise SlimError where there isn't one score for each class."""
        scores, classes = logits(outputs), self.classes
        count = len(targets) if isinstance(targets, Tensor) else -1
        if not isinstance(scores, Tensor) or scores.ndim != 2 or count not in (-1, len(scores)):
            found = f"of shape {list(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            of = f" for {count} images" if count > -1 else ""
            raise SlimError(f"the network's output{of} is {found}: expected [N, {classes or 'C'}]")
        whole = isinstance(targets, Tensor) and not targets.is_floating_point()
        if not isinstance(targets, Tensor) or (targets.ndim != 1 if whole else targets.shape != scores.shape):
            found = described(targets)
            raise SlimError(
                f"the targets are {found}: expected class numbers [N], or probabilities {list(scores.shape)} as floats "
                "(for several classes at once --task multilabel, for numbers regression)"
            )
        if not whole and ((sums := targets.sum(1)) - 1).abs().max() > 0.01:
            worst = float(sums[(sums - 1).abs().argmax()])
            raise SlimError(
                f"the targets of a sample add up to {worst:.3g}: expected class numbers [N], or "
                "probabilities, which add up to 1 (for several classes at once, or none, --task multilabel)"
            )
        if classes is not None and scores.shape[1] != classes:
            raise SlimError(
                f"the network's output has shape {list(scores.shape)} for {len(targets)} images: expected one number "
                f"for each of the {classes} classes"
            )

    def distillation(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """Return T²·KL(softmax(teacher/T) ‖ softmax(student/T)): see `distillation` below."""
        return distillation(logits(outputs), logits(taught), temperature)

    def trained_with(self, optim: OptimConfig) -> "Classification":
        """Smooth the labels as the settings say."""
        return replace(self, label_smoothing=optim.label_smoothing)

    def mixing(self, optim: OptimConfig) -> Mixing | None:
        """Return torchvision's MixUp, CutMix, or either of the two with equal chance.

        Labels [B] become probabilities [B, classes]. It draws from torch's global generator."""
        if not optim.mixup and not optim.cutmix:
            return None
        if self.classes is None:
            raise SlimError("mixup and cutmix need the number of classes: expected Classification(classes=…)")
        from torchvision.transforms import v2  # imports for a second

        kinds: list[Any] = []
        if optim.mixup:
            kinds.append(v2.MixUp(alpha=optim.mixup, num_classes=self.classes))
        if optim.cutmix:
            kinds.append(v2.CutMix(alpha=optim.cutmix, num_classes=self.classes))
        return kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)


def numbers(targets: Tensor) -> Tensor:
    """Return class numbers as torch's losses take them, of whatever size; probabilities as they are."""
    return targets if targets.is_floating_point() else targets.long()


def logits(outputs: Any) -> Any:
    """Return the class scores: networks with auxiliary heads (GoogLeNet, Inception) return others beside them in
    training."""
    return getattr(outputs, "logits", outputs)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T²·KL(softmax(teacher/T) ‖ softmax(student/T)) of logits [B, classes, …], the mean over the batch.

    T² keeps the gradients as large as those of the labels (Hinton, Vinyals and Dean,
    https://arxiv.org/abs/1503.02531)."""
    targets = F.log_softmax(teacher.float() / temperature, 1)
    learned = F.log_softmax(student.float() / temperature, 1)
    positions = student[0, 0].numel()  # 1, but for maps
    divergence = F.kl_div(learned, targets, reduction="batchmean", log_target=True)
    return temperature**2 * divergence / positions
