"""Numbers for each image."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from slim.errors import SlimError
from slim.workbench.nested import described
from slim.workbench.tasks.metric import Metric
from slim.workbench.tasks.task import Task


@dataclass(frozen=True)
class Regression(Task):
    """Learn numbers, float [N] or [N, numbers], by squared error; the metric is the mean absolute error, `mae`."""

    metric = Metric("mae", "min", share=False)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the squared error, the mean over numbers and images."""
        return F.mse_loss(outputs.reshape(targets.shape), targets.to(outputs.dtype))

    def tally(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Add up absolute errors, and count them."""
        error = (outputs.reshape(targets.shape) - targets).abs().sum()
        return torch.stack([error, torch.full_like(error, targets.numel())])

    def check(self, outputs: Any, targets: Tensor) -> None:
        """Raise SlimError where there isn't one output for each number."""
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if not isinstance(targets, Tensor):
            raise SlimError(f"the targets are {described(targets)}: expected numbers [N] or [N, numbers]")
        if not isinstance(outputs, Tensor) or outputs.numel() != targets.numel() or len(outputs) != len(targets):
            raise SlimError(
                f"the network's output is {shape} for targets {list(targets.shape)}: expected as many numbers"
            )

    def distillation(self, outputs: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """Return the squared distance to what the teacher says; numbers have no temperature."""
        return F.mse_loss(outputs, taught.to(outputs.dtype))
