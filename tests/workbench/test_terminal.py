"""What the commands tell in the terminal: at every width, without a terminal, quiet, and as JSON."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from slim import tables
from slim.prune.plan import PlannedLayer, PruningPlan
from slim.tables import render
from slim.workbench import report
from slim.workbench.cli import bench, finetune, prune, train
from slim.workbench.cli.command import closing
from slim.workbench.report import terminal
from slim.workbench.train import Progress

COUNTS = [60, 10, 0, 0, 1, 0, 0, 4] * 5


def record(epoch: int) -> dict[str, Any]:
    gamma = {"layers": {}, "histogram": {"max": 1.0, "counts": COUNTS}}
    shares = {"train_accuracy": 0.5, "val_accuracy": 0.25, "zero": 0.1, "near_zero": 0.125}
    numbers = {"train_loss": 1.5, "val_loss": 2.0, "lr": 0.1, "strength": 1e-4, "images_per_second": 1234.0}
    return {"epoch": epoch, **shares, **numbers, "seconds": 1.0, "gamma": gamma}


def stages() -> dict[str, dict[str, Any]]:
    full = {"accuracy": 0.9, "params": 14_719_818, "flops": 313_000_000, "channels": 4224, "file_size": 58_000_000}
    names = ["baseline", "sparse", "pruned", "recovered", "finetuned", "onnx", "int8"]
    return {name: full | {"latency_ms": 12.345} for name in names}


def plan() -> PruningPlan:
    layers = [PlannedLayer(f"layer{i}.0.downsample.1", 1_234_567, 512, floor=i, frozen=0) for i in range(4)]
    return PruningPlan({"ratio": 0.5}, {"ratio": 0.5}, {}, {}, {}, layers=layers, totals={"channels": (4096, 2048)})


@pytest.mark.parametrize("width", [30, 40, 60, 80, 120])
def test_tables_fit_every_width_and_cut_no_word(width: int) -> None:
    for table in (report.stage_table(stages(), "a run"), terminal.epoch_table([record(1), record(100)]), plan_table()):
        lines = render(table, width).splitlines()
        assert max(map(len, lines)) <= width and not any("…" in line for line in lines), lines


def plan_table() -> terminal.FittingTable:
    return plan().table()


def test_wider_tables_say_more_and_narrow_ones_keep_what_matters() -> None:
    table = report.stage_table(stages(), "a run")
    narrow, wide = render(table, 30), render(table, 120)
    assert "90.00%" in narrow and "12.3 ms" not in narrow
    assert all(word in wide for word in ("14,719,818", "313 M", "4,224", "58.0 MB", "12.3 ms", "INT8", "recovered"))
    assert render(table, 120) == wide  # what was left out for one width comes back for another


def test_a_sparkline_shows_where_the_mass_is() -> None:
    assert terminal.sparkline([9, 0, 1, 0]) == "█ ▃ "
    assert terminal.sparkline([0, 0]) == "  "
    line = terminal.sparkline([40, *[0] * 38, 40])
    assert len(line) == 14 and line[0] == line[-1] == "█" and not line[1:-1].strip()


def train_for(console: Console, epochs: int = 30) -> None:
    with report.training(console, "sparse", epochs) as (on_step, on_epoch):
        for epoch in range(1, epochs + 1):
            on_step(Progress(epoch, epochs, step=epoch, steps=epochs, loss=1.5, value=0.5, near_zero=None, lr=0.1))
            on_epoch(record(epoch))


def test_without_a_terminal_a_training_is_a_few_plain_lines() -> None:
    out = io.StringIO()
    train_for(Console(file=out))
    lines = out.getvalue().splitlines()
    assert len(lines) == 10 and "\x1b" not in out.getvalue()
    assert lines[-1] == "sparse 30/30  loss 1.500  acc 50.0%  val 25.0%  γ≈0 12%"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_in_a_terminal_it_is_a_live_table(width: int) -> None:
    out = io.StringIO()
    train_for(Console(file=out, force_terminal=True, width=width))
    last = out.getvalue()[out.getvalue().rindex("γ≈0") :]  # the last time that the table was drawn
    assert "12.5%" in last and " 30 " in last and " 22 " not in last and "30/30" in last and "…" not in last
    assert ("█" in last) == (width >= 60)  # the histogram


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        out = io.StringIO()
        train_for(Console(file=out, force_terminal=True, color_system="standard", width=80), 2)
        codes = {code for part in out.getvalue().split("\x1b[")[1:] for code in part.partition("m")[0].split(";")}
        assert bool(codes & {str(n) for n in range(30, 48)}) == coloured


# -- --quiet and --json --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main(["--epochs", "1", "--quiet"])
    return folder


def test_quiet_says_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    prune.main(["--quiet"])
    finetune.main(["--quiet", "--epochs", "1"])
    assert capfd.readouterr() == ("", "")
    with pytest.raises(SystemExit):
        bench.main(["--quiet"])
    assert "model.onnx" in capfd.readouterr().err  # mistakes are told all the same


def test_json_is_all_there_is_on_stdout(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    prune.main(["--json", "--ratio", "0.4", "--round_to", "1"])
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert told["wrote"] == ["checkpoints/digits-vgg7/pruned.safetensors", "checkpoints/digits-vgg7/plan.json"]
    assert told["next"] == "slim-finetune"
    assert told["summary"] == json.loads(Path("checkpoints/digits-vgg7/summary.json").read_text())
    assert told["summary"]["pruned"]["channels"] == round(448 * 0.6)
    assert "pruning plan" in err  # what people read
    prune.main(["--json", "--quiet"])
    out, err = capfd.readouterr()
    assert json.loads(out)["next"] == "slim-finetune" and err == ""


# -- words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.08124, "0.0812 ms"), (0.512, "0.512 ms"), (1.5604, "1.56 ms"), (14.31, "14.3 ms"), (1432.4, "1,432 ms")],
)
def test_latencies_have_three_digits(number: float, text: str) -> None:
    assert tables.milliseconds(number) == text


def test_changes_and_times_in_words() -> None:
    assert tables.change(1000, 154) == "−84.6%" and tables.change(100, 103) == "+3.0%" and tables.change(0, 3) == ""
    assert tables.points(0.9944, 0.9916) == "−0.28 points"
    assert [tables.duration(s) for s in (8, 185, 7800)] == ["8 s", "3 min 05 s", "2 h 10 min"]


def test_many_files_are_named_by_their_folder() -> None:
    paths = [Path("checkpoints/a") / str(i) for i in range(5)]
    assert closing(paths, "slim-predict") == "wrote 5 files in checkpoints/a; next: slim-predict"
    assert closing(paths[:2], "x") == "wrote checkpoints/a/0 and checkpoints/a/1; next: x"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (999_499, "999 k"), (999_500, "1.00 M"), (12_345_678, "12.3 M")],
)
def test_counts_are_short(number: int, text: str) -> None:
    assert tables.count(number) == text


def test_the_headline_compares() -> None:
    before = {"accuracy": 0.98, "params": 1000, "flops": 200}
    after = {"accuracy": 0.975, "params": 100, "flops": 50, "speedup": 2.5}
    assert report.headline(before, after) == "accuracy −0.50 points, −90% parameters, −75% FLOPs, 2.50× as fast"
