"""The door for tasks: what a network is trained for, and how good it is at it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from slim.errors import SlimError
from slim.workbench.config import OptimConfig
from slim.workbench.nested import call
from slim.workbench.tasks.metric import Metric

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of a batch's images and targets


class Task(ABC):
    """A loss, a metric, and what the outputs mean. `outputs` are what the network returned, whatever that is.

    A task of one's own is a few lines; `task: mine.py:Angle` in the settings then trains for it:

        class Angle(Task):
            metric = Metric("error", "min", share=False, unit="°")

            def loss(self, outputs, targets):
                return F.smooth_l1_loss(outputs[:, 0], targets)

            def tally(self, outputs, targets):
                return torch.stack([(outputs[:, 0] - targets).abs().sum(), targets.new_tensor(len(targets))])
    """

    metric: Metric
    labelled = True  # whether anything says what is right
    in_bfloat16 = True  # whether its networks train in mixed precision as well, which compute.precision auto may choose

    def forward(self, model: Any, inputs: Any, targets: Any = None) -> Any:
        """Run the network on a batch, with its targets in training, for networks that compute their own loss."""
        return call(model, inputs)

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor | None:
        """Return the loss to train by and to report, a number: the mean over the samples of a batch. None where the
        outputs, which aren't those of training, have none."""

    @abstractmethod
    def tally(self, outputs: Any, targets: Any) -> Any:
        """Return what a batch adds to the metric: sums over its samples, in one shape whatever the batch, or a list of
        what is judged as a whole. None where the outputs, which are those of training, don't say."""

    def value(self, sums: Any) -> float:
        """Return the metric from the sums of all batches; by default the first of them over the second."""
        return float(sums[0]) / float(sums[1])

    def predict(self, outputs: Any) -> Any:
        """Return what the outputs mean to a user, such as probabilities; by default the outputs themselves."""
        return outputs

    def collate(self, samples: Sequence[Any]) -> Any:
        """Make a batch (inputs, targets) of samples (input, target); by default as torch's DataLoader does."""
        return default_collate(list(samples))

    def check(self, outputs: Any, targets: Any) -> None:  # noqa: B027 (most tasks take what comes)
        """Raise SlimError where outputs don't fit the targets at all, with what was expected."""

    def dense(self, model: Any) -> AbstractContextManager[Any]:
        """Let the network return, for a while, what it computes at every place, not what it selects from that by its
        values: recovery compares two networks number by number. Most tasks need nothing for it."""
        return nullcontext()

    def distillation(self, outputs: Any, taught: Any, temperature: float) -> Tensor:
        """Return the loss of a student's outputs against its teacher's, the mean over the samples."""
        raise SlimError(f"distillation isn't defined for {type(self).__name__}: expected finetune.distill 0")

    def trained_with(self, optim: OptimConfig) -> "Task":
        """Return the task as a training sees it: its loss may follow the settings, such as label_smoothing.

        Raises SlimError for settings that mean nothing to it."""
        for name in ("label_smoothing", "mixup", "cutmix"):
            if getattr(optim, name):
                raise SlimError(f"{name} is {getattr(optim, name)}, which {type(self).__name__} can't use: expected 0")
        return self

    def mixing(self, optim: OptimConfig) -> Mixing | None:
        """Return what blends the inputs and targets of a training batch, if anything does."""
        return None
