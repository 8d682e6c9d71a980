"""What is not written: files that differ from their network, networks and paths that can not be exported."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from slim.deploy.onnx import translate, write
from slim.deploy.onnx.write import export_onnx
from slim.errors import SlimError


def scaled_weight(model: onnx.ModelProto) -> None:
    weight = next(entry for entry in model.graph.initializer if len(entry.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 1.1, weight.name))


def nan_weight(model: onnx.ModelProto) -> None:
    weight = next(entry for entry in model.graph.initializer if len(entry.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.nan, weight.name))


def dropped_relu(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Identity"


def fixed_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            scaled_weight,
            r"^model.onnx differs from the network by \d\.\d\de-0[1-4] \(relative, batch of 1\): expected",
        ),
        (dropped_relu, r"^model.onnx differs from the network by \d"),
        (nan_weight, r"^model.onnx differs from the network by inf"),
        (fixed_batch, r"^the network can only be exported for a batch of 1: "),
    ],
)
def test_altered_file_is_refused_and_the_earlier_one_stays(
    tamper: object, message: str, net: nn.Module, example: torch.Tensor, exported: tuple[Path, float],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = onnx.load(exported[0])
    tamper(model)  # type: ignore[operator]
    monkeypatch.setattr(write.Draft, "content", model.SerializeToString())
    (tmp_path / "model.onnx").write_bytes(b"earlier")
    with pytest.raises(SlimError, match=message) as caught:
        export_onnx(net, example, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"earlier"]


def test_reported_difference_is_the_true_one(
    net: nn.Module, example: torch.Tensor, exported: tuple[Path, float], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All logits times 1.01: the relative difference is 1 % whatever the inputs."""
    model = onnx.load(exported[0])
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1.01, np.float32), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["logits"]))
    monkeypatch.setattr(write.Draft, "content", model.SerializeToString())
    report = export_onnx(net, example, tmp_path / "model.onnx", tolerance=0.02)
    assert report.max_relative_error == pytest.approx(0.01, rel=1e-3)


