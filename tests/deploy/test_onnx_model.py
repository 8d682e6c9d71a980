"""OnnxModel on arrays, and files that it must refuse."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from deploy.onnx_networks import CLASSES, Weighted
from torch import nn

from slim.deploy.onnx.predict import OnnxModel
from slim.deploy.onnx.write import export_onnx
from slim.errors import SlimError


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
    several = OnnxModel(with_metadata({"slim.task": "multilabel"}))
    logits = several((image[None].transpose(0, 3, 1, 2) / np.float32(255) - 0.5) / 0.25)[0]
    with_metadata({"slim.task": "multilabel", "slim.mean": "[0.5, 0.5, 0.5]", "slim.std": "[0.25, 0.25, 0.25]"})
    [found] = OnnxModel(several.path).predict([image], top=10)
    assert dict(found) == pytest.approx(dict(zip(CLASSES, 1 / (1 + np.exp(-logits)))), abs=1e-5)
    with pytest.raises(SlimError, match="is for task 'regression', and gives no classes to predict"):
        OnnxModel(with_metadata({"slim.task": "regression"})).predict([image])
    foreign = OnnxModel(with_metadata(dict.fromkeys(kept)))
    assert foreign(np.zeros((2, 3, 8, 8), np.float32)).shape == (2, 10)  # arrays need no metadata
    with pytest.raises(SlimError, match=r"model.onnx has no slim.input_shape, slim.mean, slim.std in its metadata"):
        foreign.predict([image])
    for key, text in [
        ("mean", "[0.1,"), ("mean", '["a"]'), ("mean", "[NaN, 0, 0]"), ("mean", "[1e999, 0, 0]"), ("mean", "[true]"),
        ("mean", "[]"), ("mean", "0.5"), ("std", "[0, 1, 1]"), ("std", "[-1, 1, 1]"), ("classes", "[1, 2]"),
        ("classes", '{"a": 1}'), ("input_shape", "[3, 8, 0]"), ("input_shape", "[3, 8, 1e9]"),
        ("input_shape", "[3, 8, 99999999999]"), ("mean", "[" * 100_000),
    ]:  # fmt: skip
        with pytest.raises(
            SlimError, match=rf"model.onnx has metadata slim.{key} = .*: expected a JSON list of"
        ) as one:
            OnnxModel(with_metadata({f"slim.{key}": text}))
        assert "\n" not in str(one.value) and len(str(one.value)) < 200
    with pytest.raises(SlimError, match=r"slim.std of 2 numbers: expected one for each of the 3 channels"):
        OnnxModel(with_metadata({"slim.std": "[1, 1]"})).predict([image])
    with pytest.raises(SlimError, match="gives values that aren't finite"):
        OnnxModel(with_metadata({"slim.std": "[1e-308, 1, 1]"})).predict([image])
    with pytest.raises(SlimError, match="of its 2 classes"):
        OnnxModel(with_metadata({"slim.classes": '["a", "b"]'})).predict([image])
    with pytest.raises(SlimError, match="expected grey or RGB"):
        OnnxModel(with_metadata({"slim.input_shape": "[12]"})).predict([image])


def test_networks_that_are_no_classifiers(tmp_path: Path) -> None:
    export_onnx(
        nn.Conv2d(1, 2, 1), torch.zeros(1, 1, 3, 3), tmp_path / "map.onnx", metadata={"mean": [0.5], "std": [0.5]}
    )
    with pytest.raises(SlimError, match=r"gives \[2, 3, 3\] numbers for an image: expected one for each class"):
        OnnxModel(tmp_path / "map.onnx").predict([np.zeros((3, 3), np.uint8)])
    export_onnx(Weighted(), (torch.zeros(1, 2), torch.zeros(1, 2)), tmp_path / "two.onnx")
    with pytest.raises(SlimError, match="gives 2 outputs"):
        OnnxModel(tmp_path / "two.onnx")
