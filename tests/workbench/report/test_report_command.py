"""slim-report finds runs, writes their page, and says in one line what it can't."""

import json
from pathlib import Path

import pytest
from workbench.report.short_run import copied

from slim.workbench.cli import report as command
from slim.workbench.run.stages import find_runs


def test_the_command_finds_the_newest_run_and_makes_the_page(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("old", "new"):
        copied(whole, tmp_path / "checkpoints" / name, ("report.html",))
    (tmp_path / "checkpoints/new/summary.json").touch()
    monkeypatch.chdir(tmp_path)
    command.main([])
    assert "wrote checkpoints/new/report.html" in capsys.readouterr().out
    command.main(["old", "checkpoints/new", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["wrote"][0] == "checkpoints/comparison.html"
    command.main(["old", "--out", "page.html", "--no-measure", "--quiet"])
    assert (tmp_path / "page.html").stat().st_size > 1e6 and not (tmp_path / "checkpoints/old/report.html").exists()
    command.main(["--markdown"])
    assert capsys.readouterr().out.startswith("### whole\n\n| stage | accuracy |")


@pytest.mark.parametrize(
    ("argv", "part"),
    [([], "slim-run"), (["none"], "'none'"), (["empty"], "holds no run"), (["--sweep-seconds", "-1"], "0 or more")],
)
def test_mistakes(
    argv: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2 and part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_runs_are_found_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoints/a", "b", "a"):  # the last holds something else
        Path(name).mkdir(parents=True)
        (Path(name) / ("summary.json" if name != "a" else "image.png")).touch()
    assert find_runs(["a", "b"]) == [Path("checkpoints/a"), Path("b")]
