"""Plain PyTorch: three lines in a loop of your own. The network gets thinner in place while it trains.

python docs/recipes/plain_pytorch.py
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import slim


def train(network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], epochs: int, keep: float) -> slim.Slimming:
    """Train to `keep` of the FLOPs: with a penalty at first, pruned in three steps, the last third without."""
    optimizer = torch.optim.AdamW(slim.parameter_groups(network, weight_decay=1e-2), 4e-3)  # no decay on γ
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    images = torch.cat([images for images, _ in batches[:8]])
    slimming = slim.Slimming(  # 1: after the optimizer was made
        network,
        optimizer,
        images[:1],
        slim.Flops(keep),
        at=[steps // 3, steps // 2, 2 * steps // 3],
        penalty=slim.L1(1e-3),
        images=images,
    )
    for _ in range(epochs):
        network.train()
        for inputs, targets in batches:
            loss = F.cross_entropy(network(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            slimming.after_step()  # 2: after each of its steps
    return slimming


def main() -> None:
    """Handwritten digits."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    batches = list(zip(images.split(64), torch.tensor(data.target).split(64)))
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    slimming = train(network, batches, epochs=8, keep=0.3)
    for plan in slimming.plans:
        print(plan.summary())
    slim.save("thin.safetensors", network, slimming.plans)  # 3: with what made it thin


if __name__ == "__main__":
    main()
