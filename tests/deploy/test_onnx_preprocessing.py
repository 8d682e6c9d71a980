"""Preprocessing in the graph, images of any size, the comparison in float64."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from deploy.onnx_networks import METADATA, ops, shake, softmax
from torch import nn

from slim.deploy.onnx import translate
from slim.deploy.onnx.predict import OnnxModel
from slim.deploy.onnx.write import ExportReport, export_onnx
from slim.errors import SlimError


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(6), nn.Hardswish())
    return shake(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10))).eval()


@pytest.fixture(scope="module")
def whole(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """With everything that can be put in, checked in float64 too."""
    path = tmp_path_factory.mktemp("whole") / "whole.onnx"
    return export_onnx(
        small, torch.zeros(1, 3, 8, 8), path, dynamic_size=True, preprocess=True, float64=True, metadata=METADATA
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
    export_onnx(small, torch.zeros(1, 3, 8, 8), plain, metadata=METADATA)
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
    translated = translate.Graph.translated

    def wrong(graph: translate.Graph, net: nn.Module, *, optimize: bool) -> object:
        made = translated(graph, net, optimize=optimize)
        proto = made.model_proto
        for node in proto.graph.node:
            if node.op_type == "BatchNormalization":
                next(a for a in node.attribute if a.name == "epsilon").f += 1e-5
        return made if optimize else SimpleNamespace(model_proto=proto)

    monkeypatch.setattr(translate.Graph, "translated", wrong)
    with pytest.raises(SlimError, match=r"^a.onnx: before optimisation, the graph differs .* in float64"):
        export_onnx(small, torch.zeros(1, 3, 8, 8), tmp_path / "a.onnx", float64=True)
    assert not (tmp_path / "a.onnx").exists()
