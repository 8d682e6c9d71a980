"""What results look like in Python and in a notebook."""

import html
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slim
from slim.prune.sensitivity import Sensitive, Sensitivity


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    for layer in model:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.1, 1)
    return model


X: Tensor = torch.randn(4, 3, 12, 12)


def _sparsity() -> Any:
    model = _network()
    sparsity = slim.sparsify(model, torch.optim.SGD(model.parameters(), 0.1), slim.L1(1e-3))
    with torch.no_grad():
        model.get_parameter("1.weight")[:6] = 0  # of the 24
    return sparsity


def _plan() -> Any:
    return slim.plan(_network(), X, ratio=0.25, round_to=1)


def _recovery() -> Any:
    model = _network()
    plan = slim.plan(model, X, ratio=0.25, round_to=1)
    return slim.recover(model, plan.apply(model), plan, torch.randn(32, 3, 12, 12))


def _proof() -> Any:
    model = _network()
    plan = slim.plan(model, X, ratio=0.25, round_to=1)
    return slim.verify(model, plan.apply(model), plan, X)


def _compressed() -> Any:
    images = [torch.randn(16, 3, 12, 12) for _ in range(2)]
    return slim.compress(_network(), X, slim.Channels(0.75), images, evaluate=lambda model: 0.5)


def _sensitivity() -> Any:
    return Sensitivity("accuracy", 0.9, [0.5], [Sensitive(["<conv>"], 8, [0.8], [])])


CASES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "Sparsity": (_sparsity, ["L1(strength=0.001)", "24 values of 2 layers", "step 0", "25.0% near zero"]),
    "PruningPlan": (_plan, ["25.0% of all BatchNorm channels go", "of the flops stay"]),
    "Recovery": (_recovery, ["on 32 images"]),
    "Proof": (_proof, ["relative error", "layers"]),
    # in steps that suit this machine, of 8 or of 16 channels
    "Compressed": (_compressed, ["% of all BatchNorm channels go", "metric 0.5 → 0.5"]),
    "Sensitivity": (_sensitivity, ["accuracy of 1 groups of layers"]),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line(name: str) -> None:
    make, expected = CASES[name]
    line = repr(make())
    assert line.startswith(f"<{name}: ") and "\n" not in line and len(line) < 300
    assert [part for part in expected if part not in line] == []


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"Proof"}))  # which is a number
def test_notebooks_show_all_of_it_escaped(name: str) -> None:
    result = CASES[name][0]()
    shown = result._repr_html_()
    assert "<conv>" not in shown
    if name != "Sensitivity":  # whose cells have colours
        assert html.escape(str(result)) in shown
