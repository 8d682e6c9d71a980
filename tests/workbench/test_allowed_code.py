"""Code runs only where the user's own command line or config names it: no file decides what is imported."""

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image
from torch import nn
from workbench.commands import Command, call

import slim
from slim.workbench import config, models
from slim.workbench.cli.main import COMMANDS as ALL_COMMANDS
from slim.workbench.config import RunConfig
from slim.workbench.train import Snapshots


def test_code_runs_only_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, in_channels):\n"
        "    layers = [nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(8 * 36, num_classes))\n"
    )
    command("train", "--model.arch", "my_nets:small", "--epochs", "1")
    assert "allow_code" in mistake("prune")
    assert "next: slim-finetune" in command("prune", "--allow-code", "my_nets:small")


EVIL = """
from pathlib import Path
from torch import nn
Path(__file__).with_name("ran").touch()
def net(**_): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
def make(*_): return [], [], []
class Task: pass
"""
SETTINGS: dict[str, dict[str, Any]] = {
    "arch": {"model": {"arch": "evil:net"}},
    "file": {"model": {"arch": "evil.py:net"}},
    "data": {"data": {"name": "evil:make"}},
    "task": {"task": "evil:Task"},
    "os": {"model": {"arch": "os:system", "kwargs": {"command": "touch ran"}}},
}
RUN = "checkpoints/x"
COMMANDS = [
    ["train", "--name", "x", "--resume"],
    ["run", "--name", "x", "--resume"],
    ["prune"],
    ["prune", "--dry-run"],
    ["prune", f"{RUN}/sparse.safetensors"],
    ["finetune"],
    ["finetune", f"{RUN}/pruned.safetensors", "--resume"],
    ["export"],
    ["export", f"{RUN}/sparse.safetensors", "--int8"],
    ["bench"],
    ["bench", f"{RUN}/finetuned.safetensors", "--runs", "1"],
    ["bench", f"{RUN}/model.onnx", "--runs", "1"],
    ["sensitivity"],
    ["sensitivity", f"{RUN}/sparse.safetensors"],
    ["predict", f"{RUN}/model.onnx", "image.png"],
    ["prune", f"{RUN}/model.onnx"],
    ["report", RUN],
    ["report", RUN, "--markdown"],
]


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("named", SETTINGS)
def test_no_file_decides_what_is_imported(
    argv: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file of a run names code, which lies in the working folder and could be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evil.py").write_text(EVIL)
    settings = config.updated(RunConfig(name="x"), SETTINGS[named])
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    for stage in ("baseline", "sparse", "pruned", "finetuned"):
        slim.save(
            f"{RUN}/{stage}.safetensors", model, arch=settings.model.arch, arch_kwargs=settings.model.kwargs,
            stage=stage, config=settings, images=slim.ImageSpec((1, 8, 8), tuple("0123456789")),
        )  # fmt: skip
        Snapshots(Path(f"{RUN}/{stage}.state"), asdict(settings)).save(1, {})
    Path(RUN, "config.yaml").write_text(config.to_yaml(settings))
    Path(RUN, "summary.json").write_text(json.dumps({"sparse": {"params": 1}}))
    Path(RUN, "sensitivity-sparse.json").write_text(json.dumps(SETTINGS[named]))
    write_onnx(Path(RUN, "model.onnx"), SETTINGS[named])
    Image.new("L", (8, 8)).save("image.png")
    with contextlib.suppress(SystemExit):
        call(*argv)
    assert not Path("ran").exists() and "evil" not in sys.modules
    assert "Traceback" not in capsys.readouterr().err


def write_onnx(path: Path, settings: dict[str, Any]) -> None:
    """Write an ONNX file that says of itself what a run's files say."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 1, 8, 8]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    onnx.helper.set_model_props(model, {"config": json.dumps(settings), "arch": "evil:net", "task": "evil:Task"})
    onnx.save(model, path)


def test_no_command_is_left_out() -> None:
    """The doctor reads no file."""
    assert {argv[0] for argv in COMMANDS} == ALL_COMMANDS.keys() - {"doctor"}
    resumable = {argv[0] for argv in COMMANDS if "--resume" in argv}
    assert resumable == {"train", "run", "finetune"}


def test_no_file_decides_where_data_lie_or_what_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[tuple[str, bool]] = []

    def cifar(root: str, download: bool, **_: Any) -> None:
        asked.append((root, download))
        raise OSError("not there")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", cifar)
    model = models.build("slim:vgg7", num_classes=10)
    images = slim.ImageSpec((3, 32, 32), tuple("0123456789"))
    facts: dict[str, Any] = {"arch": "slim:vgg7", "arch_kwargs": {"num_classes": 10}, "images": images}
    for root in ("data", "elsewhere"):
        settings = config.updated(RunConfig(), {"data": {"name": "cifar10", "root": root, "download": True}})
        slim.save("x/sparse.safetensors", model, config=settings, **facts)
        line = mistake("prune", "x/sparse.safetensors")
        assert ("--data.root elsewhere" in line) == (root == "elsewhere")
    mistake("prune", "x/sparse.safetensors", "--data.root", "elsewhere")
    assert asked == [("data", False), ("elsewhere", False)]
