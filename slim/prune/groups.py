"""The groups of a traced network: coupled channels, as arrays."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.errors import SlimError
from slim.trace.copy import named_tensors
from slim.trace.traced import Trace

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Reduce = Literal["mean", "max", "sum"]


def as_array(values: Any) -> Floats:
    """Return numbers, in a tensor or whatever numpy takes, as an array of float64."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)


class Vectors:
    """Many vectors of labels, to count in all of them at once. Tensors of a layer share theirs: each is held once.

    `of` has, for each vector that was given, its place among the `different` ones, which lie end to end in `all`.
    """

    def __init__(self, vectors: Sequence[NDArray[np.int64]]) -> None:
        places: dict[int, int] = {}
        self.of = np.array([places.setdefault(id(vector), len(places)) for vector in vectors], np.int64)
        self.different = list({id(vector): vector for vector in vectors}.values())
        self.lengths = np.array([len(vector) for vector in self.different], np.int64)
        self.starts = np.r_[0, np.cumsum(self.lengths)]
        self.all = np.concatenate([*self.different, np.zeros(0, np.int64)])

    def where(self, true: Bools) -> list[list[int]]:
        """Return, for each vector, the places of the labels for which `true` (over all labels) holds; one list for
        those that are one."""
        found = np.flatnonzero(true[self.all])
        parts = np.split(found, np.searchsorted(found, self.starts[1:-1]))
        each: list[list[int]] = [(part - start).tolist() for part, start in zip(parts, self.starts)]
        return [each[place] for place in self.of]

    def count(self, true: Bools) -> NDArray[np.int64]:
        """Return, for each vector, the number of labels for which `true` (over all labels) holds."""
        return np.diff(np.r_[0, np.cumsum(true[self.all])][self.starts])[self.of]


