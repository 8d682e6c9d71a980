"""Which channels are coupled: a union-find over integer labels, on whole arrays at a time.

A *label* names one channel of one layer. Labels that are united form a *class* (a group, in the field's words); its
smallest label is its root. Label 0 stands for whatever has a fixed size (the image, a constant, a stored table):
uniting with it freezes a class instead of joining it, so that every frozen class keeps the reason of its own.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Classes:
    """Labels 1, 2, … in disjoint classes, some of them frozen for a reason."""

    def __init__(self) -> None:
        self._parent = np.arange(4096, dtype=np.int64)
        self._reason = np.zeros(4096, dtype=np.int64)  # by root; 0 is free, else an index into `reasons` plus one
        self._count = 1
        self.reasons: list[str] = []
        self._reason_ids: dict[str, int] = {}

    def __len__(self) -> int:
        return self._count

    def fresh(self, n: int) -> Ints:
        """Return `n` new labels, each in a class of its own."""
        first, self._count = self._count, self._count + n
        if self._count > len(self._parent):
            size = max(2 * len(self._parent), self._count)
            grown = np.arange(size, dtype=np.int64)
            grown[: len(self._parent)] = self._parent
            self._parent = grown
            self._reason = np.concatenate([self._reason, np.zeros(size - len(self._reason), np.int64)])
        return np.arange(first, self._count, dtype=np.int64)

    def roots(self, labels: Ints) -> Ints:
        """Return the smallest label of each label's class (and shorten the way there for next time)."""
        parent = self._parent
        found = parent[labels]
        above = parent[found]
        if (above == found).all():
            return found
        while True:
            found = above
            above = parent[found]
            if (above == found).all():
                parent[labels] = found
                return found

    def unite(self, a: Ints, b: Ints, reason: str) -> None:
        """Join the classes of `a[i]` and `b[i]` for every i (they broadcast); `reason` is for those that meet 0."""
        if a is b or (a.shape == b.shape and bool((a == b).all())):
            return
        a, b = self.roots(a), self.roots(b)
        apart = a != b
        if not apart.any():
            return
        low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
        if not low.all():
            self.freeze(high[low == 0], reason)
            low, high = low[low > 0], high[low > 0]
        involved = np.concatenate([low, high])
        reasons = self._reason[involved]
        while len(low):
            self._parent[high] = low  # where `high` repeats, one link is made and the next round makes the others
            a, b = self.roots(high), self.roots(low)
            apart = a != b
            low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
        if reasons.any():  # a class with a frozen part is frozen
            ends, reasons = self.roots(involved[reasons > 0]), reasons[reasons > 0]
            untold = self._reason[ends] == 0
            self._reason[ends[untold]] = reasons[untold]

    def freeze(self, labels: Ints, reason: str) -> None:
        """Keep all channels of these labels' classes, because of `reason`. The first reason stays."""
        if not len(labels):
            return
        roots = self.roots(labels)
        roots = roots[(roots > 0) & (self._reason[roots] == 0)]
        if len(roots):
            index = self._reason_ids.get(reason)
            if index is None:
                self.reasons.append(reason)
                index = self._reason_ids[reason] = len(self.reasons)
            self._reason[roots] = index

    def frozen(self, labels: Ints) -> NDArray[np.bool_]:
        """Return whether each label's class is frozen (label 0 always is)."""
        roots = self.roots(labels)
        return (self._reason[roots] > 0) | (roots == 0)

    def reason(self, label: int) -> str | None:
        """Return why the label's class is frozen, or None where it is free."""
        root = int(self.roots(np.array([label]))[0])
        index = int(self._reason[root])
        return self.reasons[index - 1] if index else ("fixed size" if root == 0 else None)
