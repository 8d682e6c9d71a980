"""The README: its commands run as written, its Python does, its links lead somewhere, and it is short."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from workbench.commands import call

import slim

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=2):
        first = [nn.Conv2d(3, 16, 3, 2), nn.BatchNorm2d(16), nn.ReLU()]
        second = [nn.Conv2d(16, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU()]
        super().__init__(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))
"""


def block(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"README.md has no block {name}"
    return found[1]


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert README.count("\n") <= 150
    for target in re.findall(r"\]\(([^)#]+)", README) + re.findall(r'(?:src|srcset)="([^"]+)"', README):
        assert target.startswith("https://") or (PROJECT / target).exists(), target


def test_the_python_for_a_trained_network_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(NET, names)
    model = names["Net"]().eval()  # type: ignore[operator]
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = torch.randn(32, 3, 32, 32)
    names |= {"model": model, "x": images[:2], "images": images, "optimizer": optimizer}
    exec(block("trained-python"), names)
    assert len([line for line in block("trained-python").splitlines() if line]) <= 10
    assert isinstance(slim.load("thin.safetensors", model), nn.Module) and Path("thin.onnx").exists()


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a network of one's own, its weights, and photos of two colours."""
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(NET)
    names: dict[str, object] = {}
    exec(NET, names)
    torch.manual_seed(0)
    torch.save(names["Net"]().state_dict(), "mynet.pt")  # type: ignore[operator]
    for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        Path("photos", label).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (64, 64), tuple(min(255, c + number) for c in colour)).save(f"photos/{label}/{number}.png")


def commands() -> list[list[str]]:
    return [shlex.split(line) for line in block("trained-shell").replace("\\\n", "").splitlines()]


def test_the_settings_for_a_trained_network_are_settings(photos: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("run", *commands()[0][1:], "--print-config")
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["name"], shown["model"]["weights"], shown["data"]["root"]) == ("photos", "mynet.pt", "photos")
    assert (shown["prune"]["flops"], shown["prune"]["ratio"]) == (0.5, None)


@pytest.mark.slow
def test_the_commands_for_a_trained_network_run(photos: None) -> None:
    for program, *words in commands():
        more = ["--finetune.epochs", "2", "--report.sweep_seconds", "0"] if program == "slim-run" else []
        call(program.removeprefix("slim-"), *words, *more)
    assert {"model.onnx", "report.html", "finetuned.safetensors"} <= {
        p.name for p in Path("checkpoints/photos").iterdir()
    }


@pytest.mark.slow
def test_two_commands_from_nothing(tmp_path: Path) -> None:
    for line in block("from-nothing").replace("ADDRESS", str(PROJECT)).splitlines():
        subprocess.run(shlex.split(line), cwd=tmp_path, check=True)
    assert (tmp_path / "slim" / "checkpoints" / "digits" / "report.html").exists()
