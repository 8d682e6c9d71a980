"""The union-find against a plain graph search."""

from contextlib import nullcontext

import numpy as np
import pytest

from slim.trace.check import Mismatch, Settled
from slim.trace.classes import Classes


def components(n: int, edges: list[tuple[int, int]]) -> list[int]:
    """Smallest member of each node's connected component, by flooding."""
    near: dict[int, set[int]] = {i: {i} for i in range(n)}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    found: dict[int, int] = {}
    for start in range(n):
        if start not in found:
            seen, todo = {start}, [start]
            while todo:
                for k in near[todo.pop()] - seen:
                    seen.add(k)
                    todo.append(k)
            found |= dict.fromkeys(seen, min(seen))
    return [found[i] for i in range(n)]


@pytest.mark.parametrize("seed", range(20))
def test_unite_is_connected_components(seed: int) -> None:
    rng = np.random.default_rng(seed)
    classes = Classes()
    labels = classes.fresh(200)
    frozen: set[int] = set()
    edges = []
    for step in range(8):
        a, b = rng.integers(0, 200, (2, rng.integers(1, 40)))
        if rng.random() < 0.2:
            classes.freeze(labels[a[:2]], f"reason {step}")
            frozen |= set(a[:2].tolist())
        else:
            classes.unite(labels[a], labels[b], "met a fixed size")
            edges += list(zip(a.tolist(), b.tolist()))
    expected = components(200, edges)
    assert (classes.roots(labels) - 1).tolist() == expected
    touched = {expected[i] for i in frozen}
    assert classes.frozen(labels).tolist() == [expected[i] in touched for i in range(200)]
    for i in range(200):
        assert (classes.reason(int(labels[i])) is not None) == (expected[i] in touched)


def test_uniting_with_a_fixed_size_freezes_and_keeps_classes_apart() -> None:
    classes = Classes()
    a = classes.fresh(3)
    classes.unite(a, np.array([0, a[0], 0]), "a constant")
    assert classes.frozen(a).all() and classes.reason(int(a[1])) == "a constant"
    assert classes.roots(a).tolist() == [1, 1, 3]


def test_labels_grow_past_the_first_allocation() -> None:
    classes = Classes()
    a = classes.fresh(3000)
    b = classes.fresh(9000)
    classes.unite(a, b[-3000:], "")
    assert (classes.roots(b[-3000:]) == a).all() and (classes.roots(b[:6000]) == b[:6000]).all()


# of six channels, the first two are coupled and the last two stay: may these be coupled later, too?
LATER = {
    "coupled before": ([0], [1], True),
    "the same": ([2], [2], True),
    "one of several isn't": ([0, 2], [1, 3], False),
    "never coupled": ([0], [2], False),
    "never coupled, the other way round": ([2], [0], False),
    "both stay": ([4], [5], True),
    "one stays": ([4], [0], False),
    "more than there are": ([0, 1], [1, 0, 1], False),
}


@pytest.mark.parametrize("case", LATER)
def test_nothing_is_coupled_once_a_trace_is_over(case: str) -> None:
    a, b, settled = LATER[case]
    classes = Classes()
    labels = classes.fresh(6)
    classes.unite(labels[:1], labels[1:2], "")
    classes.freeze(labels[4:], "asked for")
    before = classes.roots(labels).tolist()
    with nullcontext() if settled else pytest.raises(Mismatch, match="added"):
        Settled(classes).unite(labels[a], labels[b], "added")
    assert classes.roots(labels).tolist() == before


def test_nothing_is_frozen_once_a_trace_is_over() -> None:
    classes = Classes()
    labels = classes.fresh(2)
    classes.freeze(labels[:1], "asked for")
    Settled(classes).freeze(labels[:1], "again")
    with pytest.raises(Mismatch, match="now"):
        Settled(classes).freeze(labels, "now")
