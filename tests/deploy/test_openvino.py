"""OpenVINO as a target: written, checked against PyTorch, timed, planned for."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from deploy.onnx_networks import ConvNet, shake
from torch import nn

import slim
from slim.deploy.target import Kernel
from slim.deploy.targets import export, target_of

openvino = pytest.importorskip("openvino", reason="OpenVINO isn't installed: pip install 'slim-prune[openvino]'")
X = torch.randn(2, 3, 8, 8)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module, float]:
    torch.manual_seed(0)
    net, path = shake(ConvNet()).eval(), tmp_path_factory.mktemp("written") / "net.xml"
    return path, net, slim.export(net, X, path)


def test_a_file_computes_what_the_network_does_for_any_batch(written: tuple[Path, nn.Module, float]) -> None:
    path, net, difference = written
    assert difference < 1e-5
    assert sorted(each.name for each in path.parent.iterdir()) == ["net.bin", "net.xml"]
    opened = slim.OpenVino().open(path)
    assert opened.inputs[0].shape == (None, 3, 8, 8) and opened.batch.multiples
    assert opened.metadata["slim.input_shape"] == "[3, 8, 8]"
    plain = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # without slim
    for size in (1, 5):
        images = torch.randn(size, 3, 8, 8)
        expected = net(images).detach().numpy()
        for made in (opened.run({"images": images.numpy()})[0], plain(images.numpy())[0]):
            assert np.abs(made - expected).max() <= 1e-5 * np.abs(expected).max()


def test_weights_that_differ_are_found_and_what_was_there_stays(written: tuple[Path, nn.Module, float]) -> None:
    path, net, _ = written
    content = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    other = shake(ConvNet()).eval()
    with pytest.raises(slim.SlimError, match="differs from the network"):
        slim.OpenVino().check(path, other, X)

    @dataclasses.dataclass(frozen=True)
    class Wrong(slim.OpenVino):
        def export(self, model: nn.Module, example_inputs: object, path: Path) -> None:
            super().export(other, example_inputs, path)

    with pytest.raises(slim.SlimError, match="differs from the network"):
        export(net, X, path, Wrong())
    assert content == (path.read_bytes(), path.with_suffix(".bin").read_bytes())
    assert sorted(each.name for each in path.parent.iterdir()) == ["net.bin", "net.xml"]


def test_files_of_both_runtimes_are_timed_side_by_side(written: tuple[Path, nn.Module, float], tmp_path: Path) -> None:
    path, net, _ = written
    slim.export_onnx(net, X, tmp_path / "net.onnx")
    made = slim.benchmark(
        {"onnx": tmp_path / "net.onnx", "xml": path}, batch_sizes=[1, 4], threads=1, runs=3, warmup=1, profile=3,
        memory=False,
    )  # fmt: skip
    assert made.provider == "CPUExecutionProvider, OpenVINO CPU"
    assert all(row.median_ms > 0 for row in made.rows)
    assert made.row("xml", 1).file_size == path.stat().st_size + path.with_suffix(".bin").stat().st_size
    assert any("onvolution" in node.operator for node in made.profiles["xml"])


def test_operators_are_timed_and_cost_what_they_compute() -> None:
    window = ((3, 3), (1, 1), (1, 1), (1, 1))
    kernels = [
        (Kernel("conv", (1, 28, 28), window, tail=(("BatchNormalization", ""), ("Relu", ""))), reads, makes)
        for reads, makes in ((16, 16), (128, 128))
    ]
    kernels += [(Kernel("depthwise", (1, 28, 28), window), 1, 64), (Kernel("gemm", (4,)), 512, 512)]
    found = {sized: ms for batch in slim.OpenVino(threads=1).time(kernels) for sized, ms in batch}
    assert found.keys() == set(kernels) and min(found.values()) > 0
    assert found[kernels[1]] > 4 * found[kernels[0]]  # 64 times the arithmetic


@pytest.mark.slow
def test_a_latency_budget_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLIM_CACHE", str(tmp_path))
    net = nn.Sequential(
        *(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.Conv2d(64, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.Conv2d(96, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 4, 1)),
    )
    x = torch.randn(1, 3, 32, 32)
    plan = slim.plan(shake(net), x, slim.Latency(0.5, slim.Runtime(slim.OpenVino(threads=1))))
    assert 0.3 < plan.timing["share"] <= 0.515  # in steps of 16 channels of three layers
    assert plan.timing["predicted_share"] == pytest.approx(plan.timing["share"], rel=0.2)


MISTAKES = {
    "device": (lambda folder: slim.OpenVino("tpu"), r"device 'tpu' isn't one of OpenVINO's here: expected .*CPU"),
    "threads": (lambda folder: slim.OpenVino(threads=-1), "threads -1: expected a whole number"),
    "no file": (lambda folder: target_of(folder / "net.xml").open(folder / "net.xml"), "no file .*net.xml"),
    "suffix": (lambda folder: slim.export(nn.Linear(2, 2), X, folder / "net.pb"), "ends in .onnx or .xml"),
    "broken": (lambda folder: broken(folder), "OpenVINO can't run"),
}


def broken(folder: Path) -> None:
    for suffix in (".xml", ".bin"):
        (folder / f"net{suffix}").write_text("<no network/>")
    slim.OpenVino().open(folder / "net.xml")


@pytest.mark.parametrize("how", MISTAKES)
def test_mistakes_are_one_line(how: str, tmp_path: Path) -> None:
    call, message = MISTAKES[how]
    with pytest.raises(slim.SlimError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)


def test_without_openvino_one_line_says_how_to_get_it() -> None:
    code = """
import sys
sys.modules["openvino"] = None
import slim
try:
    slim.OpenVino
except slim.SlimError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "openvino isn't installed: expected pip install 'slim-prune[openvino]'\n"
