"""A network with penalised scales, its data and its loop: what the tests of sparsity train."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.Tanh(),  # smooth, so that finite differences see no kink but the penalty's
        nn.Conv2d(5, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 6),
        nn.BatchNorm1d(6),
        nn.Tanh(),
        nn.Linear(6, 3),
    ).to(dtype)
    with torch.no_grad():
        for gamma in gammas(model):
            gamma.copy_(torch.randn_like(gamma))
    return model


def gammas(model: nn.Module) -> list[Tensor]:
    return [m.weight for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 2, 6, 6, generator=generator, dtype=dtype)
    return images, torch.randint(3, (8,), generator=generator)


def train(model: nn.Module, optimizer: Any, steps: int = 5, after_backward: Callable[[], None] = lambda: None) -> None:
    dtype = next(model.parameters()).dtype
    for step in range(steps):
        images, labels = batch(step, dtype)
        F.cross_entropy(model(images), labels).backward()
        after_backward()
        optimizer.step()
        optimizer.zero_grad()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))
