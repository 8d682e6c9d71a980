"""Files that several tests read, exported once."""

from pathlib import Path

import pytest
import torch
from deploy.made_up import MadeUp
from deploy.onnx_networks import METADATA, ConvNet, shake
from torch import nn

from slim.deploy import timing
from slim.deploy.onnx.target import OnnxRuntime
from slim.deploy.onnx.write import export_onnx


@pytest.fixture(scope="session")
def net() -> nn.Module:
    torch.manual_seed(0)
    return shake(ConvNet()).train()


@pytest.fixture(scope="session")
def example() -> torch.Tensor:
    return torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="session")
def exported(net: nn.Module, example: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    path = tmp_path_factory.mktemp("export") / "new" / "model.onnx"
    report = export_onnx(net, example, path, metadata={**METADATA, "plan_digest": "abc123"})
    assert report.path == path and report.file_size == path.stat().st_size
    return path, report.max_relative_error


@pytest.fixture(scope="session")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose logits are the normalised pixels of a 3×4×5 image, to see what predict feeds it."""
    path = tmp_path_factory.mktemp("pixels") / "pixels.onnx"
    export_onnx(nn.Flatten(), torch.zeros(1, 3, 4, 5), path, metadata={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    return path


@pytest.fixture(scope="session")
def grey_pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grey") / "pixels.onnx"
    export_onnx(nn.Flatten(), torch.zeros(1, 1, 4, 5), path, metadata={"mean": [0.3], "std": [0.5]})
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured times of this test alone."""
    monkeypatch.setenv("SLIM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """The made-up machine, whose clock is the only one."""
    machine = MadeUp()
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: machine.ns)
    return machine


@pytest.fixture
def in_place_of_onnxruntime(made_up: MadeUp, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    """The same behind every `OnnxRuntime`, for commands that make one of their own."""
    for name in ("time", "export", "check", "open"):
        monkeypatch.setattr(OnnxRuntime, name, lambda _, *args, name=name: getattr(made_up, name)(*args))
    monkeypatch.setattr(OnnxRuntime, "cut", lambda *_: False)
    return made_up
