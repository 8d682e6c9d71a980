"""Weights under a spectral norm lose channels: what a thin network divides by is what its masked original does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import randomise
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as parametrized

import slim
from slim.errors import SlimError

old = torch.nn.utils.spectral_norm
X, ROWS, S = torch.randn(2, 3, 8, 8), torch.randn(4, 6), torch.randn(2, 3, 16)
Norm = Callable[[nn.Module], nn.Module]


def between(norm: Norm, *layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*(norm(layer) if hasattr(layer, "weight") else layer for layer in layers))


MODELS: dict[str, tuple[Callable[[Norm], nn.Module], Tensor]] = {
    "convolutions": (
        lambda n: between(n, nn.Conv2d(3, 16, 3), nn.LeakyReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(), nn.Conv2d(12, 2, 1)),
        X,
    ),
    "linear": (lambda n: between(n, nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2)), ROWS),
    "in one dimension": (lambda n: between(n, nn.Conv1d(3, 16, 5, bias=False), nn.ReLU(), nn.Conv1d(16, 2, 3)), S),
    "transposed": (
        lambda n: between(n, nn.ConvTranspose2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 2, 3)),
        X,
    ),
    "in groups": (
        lambda n: between(n, nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.Conv2d(16, 2, 1)),
        X,
    ),
    "depthwise": (
        lambda n: between(n, nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 2, 1)),
        X,
    ),
    "BatchNorm after it": (
        lambda n: nn.Sequential(n(nn.Conv2d(3, 16, 3)), nn.BatchNorm2d(16), nn.ReLU(), n(nn.Conv2d(16, 2, 3))),
        X,
    ),
    "of the reader alone": (
        lambda n: nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), n(nn.Conv2d(16, 2, 3))),
        X,
    ),
    "of the maker alone": (lambda n: nn.Sequential(n(nn.Conv2d(3, 16, 3)), nn.ReLU(), nn.Conv2d(16, 2, 3)), X),
    "flattened on the way": (
        lambda n: nn.Sequential(n(nn.Conv2d(3, 16, 3)), nn.ReLU(), nn.Flatten(), n(nn.Linear(16 * 36, 3))),
        X,
    ),
}


def masked(model: nn.Module, masks: dict[str, dict[int, list[int]]]) -> nn.Module:
    """Zeros where the plan says, by the names of tensors."""
    copied = copy.deepcopy(model)
    tensors = dict(copied.named_parameters()) | dict(copied.named_buffers())
    with torch.no_grad():
        for name, dims in masks.items():
            for dim, indices in dims.items():
                tensors[name].index_fill_(dim, torch.tensor(indices), 0)
    return copied


@pytest.mark.parametrize("norm", [old, parametrized], ids=["old", "parametrized"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_thin_networks_are_exact_and_train(name: str, norm: Norm) -> None:
    torch.manual_seed(0)
    build, x = MODELS[name]
    model = randomise(build(norm)).double().eval()
    x = x.double()
    model(x)  # the old kind keeps what it computed
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = slim.plan(model, x, ratio=0.5, round_to=1)
    thin = plan.apply(model)
    assert plan.ratio_achieved > 0.45
    expected, found = masked(model, plan.masks)(x), thin(x)
    assert float((expected - found).abs().max() / expected.abs().max()) < 1e-12
    assert slim.verify(model, thin, plan, x) < 1e-10
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.enable_grad():
        thin.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in thin.parameters())


@pytest.mark.parametrize("norm", [old, parametrized], ids=["old", "parametrized"])
def test_in_float32_too_and_through_a_file(norm: Norm, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = randomise(MODELS["convolutions"][0](norm)).eval()
    plan = slim.plan(model, X, ratio=0.5, round_to=1)
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    slim.save(tmp_path / "thin.safetensors", thin, plan)
    loaded = slim.load(tmp_path / "thin.safetensors", model=MODELS["convolutions"][0](norm)).eval()
    torch.testing.assert_close(loaded(X), thin(X))


def test_a_norm_of_zero_is_named() -> None:
    model: Any = MODELS["of the reader alone"][0](parametrized).eval()
    plan = slim.plan(model, X, ratio=0.5, round_to=1, score=slim.Magnitude())
    with torch.no_grad():
        model[3].parametrizations.weight.original.zero_()
    with pytest.raises(SlimError, match=r"spectral norm of 3 is 0.*keep='3'"):
        plan.apply(model)
