"""Packages that are optional: what works without them, and the line that one gets where one is needed."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from slim.extras import EXTRA_OF
from slim.version import DISTRIBUTION

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
NEEDS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
PRUNES = """
import torch, slim
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3))
x = torch.randn(8, 3, 12, 12)
plan = slim.plan(net, x, ratio=0.5)
thin = plan.apply(net)
slim.verify(net, thin, plan, x)
slim.recover(net, thin, plan, x)
slim.save("thin.safetensors", thin, plan, arch="mine:net")
"""
ONNX = ("onnx", "onnxruntime", "onnxscript")


def run_without(absent: tuple[str, ...], code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that doesn't find some packages."""
    words = [sys.executable, "-c", NEEDS.format(absent=absent) + code]
    return subprocess.run(words, capture_output=True, text=True, cwd=folder)


def test_the_distribution_has_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert all(extra in PROJECT["optional-dependencies"] for extra in EXTRA_OF.values())


def test_pruning_saving_and_help_need_no_extra(tmp_path: Path) -> None:
    helps = "from slim.workbench.cli.main import main\nmain([])\n"
    done = run_without(tuple(EXTRA_OF), PRUNES + helps, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("absent", "code", "extra"),
    [
        (("timm",), "from slim.workbench.cli.prune import main; main(['--arch', 'timm:resnet18', '--dry-run'])", None),
        (("huggingface_hub",), "import slim; slim.load('hf-hub:owner/name')", None),
        (ONNX, "import slim; slim.export_onnx", "onnx"),
        (ONNX, "import slim; slim.Latency(0.5, slim.Runtime())", "onnx"),
        (ONNX, "from slim.workbench.cli.predict import main; main(['model.onnx', 'image.png'])", "onnx"),
        (("sklearn",), "from slim.workbench.cli.train import main; main(['--epochs', '1'])", "run"),
        (("lightning_fabric",), "from slim.workbench.cli.train import main; main(['--epochs', '1'])", "run"),
        (("tensorboard",), "from slim.workbench.train import TensorBoard; TensorBoard('here')", "tensorboard"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(
    absent: tuple[str, ...], code: str, extra: str | None, tmp_path: Path
) -> None:
    done = run_without(absent, code, tmp_path)
    command = absent[0] if extra is None else f"'{DISTRIBUTION}[{extra}]'"
    assert done.stderr.endswith(f"isn't installed: expected pip install {command}\n")
    if "main" in code:
        assert done.returncode == 2 and done.stderr.count("\n") == 1
