"""What it costs to remove a channel that others can stand in for: `score="residual"` of `slim.plan`.

The paper ranks channels by |γ|. But a channel with a large γ is cheap to remove where the others of its layer predict
it well, because `slim.recover` folds that prediction into the layers that read them. So a channel is scored by what
those layers miss once its part is folded into the others: its residual variance given them, times the squared weights
that read it (the saliency of Optimal Brain Surgeon, Hassibi & Stork, NIPS 1992, for whole columns of a layer), as a
share of the layer's variance, for each unit of what the budget counts (channels, FLOPs, parameters) that goes with it.
Channels predict each other, so they are taken away one by one, the cheapest first, and after each the others' costs
follow.
"""

import heapq
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.trace import Trace, call
from slim.watch import TRANSPOSED, Layer, Watch

PLACES = 16_384  # pixels of all images that second moments are taken over
RIDGE = 1e-4  # of the mean variance: what regression may rely on

Floats = NDArray[np.float64]


@dataclass
class Reader:
    """One group of a layer: what its input channels carry, and how they are read."""

    labels: NDArray[np.int64]  # root of each channel's class
    precision: Floats  # inverse of the channels' covariance, of those that are left
    weight: Floats  # [rows, channels]: kernel positions and outputs are rows
    total: float  # variance of what the layer gives, taking pixels of a kernel as independent

    def costs(self) -> Floats:
        """Share of the layer's variance that is missed for good when a channel goes."""
        left = np.diagonal(self.precision)
        with np.errstate(divide="ignore", invalid="ignore"):
            out: Floats = np.where(left > 0, (self.weight**2).sum(0) / left, 0.0) / self.total
        return out

    def remove(self, channel: int) -> None:
        """Fold the channel into the others."""
        row = self.precision[channel]
        if row[channel] <= 0:
            return
        share = row / row[channel]
        self.weight -= np.outer(self.weight[:, channel], share)
        self.precision -= np.outer(row, share)
        self.weight[:, channel] = 0
        self.precision[channel] = 0
        self.precision[:, channel] = 0


def residual_scores(model: nn.Module, traced: Trace, images: Any, budget: str = "ratio") -> dict[str, Floats]:
    """For each BatchNorm of a trace of `model` the cost of each of its channels: non-negative, the same for all
    channels of a group, and ordered as they are best removed. `images` as `slim.recover` takes them; `budget` is what
    is to be saved: "flops", "params", or BatchNorm channels ("ratio")."""
    readers = _readers(model, traced, images)
    roots = {bn: traced.classes.roots(labels) for bn, labels in traced.norms.items()}
    every = np.unique(np.concatenate(list(roots.values())))
    free = every[~traced.classes.frozen(every)]
    saved = _savings(traced, budget)
    places: dict[int, list[tuple[int, int]]] = {root: [] for root in free.tolist()}
    for number, reader in enumerate(readers):
        for channel, root in enumerate(reader.labels.tolist()):
            if root in places:
                places[root].append((number, channel))
    touching = [np.unique(reader.labels).tolist() for reader in readers]
    costs = [reader.costs() for reader in readers]

    def cost(root: int) -> float:
        return float(sum(costs[number][channel] for number, channel in places[root])) / saved[root]

    now = {root: cost(root) for root in places}
    heap = [(c, root) for root, c in now.items()]
    heapq.heapify(heap)
    order: list[tuple[int, float]] = []
    while heap:
        expected, root = heapq.heappop(heap)
        if now.get(root) != expected:  # its cost has changed since
            continue
        order.append((root, expected))
        del now[root]
        involved = {number for number, _ in places[root]}
        for number, channel in places[root]:
            readers[number].remove(channel)
        for number in involved:
            costs[number] = readers[number].costs()
        for other in {label for number in involved for label in touching[number]} & now.keys():
            now[other] = cost(other)
            heapq.heappush(heap, (now[other], other))
    # what goes later never scores less, and equal costs keep their order
    climbing = np.maximum.accumulate(np.array([c for _, c in order] or [0.0]))
    climbing += np.arange(len(climbing)) * 1e-12 * max(climbing[-1], 1e-12)
    score = dict(zip((root for root, _ in order), climbing.tolist()))
    worst = 2 * float(climbing[-1]) + 1.0
    return {bn: np.array([score.get(root, worst) for root in own.tolist()]) for bn, own in roots.items()}


