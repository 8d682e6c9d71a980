"""The recipe for Ultralytics' YOLO, against the real package, on rendered shapes."""

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from yolo_shapes import classification, detection

import slim

pytestmark = pytest.mark.wild
ultralytics = pytest.importorskip("ultralytics")
sys.path.insert(0, str(Path(__file__).parents[2] / "docs" / "recipes"))

QUIET: dict[str, Any] = {
    "imgsz": 64, "batch": 16, "workers": 0, "device": "cpu", "plots": False, "verbose": False, "exist_ok": True,
}  # fmt: skip


def size(yolo: Any) -> int:
    return sum(p.numel() for p in yolo.model.parameters())


def data_for(config: str, folder: Path) -> str:
    if "-cls" in config:
        return classification(folder, 32, 16, 64)
    return detection(
        folder,
        32,
        16,
        64,
        corners="outline" if "-seg" in config or "-obb" in config else "points" if "-pose" in config else "",
    )


@pytest.mark.parametrize(
    "config, optimizer",
    [
        ("yolov8n.yaml", "auto"),
        ("yolo11n.yaml", "MuSGD"),  # which "auto" is in trainings of more than 10,000 steps
        ("yolo26n.yaml", "auto"),
        ("yolov8n-seg.yaml", "auto"),
        ("yolov8n-pose.yaml", "auto"),
        ("yolov8n-obb.yaml", "auto"),
        ("yolov8n-cls.yaml", "auto"),
    ],
)
def test_a_thin_network_trains_validates_exports_and_loads(
    config: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Any = importlib.import_module("ultralytics_yolo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    data = data_for(config, tmp_path / "data")
    settings = {**QUIET, "data": data, "project": str(tmp_path / "runs")}
    yolo = ultralytics.YOLO(config)
    recipe.press(yolo, 1e-2)
    before = [m.weight.abs().mean().item() for m in yolo.model.modules() if isinstance(m, nn.BatchNorm2d)]
    yolo.train(epochs=1, val=False, amp=False, optimizer=optimizer, **settings)
    assert not any(call.__module__ == recipe.__name__ for calls in yolo.callbacks.values() for call in calls)
    images = torch.rand(32, 3, 64, 64)
    thin, plan = recipe.prune(yolo, slim.Flops(0.5), images)
    assert before and size(thin) < 0.75 * size(yolo)
    assert plan.totals["flops"][1] <= 0.5 * plan.totals["flops"][0]
    assert 0 <= recipe.validate(thin, **settings).fitness <= 2  # of boxes and masks
    tuned = recipe.with_network(thin, copy.deepcopy(thin.model))
    tuned.train(epochs=1, val=False, amp=False, **settings)
    assert size(tuned) == size(thin)  # YOLO.train alone builds it at full size
    assert any(not torch.equal(a, b) for a, b in zip(tuned.model.parameters(), thin.model.parameters()))
    recipe.save(tmp_path / "thin.safetensors", tuned, [plan])
    loaded = recipe.load(tmp_path / "thin.safetensors", ultralytics.YOLO(config))
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), tuned.model.parameters()))
    assert loaded.names == {0: "ellipse", 1: "rectangle"}
    with torch.no_grad():
        ours, theirs = (each.model.float().eval()(images[:2])[0] for each in (loaded, tuned))
    assert torch.equal(*(torch.as_tensor(each[0] if isinstance(each, tuple) else each) for each in (ours, theirs)))
    written = loaded.export(format="onnx", imgsz=64, verbose=False)
    assert Path(written).stat().st_size < 4.5 * size(yolo) * 0.75


def test_a_thin_training_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: Any = importlib.import_module("ultralytics_yolo")
    monkeypatch.chdir(tmp_path)
    settings = {**QUIET, "data": data_for("", tmp_path / "data"), "project": str(tmp_path / "runs"), "amp": False}
    thin, _ = recipe.prune(ultralytics.YOLO("yolov8n.yaml"), slim.Flops(0.5), torch.rand(32, 3, 64, 64))
    whole = size(thin)

    def cut_off(trainer: Any) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    thin.add_callback("on_model_save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        thin.train(epochs=3, **settings)
    thin.clear_callback("on_model_save")
    thin.train(resume=str(tmp_path / "runs" / "train" / "weights" / "last.pt"), device="cpu", workers=0)
    assert size(thin) == whole and thin.trainer.epoch == 2