class Groups:
    """The channel groups of a traced model, in arrays with one entry for each group.

    `labels` maps the layers whose channels are counted (default: the BatchNorms) to the labels of these. `roots` are
    the groups' labels, and `size` is the number of channels that a group holds. `member` and `layer` list which group
    sits in which layer, once for each channel. A *pattern* is a set of layers that groups share: groups of one pattern
    are interchangeable but for their score. `before` gives the layers' widths before earlier plans, if there were any.

    `model` is the network itself, for scores that look at its tensors, and `savings` what a group's removal saves of
    the budget. `score`, `place`, the one among all groups from the best, and `rank`, that within the pattern, are there
    after `rank_by`.
    """

    score: Floats
    place: NDArray[np.int64]
    rank: NDArray[np.int64]
    savings: Floats

    def __init__(
        self,
        traced: Trace,
        model: nn.Module,
        before: Mapping[str, int] | None = None,
        counted: Mapping[str, NDArray[np.int64]] | None = None,
    ) -> None:
        self.traced, self.model = traced, model
        self.labels = traced.norms if counted is None else counted
        self.names = list(self.labels)
        classes = traced.classes
        self.root_of = classes.roots(np.arange(len(classes)))
        self.vectors = Vectors([labels for dims in traced.labels.values() for labels in dims.values()])
        labels = np.concatenate([*self.labels.values(), np.zeros(0, np.int64)])
        self.layer = np.repeat(np.arange(len(self.names)), [len(labels) for labels in self.labels.values()])
        self.widths = np.bincount(self.layer)
        rooted = classes.roots(labels)
        met = np.zeros(len(classes), bool)
        met[rooted] = True
        self.roots, self.member = np.flatnonzero(met), (np.cumsum(met) - 1)[rooted]
        self.size = np.bincount(self.member)
        self.savings = self.size.astype(np.float64)
        self.blocks = slice(len(self.roots), len(self.roots))  # those of the groups that are residual branches
        self.frozen = classes.frozen(self.roots)
        salt = np.random.default_rng(0).integers(1, 2**62, len(self.names))
        signature = np.zeros(len(self.roots), np.int64)
        np.add.at(signature, self.member, salt[self.layer])
        signature[self.frozen] = 0
        _, self.pattern = np.unique(signature, return_inverse=True)
        self.pattern_size = np.bincount(self.pattern)
        grown = np.array([(before or {}).get(name, width) / width for name, width in zip(self.names, self.widths)])
        self.pattern_size_before = np.zeros(len(self.pattern_size))
        np.maximum.at(self.pattern_size_before, self.pattern[self.member], grown[self.layer])
        self.pattern_size_before *= self.pattern_size
        # channels that one group of a pattern holds in each of its layers at least (2 where halves are tied)
        pairs, count = np.unique(self.member * len(self.names) + self.layer, return_counts=True)
        self.multiple = np.zeros(len(self.pattern_size), np.int64)
        np.gcd.at(self.multiple, self.pattern[pairs // len(self.names)], count)

    def reduce(self, values: Mapping[str, Any], how: Reduce = "mean") -> Floats:
        """Return for each group the mean, largest or sum of `values`, which holds one for each channel of each layer.

        Raises SlimError where a layer's values are missing, aren't one for each channel, or aren't finite.
        """
        each = []
        for name, width in zip(self.names, self.widths):
            given = as_array(values.get(name, ()))
            if given.shape != (width,):
                raise SlimError(
                    f"scores of shape {list(given.shape)} for {name}: expected one for each of its {width} channels"
                )
            if not np.isfinite(given).all():
                raise SlimError(f"scores that aren't finite for {name}: expected numbers")
            each.append(given)
        flat = np.concatenate(each)
        total = np.bincount(self.member, weights=flat)
        out: Floats = (total if how == "sum" else total / self.size).astype(np.float64)
        if how == "max":
            np.maximum.at(out, self.member, flat)
        return out

    def tensors(self) -> dict[str, Tensor]:
        """Return the model's parameters and buffers by name."""
        return dict(named_tensors(self.model))

    def rank_by(self, score: Floats) -> None:
        """Rank by `score`, one number for each group; equal ones by label, so that plans don't depend on luck."""
        self.score = score
        self.place = np.empty(len(score), np.int64)
        self.place[np.argsort(-score, kind="stable")] = np.arange(len(score))  # roots are in order
        order = self._best_first(self.pattern, np.arange(len(score)))
        self.rank = np.empty(len(order), np.int64)
        starts = np.r_[0, np.cumsum(self.pattern_size)]
        self.rank[order] = np.arange(len(order)) - starts[self.pattern[order]]

    def _best_first(self, kind: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return an order of `groups` by kind, and in each kind from the best score to the lowest."""
        return np.lexsort((self.place[groups], kind))

    def add_blocks(self, labels: Sequence[int], score: Floats) -> None:
        """Add groups that are residual branches as a whole, once the others are ranked: each is a pattern of its own,
        of which nothing need stay but where its score is infinite. `labels` stand for them."""
        ones = np.ones(len(labels), np.int64)
        self.blocks = slice(len(self.roots), len(self.roots) + len(ones))
        self.pattern = np.r_[self.pattern, len(self.pattern_size) + np.arange(len(ones))]
        self.pattern_size, self.multiple = np.r_[self.pattern_size, ones], np.r_[self.multiple, ones]
        self.pattern_size_before = np.r_[self.pattern_size_before, ones]
        self.roots, self.size = np.r_[self.roots, labels], np.r_[self.size, ones]
        self.frozen, self.rank = np.r_[self.frozen, np.isinf(score)], np.r_[self.rank, 0 * ones]
        self.score = np.r_[self.score, np.where(np.isinf(score), self.score.max(), score)]

    @property
    def least(self) -> NDArray[np.int64]:
        """Return how many groups of each pattern stay in any case: one, but of blocks none."""
        least = np.ones(len(self.pattern_size), np.int64)
        least[self.pattern[self.blocks]] = 0
        return least

    def kept(self, pruned: Bools | None = None) -> Bools:
        """Return for every label of the trace whether it is kept when the `pruned` groups go (default: none)."""
        lost = np.zeros(len(self.root_of), bool)
        if pruned is not None:
            lost[self.roots[pruned]] = True
        out: Bools = ~lost[self.root_of]
        return out

    def protected(self, floors: Sequence[int], members: Sequence[NDArray[np.int64]] = ()) -> Bools:
        """Return the groups that stay whatever the budget: each layer's best, as many as `floors` says, and the best of
        `members`."""
        safe = self.frozen.copy()
        order = self._best_first(self.layer, self.member)
        place = np.arange(len(order)) - np.r_[0, np.cumsum(self.widths)][self.layer[order]]
        safe[self.member[order][place < np.asarray(floors)[self.layer[order]]]] = True
        for some in members:
            safe[some[np.argsort(self.place[some])[:1]]] = True
        return safe

    def emptied(self, pruned: Bools) -> list[NDArray[np.int64]]:
        """Return, for each dimension of a tensor (part of a layer, say) that would lose all channels, its groups."""
        lost = np.full(len(self.traced.classes), -1)
        lost[self.roots[pruned]] = np.flatnonzero(pruned)
        found = {}
        for place in dict.fromkeys(self.vectors.of[self.vectors.count(lost[self.root_of] < 0) == 0]):
            groups = lost[self.root_of[self.vectors.different[place]]]
            found[groups.tobytes()] = groups
        return list(found.values())
