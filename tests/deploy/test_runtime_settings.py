"""What a runtime and a budget of latency may be, and providers that do not start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from networks import randomise

import slim
from slim.deploy.bench.runners import FileRunner
from slim.deploy.cost import model, network
from slim.deploy.cost.latency import read_latency
from slim.deploy.onnx import session
from slim.deploy.onnx.kernel_times import clocked
from slim.deploy.target import InputArrays, Kernel
from slim.trace.traced import trace
from slim.workbench.models import build

X = torch.randn(1, 3, 32, 32)


ONE_THREAD = slim.OnnxRuntime("cpu", 1)
CPU = slim.Runtime(ONE_THREAD)


@pytest.mark.parametrize(
    "given, meant",
    [
        (0.5, {"latency": 0.5}),
        ("0.5", {"latency": 0.5}),
        (1, {"latency": 1.0}),
        ("4.0ms", {"latency_ms": 4.0}),
        (" 4 ms", {"latency_ms": 4.0}),
        ("0.1s", {"latency_ms": 100.0}),
        ("250us", {"latency_ms": 0.25}),
    ],
)
def test_latency_is_a_share_or_a_time(given: Any, meant: dict[str, float]) -> None:
    assert read_latency(given) == pytest.approx(meant)


@pytest.mark.parametrize("given", [0, -1, 1.5, "4", "fast", "4 parsecs", "", "ms", float("nan"), float("inf"), "-3ms"])
def test_a_latency_that_is_neither(given: Any) -> None:
    with pytest.raises(slim.SlimError, match="expected a share of the original's"):
        slim.Latency(given)


@pytest.mark.parametrize(
    "made, words",
    [
        (lambda: slim.OnnxRuntime("abacus"), "provider 'abacus' isn't in this onnxruntime"),
        (lambda: slim.OnnxRuntime(threads=-1), "threads -1"),
        (lambda: slim.OnnxRuntime(threads=True), "threads True"),
        (lambda: slim.Runtime(batch_size=0), "batch_size 0"),
        (lambda: slim.Runtime(batch_size=1.5), "batch_size 1.5"),  # type: ignore[arg-type]
        (lambda: slim.Runtime("cpu"), "target 'cpu': expected one such as slim.OnnxRuntime"),  # type: ignore[arg-type]
    ],
)
def test_runtimes_that_are_not_there(made: Any, words: str) -> None:
    with pytest.raises(slim.SlimError, match=words):
        made()


@pytest.fixture
def cuda_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """An onnxruntime that lists CUDA, and then runs on the CPU with no more than a message."""
    real = onnxruntime.InferenceSession
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda model, options, _: real(model, options, names[1:]))


def test_a_provider_that_does_not_start(cuda_that_does_not_start: None) -> None:
    found = slim.OnnxRuntime("auto", 1)
    assert found == ONE_THREAD and str(slim.Runtime(found)) == "onnxruntime, CPU, 1 thread, batch 1"
    assert found.identity == ONE_THREAD.identity and "CUDA" not in found.identity
    with pytest.raises(slim.SlimError, match="provider 'cuda' doesn't start here"):
        slim.OnnxRuntime("cuda")


def test_no_time_of_the_cpu_passes_for_a_gpus(cuda_that_does_not_start: None) -> None:
    """A GPU that is gone by the time operators are measured."""
    traced, target = trace(build("slim:vgg7", num_classes=10), X), slim.OnnxRuntime("cpu", 1)
    object.__setattr__(target, "provider", "CUDAExecutionProvider")
    with pytest.raises(slim.SlimError, match="doesn't start here"):
        model.latency_model(traced, target)
    assert not model.cache_folder().exists()


def test_on_a_gpu_everything_is_timed_in_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Operators, networks and slim-bench alike; here on the CPU, whose memory can be bound as well."""
    bound: list[str] = []

    def bind(opened: Any, feed: InputArrays, device: str) -> Callable[[], Any]:
        bound.append(device)
        return real(opened, feed, "cpu")

    real = session.bound_run
    monkeypatch.setattr(session, "ON_GPU", (session.CPU,))
    monkeypatch.setattr(session, "bound_run", bind)
    runtime, net = slim.Runtime(ONE_THREAD, 2), randomise(build("slim:vgg7", num_classes=10))
    measured = network.Network(net, X, runtime)
    measured.runs[0]()
    slim.export_onnx(net, X, tmp_path / "net.onnx")
    FileRunner("net", tmp_path / "net.onnx", ONE_THREAD).prepare(2)()
    assert clocked([(Kernel("gemm", (2,), (), 1, ()), 64, 32)], ONE_THREAD.provider, 1) > 0
    assert bound == ["cuda"] * 3


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"each": []}, "expected one slim.Runtime or more"),
        ({"each": ["cpu"]}, "expected one slim.Runtime or more"),
        ({"each": [CPU], "holds": "best"}, "holds 'best': expected one of worst, mean"),
        ({"each": [CPU], "weights": [1, 2]}, "expected 1 numbers above 0"),
        ({"each": [CPU, CPU], "weights": [1, 0]}, "expected 2 numbers above 0"),
    ],
)
def test_several_runtimes_that_are_none(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(slim.SlimError, match=words):
        slim.Runtimes(**settings)


def test_budgets_that_do_not_go_together() -> None:
    with pytest.raises(slim.SlimError, match="one budget at a time"):
        slim.plan(build("slim:vgg7", num_classes=10), X, slim.Latency(0.5), ratio=0.5)
    with pytest.raises(slim.SlimError, match="round_to 16"):
        slim.plan(build("slim:vgg7", num_classes=10), X, slim.Latency(0.5), round_to=16)
    with pytest.raises(slim.SlimError, match="round_to 'even'"):
        slim.plan(build("slim:vgg7", num_classes=10), X, round_to="even")  # type: ignore[arg-type]
