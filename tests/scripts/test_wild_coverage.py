"""`scripts/wild_coverage.py`: a dozen of its networks, from packages that are always here, and its own check."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wild_coverage
from torch import Tensor, nn
from wild_coverage import Row, counts, difference, fit, in_float64, mask, masks_of, part_slim, report, tensors

DOZEN = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:densenet121",
    "timm:resnet18",
    "timm:convmixer_768_32",
    "timm:efficientvit_b0",
    "timm:mobilenetv4_conv_small features_only",
    "timm:mobileone_s0",
    "timm:mobilevit_xxs",
    "timm:repghostnet_050",
)


@pytest.mark.parametrize("name", DOZEN)
def test_networks_that_are_always_here(name: str) -> None:
    row: Row = {}
    part_slim(name, 0.5, row)
    assert row["status"] == "ok", row
    assert row["error"] < 1e-10 and row["verify"] < 1e-10
    assert row["trains"] == "yes"
    assert row["plan_s"] < 20


@dataclass
class Found:
    boxes: Tensor
    more: Any = None


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value


@pytest.mark.parametrize(
    ("holds", "number"),
    [
        (torch.zeros(1), 1),
        ((torch.zeros(1), [torch.zeros(2), None, 3]), 2),
        ({"a": torch.zeros(1), "b": {"c": torch.zeros(1)}}, 2),
        (Found(torch.zeros(1), SimpleNamespace(scores=torch.zeros(1))), 2),
        (Slotted(torch.zeros(1)), 1),
        ("nothing", 0),
    ],
)
def test_tensors_are_found_wherever_they_are(holds: object, number: int) -> None:
    assert len(tensors(holds)) == number


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())


def without(model: nn.Sequential, channels: list[int]) -> nn.Sequential:
    """The network less some channels, cut by hand."""
    kept = [i for i in range(8) if i not in channels]
    thin = copy.deepcopy(model)
    thin[0], thin[1], thin[3] = nn.Conv2d(3, len(kept), 3), nn.BatchNorm2d(len(kept)), nn.Conv2d(len(kept), 4, 3)
    state = {k: v[:, kept] if k == "3.weight" else v if k.startswith("3") or not v.dim() else v[kept]
             for k, v in model.state_dict().items()}  # fmt: skip
    thin.load_state_dict(state)
    return thin


@pytest.mark.parametrize(("cut", "exact"), [([1, 4], True), ([1, 5], False), ([1], False)])
def test_the_check_tells_right_from_wrong(cut: list[int], exact: bool) -> None:
    def check(dtype: torch.dtype) -> tuple[float, float]:
        masked = network().to(dtype)
        mask(masked, masks_of(masked, {"1": [1, 4]}))
        batch = fit(masked, torch.randn(1, 3, 8, 8))
        fitted = network().to(dtype)
        fitted[1].load_state_dict({**masked[1].state_dict(), "weight": fitted[1].weight, "bias": fitted[1].bias})
        return difference(masked, without(fitted, cut), batch)

    assert in_float64(check)["exact"] is exact


def test_a_channel_that_a_layer_makes_is_its_row_and_bias() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 5, 2), nn.Flatten(), nn.Linear(20, 6))
    mask(model, masks_of(model, {"0": [1], "1": [2], "3": [0, 5]}))
    made = nn.Sequential(*model[:2])(torch.randn(1, 3, 2, 2))
    assert (made[:, 2] == 0).all() and (made[:, 1] != 0).any()
    weights, bias = [layer.get_parameter("weight") for layer in (model[0], model[3])], model[0].get_parameter("bias")
    assert (weights[0][1] == 0).all() and bias[1] == 0
    assert (weights[1][[0, 5]] == 0).all() and (weights[1][1] != 0).any()


def test_a_process_that_dies_leaves_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(name: str, ratio: float, row: Row) -> None:
        row["stage"] = "plan"
        while True:
            pass

    monkeypatch.setitem(wild_coverage.NETWORKS, "made:small", lambda: (network(), torch.randn(1, 3, 8, 8)))
    monkeypatch.setitem(wild_coverage.PARTS, "slim", endless)
    row = wild_coverage.result("made:small", "slim", 0.5, seconds=1)
    assert row["status"] == "timeout" and row["says"].startswith("in plan")


def test_the_table_counts_what_the_rows_say() -> None:
    rows: list[Row] = [
        {
            "network": "a:x",
            "part": "slim",
            "status": "ok",
            "ratio": 0.5,
            "error": 1e-15,
            "verify": 1e-15,
            "plan_s": 1.0,
        },
        {
            "network": "a:y",
            "part": "slim",
            "status": "short",
            "ratio": 0.3,
            "error": 1e-15,
            "verify": "no",
            "plan_s": 25.0,
        },
        {"network": "b:z", "part": "slim", "status": "refused", "says": "all channels are frozen"},
        {"network": "b:w", "part": "slim", "status": "not built", "says": "no such module"},
        {"network": "a:x", "part": "torch-pruning", "status": "differs", "ratio": 0.5},
    ]
    assert counts("slim", rows[:4]) == ["slim", 1, 1, 1, 0, 0, 0, 1]
    text = report(rows, 0.5)
    for line in ("3 networks of 2 packages", "planned and exact: 2 of 3", "within a point of the request: 1 of 3",
                 "plans over 20 s: 1 a:y", "that were planned: 1 of 2"):  # fmt: skip
        assert line in text
