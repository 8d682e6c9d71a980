"""The groups of a traced network: channels that stand or fall together, with their scores, as arrays."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from slim.trace.tracer import Trace

Score = Literal["mean", "max", "sum", "residual"]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


class Vectors:
    """Many vectors of labels as one array, to count in all of them at once."""

    def __init__(self, vectors: Sequence[NDArray[np.int64]]) -> None:
        self.starts = np.cumsum([0] + [len(v) for v in vectors])
        self.all = np.concatenate([*vectors, np.zeros(0, np.int64)])

    def __getitem__(self, index: int | np.integer[Any]) -> NDArray[np.int64]:
        return self.all[self.starts[index] : self.starts[index + 1]]

    def where(self, true: Bools) -> Iterator[NDArray[np.int64]]:
        """In each vector, the places of the labels for which `true` (over all labels) holds."""
        found = np.flatnonzero(true[self.all])
        ends = np.searchsorted(found, self.starts)
        for start, low, high in zip(self.starts, ends, ends[1:]):
            yield found[low:high] - start

    def count(self, true: Bools) -> NDArray[np.int64]:
        """In each vector, the number of labels for which `true` (over all labels) holds."""
        return np.diff(np.r_[0, np.cumsum(true[self.all])][self.starts])


class Groups:
    """The groups of a traced model that hold a γ, in arrays: one entry per group.

    `roots` are their labels, `score` and `size` (number of γ) follow; `member` and `layer` list which group sits in
    which BatchNorm, once for each channel. A *pattern* is a set of layers that groups share: groups of one pattern are
    interchangeable but for their score. `before` gives the layers' widths before earlier plans, if there were any.
    """

    def __init__(
        self, traced: Trace, gammas: Mapping[str, Floats], score: Score, before: Mapping[str, int] | None = None
    ) -> None:
        self.traced = traced
        self.names = list(traced.norms)
        classes = traced.classes
        self.root_of = classes.roots(np.arange(len(classes)))
        self.vectors = Vectors([labels for dims in traced.labels.values() for labels in dims.values()])
        labels = np.concatenate([traced.norms[n] for n in self.names])
        self.layer = np.repeat(np.arange(len(self.names)), [len(traced.norms[n]) for n in self.names])
        self.widths = np.bincount(self.layer)
        gamma = np.concatenate([gammas[n] for n in self.names])
        self.roots, self.member = np.unique(classes.roots(labels), return_inverse=True)
        self.size = np.bincount(self.member)
        total = np.bincount(self.member, weights=gamma)
        self.score: Floats = (total if score == "sum" else total / self.size).astype(np.float64)
        if score == "max":
            np.maximum.at(self.score, self.member, gamma)
        self.frozen = classes.frozen(self.roots)
        salt = np.random.default_rng(0).integers(1, 2**62, len(self.names))
        signature = np.zeros(len(self.roots), np.int64)
        np.add.at(signature, self.member, salt[self.layer])
        signature[self.frozen] = 0
        _, self.pattern = np.unique(signature, return_inverse=True)
        # rank of each group within its pattern, best first; equal scores by label, so that plans don't depend on luck
        order = np.lexsort((self.roots, -self.score, self.pattern))
        self.rank = np.empty(len(order), np.int64)
        starts = np.r_[0, np.cumsum(np.bincount(self.pattern))]
        self.rank[order] = np.arange(len(order)) - starts[self.pattern[order]]
        self.pattern_size = np.bincount(self.pattern)
        grown = np.array([(before or {}).get(name, width) / width for name, width in zip(self.names, self.widths)])
        self.pattern_size_before = np.zeros(len(self.pattern_size))
        np.maximum.at(self.pattern_size_before, self.pattern[self.member], grown[self.layer])
        self.pattern_size_before *= self.pattern_size
        # channels that one group of a pattern holds in one layer (2 where halves are tied)
        pairs, count = np.unique(self.member * len(self.names) + self.layer, return_counts=True)
        self.multiple = np.ones(len(self.pattern_size), np.int64)
        np.maximum.at(self.multiple, self.pattern[pairs // len(self.names)], count)

    def protected(self, floors: Sequence[int], members: Sequence[NDArray[np.int64]] = ()) -> Bools:
        """The groups that stay whatever the budget: each layer's best, the floor's worth, and the best of `members`."""
        safe = self.frozen.copy()
        order = np.lexsort((self.roots[self.member], -self.score[self.member], self.layer))
        place = np.arange(len(order)) - np.r_[0, np.cumsum(self.widths)][self.layer[order]]
        safe[self.member[order][place < np.asarray(floors)[self.layer[order]]]] = True
        for some in members:
            safe[some[np.lexsort((self.roots[some], -self.score[some]))[:1]]] = True
        return safe

    def emptied(self, gone: Bools) -> list[NDArray[np.int64]]:
        """Dimensions of tensors (part of a layer, say) that would lose all of their channels: the groups in each."""
        lost = np.full(len(self.traced.classes), -1)
        lost[self.roots[gone]] = np.flatnonzero(gone)
        found = {}
        for index in np.flatnonzero(self.vectors.count(lost[self.root_of] < 0) == 0):
            groups = lost[self.root_of[self.vectors[index]]]
            found[groups.tobytes()] = groups
        return list(found.values())
