"""Which provider runs a file, and on how many threads."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from slim.deploy.onnx import session
from slim.deploy.onnx.predict import OnnxModel
from slim.errors import SlimError


def test_provider_names(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, cpu])
    assert session.find_provider("auto") == session.find_provider("cuda") == session.find_provider(cuda) == cuda
    assert session.find_provider("cpu") == session.find_provider("CPU") == session.find_provider(cpu) == cpu
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cpu])
    assert session.find_provider("auto") == cpu
    with pytest.raises(SlimError, match=r"^provider 'cuda' isn't in this onnxruntime: expected auto, cpu$"):
        session.find_provider("cuda")


def test_provider_that_does_not_start(pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime falls back to the CPU with no more than a message: right for auto, wrong for cuda."""
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    real = onnxruntime.InferenceSession
    asked = []

    def start(path: str, options: object, providers: list[str]) -> onnxruntime.InferenceSession:
        asked.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    assert OnnxModel(pixels).provider == "CPUExecutionProvider"
    assert asked == [names]
    with pytest.raises(SlimError, match="'cuda' doesn't start here"):
        OnnxModel(pixels, provider="cuda")


def test_threads(pixels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert OnnxModel(pixels, threads=2)._session.get_session_options().intra_op_num_threads == 2
    with pytest.raises(SlimError, match="threads -1"):
        OnnxModel(pixels, threads=-1)
    asked: list[Any] = []
    names = [session.OPENVINO, session.CPU]
    real = onnxruntime.InferenceSession

    def start(model: bytes | str, options: object, providers: list[Any]) -> Any:
        asked.append(providers)
        made = real(model, options, providers=[session.CPU])
        return SimpleNamespace(get_providers=lambda: names, run=made.run)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    session.open_session(pixels, "openvino", 3)
    session.open_session(pixels, "openvino")
    assert asked == [[(session.OPENVINO, {"num_of_threads": "3"}), session.CPU], names]
    assert session.find_provider("auto") == session.CPU  # OpenVINO has to be named


def test_predicting_needs_no_torch() -> None:
    code = "import sys, slim; slim.OnnxModel, slim.benchmark; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
