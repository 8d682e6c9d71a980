"""How a run begins: settings by name, a folder of its own, stages that are counted; and what a shell completes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_house import loaded_after
from workbench.commands import Command, call, contents

import slim
from slim.workbench import presets
from slim.workbench.cli import completion, device
from slim.workbench.cli.main import COMMANDS
from slim.workbench.config import DataConfig, run_name
from slim.workbench.run.folder import Run

SHORT = ["--train.epochs", "1", "--data.batch_size", "256"]
DONE = {"sparse": {"accuracy": 1.0, "params": 1, "flops": 1, "channels": 1}}


# Settings by name


def test_slim_run_lists_what_comes_with_slim(capsys: pytest.CaptureFixture[str]) -> None:
    call("run", "--list")
    lines = capsys.readouterr().out.splitlines()
    configs = Path(slim.__file__).parents[1] / "configs"
    assert len(lines) == len(list(configs.rglob("*.yaml")))
    assert any(line.startswith("digits ") and "scikit-learn" in line for line in lines)


@pytest.mark.parametrize("command", ["run", "train", "prune", "finetune", "export", "bench"])
@pytest.mark.parametrize("words", [["shapes_segmentation"], ["mine.yaml"], ["--config", "shapes_segmentation"]])
def test_settings_come_first_in_every_command(
    command: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(presets.find("shapes_segmentation"), "mine.yaml")
    with pytest.raises(SystemExit) as stopped:
        call(command, *words, "--print-config")
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["task"], shown["model"]["arch"]) == ("segmentation", "slim:unet")


def test_a_name_that_nothing_has_names_the_nearest(mistake: Command) -> None:
    assert "unknown config 'digts': did you mean 'digits'?" in mistake("train", "--config", "digts")


# A folder of its own


@pytest.mark.parametrize(
    ("data", "arch", "name"),
    [
        (DataConfig(), "slim:vgg7", "digits-vgg7"),
        (DataConfig(name="imagefolder", root="/somewhere/my photos"), "torchvision:resnet18", "my-photos-resnet18"),
        (DataConfig(name="my/data.py:make"), "mynet.py:Net", "data-Net"),
        (None, "hf-hub:owner/net.tag", "owner-net.tag"),
    ],
)
def test_runs_are_named_after_data_and_network(data: DataConfig | None, arch: str, name: str) -> None:
    assert run_name(data, arch) == name


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder in which `slim-train` with λ = 0.5 is done, as its records say."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "checkpoints" / "digits-vgg7"
    run.mkdir(parents=True)
    with pytest.raises(SystemExit):
        call("train", "--sparsity.strength", "0.5", "--print-config")
    (run / "config.yaml").write_text(capsys.readouterr().out)
    (run / "summary.json").write_text(json.dumps(DONE))
    return tmp_path


def begun(monkeypatch: pytest.MonkeyPatch, *argv: str) -> Path:
    """The folder in which `slim-train` begins."""
    folders: list[Path] = []

    def train_stage(run: Run) -> Path:
        folders.append(run.folder)
        return run.folder

    monkeypatch.setattr("slim.workbench.run.training.train_stage", train_stage)
    call("train", *argv)
    return folders[0]


def test_a_finished_run_of_other_settings_is_never_written_into(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("checkpoints/digits-vgg7")
    assert begun(monkeypatch) == Path("checkpoints/digits-vgg7-2")
    assert "(--overwrite" in capsys.readouterr().out
    assert begun(monkeypatch, "--name", "digits-vgg7") == Path("checkpoints/digits-vgg7-2")
    assert begun(monkeypatch, "--sparsity.strength", "0.5") == run  # the same again
    assert begun(monkeypatch, "--sparsity.strength", "0.5", "--data.workers", "1", "--prune.ratio", "0.3") == run
    assert begun(monkeypatch, "--overwrite") == run
    (run / "config.yaml").write_text("broken: [")
    assert begun(monkeypatch, "--sparsity.strength", "0.5") == Path("checkpoints/digits-vgg7-2")


def test_two_trainings_leave_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    command("train", *SHORT)
    first = contents(tmp_path / "checkpoints" / "digits-vgg7")
    command("train", *SHORT, "--seed", "1")
    assert contents(tmp_path / "checkpoints" / "digits-vgg7") == first
    again = command("train", *SHORT, "--seed", "1", "--resume")  # the one that was written last
    assert "wrote checkpoints/digits-vgg7-2/sparse.safetensors" in again


# Stages, help, devices


def test_stages_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("slim.workbench.run.whole._export_and_measure", lambda *_: [])
    text = command("run", *SHORT, "--finetune.epochs", "1", "--report.page", "false")
    counted = [line for line in text.splitlines() if " of 5: " in line]
    assert [line[0] for line in counted] == ["1", "2", "3", "4", "5"]
    assert counted[2] == "3 of 5: prune"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_two_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call(name, "--help")
    first, second, empty, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"  slim-{name} ") and second.startswith(f"  slim-{name} ") and not empty


@pytest.mark.parametrize(
    ("name", "shown", "hidden"),
    [
        ("train", ["--lr", "--sparsity.strength", "--data.name"], ["--prune.floor", "--bench.runs", "--passes"]),
        ("finetune", ["--distill", "--data.root"], ["--model.arch", "--seed", "--data.name", "--sparsity.strength"]),
        ("export", ["--opset", "--int8"], ["--data.batch_size", "--devices", "--seed", "--bench.runs"]),
        ("bench", ["--runs"], ["--data.root", "--devices", "--seed", "--opset"]),
    ],
)
def test_help_shows_the_settings_that_act(
    name: str, shown: list[str], hidden: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(name, "--help")
    text = capsys.readouterr().out
    assert all(option in text for option in shown) and not any(f"\n  {option} " in text for option in hidden)


def test_a_gpu_that_cannot_be_is_told_before_torch_is_imported(
    monkeypatch: pytest.MonkeyPatch, mistake: Command
) -> None:
    monkeypatch.setattr(device, "_has_gpu_driver", lambda: False)
    assert "device 'cuda' isn't available" in mistake("train", "--device", "cuda")
    trial = "from slim.workbench.cli.train import main\ntry: main(['--device', 'mps'])\nexcept SystemExit: print()"
    assert sys.platform == "darwin" or "torch" not in loaded_after(trial)


# Completion

COMPINIT = "autoload -U compinit; compinit -u -D\n"
CASES = [
    ("slim pr", {"prune", "predict"}),
    ("slim-run dig", {"digits"}),
    ("slim-run --sparsity.method p", {"proximal"}),
    ("slim prune --rat", {"--ratio"}),
    ("slim-train --sparsity.targ", {"--sparsity.target", "--sparsity.targets"}),
    ("slim-export --train", set()),  # settings that don't act there
]


@pytest.mark.parametrize(("line", "expected"), CASES)
def test_bash_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    words = line.split()
    code = completion.script("bash", list(COMMANDS)) + (
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _slim; echo ${{COMPREPLY[@]}}"
    )
    assert set(shell("bash", code, tmp_path)) == expected


@pytest.mark.parametrize(("line", "expected"), [case for case in CASES if "dig" not in case[0]])
def test_fish_completes(line: str, expected: set[str], tmp_path: Path) -> None:
    code = completion.script("fish", list(COMMANDS)) + f"complete -C '{line}'"
    assert expected <= set(shell("fish", code, tmp_path))


def test_zsh_takes_the_script(tmp_path: Path) -> None:
    code = COMPINIT + completion.script("zsh", list(COMMANDS)) + "echo $_comps[slim-run]"
    assert "_slim" in " ".join(shell("zsh", code, tmp_path))


def shell(name: str, code: str, folder: Path) -> list[str]:
    """Return the words that a shell prints in an empty folder."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"there is no {name}")
    (folder / "script").write_text(code)
    done = subprocess.run([program, "script"], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()
