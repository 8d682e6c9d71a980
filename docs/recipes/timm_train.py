"""timm's training: its optimizer, schedule, mixup and averaged weights, and a network that gets thinner on the way.

In timm's own train.py the marked lines go to the same places: after `create_optimizer_v2`, after `optimizer.step()`,
and where `model_ema` is.
"""

from collections.abc import Sequence

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

import slim


def train(
    network: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    epochs: int,
    keep: float,
    *,
    classes: int,
    lr: float = 4e-3,
    decay: float = 0.9,
) -> tuple[nn.Module, slim.Slimming]:
    """Train to `keep` of the FLOPs; return the averaged network and what was done."""
    optimizer = create_optimizer_v2(network, opt="adamw", lr=lr, weight_decay=1e-2)
    steps = epochs * len(batches)
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs, updates_per_epoch=len(batches))
    images = torch.cat([images for images, _ in batches[:8]])
    at = [steps // 4, steps // 3, steps // 2]
    slimming = slim.Slimming(network, optimizer, images[:2], slim.Flops(keep), at=at, images=images)  # slim
    average = ModelEmaV3(network, decay=decay)
    mixup = Mixup(mixup_alpha=0.2, num_classes=classes)
    criterion = SoftTargetCrossEntropy()
    for epoch in range(epochs):
        network.train()
        for number, (inputs, targets) in enumerate(batches):
            inputs, targets = mixup(inputs[: len(inputs) // 2 * 2], targets[: len(targets) // 2 * 2])
            loss = criterion(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if slimming.after_step():  # slim
                average = ModelEmaV3(network, decay=decay)  # slim: the average is of the thinner network from now on
            average.update(network)
            schedule.step_update(epoch * len(batches) + number + 1)
        schedule.step(epoch + 1)
    return average.module, slimming
