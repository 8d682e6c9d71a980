"""What it costs to remove a channel that others can stand in for: the score `Residual`.

The paper ranks channels by |γ|. But a channel with a large γ is cheap to remove where the others of its layer predict
it well, because `slim.recover` folds that prediction into the layers that read them. So a channel is scored by what
those layers miss once its part is folded into the others: its residual variance given them, times the squared weights
that read it (the saliency of Optimal Brain Surgeon, Hassibi & Stork, NIPS 1992, for whole columns of a layer), as a
share of the layer's variance, for each unit of what the budget counts (channels, FLOPs, parameters) that goes with it.
Channels predict each other, so they are taken away one by one, the cheapest first, and after each the others' costs
follow.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.progress import progress
from slim.prune.groups import Groups
from slim.prune.reading import RIDGE, ChannelsRead, labels_read, readings, run_on
from slim.prune.residual_blocks import missed_without
from slim.trace.branches import Branch
from slim.trace.intercept import LayerCall
from slim.trace.traced import Trace

GATHERED = 64  # removals that are applied to matrices together: one product of matrices, not many of vectors

Floats = NDArray[np.float64]


class ReadingGroup:
    """One group of a layer: what its input channels carry, and how they are read.

    `labels` are the roots of the channels' classes. `precision` is the inverse of the covariance of the channels that
    are left, and `gram` holds the products of the weights that read two channels, summed over kernel positions and
    outputs; both [channels, channels]. `total` is the variance of what the layer gives, taking the pixels of a kernel
    as independent. Removing a channel changes both matrices by few vectors, which are gathered and applied together;
    once a quarter of the channels has gone, the others go on without them.
    """

    def __init__(self, labels: NDArray[np.int64], precision: Floats, gram: Floats, total: float) -> None:
        self.labels, self.total = labels, total
        self._precision, self._gram = precision, gram
        self._left, self._weight = np.diagonal(precision).copy(), np.diagonal(gram).copy()
        self._place = np.arange(len(labels))  # of each channel that there was among those that are here
        self._gather()

    def _gather(self) -> None:
        """Gather vectors, from none."""
        self._waiting = 0
        self._rows, self._shares, self._reads = np.zeros((3, GATHERED, len(self.labels)))

    def costs(self) -> Floats:
        """Return share of the layer's variance that is missed for good when a channel goes; 0 for one that has gone."""
        out = np.zeros(len(self.labels))
        np.divide(self._weight.clip(0), self._left * self.total, out=out, where=self._left > 0)
        return out

    def remove(self, channel: int) -> None:
        """Fold a channel, by its number, into the others: each weight that read it goes to them in the shares that
        predict it."""
        channel = int(self._place[channel])
        if channel < 0 or self._left[channel] <= 0:
            return
        rows, shares, reads = (v[: self._waiting] for v in (self._rows, self._shares, self._reads))
        row = self._precision[channel] - rows[:, channel] @ rows
        read = self._gram[channel] - reads[:, channel] @ shares - shares[:, channel] @ reads
        share = row / row[channel]
        read = read - 0.5 * read[channel] * share
        row = row / np.sqrt(row[channel])
        self._left -= row**2
        self._weight -= 2 * read * share
        self._left[channel] = self._weight[channel] = 0
        self._rows[self._waiting], self._shares[self._waiting], self._reads[self._waiting] = row, share, read
        self._waiting += 1
        if self._waiting == GATHERED:
            crossed = self._reads.T @ self._shares
            self._precision -= self._rows.T @ self._rows
            self._gram -= crossed + crossed.T
            self._waiting = 0
            if 4 * np.count_nonzero(self._left > 0) <= 3 * len(self._left):
                self._shrink()

    def _shrink(self) -> None:
        """Go on with the channels that are left."""
        left = self._left > 0
        self.labels, self._left, self._weight = self.labels[left], self._left[left], self._weight[left]
        self._precision, self._gram = self._precision[np.ix_(left, left)], self._gram[np.ix_(left, left)]
        places = np.where(left, np.cumsum(left) - 1, -1)
        self._place = np.where(self._place < 0, -1, places[self._place])
        self._gather()


