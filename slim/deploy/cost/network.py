"""Whole networks in their runtime: exported, and timed side by side."""

import math
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slim.deploy.cost.correction import AIM, TOLERANCE
from slim.deploy.cost.runtime import Runtime, Runtimes
from slim.deploy.timing import Rounds, Times, median_precision, time_in_turn
from slim.errors import SlimError
from slim.prune.plan import PruningPlan

ROUNDS = 7  # at least; the median of fewer has no 95 % interval within their range
SECONDS = (1.0, 6.0)  # at least; at most, where the machine is too busy to tell sooner
PRECISION = TOLERANCE / 3  # of the share that is measured: half of its 95 % interval
FAR = 0.2  # of how far a share is from the one asked for: no more precise need it be


@dataclass(frozen=True)
class Timed:
    """What a network takes in one setting, as a share of what the original takes there in calls in turn."""

    share: float
    original_ms: float


class Network:
    """A network as its target writes it, opened there in each setting, with a batch to run in each.

    Whether the file computes what the network does is left to `check`: a plan in between need only be timed. Where the
    network was made `by` a plan for `original`, its file is cut from the original's, if the target can do that.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        runtime: Runtime | Runtimes,
        original: "Network | None" = None,
        by: PruningPlan | None = None,
    ) -> None:
        self.model, self.example_inputs, self.target = model, example_inputs, runtime.each[0].target
        folder = mkdtemp()  # for as long as the network, whose nodes may still be looked at
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder, f"network{self.target.suffix}")
        cut = getattr(self.target, "cut", None) if original is not None else None
        self.is_cut = cut is not None and original is not None and cut(original.path, by, model, self.path)
        if self.is_cut:
            try:
                self._open(runtime)
                for run in self.runs:
                    run()
                if by is not None and by.sizes:  # which constants of the graph may hold, or nothing
                    self.check()
            except SlimError:  # the plan changes what the cut doesn't know of
                self.is_cut = False
        if not self.is_cut:
            self.target.export(model, example_inputs, self.path)
            self._open(runtime)

    def _open(self, runtime: Runtime | Runtimes) -> None:
        self.opened = [each.target.open(self.path) for each in runtime.each]
        tensors = [leaf for leaf in tree_leaves(self.example_inputs) if isinstance(leaf, Tensor)]
        self.feeds = [
            {entry.name: _batch(tensor, each.batch_size) for entry, tensor in zip(opened.inputs, tensors, strict=True)}
            for each, opened in zip(runtime.each, self.opened)
        ]
        self.runs = [opened.timed_call(feed) for opened, feed in zip(self.opened, self.feeds)]

    def check(self) -> None:
        """Raise SlimError where the file differs from the network."""
        self.target.check(self.path, self.model, self.example_inputs)


def _batch(tensor: Tensor, size: int) -> NDArray[Any]:
    tensor = tensor.detach().cpu()[torch.arange(size) % tensor.shape[0]]
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def in_turn(
    networks: Sequence[Network], setting: int = 0, precision: Callable[[float], float] = lambda _: PRECISION
) -> NDArray[np.float64]:
    """Return the milliseconds of calls in turn in one setting, after a warm-up: an array [rounds, networks].

    Goes on until the share that `share_of` gives is known to within the `precision` that such a share needs, or
    patience ends.
    """

    def known(times: Mapping[str, Times]) -> bool:
        columns = np.stack(list(times.values()), axis=1)
        enough = bool(columns.sum() > 1000 * SECONDS[0])
        return enough and median_precision(_shares(columns)) <= precision(share_of(columns))

    calls = {str(index): network.runs[setting] for index, network in enumerate(networks)}
    times = time_in_turn(calls, Rounds(ROUNDS, math.inf, SECONDS[1], known))
    return np.stack(list(times.values()), axis=1)


def share_of(times: NDArray[np.float64]) -> float:
    """Return what the last network takes of the time of the first: the median over rounds, as a machine that is busy
    for a while slows down both calls of a round. With a single network, its median time."""
    return float(np.median(_shares(times)))


def timed(original: Network, thin: Network, asked: float) -> list[Timed]:
    """Return what the thin network takes in each setting. In a single one, as precisely as it takes to tell whether it
    is the share `asked` for: less where it is far from that, and where it is so near that even its interval is."""
    settings = range(len(thin.runs))

    def precision(share: float) -> float:
        off = abs(share / asked - 1)
        return max(PRECISION, FAR * off, AIM - off) if len(settings) == 1 else PRECISION

    columns = [in_turn([original, thin], setting, precision) for setting in settings]
    return [Timed(share_of(times), float(np.median(times[:, 0]))) for times in columns]


def _shares(times: NDArray[np.float64]) -> NDArray[np.float64]:
    return times[:, -1] / times[:, 0] if times.shape[1] > 1 else times[:, 0]
