"""The notebook runs from top to bottom, and ends where it says."""

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "digits.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert names["baseline"] > 0.95
    assert names["accuracy"](names["thin"]) > names["baseline"] - 0.03
    assert 0.4 < sum(names["widths"][1]) / sum(names["widths"][0]) < 0.6
    assert (tmp_path / "thin.onnx").stat().st_size < (tmp_path / "base.onnx").stat().st_size
