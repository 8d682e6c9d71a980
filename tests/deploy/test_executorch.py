"""ExecuTorch as a target: written, checked against PyTorch, timed. Where the package is missing, torch stands in for
it: then a file holds a program of torch."""

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy.onnx_networks import ConvNet, shake
from torch import nn

import slim
from slim.deploy.executorch import engine, target
from slim.deploy.target import Kernel
from slim.deploy.targets import target_of
from slim.errors import SlimError

INSTALLED = find_spec("executorch") is not None
X = torch.randn(2, 3, 8, 8)


def lowered(programs: Mapping[str, torch.export.ExportedProgram], constants: Mapping[str, str]) -> bytes:
    parts: dict[str, Any] = dict(constants)
    for name, program in programs.items():
        content = io.BytesIO()
        torch.export.save(program, content)
        parts[name] = content.getvalue().hex()
    return json.dumps({"programs": list(programs), **parts}).encode()


def loaded(content: bytes, threads: int) -> dict[str, engine.Call]:
    parts = json.loads(content)
    names = parts.pop("programs")

    def method(name: str) -> engine.Call:
        if name not in names:
            return lambda inputs: [parts[name]]
        module = torch.export.load(io.BytesIO(bytes.fromhex(parts[name]))).module()

        def call(inputs: Any) -> Any:
            with torch.no_grad():
                made = module(*inputs)
            return made if isinstance(made, (tuple, list)) else [made]

        return call

    return {name: method(name) for name in parts}


@pytest.fixture(scope="module", autouse=True)
def stand_in() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            patch.setattr(engine, "lowered", lowered)
            patch.setattr(engine, "loaded", loaded)
            patch.setattr(engine, "check_installed", lambda: None)
            patch.setattr(target, "version", lambda package: "0")
        yield


@pytest.fixture(scope="module")
def written(stand_in: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, float]:
    torch.manual_seed(0)
    net, path = shake(ConvNet()).eval(), tmp_path_factory.mktemp("written") / "net.pte"
    return path, net, slim.export(net, X, path)


def test_a_file_computes_what_the_network_does_for_any_batch(written: tuple[Path, nn.Module, float]) -> None:
    path, net, difference = written
    assert difference < 1e-5 and [each.name for each in path.parent.iterdir()] == ["net.pte"]
    opened = target_of(path).open(path)
    assert opened.inputs[0].shape == (None, 3, 8, 8) and opened.inputs[0].name == "images" and opened.batch.multiples
    assert opened.metadata["slim.input_shape"] == "[3, 8, 8]"
    for size in (1, 5, 32):
        images = torch.randn(size, 3, 8, 8)
        expected = net(images).detach().numpy()
        made = opened.run({"images": images.numpy()})[0]
        assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(SlimError, match=r"'net.pte' doesn't run on images \[33, 3, 8, 8\]: .* at most 32"):
        opened.timed_call({"images": np.zeros((33, 3, 8, 8), np.float32)})()


def test_weights_that_differ_are_found_and_what_was_there_stays(written: tuple[Path, nn.Module, float]) -> None:
    path, net, _ = written
    content, other = path.read_bytes(), shake(ConvNet()).eval()

    @dataclasses.dataclass(frozen=True)
    class Wrong(slim.ExecuTorch):
        def export(self, model: nn.Module, example_inputs: object, path: Path) -> None:
            super().export(other, example_inputs, path)

    with pytest.raises(SlimError, match="differs from the network"):
        slim.export(net, X, path, Wrong())
    assert content == path.read_bytes() and [each.name for each in path.parent.iterdir()] == ["net.pte"]


def test_a_file_is_timed_beside_one_of_onnxruntime(written: tuple[Path, nn.Module, float], tmp_path: Path) -> None:
    path, net, _ = written
    slim.export_onnx(net, X, tmp_path / "net.onnx")
    files = {"onnx": tmp_path / "net.onnx", "pte": path}
    made = slim.benchmark(files, batch_sizes=[1, 4], threads=1, runs=3, warmup=1, memory=False)
    assert made.provider == "CPUExecutionProvider, ExecuTorch XNNPACK"
    assert all(row.median_ms > 0 for row in made.rows) and made.row("pte", 1).file_size == path.stat().st_size


def test_operators_are_timed_and_cost_what_they_compute() -> None:
    window = ((3, 3), (1, 1), (1, 1), (1, 1))
    tail = (("BatchNormalization", ""), ("Relu", ""))
    kernels = [(Kernel("conv", (1, 28, 28), window, tail=tail), width, width) for width in (16, 128)]
    kernels += [(Kernel("depthwise", (1, 28, 28), window), 1, 64), (Kernel("gemm", (4,)), 512, 512)]
    found = {sized: ms for batch in slim.ExecuTorch(threads=1).time(kernels) for sized, ms in batch}
    assert found.keys() == set(kernels) and min(found.values()) > 0
    assert found[kernels[1]] > 4 * found[kernels[0]]  # 64 times the arithmetic


def foreign(folder: Path) -> None:
    program = torch.export.export(nn.ReLU(), (X,))
    (folder / "net.pte").write_bytes(engine.lowered({"forward": program}, {}))
    slim.ExecuTorch().open(folder / "net.pte")


def broken(folder: Path) -> None:
    (folder / "net.pte").write_bytes(b"no network")
    slim.ExecuTorch().open(folder / "net.pte")


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1)


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "backend": (lambda folder: slim.ExecuTorch("vulkan"), "backend 'vulkan': expected xnnpack"),
    "threads": (lambda folder: slim.ExecuTorch(threads=-1), "threads -1: expected a whole number"),
    "no file": (lambda folder: slim.ExecuTorch().open(folder / "net.pte"), "no file .*net.pte"),
    "broken": (broken, "ExecuTorch can't run"),
    "foreign": (foreign, "doesn't say what it takes: expected a file that slim.export wrote"),
    "fixed batch": (lambda folder: slim.export(Fixed(), torch.zeros(2, 3, 4), folder / "net.pte"), "batch"),
}


@pytest.mark.parametrize("how", MISTAKES)
def test_mistakes_are_one_line(how: str, tmp_path: Path) -> None:
    call, message = MISTAKES[how]
    with pytest.raises(SlimError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_without_the_package_one_line_says_how_to_get_it() -> None:
    code = """
import sys
sys.modules["executorch"] = None
import slim
try:
    slim.ExecuTorch()
except slim.SlimError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "executorch isn't installed: expected pip install 'slim-prune[executorch]'\n"
