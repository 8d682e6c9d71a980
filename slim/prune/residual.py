"""What it costs to remove a channel that others can stand in for: the score `Residual`.

The paper ranks channels by |γ|. But a channel with a large γ is cheap to remove where the others of its layer predict
it well, because `slim.recover` folds that prediction into the layers that read them. So a channel is scored by what
those layers miss once its part is folded into the others: its residual variance given them, times the squared weights
that read it (the saliency of Optimal Brain Surgeon, Hassibi & Stork, NIPS 1992, for whole columns of a layer), as a
share of the layer's variance, for each unit of what the budget counts (channels, FLOPs, parameters) that goes with it.
Channels predict each other, so they are taken away one by one, the cheapest first, and after each the others' costs
follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.prune.calibration import drawn, part, running
from slim.prune.groups import Groups
from slim.trace.intercept import TRANSPOSED, Intercept, LayerCall, evaluating
from slim.trace.tracer import Trace, call

PLACES = 16_384  # pixels of all images that second moments are taken over
GATHERED = 64  # removals that are applied to matrices together: one product of matrices, not many of vectors
RIDGE = 1e-4  # of the mean variance: what regression may rely on

Floats = NDArray[np.float64]


class ReadingGroup:
    """One group of a layer: what its input channels carry, and how they are read.

    `labels` are the roots of the channels' classes. `precision` is the inverse of the covariance of the channels that
    are left, and `gram` holds the products of the weights that read two channels, summed over kernel positions and
    outputs; both [channels, channels]. `total` is the variance of what the layer gives, taking the pixels of a kernel
    as independent. Removing a channel changes both matrices by few vectors, which are gathered and applied together.
    """

    def __init__(self, labels: NDArray[np.int64], precision: Floats, gram: Floats, total: float) -> None:
        self.labels, self.total = labels, total
        self._precision, self._gram = precision, gram
        self._left, self._weight = np.diagonal(precision).copy(), np.diagonal(gram).copy()
        self._waiting = 0
        self._rows, self._shares, self._reads = np.zeros((3, GATHERED, len(labels)))

    def costs(self) -> Floats:
        """Return share of the layer's variance that is missed for good when a channel goes; 0 for one that has gone."""
        out = np.zeros(len(self.labels))
        np.divide(self._weight.clip(0), self._left * self.total, out=out, where=self._left > 0)
        return out

    def remove(self, channel: int) -> None:
        """Fold the channel into the others: each weight that read it goes to them in the shares that predict it."""
        if self._left[channel] <= 0:
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


@dataclass(frozen=True)
class Residual:
    """What the layers that read a channel miss once the others stand in for it, for each unit of the budget saved.

    `images`: training images without labels, a few hundred, as `slim.recover` takes them. Scores are non-negative and
    ordered as the groups are best removed. Raises SlimError where the network can't run on the images.
    """

    images: Any = field(repr=False)
    ranks_all: ClassVar[bool] = True

    def __call__(self, groups: Groups) -> Floats:
        readers = _readers(groups.model, groups.traced, self.images)
        free = groups.roots[~groups.frozen]
        order = _cheapest_first(readers, free, groups.savings[~groups.frozen])
        # what goes later never scores less, and equal costs keep their order
        climbing = np.maximum.accumulate(np.array([cost for _, cost in order] or [0.0]))
        climbing += np.arange(len(climbing)) * 1e-12 * max(climbing[-1], 1e-12)
        score = dict(zip((root for root, _ in order), climbing.tolist()))
        worst = 2 * float(climbing[-1]) + 1.0  # of frozen groups
        return np.array([score.get(root, worst) for root in groups.roots.tolist()])


def _cheapest_first(
    readers: Sequence[ReadingGroup], free: NDArray[np.int64], savings: Floats
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
        dim = 0 if layer.func in TRANSPOSED else 1
        labels = traced.labels.get(layer.name, {}).get(dim) if layer.kind == "product" else None
        if labels is not None and layer.name not in found and not traced.classes.frozen(labels).all():
            found[layer.name] = _split(layer, traced.classes.roots(labels))
        return layer.run()

    device = next(model.parameters()).device
    images = part(drawn(images, 1, "scores")[0], slice(None), device)
    with running("the network"), evaluating(model), Intercept(model, visit):
        call(model, images)
    return [reader for readers in found.values() for reader in readers]


def _places(labels: NDArray[np.int64]) -> int:
    """Return how many features of a linear layer each channel of the map before it fills, where it reads a flattened
    map: then it is a convolution whose kernel is as large as the map. 1 where it doesn't."""
    ends = np.flatnonzero(np.diff(labels))
    size = int(ends[0]) + 1 if len(ends) else 1
    even = len(labels) % size == 0 and (labels.reshape(-1, size) == labels[::size, None]).all()
    return size if even else 1


def _split(layer: LayerCall, labels: NDArray[np.int64]) -> list[ReadingGroup]:
    """Return a layer's groups. A depthwise layer reads each channel alone and passes it on: it has none."""
    x, weight = layer.input, layer.arguments["weight"].detach()
    groups = layer.arguments.get("groups", 1)
    if groups > 1 and groups == x.shape[1]:
        return []
    rows = x.reshape(-1, x.shape[-1]) if layer.func is F.linear else x.movedim(1, -1).reshape(-1, x.shape[1])
    places = _places(labels) if layer.func is F.linear else 1
    if places > 1:
        rows = rows.unflatten(1, (-1, places)).movedim(1, -1).flatten(0, 1)
        weight = weight.unflatten(1, (-1, places))
        labels = labels[::places]
    if len(rows) > PLACES:
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:PLACES]
        rows = rows[drawn.to(rows.device)]
    columns = weight.movedim(0 if layer.func in TRANSPOSED else 1, -1).double().cpu().numpy()
    values = rows.double() if rows.device.type != "mps" else rows.cpu().double()
    readers = []
    for number, read in enumerate(values.chunk(groups, 1)):
        covariance = torch.cov(read.T, correction=0).cpu().numpy().reshape(read.shape[1], read.shape[1])
        if layer.func in TRANSPOSED:  # the input channels of a group are its slice of the weight
            own = columns[..., number * read.shape[1] : (number + 1) * read.shape[1]]
        else:
            outputs = len(columns) // groups
            own = columns[number * outputs : (number + 1) * outputs]
        flat = own.reshape(-1, read.shape[1])
        total = float(((flat @ covariance) * flat).sum())
        ridge = RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-30)
        precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance))).astype(np.float64)
        if total > 0:
            n = read.shape[1]
            own_labels = labels if len(labels) == n else labels[number * n : (number + 1) * n]
            readers.append(ReadingGroup(own_labels, precision, flat.T @ flat, total))
    return readers
