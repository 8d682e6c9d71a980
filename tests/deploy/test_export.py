"""Exported files against PyTorch, predictions against a separate numpy implementation, and what must be
refused."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import digits_network
from PIL import ExifTags, Image, ImageOps
from sklearn.datasets import load_digits
from torch import nn

import slim
from slim.deploy.onnx import session, write
from slim.deploy.onnx.predict import OnnxModel, find_images
from slim.deploy.onnx.write import ExportReport, export_onnx
from slim.errors import SlimError
from slim.images import read_image

README = Path(__file__).parents[2] / "README.md"
CLASSES = ["zero", "one", "two", "drei", "quatre", "пять", "six", "seven", "eight", "nine"]


class ConvNet(nn.Module):
    """Every kind of layer that a BatchNorm can be folded into, and one BatchNorm that can't
    (pre-activation)."""

    def __init__(self, preactivation: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.BatchNorm2d(16, eps=0.01))
        self.grouped = nn.Sequential(nn.Conv2d(16, 16, 1, groups=2), nn.BatchNorm2d(16), nn.ReLU())
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.up = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2), nn.BatchNorm2d(8))
        self.pre = nn.BatchNorm2d(8) if preactivation else nn.Identity()
        self.head = nn.Sequential(
            nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 12), nn.BatchNorm1d(12),
            nn.Dropout(0.5), nn.Linear(12, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.up(self.grouped(self.depthwise(x)) + self.shortcut(x))
        return self.head(self.pre(torch.relu(x)))


def shake(net: nn.Module) -> nn.Module:
    """Statistics and scales that a wrongly folded BatchNorm would show."""
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, -1.5, 1.5), (module.bias, -1, 1), (module.running_mean, -1, 1),
                (module.running_var, 0.2, 3),
            ):  # fmt: skip
                tensor.data.uniform_(low, high, generator=generator)
    return net


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def run_raw(path: Path, images: np.ndarray) -> np.ndarray:
    """onnxruntime without any of slim."""
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return shake(ConvNet()).train()


@pytest.fixture(scope="module")
def example() -> torch.Tensor:
    return torch.zeros(1, 3, 8, 8)


@pytest.fixture(scope="module")
def exported(net: nn.Module, example: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    path = tmp_path_factory.mktemp("export") / "new" / "model.onnx"
    report = export_onnx(
        net, example, path, classes=CLASSES, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], plan_digest="abc123"
    )
    assert report.path == path and report.file_size == path.stat().st_size
    return path, report.max_relative_error


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose logits are the normalised pixels of a 3×4×5 image, to see what predict feeds it."""
    path = tmp_path_factory.mktemp("pixels") / "pixels.onnx"
    export_onnx(nn.Flatten(), torch.zeros(1, 3, 4, 5), path, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    return path


@pytest.fixture(scope="module")
def grey_pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grey") / "pixels.onnx"
    export_onnx(nn.Flatten(), torch.zeros(1, 1, 4, 5), path, mean=[0.3], std=[0.5])
    return path


# The file against the network


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 32])
def test_onnxruntime_agrees_with_pytorch(net: nn.Module, exported: tuple[Path, float], batch_size: int) -> None:
    images = torch.randn(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(batch_size))
    with torch.no_grad():
        expected = copy.deepcopy(net).double().eval()(images.double()).numpy()
    actual = run_raw(exported[0], images.numpy())
    assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-5
    assert 0 < exported[1] < 1e-5


def test_batchnorm_is_folded_and_no_other_node_is_added(exported: tuple[Path, float]) -> None:
    found = ops(exported[0])
    assert "BatchNormalization" not in found
    assert sorted(found) == sorted(
        ["Conv"] * 4 + ["ConvTranspose", "Add"] + ["Relu"] * 3 + ["AveragePool", "Reshape"] + ["Gemm"] * 2
    )


