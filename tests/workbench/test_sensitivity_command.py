"""`slim-sensitivity` on the digits run: the table, the page, and going on after a time limit."""

import json
import re
from pathlib import Path

import pytest
from workbench.commands import Command

import slim

TABLE = Path("checkpoints/digits-vgg7/sensitivity-sparse.json")


def test_a_limit_stops_it_and_the_same_command_ends_it(folder: Path, command: Command) -> None:
    argv = ["sensitivity", "--shares", "0.25", "0.75", "--calibration_images", "128"]
    said = command(*argv, "--minutes", "1e-9")
    part = slim.Sensitivity.load(TABLE)
    assert not part.complete and "the same command goes on" in said
    assert all(not group.pruned for group in part.groups)
    said = command(*argv)
    whole = slim.Sensitivity.load(TABLE)
    assert whole.complete and whole.measure == "metric" and whole.shares == [0.25, 0.75]
    assert whole.baseline == pytest.approx(part.baseline) and 0 < whole.baseline <= 1
    for group in whole.groups:
        assert len(group.pruned) == len(group.recovered) == 2
        assert group.channels >= 4 and group.layers[0] in said
    summary = json.loads(TABLE.with_name("summary.json").read_text())
    assert set(summary) >= {"sparse"}  # nothing else was touched
    page = TABLE.with_suffix(".html").read_text()
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])["figures"]  # type: ignore[index]
    for name, values in (("pruned", "pruned"), ("recovered", "recovered")):
        [trace] = figures[name]["traces"]
        assert trace["type"] == "heatmap" and trace["y"] == [group.name for group in whole.groups]
        lost = [[whole.baseline - value for value in getattr(group, values)] for group in whole.groups]
        assert trace["z"] == [pytest.approx(row, rel=1e-3, abs=1e-9) for row in lost]
    assert f"{whole.baseline:.2%}" in page and whole.groups[-1].layers[0] in page


def test_mistakes(folder: Path, mistake: Command) -> None:
    assert "--minutes -1: expected 0 or more" in mistake("sensitivity", "--minutes", "-1")
    assert "between 0 and 1" in mistake("sensitivity", "--shares", "1.5")
