"""One training loop, for sparse training and for fine-tuning.

`recipe` says how the weights are learned, `devices` and `norm` where that happens, `state` holds all that changes,
`step` takes it one step on, `gradual` says when it prunes on the way, `loop` takes all the steps, `snapshots` keeps
states to resume from, `guard` knows what can go wrong, `evaluation` tells how good a network is, and `tensorboard`
and `trackers` show all of it to others.
"""

from slim.workbench.train.callbacks import Callbacks, Progress
from slim.workbench.train.devices import (
    connect,
    distributed_session,
    is_rank_zero,
    rank_zero_first,
    resolve_device,
    resolve_precision,
    wait_for_all,
)
from slim.workbench.train.evaluation import evaluate, tallies
from slim.workbench.train.loop import fit
from slim.workbench.train.recipe import Distillation, learning_rate
from slim.workbench.train.snapshots import Snapshots
from slim.workbench.train.tensorboard import TensorBoard
from slim.workbench.train.trackers import Tracker, open_tracker

__all__ = [
    "Callbacks",
    "Distillation",
    "Progress",
    "Snapshots",
    "TensorBoard",
    "Tracker",
    "connect",
    "distributed_session",
    "evaluate",
    "fit",
    "is_rank_zero",
    "learning_rate",
    "open_tracker",
    "rank_zero_first",
    "resolve_device",
    "resolve_precision",
    "tallies",
    "wait_for_all",
]