def test_batchnorm_before_convolution_stays_and_agrees(example: torch.Tensor, tmp_path: Path) -> None:
    net = shake(ConvNet(preactivation=True)).eval()
    export_onnx(net, example, tmp_path / "model.onnx")
    assert ops(tmp_path / "model.onnx").count("BatchNormalization") == 1
    images = torch.randn(5, 3, 8, 8)
    expected = net(images).detach().numpy()
    assert np.allclose(run_raw(tmp_path / "model.onnx", images.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_file_is_one_with_names_and_without_local_paths(exported: tuple[Path, float]) -> None:
    path = exported[0]
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]
    assert all(weight.data_location == onnx.TensorProto.DEFAULT for weight in model.graph.initializer)
    assert [entry.name for entry in model.graph.input] == ["images"]
    assert [entry.name for entry in model.graph.output] == ["logits"]
    dims = model.graph.input[0].type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch" and [dim.dim_value for dim in dims[1:]] == [3, 8, 8]
    assert b".py" not in path.read_bytes()


def test_metadata(exported: tuple[Path, float]) -> None:
    written = {entry.key: entry.value for entry in onnx.load(exported[0]).metadata_props}
    assert written.pop("slim.plan") == "abc123"
    assert written.pop("slim.version") == slim.__version__
    assert {key: json.loads(value) for key, value in written.items()} == {
        "slim.input_shape": [3, 8, 8],
        "slim.classes": CLASSES,
        "slim.mean": [0.1, 0.2, 0.3],
        "slim.std": [0.4, 0.5, 0.6],
    }


@pytest.mark.parametrize("opset", [18, 25])
def test_opset_is_kept(opset: int, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten())
    export_onnx(net, torch.zeros(2, 1, 4, 4), tmp_path / "model.onnx", opset=opset)
    imports = onnx.load(tmp_path / "model.onnx").opset_import
    assert [(entry.domain, entry.version) for entry in imports] == [("", opset)]
    assert ops(tmp_path / "model.onnx") == ["Conv", "Reshape"]


def test_model_is_untouched(net: nn.Module, example: torch.Tensor, tmp_path: Path) -> None:
    model = copy.deepcopy(net).to(memory_format=torch.channels_last).double()
    model.stem.eval()  # a mixture of modes must come back as it was
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    strides = [parameter.stride() for parameter in model.parameters()]
    export_onnx(model, example, tmp_path / "model.onnx")
    assert [module.training for module in model.modules()] == modes
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert all(parameter.requires_grad and parameter.dtype == torch.float64 for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kernel", [1, 3])
def test_channels_last_leaves_no_trace(kernel: int, tmp_path: Path) -> None:
    convolution = nn.Sequential(nn.Conv2d(3, 8, kernel), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    images = torch.zeros(1, 3, 8, 8).to(memory_format=torch.channels_last)
    export_onnx(model.to(memory_format=torch.channels_last), images, tmp_path / "model.onnx")
    assert ops(tmp_path / "model.onnx") == ["Conv", "Relu", "ReduceMean", "Reshape", "Gemm"]


class Weighted(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left + 2 * right, "product": left.flatten(1) * right.flatten(1)}


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs(as_dict: bool, tmp_path: Path) -> None:
    left, right = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    inputs = {"right": right, "left": left} if as_dict else (left, right)
    export_onnx(Weighted(), inputs, tmp_path / "model.onnx")
    net = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    total, product = net.run(None, {"left": left.numpy(), "right": right.numpy()})
    assert np.allclose(total, left + 2 * right) and np.allclose(product, (left * right).flatten(1))


def test_export_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(action="error"):
        export_onnx(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten()), torch.zeros(1, 1, 2, 2), tmp_path / "a.onnx")
    assert capfd.readouterr() == ("", "")


# Files that must not be kept


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
    monkeypatch.setattr(write, "_export", lambda *args, **kwargs: model.SerializeToString())
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
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.01), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], ["logits"]))
    monkeypatch.setattr(write, "_export", lambda *args, **kwargs: model.SerializeToString())
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
    monkeypatch.setattr(write, "_export", lambda *args, **kwargs: model.SerializeToString())
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
        (nn.Flatten(), {"classes": ["a", "b"]}, r"^2 class names for 12 outputs"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)),
            {"classes": ["a", "b"]},
            r"^2 class names for outputs \[2\]: expected a network that gives \[N, K\]$",
        ),
        (nn.Flatten(), {"mean": [0.5]}, r"^mean has 1 numbers for 3 channels"),
        (nn.Flatten(), {"std": [0.5] * 4}, r"^std has 4 numbers for 3 channels"),
        (nn.Conv2d(1, 1, 1), {}, r"^the network can't run a batch of 2 like the example: .*1 channels"),
        (nn.Linear(2, 1), {"example": torch.zeros(0, 2)}, r"^example_inputs: expected"),
        (nn.Linear(2, 1), {"example": "photo"}, r"^example_inputs: expected"),
        (Bessel(), {}, r"bessel_j0"),
        (
            Brighter(),
            {},
            r"exporter can't export the network: what forward does depends on values that it computes, "
            r"in .*test_export.py, line \d+: if x.sum\(\) > 0:$",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 3, 1), Brighter()),
            {"preprocess": True, "mean": [0.5] * 3, "std": [0.5] * 3},
            r"depends on values that it computes, in .*test_export.py, line \d+: if x.sum\(\) > 0:$",
        ),
        (nn.Flatten(), {"preprocess": True}, r"^preprocess needs mean and std"),
        (
            nn.Flatten(0, 1),
            {"preprocess": True, "mean": [0.5] * 3, "std": [0.5] * 3},
            r"^preprocess takes a classifier that gives \[N, K\]: this network gives \[\[6, 2, 2\]\]",
        ),
        (nn.Flatten(), {"preprocess": True, "mean": [0.5] * 3, "std": [0.5, 0, 1]}, r"^std is .*above 0"),
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
        (NotSeven(), {}, r"^the network can't run a batch of 7 like the example: not seven$"),
    ],
)
def test_what_can_not_be_exported_gets_one_line(
    model: nn.Module, settings: dict, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
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
    monkeypatch.setattr(write, "MAX_BYTES", 10)
    with pytest.raises(SlimError, match="less than 2 GB"):
        export_onnx(nn.Linear(4, 4), torch.zeros(1, 4), tmp_path / "model.onnx")


# OnnxModel on arrays


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_call_gives_the_logits(net: nn.Module, exported: tuple[Path, float], batch_size: int) -> None:
    images = torch.randn(batch_size, 3, 8, 8)
    expected = copy.deepcopy(net).eval()(images).detach().numpy()
    model = OnnxModel(exported[0], threads=1)
    for given in (
        images,
        images.numpy(),
        images.double().requires_grad_(),
        images.numpy().astype(np.float64),
    ):
        logits = model(given)
        assert logits.dtype == np.float32
        assert np.allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_attributes_come_from_the_file(exported: tuple[Path, float], pixels: Path) -> None:
    model = OnnxModel(exported[0])
    assert model.classes == CLASSES and model.mean == [0.1, 0.2, 0.3] and model.std == [0.4, 0.5, 0.6]
    assert model.input_shape == [3, 8, 8] and model.metadata["slim.plan"] == "abc123"
    assert model.provider in onnxruntime.get_available_providers()
    assert OnnxModel(pixels).classes is None and "slim.plan" not in OnnxModel(pixels).metadata


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 8, 9), np.float32), r"^images of shape \[2, 3, 8, 9\]: expected \[N, 3, 8, 8\]$"),
        (np.zeros((3, 8, 8), np.float32), r"^images of shape \[3, 8, 8\]: expected \[N, 3, 8, 8\]$"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"^images of dtype uint8: expected normalised floats"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), r"^images of dtype int64: expected normalised floats"),
    ],
)
def test_call_refuses_other_arrays(images: object, message: str, exported: tuple[Path, float]) -> None:
    with pytest.raises(SlimError, match=message):
        OnnxModel(exported[0])(images)


