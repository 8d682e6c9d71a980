"""How the weights are learned: optimizer, learning rate, mixed images, and the loss."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.errors import unknown
from slim.sparsity import parameter_groups
from slim.workbench.config import OptimConfig

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def optimizer_of(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that `optim` describes, over all trainable parameters: see `slim.parameter_groups`."""
    groups = parameter_groups(model, optim.weight_decay, optim.decay_norm)
    match optim.optimizer:
        case "sgd":
            nesterov = optim.nesterov and optim.momentum > 0
            return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam(groups, lr=optim.lr, betas=(optim.momentum, 0.999))
        case "adamw":
            return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.momentum, 0.999))
    raise unknown("optimizer", optim.optimizer, ["sgd", "adam", "adamw"])


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step 0 … steps − 1.

    In the w = warmup·steps steps of the warm-up, step k has lr·(k + 1)/(w + 1). After it, "constant" stays at
    lr; "step" divides by 10 at each of the `milestones`, by default half and three quarters of all steps, as the paper
    does on CIFAR-10; "cosine" follows lr·(1 + cos(π·t))/2, where t goes from 0 at step w towards 1 at the end.

    "onecycle" rises along half a cosine from lr/25 to lr at step w − 1 and falls along another to lr/250,000 at the
    last step (Smith and Topin, https://arxiv.org/abs/1708.07120, as torch's OneCycleLR has it, without its cycle of
    the momentum; there w is 0.3·steps).
    """
    if optim.schedule == "onecycle":
        low, last = optim.lr / 25, optim.lr / 25 / 1e4
        top = optim.warmup * steps - 1
        if step <= top:
            return _along_cosine(low, optim.lr, step / top if top > 0 else 1.0)
        start = max(0.0, top)
        return _along_cosine(optim.lr, last, (step - start) / max(1e-9, steps - 1 - start))
    warmup = round(optim.warmup * steps)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    match optim.schedule:
        case "constant":
            return optim.lr
        case "step":
            return optim.lr * 0.1 ** sum(step >= share * steps for share in optim.milestones)
        case "cosine":
            return optim.lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    raise unknown("schedule", optim.schedule, ["constant", "step", "cosine", "onecycle"])


def _along_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def mixing(optim: OptimConfig, classes: int) -> Mixing | None:
    """What blends the images and labels of a batch, if anything does: torchvision's MixUp, CutMix, or either of the
    two with equal chance. Labels [B] become probabilities [B, classes]. It draws from torch's global generator."""
    if not optim.mixup and not optim.cutmix:
        return None
    from torchvision.transforms import v2  # imports for a second

    kinds: list[Any] = []
    if optim.mixup:
        kinds.append(v2.MixUp(alpha=optim.mixup, num_classes=classes))
    if optim.cutmix:
        kinds.append(v2.CutMix(alpha=optim.cutmix, num_classes=classes))
    return kinds[0] if len(kinds) == 1 else v2.RandomChoice(kinds)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher/T) ‖ softmax(student/T)) of logits [B, classes], the mean over the batch (Hinton, Vinyals
    and Dean, https://arxiv.org/abs/1503.02531). T² keeps the gradients as large as those of the labels."""
    targets = F.log_softmax(teacher.float() / temperature, 1)
    learned = F.log_softmax(student.float() / temperature, 1)
    return temperature**2 * F.kl_div(learned, targets, reduction="batchmean", log_target=True)


class Objective:
    """The loss of a batch: (1 − w)·cross entropy + w·`distillation`, where w is 0 without a teacher."""

    def __init__(self, label_smoothing: float, teacher: nn.Module | None, weight: float, temperature: float) -> None:
        self.label_smoothing = label_smoothing
        self.teacher, self.weight, self.temperature = teacher, weight, temperature

    def __call__(self, images: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(scores, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            known = self.teacher(images)
        return (1 - self.weight) * loss + self.weight * distillation(scores, known, self.temperature)


def logits(output: Any) -> Tensor:
    """The class scores: networks with auxiliary heads (GoogLeNet, Inception) return them with others in
    training."""
    return getattr(output, "logits", output)