class Chaotic(nn.Module):
    """A convolution and 20 steps of a map that doubles differences: rounding grows to what no tolerance would allow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).sigmoid()
        for _ in range(20):
            x = 3.9 * x * (1 - x)
        return x.mean((2, 3))


def test_rounding_that_the_network_magnifies_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, example = Chaotic(), torch.zeros(1, 3, 6, 6)
    made = export_onnx(net, example, tmp_path / "model.onnx")
    assert made.max_relative_error > 1e-4
    model = onnx.load(tmp_path / "model.onnx")
    scaled_weight(model)
    monkeypatch.setattr(write.Draft, "content", model.SerializeToString())
    with pytest.raises(SlimError, match=r"^model.onnx differs from the network"):
        export_onnx(net, example, tmp_path / "model.onnx")


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x).flatten(1)


class Brighter(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x.flatten(1)
        return -x.flatten(1)


class OnlyPairs(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) != 2:
            raise ValueError("two at a time")
        return x.flatten(1)


class NotSeven(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling() and len(x) == 7:
            raise ValueError("not seven")
        return x.flatten(1)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (nn.Flatten(), {"opset": 17}, r"^opset 17: expected 18 to 25$"),
        (nn.Flatten(), {"opset": 26}, r"^opset 26: expected 18 to 25$"),
        (nn.Flatten(), {"metadata": {"classes": ["a", "b"]}}, r"^2 class names for 12 outputs"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)),
            {"metadata": {"classes": ["a", "b"]}},
            r"^2 class names for outputs \[2\]: expected a network that gives \[N, K\]$",
        ),
        (nn.Flatten(), {"metadata": {"mean": [0.5]}}, r"^mean has 1 numbers for 3 channels"),
        (nn.Flatten(), {"metadata": {"std": [0.5] * 4}}, r"^std has 4 numbers for 3 channels"),
        (nn.Conv2d(1, 1, 1), {}, r"^the network can't run a batch of 2 like the example: .*1 channels"),
        (nn.Linear(2, 1), {"example": torch.zeros(0, 2)}, r"^example_inputs: expected"),
        (nn.Linear(2, 1), {"example": "photo"}, r"^example_inputs: expected"),
        (Bessel(), {}, r"bessel_j0"),
        (
            Brighter(),
            {},
            r"exporter can't export the network: what forward does depends on values that it computes, "
            r"in .*test_onnx_refused.py, line \d+: if x.sum\(\) > 0:$",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), Brighter()),
            {"preprocess": True, "metadata": {"mean": [0.5] * 3, "std": [0.5] * 3}},
            r"depends on values that it computes, in .*test_onnx_refused.py, line \d+: if x.sum\(\) > 0:$",
        ),
        (nn.Flatten(), {"preprocess": True}, r"^preprocess needs mean and std"),
        (
            nn.Flatten(0, 1),
            {"preprocess": True, "metadata": {"mean": [0.5] * 3, "std": [0.5] * 3}},
            r"^preprocess takes a classifier that gives \[N, K\]: this network gives \[\[6, 2, 2\]\]",
        ),
        (nn.Flatten(), {"metadata": {"mean": [0.5] * 3, "std": [0.5, 0, 1]}}, r"^std is .*above 0"),
        (nn.Linear(2, 1), {"dynamic_size": True, "example": torch.zeros(1, 2)}, r"^dynamic_size: .*\[1, 2\]"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 2)),
            {"dynamic_size": True},
            r"^the network can't run a batch of 2 of another size, \[2, 3, 34, 66\]: ",
        ),
        (
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 2)),
            {"dynamic_size": True},
            r"^model.onnx doesn't run in onnxruntime .*running Gemm node",
        ),
        (OnlyPairs(), {}, r"^the network can only be exported for a batch of 2: "),
        (
            nn.Flatten(),
            {"metadata": {"mean": [0.5] * 3, "std": [1, 0, 1]}},
            r"^std is \[1, 0, 1\]: expected numbers above 0$",
        ),
        (nn.Flatten(), {"metadata": {"mean": [0.5, float("nan"), 0]}}, r"^mean is .*: expected numbers$"),
        (nn.Flatten(), {"metadata": {"mean": [0.5, 10**400, 0]}}, r"^mean is .*: expected numbers$"),
        (nn.Flatten(), {"metadata": {"mu": [0.5]}}, r"^metadata 'mu': expected task, classes, mean, std, plan_digest$"),
        (nn.Flatten(), {"batch": 0}, r"^batch 0: expected any, a number of images such as 8, or multiples of it"),
        (nn.Flatten(), {"batch": "n"}, r"^batch 'n': expected any"),
        (nn.Flatten(), {"batch": 10**9}, r"^batch 1000000000: expected any"),
        (OnlyPairs(), {"batch": 3}, r"^the network can't run a batch of 3 like the example: two at a time$"),
        (OnlyPairs(), {"batch": "2n"}, r"^the network can't run a batch of 4 like the example: two at a time$"),
        (NotSeven(), {}, r"^the network can't run a batch of 7 like the example: not seven$"),
    ],
)
def test_what_can_not_be_exported_gets_one_line(
    model: nn.Module, settings: dict[str, Any], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = settings.pop("example", torch.zeros(1, 3, 2, 2))
    with pytest.raises(SlimError, match=message) as caught:
        export_onnx(model, inputs, tmp_path / "model.onnx", **settings)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_paths_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(SlimError, match="can't write"):
        export_onnx(nn.Flatten(), torch.zeros(1, 1, 2, 2), tmp_path / "file" / "model.onnx")
    with pytest.raises(SlimError, match="is a folder"):
        export_onnx(nn.Flatten(), torch.zeros(1, 1, 2, 2), tmp_path)
    monkeypatch.setattr(translate, "MAX_BYTES", 10)
    with pytest.raises(SlimError, match="less than 2 GB"):
        export_onnx(nn.Linear(4, 4), torch.zeros(1, 4), tmp_path / "model.onnx")
