"""What layers read, and how: second moments of their input over images, and the weights that read them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.prune.calibration import drawn, part, running
from slim.trace.classes import Ints
from slim.trace.inputs import call
from slim.trace.intercept import TRANSPOSED, Intercept, LayerCall, evaluating
from slim.trace.traced import Trace

PLACES = 16_384  # pixels of all images that second moments are taken over
RIDGE = 1e-4  # of the mean variance: what regression may rely on

Floats = NDArray[np.float64]


@dataclass
class ChannelsRead:
    """One group of a layer: the roots of the classes of the channels that it reads, their `covariance` [channels,
    channels], and the `weights` that read them [kernel positions × outputs, channels]."""

    labels: Ints
    covariance: Floats
    weights: Floats

    @cached_property
    def gram(self) -> Floats:
        """Return the products of the weights that read two channels, summed over kernel positions and outputs."""
        return self.weights.T @ self.weights

    @cached_property
    def total(self) -> float:
        """Return the variance of what the layer gives, taking the pixels of a kernel as independent."""
        return float(((self.weights @ self.covariance) * self.weights).sum())


def run_on(model: nn.Module, images: Any, visit: Callable[[LayerCall], Tensor]) -> None:
    """Run the network on some of the images, in inference, and show each layer to `visit`."""
    device = next(model.parameters()).device
    images = part(drawn(images, 1, "scores")[0], slice(None), device)
    with running("the network"), evaluating(model), Intercept(model, visit):
        call(model, images)


def labels_read(layer: LayerCall, traced: Trace) -> Ints | None:
    """Return the labels of the channels that a convolution or linear layer reads; None for what is none."""
    dim = 0 if layer.func in TRANSPOSED else 1
    return traced.labels.get(layer.name, {}).get(dim) if layer.kind == "product" else None


def rows_of(values: Tensor, dim: int) -> Tensor:
    """Return what the channels along `dim` hold at some places, float64 [places, channels]: all of them, or `PLACES`
    drawn at random, the same each time for tensors of one size."""
    rows = values.movedim(dim, -1).reshape(-1, values.shape[dim])
    if len(rows) > PLACES:
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:PLACES]
        rows = rows[chosen.to(rows.device)]
    return in_float64(rows)


def in_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, on its own device where that has such numbers."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


def readings(layer: LayerCall, labels: Ints) -> Iterator[ChannelsRead]:
    """Yield a layer's groups. A depthwise layer reads each channel alone and passes it on: it has none."""
    x, weight = layer.input, layer.arguments["weight"].detach()
    groups = layer.arguments.get("groups", 1)
    if groups > 1 and groups == x.shape[1]:
        return
    places = _places(labels) if layer.func is F.linear else 1
    if places > 1:
        x = x.unflatten(-1, (-1, places)).movedim(-1, -2)
        weight = weight.unflatten(1, (-1, places))
        labels = labels[::places]
    columns = weight.movedim(0 if layer.func in TRANSPOSED else 1, -1).double().cpu().numpy()
    for number, read in enumerate(rows_of(x, -1 if layer.func is F.linear else 1).chunk(groups, 1)):
        n = read.shape[1]
        if layer.func in TRANSPOSED:  # the input channels of a group are its slice of the weight
            own = columns[..., number * n : (number + 1) * n]
        else:
            outputs = len(columns) // groups
            own = columns[number * outputs : (number + 1) * outputs]
        own_labels = labels if len(labels) == n else labels[number * n : (number + 1) * n]
        covariance = torch.cov(read.T, correction=0).cpu().numpy().reshape(n, n)
        reading = ChannelsRead(own_labels, covariance, own.reshape(-1, n))
        if reading.total > 0:
            yield reading


def _places(labels: NDArray[np.int64]) -> int:
    """Return how many features of a linear layer each channel of the map before it fills, where it reads a flattened
    map: then it is a convolution whose kernel is as large as the map. 1 where it doesn't."""
    ends = np.flatnonzero(np.diff(labels))
    size = int(ends[0]) + 1 if len(ends) else 1
    even = len(labels) % size == 0 and (labels.reshape(-1, size) == labels[::size, None]).all()
    return size if even else 1
