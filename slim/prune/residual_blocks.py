"""What a network misses without a residual block: the score `Residual`, for whole branches.

A branch adds f to a stream x. Layers that read the stream later read some of f through it. What x predicts of f can be
folded into them, as `slim.recover` does; the rest is missed: the residual covariance of f given x, through the weights
that read it, as a share of what each such layer gives. That is what `Residual` counts for channels. Where layers don't
read channels by themselves (behind a LayerNorm, which mixes them, say), it is missed of the stream, once for each later
branch.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from slim.prune.reading import RIDGE, ChannelsRead, Floats, labels_read, readings, rows_of, run_on
from slim.trace.branches import ADDITIONS, Branch
from slim.trace.copy import all_tensors
from slim.trace.intercept import LayerCall
from slim.trace.op import tensors_in
from slim.trace.traced import Trace


def missed_without(model: nn.Module, traced: Trace, branches: Sequence[Branch], images: Any) -> list[float]:
    """Return what the layers that read the stream after each branch miss without it, as shares of what they give, added
    up; infinite for a branch that the images don't pass."""
    stream = Stream(model, traced, branches)
    with stream:
        run_on(model, images, stream.read)
    missed = {added.branch.name: stream.missed_without(added) for added in stream.added}
    return [missed.get(branch.name, np.inf) for branch in branches]


class Stream(TorchDispatchMode):
    """Sees what branches add to a network's stream, and what layers read of that later."""

    def __init__(self, model: nn.Module, traced: Trace, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.traced = traced
        self.added: list[Added] = []
        self._by_addition = {branch.addition: branch for branch in branches}
        self._own = {id(tensor) for _, tensor in all_tensors(model)}
        self._additions = 0

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ADDITIONS:
            operands = [tensor for tensor in tensors_in(args) if id(tensor) not in self._own]
            if len(operands) == 2:
                if (branch := self._by_addition.get(self._additions)) is not None:
                    self.added.append(Added(branch, self.traced, operands))
                self._additions += 1
        return func(*args, **(kwargs or {}))

    def read(self, layer: LayerCall) -> Tensor:
        """Note what a layer misses without the branches before it, and run it."""
        labels = labels_read(layer, self.traced)
        roots = None if labels is None else self.traced.classes.roots(labels)
        before = [added for added in self.added if roots is not None and np.isin(roots, added.roots).any()]
        for reading in readings(layer, roots) if before and roots is not None else ():
            for added in before:
                added.missed.append(added.missed_by(reading))
        return layer.run()

    def missed_without(self, added: "Added") -> float:
        """Return what is missed without a branch."""
        later = sum(np.array_equal(other.roots, added.roots) for other in self.added[self.added.index(added) :])
        return sum(added.missed) if added.missed else later * added.share


class Added:
    """What a branch adds to a stream: the roots of the channels' classes, sorted; what the stream before it doesn't
    predict of it, a covariance; and the spread of the sum, as layers may read it in other units, from a norm."""

    def __init__(self, branch: Branch, traced: Trace, operands: Sequence[Tensor]) -> None:
        self.branch = branch
        self.missed: list[float] = []  # by each layer that reads it, as a share of what that gives
        added, stream = (rows_of(operands[place], branch.dim) for place in (branch.operand, 1 - branch.operand))
        roots = traced.classes.roots(branch.stream)
        order = np.argsort(roots, kind="stable")
        self.roots = roots[order]
        self.spread = _numpy((added + stream).std(0, correction=0))[order]
        self.residual = _numpy(_unexplained(added, stream))[np.ix_(order, order)]

    @property
    def share(self) -> float:
        """Return the share of the stream's variance that is missed without the branch."""
        return float(np.trace(self.residual) / max(float((self.spread**2).sum()), 1e-30))

    def missed_by(self, reading: ChannelsRead) -> float:
        """Return the share of a layer's variance that it misses without the branch."""
        place = np.searchsorted(self.roots, reading.labels).clip(max=len(self.roots) - 1)
        mine = np.flatnonzero(self.roots[place] == reading.labels)
        place = place[mine]
        units = np.sqrt(np.diagonal(reading.covariance)[mine]) / np.maximum(self.spread[place], 1e-30)
        residual = self.residual[np.ix_(place, place)] * np.outer(units, units)
        return float((reading.gram[np.ix_(mine, mine)] * residual).sum() / reading.total)


def _unexplained(added: Tensor, stream: Tensor) -> Tensor:
    """Return the covariance of what a linear prediction from the stream leaves of what is added, [channels, channels];
    of all of it where there are too few places to predict from."""
    places, channels = stream.shape
    added, stream = added - added.mean(0), stream - stream.mean(0)
    own, read, both = (a.T @ b / places for a, b in ((added, added), (stream, stream), (stream, added)))
    if places <= 2 * channels:
        return own
    read.diagonal().add_(RIDGE * read.diagonal().mean().clamp(min=1e-30))
    left = own - both.T @ torch.linalg.solve(read, both)
    return left * (places / (places - channels))  # as many degrees of freedom are lost


def _numpy(tensor: Tensor) -> Floats:
    made: Floats = tensor.cpu().numpy()
    return made
