"""How the weights are learned: optimizer, learning rate, and the loss."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import unknown
from slim.sparsity import parameter_groups
from slim.workbench.config import OptimConfig
from slim.workbench.nested import call
from slim.workbench.tasks import Task


def optimizer_of(model: nn.Module, optim: OptimConfig, fused: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer that `optim` describes, over all trainable parameters: see `slim.parameter_groups`.

    fused: one kernel for all parameters, which also reads a learning rate off the device
    """
    groups: Any = parameter_groups(model, optim.weight_decay, optim.decay_norm)
    how: dict[str, Any] = {"lr": optim.lr, "fused": fused or None}
    match optim.optimizer:
        case "sgd":
            nesterov = optim.nesterov and optim.momentum > 0
            return torch.optim.SGD(groups, momentum=optim.momentum, nesterov=nesterov, **how)
        case "adam":
            return torch.optim.Adam(groups, betas=(optim.momentum, 0.999), **how)
        case "adamw":
            return torch.optim.AdamW(groups, betas=(optim.momentum, 0.999), **how)
    raise unknown("optimizer", optim.optimizer, ["sgd", "adam", "adamw"])


@torch.no_grad()
def complete_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that take part for the first time a momentum of 0, where others have one: a fused SGD wants it of
    all or none. The next step is the same."""
    if not isinstance(optimizer, torch.optim.SGD) or not optimizer.defaults["fused"]:
        return
    groups = [group["params"] for group in optimizer.param_groups if group["momentum"]]
    moving = [parameter for group in groups for parameter in group if parameter.grad is not None]
    new = [parameter for parameter in moving if not optimizer.state.get(parameter)]
    for parameter in new if len(new) < len(moving) else []:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """Return the learning rate of step 0 … steps − 1.

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


@dataclass(frozen=True)
class Distillation:
    """What to learn beside the targets: the outputs of `teacher`, with a weight between 0 and 1.

    temperature: softens both networks' outputs
    """

    teacher: nn.Module
    weight: float = 0.5
    temperature: float = 4.0


class Objective:
    """The loss of a batch: (1 − w)·the task's + w·its distillation, where w is 0 without a teacher."""

    def __init__(self, task: Task, distillation: Distillation | None = None) -> None:
        self.task, self.distillation = task, distillation

    def __call__(self, inputs: Any, outputs: Any, targets: Any) -> Tensor:
        """Return the mean loss of a batch's outputs."""
        loss = self.task.loss(outputs, targets)
        assert loss is not None  # these are the outputs of training
        if self.distillation is None:
            return loss
        with torch.no_grad():
            taught = call(self.distillation.teacher, inputs)
        weight = self.distillation.weight
        return (1 - weight) * loss + weight * self.task.distillation(outputs, taught, self.distillation.temperature)
