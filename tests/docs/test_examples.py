"""The documentation's examples run, and its docstrings' do."""

import doctest
import os
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import slim
from slim.workbench.config import RunConfig, updated
from slim.workbench.run import ROOT, Run, train_stage

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
PUBLIC = ["sparsify", "plan", "explain", "verify", "recover", "save", "load", "export_onnx", "benchmark", "OnnxModel"]


def test_the_reference_holds_every_public_name() -> None:
    page = (EXAMPLES.parent / "reference" / "api.md").read_text(encoding="utf-8")
    shown = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert set(slim.__all__) - {"__version__"} <= shown


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, and a cache of times of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["operator", "score", "budget", "penalty", "runtime"])
def test_an_example_of_a_door_runs(name: str, cache: None, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out


def test_a_task_and_data_of_ones_own_train(cache: None, capsys: pytest.CaptureFixture[str]) -> None:
    file = EXAMPLES / "task.py"
    settings = updated(
        RunConfig(),
        {
            "task": f"{file}:Angle",
            "data": {"name": f"{file}:bars"},
            "model": {"arch": "slim:resnet20", "kwargs": {"num_classes": 2}},
            "train": {"epochs": 1},
            "compute": {"device": "cpu"},
        },
    )
    allowed = (f"{file}:Angle", f"{file}:bars", "slim:resnet20")
    train_stage(Run(ROOT / "angle", settings, allow_code=allowed))
    assert "°" in capsys.readouterr().out


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples in docstrings speak of."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 4, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ]
    model = nn.Sequential(*layers).eval()
    nn.init.uniform_(model.get_parameter("1.weight"))
    images = torch.randn(64, 3, 8, 8)
    plan = slim.plan(model, images[:2], ratio=0.5)
    return {
        "slim": slim, "torch": torch, "np": np, "model": model, "x": images[:2], "images": images, "plan": plan,
        "thin": plan.apply(model), "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "folder": tmp_path_factory.mktemp("docstrings"),
    }  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_function_has_an_example_that_runs(
    name: str, names: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(names["folder"])  # one for all: what one example writes, the next reads
    if name == "load" and not os.path.exists("thin.safetensors"):
        slim.save("thin.safetensors", names["thin"], names["plan"])
    if name in ("benchmark", "OnnxModel"):
        for file, net in (("base.onnx", names["model"]), ("thin.onnx", names["thin"])):
            slim.export_onnx(net, names["x"], file)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    [test] = doctest.DocTestFinder(recurse=False).find(getattr(slim, name), name, globs=dict(names))
    assert test.examples
    result = runner.run(test)
    assert not result.failed, capsys.readouterr().out
