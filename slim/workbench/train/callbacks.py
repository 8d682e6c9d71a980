"""What a training tells of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slim.prune.plan import PruningPlan


@dataclass(frozen=True)
class Progress:
    """Where training stands. `loss` and `value`, the task's metric, are means over the epoch so far, on augmented
    training images (of the first process, where there are several); no `value` where those don't say."""

    epoch: int  # from 1
    epochs: int
    step: int  # done so far, in the whole training
    steps: int
    loss: float
    value: float | None
    near_zero: float | None  # share of penalised γ near zero; None without a penalty
    lr: float


def _ignore(*_: Any) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Callbacks:
    """What is called in a training.

    on_step: with a `Progress`, at most 10 times a second and at the end of each epoch
    on_epoch: with each record: see `fit`
    on_prune: whenever the model was pruned, with the steps done by then and the plan; when a training goes on, with
        what was pruned before, too
    """

    on_step: Callable[[Progress], Any] = _ignore
    on_epoch: Callable[[dict[str, Any]], Any] = _ignore
    on_prune: Callable[[int, PruningPlan], Any] = _ignore
