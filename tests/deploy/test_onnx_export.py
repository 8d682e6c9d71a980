"""An exported file against the network: values, names, metadata."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deploy.onnx_networks import CLASSES, ConvNet, Weighted, ops, run_raw, shake
from torch import nn

import slim
from slim.deploy.onnx.write import export_onnx


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 32])
def test_onnxruntime_agrees_with_pytorch(net: nn.Module, exported: tuple[Path, float], batch_size: int) -> None:
    images = torch.randn(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(batch_size))
    with torch.no_grad():
        expected = copy.deepcopy(net).double().eval()(images.double()).numpy()
    actual = run_raw(exported[0], images.numpy())
    assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-5
    assert 0 < exported[1] < 1e-5


def without_shapes(path: Path) -> list[str]:
    """Return the kinds of a file's nodes, without those that torch 2.8 exports to compute the sizes of Flatten."""
    return [kind for kind in ops(path) if kind not in ("Shape", "Concat")]


def test_batchnorm_is_folded_and_no_other_node_is_added(exported: tuple[Path, float]) -> None:
    found = without_shapes(exported[0])
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
    assert without_shapes(tmp_path / "model.onnx") == ["Conv", "Reshape"]


def test_model_is_untouched(net: nn.Module, example: torch.Tensor, tmp_path: Path) -> None:
    model: Any = copy.deepcopy(net).to(memory_format=torch.channels_last).double()
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
