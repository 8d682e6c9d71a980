"""What the scripts share, and that each of them says what it is for."""

import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shared

SCRIPTS = Path(__file__).parents[2] / "scripts"
LIBRARIES = {"gpu_training", "pages", "shared", "wild_networks"}


@pytest.mark.parametrize("script", sorted({path.stem for path in SCRIPTS.glob("*.py")} - LIBRARIES))
def test_help_is_the_docstring(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = SCRIPTS / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    first = path.read_text(encoding="utf-8").splitlines()[0].strip('"')
    assert first in capsys.readouterr().out


def test_a_line_that_a_kill_cut_in_half_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    assert shared.read_rows(path) == []
    shared.add_row(path, {"a": 1})
    shared.add_row(path, {"a": 2})
    with path.open("a") as file:
        file.write('{"a": 3')
    assert shared.read_rows(path) == [{"a": 1}, {"a": 2}]
    shared.add_row(path, {"a": 4})
    assert [row["a"] for row in shared.read_rows(path)] == [1, 2, 4]


def two_rows(start: int, put: Callable[[dict[str, Any]], None]) -> None:
    put({"n": start})
    put({"n": start + 1})


def dies_after_one(put: Callable[[dict[str, Any]], None]) -> None:
    put({"n": 1})
    time.sleep(0.5)  # the row travels first
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(("examine", "arguments", "rows"), [(two_rows, (5,), [5, 6]), (dies_after_one, (), [1])])
def test_rows_come_from_a_process_of_its_own(
    examine: Callable[..., None], arguments: tuple[Any, ...], rows: list[int]
) -> None:
    assert [row["n"] for row in shared.rows_of(examine, *arguments, seconds=60)] == rows


def test_the_digits_are_cut_to_the_number_asked_for() -> None:
    whole, part = shared.dataset("digits", seed=3), shared.dataset("digits", 100, seed=3)
    assert len(part.train) == 100
    assert (part.test.labels == whole.test.labels).all()