@dataclass(frozen=True)
class Residual:
    """What the layers that read a channel miss once the others stand in for it, for each unit of the budget saved.

    `images`: training images without labels, a few hundred, as `slim.recover` takes them. Scores are non-negative and
    ordered as the groups are best removed. Raises SlimError where the network can't run on the images.
    """

    images: Any = field(repr=False)
    ranks_all: ClassVar[bool] = True

    def __call__(self, groups: Groups) -> Floats:
        free = groups.roots[~groups.frozen]
        with progress("ranking channels", len(free)) as advance:
            readers = _readers(groups.model, groups.traced, self.images)
            order = _cheapest_first(readers, free, groups.savings[~groups.frozen], advance)
        # what goes later never scores less, and equal costs keep their order
        climbing = np.maximum.accumulate(np.array([cost for _, cost in order] or [0.0]))
        climbing += np.arange(len(climbing)) * 1e-12 * max(climbing[-1], 1e-12)
        score = dict(zip((root for root, _ in order), climbing.tolist()))
        worst = 2 * float(climbing[-1]) + 1.0  # of frozen groups
        return np.array([score.get(root, worst) for root in groups.roots.tolist()])

    def missed_without(self, groups: Groups, branches: Sequence[Branch]) -> list[float]:
        """Return what the layers that read the stream after each of these branches miss without it."""
        return missed_without(groups.model, groups.traced, branches, self.images)


def _cheapest_first(
    readers: Sequence[ReadingGroup], free: NDArray[np.int64], savings: Floats, advance: Callable[[int], None]
) -> list[tuple[int, float]]:
    """Return the free groups' roots in the order in which they are best removed, with the cost of each."""
    places: dict[int, list[tuple[int, int]]] = {root: [] for root in free.tolist()}
    for number, reader in enumerate(readers):
        for channel, root in enumerate(reader.labels.tolist()):
            if root in places:
                places[root].append((number, channel))
    size = 1 + max((int(labels.max()) for labels in [free, *(r.labels for r in readers)] if len(labels)), default=0)
    missed = np.zeros(size)  # by root
    for reader in readers:
        np.add.at(missed, reader.labels, reader.costs())
    order: list[tuple[int, float]] = []
    left = np.ones(len(free), bool)
    while left.any():
        cost = np.where(left, missed[free] / savings, np.inf)
        cheapest = int(cost.argmin())
        left[cheapest] = False
        order.append((int(free[cheapest]), max(float(cost[cheapest]), 0.0)))
        advance(1)
        for number in {number for number, _ in places[order[-1][0]]}:
            reader = readers[number]
            np.subtract.at(missed, reader.labels, reader.costs())
            for where, channel in places[order[-1][0]]:
                if where == number:
                    reader.remove(channel)
            np.add.at(missed, reader.labels, reader.costs())
    return order


def _readers(model: nn.Module, traced: Trace, images: Any) -> list[ReadingGroup]:
    """Return the layers that read free channels, with second moments of their input over `images`."""
    found: dict[str, list[ReadingGroup]] = {}

    def visit(layer: LayerCall) -> Tensor:
        labels = labels_read(layer, traced)
        if labels is not None and layer.name not in found and not traced.classes.frozen(labels).all():
            found[layer.name] = [_prepared(each) for each in readings(layer, traced.classes.roots(labels))]
        return layer.run()

    run_on(model, images, visit)
    return [reader for readers in found.values() for reader in readers]


def _prepared(reading: ChannelsRead) -> ReadingGroup:
    """Return a group of a layer in the form in which channels are removed from it."""
    n = len(reading.labels)
    ridge = RIDGE * max(float(np.trace(reading.covariance)) / n, 1e-30)
    ridged = torch.from_numpy(reading.covariance + ridge * np.eye(n))
    factor, failed = torch.linalg.cholesky_ex(ridged)  # takes half of the time that inv does
    precision: Floats = (torch.linalg.inv(ridged) if failed else torch.cholesky_inverse(factor)).numpy()
    return ReadingGroup(reading.labels, precision, reading.gram, reading.total)
