"""torchvision's detection references: the loop of their engine, and a detector that gets thinner on the way.

The reference's `train_one_epoch` takes the marked line after `optimizer.step()`; the other goes behind the optimizer in
its train.py. A detector takes lists of images, so there is no batch to recover it on: training on is what recovers it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import slim

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


def train(
    network: nn.Module, batches: Sequence[Batch], epochs: int, keep: float, *, lr: float = 0.01, at: Sequence[int] = ()
) -> slim.Slimming:
    """Train a detector to `keep` of the FLOPs, in as many steps as `at` has (by default three)."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=5e-4)
    steps = epochs * len(batches)
    at = at or [steps // 4, steps // 3, steps // 2]
    example: Any = (batches[0][0][:1],)  # what forward takes: a list of images
    rules = {"score": slim.Magnitude()}
    slimming = slim.Slimming(network, optimizer, example, slim.Flops(keep), at=list(at), rules=rules)  # slim
    for _ in range(epochs):
        network.train()
        for images, targets in batches:
            losses = sum(network(images, targets).values())
            optimizer.zero_grad()
            losses.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            slimming.after_step()  # slim
    return slimming