def test_a_size_that_a_node_can_not_take_gets_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 10))
    export_onnx(net, torch.zeros(1, 3, 8, 8), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    for place, name in enumerate(("height", "width"), 2):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "model.onnx")
    capfd.readouterr()
    assert OnnxModel(tmp_path / "model.onnx")(torch.zeros(1, 3, 8, 8)).shape == (1, 10)
    said = r"^model.onnx can't run on images of shape \[1, 3, 4, 4\]: running Reshape node '.*256}"
    with pytest.raises(SlimError, match=said) as caught:
        OnnxModel(tmp_path / "model.onnx")(torch.zeros(1, 3, 4, 4))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


# OnnxModel on images


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def resize_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: triangle filter, widened by the scale when shrinking (bilinear with antialiasing)."""
    scale = old / new
    centres = (np.arange(new) + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(old) - centres[:, None]) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def reference(image: np.ndarray, channels: int) -> np.ndarray:
    """What predict should say of a uint8 [H, W, 3] or [H, W] image for the pixels networks, in plain
    numpy."""
    values = image.astype(np.float64)
    if channels == 1 and image.ndim == 3:
        values = values @ [0.299, 0.587, 0.114]
    if channels == 3 and image.ndim == 2:
        values = np.stack([values] * 3, axis=-1)
    values = values.reshape(*values.shape[:2], channels)
    values = np.einsum("ah,bw,hwc->cab", resize_matrix(len(image), 4), resize_matrix(image.shape[1], 5), values)
    mean, std = ([0.3], [0.5]) if channels == 1 else ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    normalised = (values / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    return softmax(normalised.ravel())


def predicted(model: OnnxModel, image: object) -> np.ndarray:
    """All probabilities in the order of the classes."""
    (result,) = model.predict([image], top=1000)
    assert [p for _, p in result] == sorted((p for _, p in result), reverse=True)
    by_label = {int(label): probability for label, probability in result}
    return np.array([by_label[i] for i in range(len(by_label))])


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (13, 17), (13, 17, 3), (2, 3), (40, 3, 3)])
def test_preprocessing_against_numpy(shape: tuple[int, ...], pixels: Path, grey_pixels: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.png")
    for path, channels in ((pixels, 3), (grey_pixels, 1)):
        model = OnnxModel(path)
        expected = reference(image, channels)
        # Pillow rounds to whole grey levels after each of at most three steps: 1.5 levels of 255, by the
        # smallest std
        rounded = shape[:2] != (4, 5) or (channels == 1 and len(shape) == 3)
        tolerance = 2 * 1.5 / 255 / 0.4 if rounded else 1e-6
        for given in (image, Image.fromarray(image), tmp_path / "image.png", str(tmp_path / "image.png")):
            assert predicted(model, given) == pytest.approx(expected, rel=tolerance)


def test_labels_and_batches(exported: tuple[Path, float]) -> None:
    model = OnnxModel(exported[0])
    images = list(np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    floats = np.stack(images).transpose(0, 3, 1, 2) / 255
    normalised = (floats - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.4, 0.5, 0.6], (3, 1, 1))
    logits = run_raw(exported[0], normalised.astype(np.float32))
    for batch_size in (4, 64):
        results = model.predict(images, top=3, batch_size=batch_size)
        for row, result in zip(logits, results, strict=True):
            best = np.argsort(row)[::-1][:3]
            assert [label for label, _ in result] == [CLASSES[i] for i in best]
            assert [p for _, p in result] == pytest.approx(softmax(row.astype(np.float64))[best], rel=1e-4)
    assert model.predict([]) == []


def test_other_modes_of_image(pixels: Path) -> None:
    model = OnnxModel(pixels)
    colours = np.random.default_rng(2).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    expected = reference(colours[..., :3], 3)
    assert predicted(model, Image.fromarray(colours)) == pytest.approx(expected, rel=1e-6)
    palette = Image.fromarray(colours[..., :3]).quantize(64)
    assert predicted(model, palette) == pytest.approx(reference(np.asarray(palette.convert("RGB")), 3), rel=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_orientation_says(orientation: int, pixels: Path, tmp_path: Path) -> None:
    photograph = Image.fromarray(np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for name in ("photograph.png", "photograph.tif"):
        photograph.save(tmp_path / name, exif=exif)
        seen = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name)))
        assert seen.shape == ((5, 4, 3) if orientation > 4 else (4, 5, 3))
        for given in (tmp_path / name, Image.open(tmp_path / name)):
            assert np.array_equal(predicted(OnnxModel(pixels), given), predicted(OnnxModel(pixels), seen))
        assert np.array_equal(read_image(tmp_path / name, None), seen)  # for training


def test_orientation_that_can_not_be_read_is_none(pixels: Path, tmp_path: Path) -> None:
    photograph = np.random.default_rng(3).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "broken.png", exif=b"Exif\0\0broken tags")
    assert np.array_equal(read_image(tmp_path / "broken.png", None), photograph)
    whole, broken = OnnxModel(pixels).predict([photograph, tmp_path / "broken.png"])
    assert whole == broken


def bad_images(folder: Path) -> dict[str, object]:
    (folder / "text.png").write_text("not an image")
    whole = folder / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    (folder / "cut.png").write_bytes(whole.read_bytes()[:2000])
    return {
        "absent.png': no such file": folder / "absent.png",
        "text.png': not an image": folder / "text.png",
        "cut.png': not an image": folder / "cut.png",
        "not an image": folder,
        "dtype float32": np.zeros((4, 5), np.float32),
        r"shape \[4, 5, 2\]": np.zeros((4, 5, 2), np.uint8),
        r"shape \[1, 1, 4, 5, 3\]": np.zeros((1, 1, 4, 5, 3), np.uint8),
        "at least one pixel": np.zeros((0, 5), np.uint8),
        "'.*cut.png': not an image": Image.open(folder / "cut.png"),
        "mode I;16": Image.fromarray(np.zeros((4, 5), np.uint16)),
        "image of type int": 7,
    }


def test_bad_images_get_one_line(pixels: Path, tmp_path: Path) -> None:
    model = OnnxModel(pixels)
    for message, image in bad_images(tmp_path).items():
        with pytest.raises(SlimError, match=message) as caught:
            model.predict([image])
        assert "\n" not in str(caught.value)
    for name, value in [("top", 0), ("top", 2.5), ("top", "3"), ("batch_size", 0), ("batch_size", 1.5)]:
        with pytest.raises(SlimError, match=f"^{name} {value!r}: expected a whole number"):
            model.predict([np.zeros((4, 5), np.uint8)], **{name: value})


def test_folders_patterns_and_arrays_stand_for_their_images(
    exported: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    (tmp_path / "more").mkdir()
    for name, image in zip(["b.png", "a.PNG", "more/d.bmp", "more/c.png", "[1].png"], images):
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "more" / "folder.png").mkdir()
    model = OnnxModel(exported[0])
    singly = [model.predict([image])[0] for image in images]
    order = [4, 1, 0, 3, 2]  # by name: [1].png a.PNG b.png more/c.png more/d.bmp
    assert find_images(tmp_path) == [
        str(tmp_path / n) for n in ("[1].png", "a.PNG", "b.png", "more/c.png", "more/d.bmp")
    ]
    for given, expected in [
        (tmp_path, order),
        (str(tmp_path / "more"), [3, 2]),
        (str(tmp_path / "**" / "?.png"), [0, 3]),
        (tmp_path / "[1].png", [4]),  # a file of that name, not a pattern
        (Image.fromarray(images[2]), [2]),
        (images[3], [3]),
        (images, range(5)),
        ([tmp_path / "b.png", images[1:3]], [0, 1, 2]),
    ]:
        found = model.predict(given)
        assert [[label for label, _ in best] for best in found] == [[label for label, _ in singly[i]] for i in expected]
        assert [best[0][1] for best in found] == pytest.approx([singly[i][0][1] for i in expected], rel=1e-5)
    (tmp_path / "empty").mkdir()
    for nothing, message in [(tmp_path / "empty", "holds no image"), (str(tmp_path / "*.gif"), "no file matches")]:
        with pytest.raises(SlimError, match=message):
            model.predict(nothing)


def test_a_stream_can_leave_out_what_it_can_not_read(exported: tuple[Path, float], tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    (tmp_path / "broken.png").write_text("no image")
    given = [image, tmp_path / "broken.png", image, np.zeros((8, 8), np.int64), image]
    left_out: list[tuple[object, str]] = []
    model = OnnxModel(exported[0])
    shown = [
        seen for seen, _ in model.stream(given, batch_size=2, on_error=lambda *e: left_out.append((e[0], str(e[1]))))
    ]
    assert [any(seen is one for one in (given[0], given[2], given[4])) for seen in shown] == [True] * 3
    assert left_out[0][0] == given[1] and "not an image" in left_out[0][1]
    assert left_out[1][0] is given[3] and "dtype int64" in left_out[1][1]


# Preprocessing in the graph, and images of any size


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
    return shake(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))).eval()


@pytest.fixture(scope="module")
def whole(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """With everything that can be put in, checked in float64 too."""
    path = tmp_path_factory.mktemp("whole") / "whole.onnx"
    settings = {"classes": CLASSES, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    return export_onnx(
        small, torch.zeros(1, 3, 8, 8), path, dynamic_size=True, preprocess=True, float64=True, **settings
    )


def test_preprocessing_in_the_graph_against_numpy(small: nn.Module, whole: ExportReport) -> None:
    net = onnxruntime.InferenceSession(whole.path)
    assert [(entry.name, entry.type, entry.shape) for entry in net.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert net.get_outputs()[0].name == "probabilities"
    for shape in ((1, 8, 8, 3), (5, 8, 8, 3), (2, 11, 30, 3)):
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        normalised = (images / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
        with torch.no_grad():
            logits = small(torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32)).numpy()
        expected = np.stack([softmax(row) for row in logits])
        assert np.allclose(net.run(None, {"images": images})[0], expected, rtol=1e-4)
    # strides would be traced as ten nodes with Range and Gather
    assert ops(whole.path) == [
        *("Cast", "Mul", "Add", "Transpose", "Conv", "HardSwish", "ReduceMean", "Reshape", "Gemm", "Softmax")
    ]


def test_predict_is_the_same_with_preprocessing_in_the_graph(
    small: nn.Module, whole: ExportReport, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.onnx"
    export_onnx(small, torch.zeros(1, 3, 8, 8), plain, classes=CLASSES, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    images = list(np.random.default_rng(4).integers(0, 256, (4, 9, 7, 3), dtype=np.uint8))
    for inside, outside in zip(OnnxModel(whole.path).predict(images), OnnxModel(plain).predict(images)):
        assert [label for label, _ in inside] == [label for label, _ in outside]
        assert [p for _, p in inside] == pytest.approx([p for _, p in outside], rel=1e-4)
    with pytest.raises(SlimError, match=r"float32: whole.onnx normalises by itself; expected uint8"):
        OnnxModel(whole.path)(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(SlimError, match=r"shape \[1, 3, 8, 8\]: expected \[N, N, N, 3\]"):
        OnnxModel(whole.path)(np.zeros((1, 3, 8, 8), np.uint8))


def test_float64_tells_a_wrong_graph_from_rounding(
    small: nn.Module, whole: ExportReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole.float64_engine == "onnx reference"  # onnxruntime has no Conv in float64
    assert whole.float64_error is not None and 0 < whole.float64_error < 1e-7
    made = export_onnx(nn.Linear(4, 3).double(), torch.zeros(1, 4), tmp_path / "linear.onnx", float64=True)
    assert made.float64_engine == "onnxruntime" and made.float64_error is not None and made.float64_error < 1e-14

    # A BatchNorm with a wrong epsilon: 10⁻⁵ of the running variance, which float32 can't be trusted to show
    translate = write._translate

    def wrong(net: nn.Module, call: write.Call, opset: int, names: object, optimize: bool) -> object:
        made = translate(net, call, opset, names, optimize)
        proto = made.model_proto
        for node in proto.graph.node:
            if node.op_type == "BatchNormalization":
                next(a for a in node.attribute if a.name == "epsilon").f += 1e-5
        return made if optimize else SimpleNamespace(model_proto=proto)

    monkeypatch.setattr(write, "_translate", wrong)
    with pytest.raises(SlimError, match=r"^a.onnx: before optimisation, the graph differs .* in float64"):
        export_onnx(small, torch.zeros(1, 3, 8, 8), tmp_path / "a.onnx", float64=True)
    assert not (tmp_path / "a.onnx").exists()


# Files that OnnxModel must refuse


def test_bad_files_get_one_line(tmp_path: Path, exported: tuple[Path, float]) -> None:
    whole = exported[0].read_bytes()
    (tmp_path / "text.onnx").write_text("not ONNX")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    cases = {
        "absent.onnx": "no file",
        "text.onnx": "not an ONNX",
        "empty.onnx": "not an ONNX",
        "cut.onnx": "not an",
    }
    for name, message in cases.items():
        with pytest.raises(SlimError, match=message) as caught:
            OnnxModel(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(SlimError, match="no file"):
        OnnxModel(tmp_path)

    model = onnx.load_from_string(whole)
    for opset, ir_version, message in [
        (99, 10, r"future.onnx' needs opset 99 of ai.onnx: expected at most \d+, which onnxruntime"),
        (20, 99, r"future.onnx' has ONNX IR version 99: expected at most \d+, which onnxruntime"),
    ]:
        model.opset_import[0].version, model.ir_version = opset, ir_version
        onnx.save(model, tmp_path / "future.onnx")
        with pytest.raises(SlimError, match=message):
            OnnxModel(tmp_path / "future.onnx")


def test_missing_and_broken_metadata(tmp_path: Path, exported: tuple[Path, float]) -> None:
    model = onnx.load(exported[0])
    kept = {entry.key: entry.value for entry in model.metadata_props}

    def with_metadata(changes: dict[str, str | None]) -> Path:
        metadata = {key: value for key, value in {**kept, **changes}.items() if value is not None}
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    image = np.zeros((8, 8, 3), np.uint8)
    foreign = OnnxModel(with_metadata(dict.fromkeys(kept)))
    assert foreign(np.zeros((2, 3, 8, 8), np.float32)).shape == (2, 10)  # arrays need no metadata
    with pytest.raises(SlimError, match=r"model.onnx has no slim.input_shape, slim.mean, slim.std in its metadata"):
        foreign.predict([image])
    with pytest.raises(SlimError, match=r"slim.mean = '\[0.1,': expected JSON"):
        OnnxModel(with_metadata({"slim.mean": "[0.1,"}))
    with pytest.raises(SlimError, match="of its 2 classes"):
        OnnxModel(with_metadata({"slim.classes": '["a", "b"]'})).predict([image])
    with pytest.raises(SlimError, match="expected grey or RGB"):
        OnnxModel(with_metadata({"slim.input_shape": "[12]"})).predict([image])


def test_networks_that_are_no_classifiers(tmp_path: Path) -> None:
    export_onnx(nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 3, 3), tmp_path / "map.onnx", mean=[0.5], std=[0.5])
    with pytest.raises(SlimError, match=r"gives \[2, 3, 3\] numbers for an image: expected one for each class"):
        OnnxModel(tmp_path / "map.onnx").predict([np.zeros((3, 3), np.uint8)])
    export_onnx(Weighted(), (torch.zeros(1, 2), torch.zeros(1, 2)), tmp_path / "two.onnx")
    with pytest.raises(SlimError, match="gives 2 outputs"):
        OnnxModel(tmp_path / "two.onnx")


# Providers


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


# The README's ten lines


def test_javascript_example_classifies_a_real_digit(tmp_path: Path) -> None:
    """In node, where there is one and $SLIM_NODE_MODULES is a folder node_modules with onnxruntime-web in it
    (npm install onnxruntime-web). The page and its canvas are stood in for."""
    modules = os.environ.get("SLIM_NODE_MODULES")
    if not modules or shutil.which("node") is None:
        pytest.skip("no node, or no SLIM_NODE_MODULES")
    match = re.search(r"<!-- onnxruntime-web-example -->\n+```js\n(.*?)```", README.read_text(), re.DOTALL)
    assert match, "README.md has no block marked <!-- onnxruntime-web-example -->"
    assert len([line for line in match.group(1).splitlines() if line.strip()]) <= 10
    net, mean, std = digits_network()
    export_onnx(net, torch.zeros(1, 1, 8, 8), tmp_path / "model.onnx", preprocess=True, mean=[mean], std=[std])
    digits = load_digits()
    (tmp_path / "node_modules").symlink_to(Path(modules).resolve())
    for index in (-1, -2, -9):
        grey = np.round(digits.images[index] / 16 * 255).astype(int).ravel()
        pixels = np.stack([grey, grey, grey, np.full(64, 255)], 1).ravel().tolist()
        page = (
            f"const data = Uint8ClampedArray.from({pixels});\n"
            "globalThis.document = { querySelector: () => null };\n"
            "globalThis.OffscreenCanvas = class { getContext() { "
            "return { drawImage() {}, getImageData: () => ({ data }) }; } };\n"
        )
        (tmp_path / "page.mjs").write_text(page)
        (tmp_path / "example.mjs").write_text('import "./page.mjs";\n' + match.group(1))
        done = subprocess.run(["node", "example.mjs"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[-1] == str(digits.target[index])


def test_readme_example_classifies_a_real_digit(tmp_path: Path) -> None:
    digits = load_digits()
    net, mean, std = digits_network()
    match = re.search(r"<!-- onnxruntime-example -->\n+```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert match, "README.md has no block marked <!-- onnxruntime-example -->"
    code = match.group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    path = tmp_path / re.search(r'"([^"]*model\.onnx)"', code).group(1)  # type: ignore[union-attr]
    export_onnx(net, torch.zeros(1, 1, 8, 8), path, classes=CLASSES, mean=[mean], std=[std])
    index = int(re.search(r"images\[(-?\d+)\]", code).group(1))  # type: ignore[union-attr]
    assert index < 0 or index >= 1500  # a digit that the network hasn't seen
    code += "\nimport sys\nassert not {'slim', 'torch', 'onnx'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == CLASSES[digits.target[index]]
