"""Records of a run that slim didn't write so: one line that names the file, from the page as from Markdown."""

import json
from pathlib import Path
from typing import Any

import pytest

from slim.errors import SlimError
from slim.workbench.report import collect, markdown, page
from slim.workbench.run.records import Records

STAGE = {"params": 10, "flops": 20, "channels": 4, "accuracy": 0.5}
EPOCH = {"stage": "sparse", "epoch": 1, "train_loss": 1.0, "val_loss": None, "lr": 0.1, "seconds": 1.0}


def write(folder: Path, summary: Any = None, epoch: Any = None, evidence: Any = None) -> None:
    (folder / "summary.json").write_text(json.dumps(summary or {"sparse": STAGE}))
    (folder / "metrics.jsonl").write_text(json.dumps(EPOCH | (epoch or {})))
    (folder / "evidence.json").write_text(json.dumps(evidence or {}))


def test_records_as_slim_writes_them_are_drawn(tmp_path: Path) -> None:
    write(tmp_path)
    run = collect(tmp_path)
    assert "| sparse |" in markdown.of([run])
    assert page.write([run], tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "changes",
    [
        *({"params": value} for value in ("x", [1], True, 10**400, 1e308, float("inf"))),
        {"accuracy": {}},
        {"speedup": "fast"},
        *({"metric": value} for value in ("x", {"name": 3}, {"name": "x"}, {"name": "x", "direction": "max", "y": 1})),
    ],
    ids=str,
)
def test_a_stage_of_odd_values_is_refused_on_reading(changes: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, {"sparse": STAGE | changes})
    with pytest.raises(SlimError, match=r"summary\.json.* is broken"):
        Records(tmp_path).summary()
    if changes.get("params") == float("inf"):  # which the page takes for missing
        return
    with pytest.raises(SlimError, match=r"summary\.json.* is broken"):
        collect(tmp_path)


@pytest.mark.parametrize(
    "evidence",
    [
        {"layers": [{}]},
        {"layers": 3},
        {"gamma": [1]},
        {"gamma": {"before": [None]}},
        {"latency": {"rows": [{}]}},
        {"tradeoff": [{"ratio": "x"}]},
        {"examples": [{"png": "x"}]},
    ],
    ids=str,
)
def test_odd_evidence_is_drawn_or_one_line(evidence: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, evidence=evidence)
    try:
        page.write([collect(tmp_path)], tmp_path / "report.html")
    except SlimError as error:
        assert "\n" not in str(error) and str(tmp_path) in str(error)
        assert not (tmp_path / "report.html").exists()


def test_what_goes_wrong_while_drawing_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> str:
        return dict[str, str]()["missing"]

    write(tmp_path)
    monkeypatch.setattr(page, "html", broken)
    with pytest.raises(SlimError, match=r"can't be drawn \(KeyError: 'missing'\)") as caught:
        page.write([collect(tmp_path)], tmp_path / "report.html")
    assert str(tmp_path) in str(caught.value)
