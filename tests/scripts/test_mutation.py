"""Mutants are other programs, and act where they are put."""

from multiprocessing.connection import Connection

import mutation
import pytest
from mutation import Mutant

from slim.prune import knapsack

FILE = "slim/prune/knapsack.py"


def mutant(text: str, operator: str) -> Mutant:
    """The mutant of the first place in a line that holds `text`."""
    line = next(n for n, line in enumerate(mutation.read(FILE).splitlines(), 1) if text in line)
    found = mutation.places(FILE)
    return next(m for place, ms in sorted(found.items()) if place[0] == line for m in ms if operator in m.operator)


def stops(changed: Mutant, tells: Connection) -> None:
    mutation.put_in_place(changed)
    tells.send(knapsack._stops(17, 1, 16).tolist())


def test_a_mutant_takes_the_place_of_a_function_in_another_process() -> None:
    changed = mutant("return np.arange((now - 1) // step * step, last - 1, -step)", "Sub_Add")
    assert "(now + 1) // step" in changed.change and mutation.acts(changed)
    assert mutation.function_of(changed) is not None
    assert mutation.in_a_process(stops, mutant("np.arange((now - 1)", "NumberReplacer"), seconds=60) == []
    assert mutation.in_a_process(stops, mutant("last = -(-", "USub_UAdd"), seconds=60) != [16]
    assert knapsack._stops(17, 1, 16).tolist() == [16]


def test_annotations_alone_are_no_mutant(monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def f(a: int | str) -> int | str:\n    return a | 1\n"
    monkeypatch.setattr(mutation, "read", lambda file: source)
    acting = {place: [mutation.acts(m) for m in mutants] for place, mutants in mutation.places("x.py").items()}
    assert {place[0] for place, acts in acting.items() if any(acts)} == {2}
    assert {place[0] for place, acts in acting.items() if not any(acts)} == {1}


def test_survivors_and_equivalents_are_told_apart() -> None:
    rows = [
        {"change": "slim/a.py: x → y", "line": 1, "outcome": "killed"},
        {"change": "slim/a.py: x → z", "line": 1, "outcome": "survived"},
        {"change": "slim/b.py: p → q", "line": 2, "outcome": "survived"},
        {"change": "slim/b.py: p → r", "line": 2, "outcome": "timeout"},
    ]
    page = mutation.page_of(rows, {"slim/b.py: p → q": "the order doesn't matter"})
    assert "| slim/a.py | 2 | 1 | 0 | 1 | 0 | 0 | 50% |" in page
    assert "| all | 4 | 1 | 1 | 1 | 0 | 1 | 67% |" in page
    survivors, equivalent = page.split("## Equivalent")
    assert "``x → z``" in survivors and "``p → q``" not in survivors and "the order doesn't matter" in equivalent
