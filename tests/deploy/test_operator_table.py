"""The exporter's table of operators: made once for each opset, the same as a new one, and nobody else's."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

import slim
from slim.deploy.onnx import operator_table
from slim.errors import SlimError

X = torch.zeros(1, 3, 8, 8)


class Refused(nn.Module):
    """A network that no exporter takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def written(path: Path, opset: int = 20) -> bytes:
    torch.manual_seed(0)
    slim.export_onnx(nn.Conv2d(3, 4, 3), X, path, opset=opset)
    return path.read_bytes()


def test_files_are_those_of_a_new_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = [written(tmp_path / "a.onnx") for _ in range(2)]
    monkeypatch.setattr(operator_table, "table", None)
    assert {written(tmp_path / "a.onnx")} == set(again)


def test_each_opset_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, opsets = ONNXRegistry.from_torchlib, []

    def noted(**settings: Any) -> Any:
        opsets.append(settings["opset_version"])
        return made(**settings)

    monkeypatch.setattr(operator_table, "table", functools.cache(noted))
    for opset in (20, 18, 20, 18):
        written(tmp_path / "a.onnx", opset)
    assert opsets == [20, 18]


def test_others_make_their_own(tmp_path: Path) -> None:
    written(tmp_path / "a.onnx")
    with pytest.raises(SlimError):
        slim.export_onnx(Refused(), X, tmp_path / "b.onnx")
    first, second = (ONNXRegistry.from_torchlib() for _ in range(2))
    assert first is not second and first.functions is not second.functions
