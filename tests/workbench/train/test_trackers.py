"""What a training tells: to fakes of the services here, to the real ones, offline, where they are installed."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from slim.errors import SlimError, SlimWarning
from slim.workbench import config
from slim.workbench.config import RunConfig
from slim.workbench.train import open_tracker

RECORD = {"epoch": 2, "train_loss": 0.5, "val_accuracy": 0.9, "lr": 0.1, "near_zero": None, "seconds": 3.0}
TOLD = {"train_loss": 0.5, "val_accuracy": 0.9, "lr": 0.1}


def tell(name: str, folder: Path) -> None:
    settings = config.updated(RunConfig(), {"tracker": name, "seed": 7})
    tracker = open_tracker(settings, folder, "sparse")
    assert tracker is not None
    tracker.epoch(RECORD, nn.BatchNorm2d(3))
    tracker.text("plan", "a table")
    tracker.close()


def recording(name: str, calls: list[Any]) -> types.ModuleType:
    """A module any of whose functions notes its call."""
    module = types.ModuleType(name)

    def function(called: str) -> Any:
        if called.startswith("__") or called == "Html":
            raise AttributeError(called)
        return lambda *args, **kwargs: calls.append((called, args, kwargs))

    module.__getattr__ = function  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_is_told_numbers_by_epoch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, name, recording(name, calls))
    tell(name, tmp_path / "mine")
    begun, told, text, ended = calls
    assert begun[0] == "init" and begun[2]["name"] == "mine/sparse" and begun[2]["config"]["seed"] == 7
    assert told == ("log", (TOLD,), {"step": 2})
    assert text[1] == ({"plan": "a table"},) and ended == ("finish", (), {})


def test_mlflow_is_told_numbers_by_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setitem(sys.modules, "mlflow", recording("mlflow", calls))
    tell("mlflow", tmp_path / "mine")
    names = [name for name, _, _ in calls]
    assert names == ["set_experiment", "start_run", "log_params", "log_metrics", "log_text", "end_run"]
    [settings] = calls[2][1]
    assert settings["seed"] == 7 and settings["train.lr"] == RunConfig().train.lr and "train" not in settings
    assert calls[3] == ("log_metrics", (TOLD,), {"step": 2})


def test_none_and_tensorboard(tmp_path: Path) -> None:
    assert open_tracker(RunConfig(), tmp_path, "sparse") is None
    pytest.importorskip("tensorboard")
    for settings in ({"tracker": "tensorboard"}, {"tensorboard": True}):
        made = open_tracker(config.updated(RunConfig(), settings), tmp_path, "sparse")
        assert made is not None
        made.epoch(RECORD, nn.BatchNorm2d(3))
        made.close()
        assert any(b"val_accuracy" in file.read_bytes() for file in tmp_path.rglob("events*"))
    with pytest.raises(SlimError, match="tracker"):
        config.updated(RunConfig(), {"tracker": "wanbd"})


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SlimError, match=r"wandb isn't installed: expected pip install '.*\[wandb\]'"):
        tell("wandb", tmp_path)


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_service_that_fails(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a training begins that is an error of one line; then a warning, once, and the training goes on."""
    calls: list[Any] = []
    service = recording("wandb", calls)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("No API key\nlog in")

    setattr(service, failing, fail)
    monkeypatch.setitem(sys.modules, "wandb", service)
    if failing == "init":
        with pytest.raises(SlimError, match=r"wandb can't begin \(RuntimeError: No API key log in\): expected .* none"):
            tell("wandb", tmp_path)
        return
    with pytest.warns(SlimWarning, match="wandb is told no more of this stage \\(RuntimeError: No API") as warned:
        tell("wandb", tmp_path)
    assert len(warned) == 1 and [name for name, _, _ in calls] == ["init", "log", "log"][: 1 if failing == "log" else 3]


@pytest.mark.wild
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio", "tensorboard"])
def test_the_real_one_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told lies in a file below the folder where the command runs."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read while it is imported
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    tell(name, tmp_path / "mine")
    assert any(b"val_accuracy" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
