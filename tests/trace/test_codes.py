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


# -- channels that are one number --------------------------------------------------------------------------------------

Triple = tuple[int, int, int]  # a label, its gate, and what makes it one number
MIXED: list[Triple] = [
    (3, OPEN, OPEN),
    (1, OPEN, BY_PRODUCER),
    (2, OPEN, BY_NORM),
    (4, BY_PRODUCER, BY_PRODUCER),
    (5, BY_NORM, BY_NORM),
]
ALIKE: list[Triple] = [(3, OPEN, BY_NORM), (1, OPEN, BY_NORM)]


def held(given: list[Triple]) -> Codes:
    return Codes.join(Codes.of(np.array([label])).with_gate(gate, constant) for label, gate, constant in given)


def triples(found: Codes) -> list[Triple]:
    return [(int(n), int(g), int(c)) for n, g, c in zip(found.labels, found.gate, found.constant)]


CONSTANT: dict[str, tuple[Callable[[Codes], Codes], Callable[[Triple], Triple]]] = {
    "as they are": (lambda c: c, lambda t: t),
    "without gates": (lambda c: c.ungated(), lambda t: (t[0], OPEN, OPEN)),
    "zero by norms": (lambda c: c.with_gate(), lambda t: (t[0], BY_NORM, BY_NORM)),
    "one number": (lambda c: c.with_gate(OPEN, BY_NORM), lambda t: (t[0], OPEN, BY_NORM)),
    "zero, and one number by more": (
        lambda c: c.with_gate(BY_PRODUCER, BY_NORM),
        lambda t: (t[0], BY_PRODUCER, BY_NORM),
    ),
    "no longer zero": (lambda c: c.no_longer_zero(), lambda t: (t[0], OPEN, t[2])),
    "zero or open": (lambda c: c.zero_or_open(), lambda t: (t[0], t[1], t[1])),
    "one more gate": (lambda c: c.add_gate(BY_PRODUCER), lambda t: (t[0], t[1] | BY_PRODUCER, t[2] | BY_PRODUCER)),
    "zero where another is": (
        lambda c: c.gated_where_any(Codes.of(np.arange(len(c))).with_gate(BY_PRODUCER, BY_NORM)),
        lambda t: (t[0], t[1] | BY_PRODUCER, t[2] | BY_PRODUCER),
    ),
    "where another is one number, too": (
        lambda c: c.gated_where_all(Codes.of(np.arange(len(c))).with_gate(BY_PRODUCER, BY_NORM)),
        lambda t: (t[0], t[1] & BY_PRODUCER, t[2] & BY_NORM),
    ),
    "gates one by one": (
        lambda c: c.with_gate(np.full(len(c), BY_PRODUCER), np.full(len(c), BY_NORM)),
        lambda t: (t[0], BY_PRODUCER, BY_NORM),
    ),
}


@pytest.mark.parametrize("case", CONSTANT)
@pytest.mark.parametrize("given", [MIXED, ALIKE, ALIKE[:1]])
def test_what_is_one_number_stays_one_where_it_does(given: list[Triple], case: str) -> None:
    ours, each = CONSTANT[case]
    found, expected = ours(held(given)), [each(one) for one in given]
    assert triples(found) == expected
    if found.common_gates is not None:
        assert {g + 4 * c for _, g, c in expected} == {found.common_gates}
        assert ({g for _, g, _ in expected}, {c for _, _, c in expected}) == (
            {found.common_gate},
            {found.common_constant},
        )
    else:
        assert found.common_gate is None and np.array_equal(found.common_constant, found.constant)


def test_gates_that_are_known_to_be_alike_are_told() -> None:
    same, mixed = held(ALIKE), held(MIXED)
    assert (same.common_gates, same.common_gate, same.common_constant) == (4 * BY_NORM, OPEN, BY_NORM)
    assert (mixed.common_gates, mixed.common_gate) == (None, None)
    for code in (same[::-1], same.repeat(2), same.tile(2), same.reshape(1, 2).columns, same.no_longer_zero()):
        assert code.common_gates == 4 * BY_NORM
    assert same.add_gate(BY_PRODUCER).common_gates == 4 * BY_NORM + BY_PRODUCER
    assert same.with_gate(OPEN, BY_NORM) is same and same.repeat(1) is same and same.tile(1) is same


def test_equal_codes_are_those_of_the_same_labels_and_gates() -> None:
    assert held(MIXED).equals(held(MIXED)) and not held(MIXED).equals(held(MIXED[:4]))
    for other in (held(MIXED).ungated(), held(MIXED)[::-1], held(MIXED).no_longer_zero()):
        assert not held(MIXED).equals(other)
    assert Codes.fixed(3).labels.tolist() == [0, 0, 0] and Codes.fixed(3).common_gate == OPEN


@pytest.mark.parametrize(
    ("grid", "along"),
    [
        ([[1, 1], [1, 1]], []),
        ([[1, 2], [1, 2]], [1]),
        ([[1, 1], [2, 2]], [0]),
        ([[1, 2], [3, 4]], [0, 1]),
        ([[1, 2]], [1]),
    ],
)
def test_where_a_grid_varies(grid: list[list[int]], along: list[int]) -> None:
    made = Codes.of(np.array(grid))
    assert [dim for dim in (0, 1) if made.varies_along(dim)] == along
    assert [row.tolist() for row in made.with_last(0).labels] == np.array(grid).T.tolist()
    assert made.first_row().labels.tolist() == grid[0]