def _savings(traced: Trace, budget: str) -> Floats:
    """For each root what goes with its class: BatchNorm channels, FLOPs (for latency too) or parameters."""
    spans: list[tuple[NDArray[np.int64], float]] = []  # labels along one dimension, and what they carry in all
    if budget in ("flops", "latency"):
        for product in traced.products:
            widths = [dim if isinstance(dim, int) else len(dim) for dim in product.dims]
            flops = 2.0 * product.positions * math.prod(widths)
            spans += [(dim >> 1, flops) for dim in product.dims if not isinstance(dim, int)]
    elif budget == "params":
        for name in traced.parameters:
            size = float(math.prod(traced.shapes[name]))
            spans += [(labels, size) for labels in traced.labels.get(name, {}).values()]
    else:
        spans = [(labels, len(labels)) for labels in traced.norms.values()]
    out = np.zeros(len(traced.classes))
    for labels, carried in spans:
        np.add.at(out, traced.classes.roots(labels), carried / len(labels))
    return np.maximum(out, 1e-12)


def _readers(model: nn.Module, traced: Trace, images: Any) -> list[Reader]:
    """The layers that read free channels, with second moments of their input over `images`."""
    found: dict[str, list[Reader]] = {}

    def visit(layer: Layer) -> Tensor:
        dim = 0 if layer.func in TRANSPOSED else 1
        labels = traced.labels.get(layer.name, {}).get(dim) if layer.kind == "product" else None
        if labels is not None and layer.name not in found and not traced.classes.frozen(labels).all():
            found[layer.name] = _split(layer, traced.classes.roots(labels))
        return layer.run()

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Watch(model, visit):
            call(model, images)
    finally:
        for module, mode in modes:
            module.training = mode
    return [reader for readers in found.values() for reader in readers]


def _split(layer: Layer, labels: NDArray[np.int64]) -> list[Reader]:
    """A layer's groups. A depthwise layer reads each channel alone and passes it on: it has none."""
    x, weight = layer.input, layer.arguments["weight"].detach()
    groups = layer.arguments.get("groups", 1)
    if groups > 1 and groups == x.shape[1]:
        return []
    rows = x.reshape(-1, x.shape[-1]) if layer.func is F.linear else x.movedim(1, -1).reshape(-1, x.shape[1])
    if len(rows) > PLACES:
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:PLACES]
        rows = rows[drawn.to(rows.device)]
    columns = weight.movedim(0 if layer.func in TRANSPOSED else 1, -1).double().cpu().numpy()
    values = rows.double() if rows.device.type != "mps" else rows.cpu().double()
    readers = []
    for number, part in enumerate(values.chunk(groups, 1)):
        covariance = torch.cov(part.T, correction=0).cpu().numpy().reshape(part.shape[1], part.shape[1])
        if layer.func in TRANSPOSED:  # the input channels of a group are its slice of the weight
            own = columns[..., number * part.shape[1] : (number + 1) * part.shape[1]]
        else:
            outputs = len(columns) // groups
            own = columns[number * outputs : (number + 1) * outputs]
        flat = own.reshape(-1, part.shape[1]).copy()
        total = float(((flat @ covariance) * flat).sum())
        ridge = RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-30)
        precision = np.linalg.inv(covariance + ridge * np.eye(len(covariance))).astype(np.float64)
        if total > 0:
            n = part.shape[1]
            own_labels = labels if len(labels) == n else labels[number * n : (number + 1) * n]
            readers.append(Reader(own_labels, precision, flat, total))
    return readers
