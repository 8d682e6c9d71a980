"""slim-prune model.onnx: a file of any maker and a folder of images, no run."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from deploy.onnx_networks import ConvNet, shake
from onnx import TensorProto, helper
from PIL import Image
from workbench.commands import call, contents

import slim
from slim.errors import SlimError
from slim.workbench.run import onnx_files

FEW = ["--bench.runs", "2", "--bench.warmup", "1", "--bench.batch_sizes", "[1]", "--bench.provider", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, and images beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("given")
    slim.export_onnx(shake(ConvNet()), torch.randn(2, 3, 8, 8), folder / "model.onnx")
    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]  # as others leave it
    onnx.save(model, folder / "model.onnx")
    random = np.random.default_rng(0)
    for i in range(24):
        (folder / "images" / str(i % 3)).mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (11, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / str(i % 3) / f"{i}.png")
    return folder


def test_a_thin_file_and_its_plan_lie_beside_the_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "model.onnx"
    call("prune", str(file), "--data.root", str(folder / "images"), "--flops", "0.6", "--round_to", "1", *FEW)
    said = capsys.readouterr().out
    assert "normalised as ImageNet's are" in said and "recovered by" in said and "held-out images" in said
    assert f"{folder / 'model.thin.onnx'} and {folder / 'model.thin.json'}; next: slim-bench" in said.replace("\n", " ")
    plan = slim.PruningPlan.load(folder / "model.thin.json")
    assert plan.totals["flops"][1] <= 0.6 * plan.totals["flops"][0]
    thin = slim.read_onnx(folder / "model.thin.onnx")
    expected = plan.apply(slim.read_onnx(file))
    shapes = sorted(tuple(p.shape) for p in expected.parameters() if p.dim() > 1)
    assert sorted(tuple(p.shape) for p in thin.parameters() if p.dim() > 1) == shapes


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 11, 9), 1), ((4, 11, 9, 3), 3)], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8], ids=["normalised", "raw"])
def test_images_lie_as_the_file_takes_them(
    shape: tuple[int, ...], axis: int, kind: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, out = (helper.make_tensor_value_info(name, kind, ["n", *shape[1:]]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [entry], [out])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "x.onnx")
    seen: list[np.ndarray] = []

    def prune(_: Path, batches: list[np.ndarray], *__: Any, **___: Any) -> None:
        seen.extend(batches)
        raise SlimError("seen")

    monkeypatch.setattr(onnx_files, "prune_onnx", prune)
    given = ["--data.root", str(folder / "images"), "--mean", "0,0,0", "--std", "0.5,0.5,0.5"]
    with pytest.raises(SystemExit):
        call("prune", str(tmp_path / "x.onnx"), *given)
    found = np.moveaxis(np.concatenate(seen), axis, 3)
    files = sorted((folder / "images").rglob("*.png"))
    expected = np.stack([np.asarray(Image.open(file)) for file in files])
    expected = expected if kind == TensorProto.UINT8 else expected.astype(np.float32) / 255 / 0.5
    assert found.dtype == expected.dtype
    assert np.allclose(np.sort(found.reshape(24, -1), 0), np.sort(expected.reshape(24, -1), 0), atol=1e-6)


def test_a_dry_run_and_mistakes_write_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, before = folder / "model.onnx", contents(folder)
    call("prune", str(file), "--dry-run", "--round_to", "1", "--flops", "0.6")
    assert "the size of filters decides" in capsys.readouterr().out
    images = ["--data.root", str(folder / "images")]
    (folder / "images" / "0").joinpath("readme.txt").write_text("no image")
    for words, message in (
        ([str(folder / "other.onnx")], "no file"),
        ([str(file), "--data.root", str(folder / "nowhere")], "nowhere': expected one of images"),
        ([str(file), *images, "--mean", "0,0,0"], "--mean and --std: expected both"),
        ([str(file), *images, "--mean", "0,x,0", "--std", "1,1,1"], "--mean 0,x,0: expected numbers"),
        ([str(file), *images, "--mean", "0", "--std", "1"], "expected 3, one a channel"),
        ([str(file), *images, "--output", str(file)], "the name of another file"),
        ([str(file), *images, "--calibration_images", "9"], "9 calibration images: expected at least 12"),
    ):
        with pytest.raises(SystemExit) as stop:
            call("prune", *words, *FEW)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.strip().count("\n") == 0, (words, error)
    (folder / "images" / "0" / "readme.txt").unlink()
    assert contents(folder) == before
