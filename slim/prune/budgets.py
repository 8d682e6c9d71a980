"""What a choice of groups costs: channels, parameters, FLOPs, latency; known for every probe without a rebuild."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from slim.prune.groups import Bools, Groups, Vectors
from slim.trace.tracer import Trace

if TYPE_CHECKING:
    from slim.deploy.cost.model import LatencyModel


class Costs:
    """What a choice of groups costs, without rebuilding anything: sums of products of numbers of channels."""

    def __init__(self, traced: Trace, groups: Groups, latency: "LatencyModel | None" = None) -> None:
        self.groups = groups
        params = [(1, _dims_of(traced, name)) for name in traced.parameters]
        flops = [(2 * product.positions, product.dims) for product in traced.products]
        self.sums: dict[str, Callable[[Bools], float]] = {
            "params": _SumOfProducts(params),
            "flops": _SumOfProducts(flops),
        }
        if latency is not None:
            self.sums["latency"] = latency.of

    def kept(self, gone: Bools) -> Bools:
        """For every label, whether it stays."""
        lost = np.zeros(len(self.groups.root_of), bool)
        lost[self.groups.roots[gone]] = True
        out: Bools = ~lost[self.groups.root_of]
        return out

    def channels(self, gone: Bools) -> int:
        """BatchNorm channels removed."""
        return int(self.groups.size[gone].sum())

    def of(self, kind: str, gone: Bools) -> float:
        """What stays of `kind`: channels, params, flops, or the latency in milliseconds that the model foretells."""
        if kind == "channels":
            return len(self.groups.member) - self.channels(gone)
        return self.sums[kind](self.kept(gone))


Dims = Sequence[int | NDArray[np.int64]]  # of each dimension its fixed size, or the labels along it


def _dims_of(traced: Trace, name: str) -> Dims:
    labels = traced.labels.get(name, {})
    return [labels.get(d, n) for d, n in enumerate(traced.shapes[name])]


class _SumOfProducts:
    """Σ factor × Π (what stays along each dimension)."""

    def __init__(self, terms: Sequence[tuple[int, Dims]]) -> None:
        vectors = [(t, dim) for t, (_, dims) in enumerate(terms) for dim in dims if not isinstance(dim, int)]
        self.vectors = Vectors([labels for _, labels in vectors])
        self.term = np.array([t for t, _ in vectors], np.int64)
        self.fixed = [factor * math.prod(d for d in dims if isinstance(d, int)) for factor, dims in terms]

    def __call__(self, kept: Bools) -> int:
        value = np.array(self.fixed, np.int64)
        np.multiply.at(value, self.term, self.vectors.count(kept))
        return int(value.sum())
