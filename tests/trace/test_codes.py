"""Codes of several channels at once, held to pairs of a label and a gate, one by one."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from slim.trace.codes import BY_NORM, BY_PRODUCER, OPEN, Codes

Pair = tuple[int, int]
GATES = [OPEN, BY_PRODUCER, BY_NORM]
PAIRS: dict[str, list[Pair]] = {
    "all open": [(3, OPEN), (1, OPEN), (0, OPEN), (4, OPEN)],
    "all gated": [(3, BY_NORM), (1, BY_NORM), (2, BY_NORM), (4, BY_NORM)],
    "of each": [(5, BY_NORM), (2, BY_PRODUCER), (2, OPEN), (7, BY_NORM)],
}


def codes(pairs: list[Pair]) -> Codes:
    """Codes made of parts that are known to have one gate each."""
    return Codes.join(Codes.of(np.array([label])).with_gate(gate) for label, gate in pairs)


def pairs(found: Codes) -> list[Pair]:
    return [(int(label), int(gate)) for label, gate in zip(found.labels.flatten(), found.gate.flatten())]


SAME: dict[str, tuple[Callable[[Codes], Codes], Callable[[list[Pair]], list[Pair]]]] = {
    "without gates": (lambda c: c.ungated(), lambda p: [(n, OPEN) for n, _ in p]),
    "one more gate": (lambda c: c.add_gate(BY_PRODUCER), lambda p: [(n, max(g, BY_PRODUCER)) for n, g in p]),
    "turned round": (lambda c: c[::-1], lambda p: p[::-1]),
    "the second": (lambda c: c[1], lambda p: p[1:2]),
    "repeated": (lambda c: c.repeat(3), lambda p: [each for each in p for _ in range(3)]),
    "tiled": (lambda c: c.tile(3), lambda p: p * 3),
    "a grid's columns": (lambda c: c.reshape(2, 2).columns, lambda p: [p[0], p[2], p[1], p[3]]),
    "spread": (lambda c: c.broadcast_to((2, 4)), lambda p: p * 2),
    "rows along the first": (lambda c: c.reshape(2, 2).with_last(0), lambda p: [p[0], p[2], p[1], p[3]]),
    "the first row": (
        lambda c: c.reshape(2, 2).first_row(),
        lambda p: [(p[0][0], min(p[0][1], p[2][1])), (p[1][0], min(p[1][1], p[3][1]))],
    ),
}


@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("given", PAIRS)
def test_what_is_done_to_all_is_done_to_each(given: str, case: str) -> None:
    ours, each = SAME[case]
    made = ours(codes(PAIRS[given]))
    expected = each(PAIRS[given])
    assert pairs(made) == expected
    assert made.common_gate in ({g for _, g in expected} if len({g for _, g in expected}) == 1 else set()) | {None}


@pytest.mark.parametrize(("first", "second"), product(GATES, GATES))
def test_gated_where_all_or_any_of_them_are(first: int, second: int) -> None:
    a, b = codes([(3, first), (4, second)]), codes([(8, second), (9, OPEN)])
    assert pairs(a.gated_where_all(b)) == [(3, min(first, second)), (4, OPEN)]
    assert pairs(a.gated_where_any(b)) == [(3, max(first, second)), (4, second)]


def test_equal_are_the_same_labels_with_the_same_gates() -> None:
    mixed = PAIRS["of each"]
    assert codes(mixed).equals(codes(list(mixed)))
    assert not codes(mixed).equals(codes(mixed[:3]))
    for place, (label, gate) in product(range(4), [(6, BY_NORM), (5, OPEN)]):
        other = [*mixed[:place], (label, gate), *mixed[place + 1 :]]
        assert codes(mixed).equals(codes(other)) == (other == mixed)


def test_a_grid_varies_along_a_dimension_whose_places_differ() -> None:
    grid = codes([(1, OPEN), (2, OPEN), (1, OPEN), (2, OPEN)]).reshape(2, 2)
    assert not grid.varies_along(0) and grid.varies_along(1)
    gates = codes([(1, OPEN), (1, OPEN), (1, BY_NORM), (1, BY_NORM)]).reshape(2, 2)
    assert gates.varies_along(0) and not gates.varies_along(1)
