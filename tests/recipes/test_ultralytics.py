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
        folder, 32, 16, 64, corners="outline" if "-seg" in config else "points" if "-pose" in config else ""
    )


@pytest.mark.parametrize(
    "config",
    ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml", "yolov8n-seg.yaml", "yolov8n-pose.yaml", "yolov8n-cls.yaml"],
)
def test_a_thin_network_trains_validates_exports_and_loads(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Any = importlib.import_module("ultralytics_yolo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("YOLO_AUTOINSTALL", "false")
    data = data_for(config, tmp_path / "data")
    settings = {**QUIET, "data": data, "project": str(tmp_path / "runs")}
    yolo = ultralytics.YOLO(config)
    recipe.press(yolo, 1e-2)
    before = [m.weight.abs().mean().item() for m in yolo.model.modules() if isinstance(m, nn.BatchNorm2d)]
    yolo.train(epochs=1, val=False, amp=False, **settings)
    images = torch.rand(32, 3, 64, 64)
    thin, plan = recipe.prune(yolo, slim.Flops(0.5), images)
    assert before and size(thin) < 0.75 * size(yolo)
    assert plan.totals["flops"][1] <= 0.5 * plan.totals["flops"][0]
    assert 0 <= recipe.validate(thin, **settings).fitness <= 2  # of boxes and masks
    tuned = recipe.finetune(thin, epochs=1, val=False, amp=False, **settings)
    assert size(tuned) == size(thin)  # YOLO.train alone builds it at full size
    assert any(not torch.equal(a, b) for a, b in zip(tuned.model.parameters(), thin.model.parameters()))
    recipe.save(tmp_path / "thin.safetensors", tuned, [plan])
    whole = recipe.with_network(ultralytics.YOLO(config), copy.deepcopy(yolo.model))
    loaded = recipe.load(tmp_path / "thin.safetensors", whole)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), tuned.model.parameters()))
    written = recipe.with_network(tuned, copy.deepcopy(tuned.model)).export(format="onnx", imgsz=64, verbose=False)
    assert Path(written).stat().st_size < 4.5 * size(yolo) * 0.75
