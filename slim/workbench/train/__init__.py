"""One training loop, for sparse training and for fine-tuning.

`recipe` says how the weights are learned, `devices` and `norm` where that happens, `state` holds all that changes,
`step` takes it one step on, `gradual` says when it prunes on the way, `loop` takes all the steps, `snapshots` keeps
states to resume from, `guard` knows what can go wrong, `evaluation` tells how good a network is, and `tensorboard`
shows all of it to others.
"""

from slim.workbench.train.devices import (
    connect,
    first_goes_ahead,
    is_first,
    resolve_device,
    resolve_precision,
    together,
    wait_for_all,
)
from slim.workbench.train.evaluation import evaluate
from slim.workbench.train.loop import Progress, fit
from slim.workbench.train.recipe import learning_rate
from slim.workbench.train.snapshots import Snapshots
from slim.workbench.train.tensorboard import TensorBoard

__all__ = [
    "Progress",
    "Snapshots",
    "TensorBoard",
    "connect",
    "evaluate",
    "first_goes_ahead",
    "fit",
    "is_first",
    "learning_rate",
    "resolve_device",
    "resolve_precision",
    "together",
    "wait_for_all",
]
