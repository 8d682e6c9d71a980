"""What the commands say of themselves: help, version, settings, the list of them; and plans without writing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from workbench.commands import Command, call, contents

import slim
from slim.workbench.cli.main import main
from slim.workbench.config import RunConfig

COMMANDS = ["train", "prune", "sensitivity", "finetune", "export", "bench", "predict", "report", "run"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_at_once(name: str) -> None:
    program = Path(sys.executable).with_name(f"slim-{name}")
    seconds = []
    for _ in range(3):
        before = os.times()
        shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.7
    assert "reads" in shown and "writes" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("name", "acts", "does_nothing"),
    [
        ("prune", ["--ratio", "--score", "--bench.threads"], ["--train.lr", "--export.opset"]),
        ("sensitivity", ["--score", "--recover", "--calibration_images"], ["--ratio", "--latency", "--floor"]),
        ("finetune", ["--lr", "--distill", "--data.augment"], ["--sparsity.strength", "--ratio", "--data.name"]),
        ("export", ["--opset", "--int8"], ["--lr", "--data.augment"]),
    ],
)
def test_help_names_the_settings_of_the_stage(
    name: str, acts: list[str], does_nothing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(name, "--help")
    shown = capsys.readouterr().out.split()
    assert stopped.value.code == 0
    assert set(acts) <= set(shown) and not set(does_nothing) & set(shown)


def test_help_of_a_command_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for argv in (["help", "prune"], ["prune", "--help"]):
        with pytest.raises(SystemExit):
            main(argv)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_whoever_has_read_enough_is_told_nothing_more() -> None:
    """As in `slim-run --list | head`."""
    program = Path(sys.executable).with_name("slim-run")
    listing = subprocess.Popen([program, "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert listing.stdout is not None and listing.stderr is not None
    listing.stdout.close()
    assert listing.stderr.read() == "" and listing.wait() == 141


@pytest.mark.parametrize("argv", [["--dry-run", "--data.image-size", "64"], ["--dry_run", "--data.image_size=64"]])
def test_dashes_are_as_good_as_underscores(argv: list[str], command: Command) -> None:
    text = command("prune", "--arch", "torchvision:resnet18", "--layer-ratios", "{layer1*: 0.1}", *argv)
    assert "3×64×64 pixels" in text


def test_slim_lists_the_commands_and_is_each_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    listed = capsys.readouterr().out
    assert all(f"slim {name} " in listed for name in COMMANDS)
    with pytest.raises(SystemExit):
        main(["prune", "--version"])
    assert capsys.readouterr().out == f"slim-prune {slim.__version__}\n"
    main(["--version"])
    assert capsys.readouterr().out == f"slim {slim.__version__}\n"
    with pytest.raises(SystemExit):
        main(["prun"])
    assert capsys.readouterr().err == "slim: error: unknown command 'prun': did you mean 'prune'?\n"


def test_python_m_slim_is_slim() -> None:
    shown = subprocess.run([sys.executable, "-m", "slim", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"slim {slim.__version__}\n"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("train", "--version")
    assert capsys.readouterr().out == f"slim-train {slim.__version__}\n"


def test_print_config_shows_the_resolved_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 3\ntrain: {lr: 0.2, epochs: 7}\n")
    for name in ("train", "prune", "run"):
        with pytest.raises(SystemExit) as stopped:
            call(name, "--config", "mine.yaml", "--train.lr", "0.05", "--print-config")
        assert stopped.value.code == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert (shown["seed"], shown["train"]["lr"], shown["train"]["epochs"]) == (3, 0.05, 7)
        assert shown["finetune"]["lr"] == RunConfig().finetune.lr
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.yaml"]


def test_print_config_after_a_stage_shows_that_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("prune", "--print-config")
    assert yaml.safe_load(capsys.readouterr().out)["data"]["batch_size"] == 32


def test_a_dry_run_writes_nothing(folder: Path, command: Command) -> None:
    before = contents(folder)
    text = command("prune", "--ratio", "0.3", "--dry-run")
    assert "bn1" in text and "bn6" in text
    assert contents(folder) == before


def test_a_dry_run_needs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--arch", "torchvision:resnet18", "--ratio", "0.5", "--dry-run", "--data.image_size", "64"]
    text = command("prune", *argv)
    assert "layer4.1.bn2" in text and "untrained" in text
    assert not (tmp_path / "checkpoints").exists()


def test_a_dry_run_as_json_is_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call("prune", "--arch", "torchvision:resnet18", "--flops", "0.5", "--dry-run", "--json", "--data.image_size", "64")
    made = slim.PruningPlan.from_dict(json.loads(capsys.readouterr().out)["plan"])
    assert made.requested == {"flops": 0.5} and 0.49 < made.achieved["flops"] <= 0.5
