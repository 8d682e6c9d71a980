"""Models that keep what deepcopy refuses are copied, planned and proved all the same."""

import functools
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import slim
from slim.trace.copy import clone, stored_tensors

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def body() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    nn.init.uniform_(made[1].weight, 0.1, 1)  # type: ignore[arg-type]
    return made


def keeps_features() -> nn.Module:
    model = body()
    model[2].register_forward_hook(lambda module, args, out: setattr(module, "last", out))
    return model


def keeps_features_in_a_list() -> nn.Module:
    model: Any = body()
    model[2].seen = []
    model[2].register_forward_hook(lambda module, args, out: module.seen.append({"out": out}))
    return model


def keeps_features_outside() -> nn.Module:
    features: dict[str, Tensor] = {}
    model = body()
    model[2].register_forward_hook(lambda module, args, out: features.update(last=out))
    return model


def holds_a_lock() -> nn.Module:
    model: Any = body()
    model.lock = threading.Lock()
    model.worker = types.SimpleNamespace(lock=threading.Lock(), owner=model)
    model.library = torch
    return model


def forward_in_a_closure() -> nn.Module:
    model = body()
    inner = model.forward
    model.forward = lambda x: 2 * inner(x)  # type: ignore[method-assign]
    return model


def forward_in_a_partial() -> nn.Module:
    model = body()

    def forward(inner: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return 2 * inner(x)

    model.forward = functools.partial(forward, model.forward)  # type: ignore[method-assign]
    return model


def forward_of_a_layer_replaced() -> nn.Module:
    model: Any = body()
    norm = model[1]
    norm.forward = lambda x, after=torch.relu: after(nn.BatchNorm2d.forward(norm, x))
    return model


def masked_weights() -> nn.Module:
    model = body()
    prune.random_unstructured(model[0], "weight", amount=0.3)
    return model


def compiled_in_place() -> nn.Module:
    model = body()
    model.compile(backend="eager")
    return model


MODELS = [
    *(keeps_features, keeps_features_in_a_list, keeps_features_outside, holds_a_lock, forward_in_a_closure),
    *(forward_in_a_partial, forward_of_a_layer_replaced),
    *(masked_weights, compiled_in_place),
]


@torch.no_grad()
def difference(model: nn.Module, thin: nn.Module, removed: dict[str, list[int]]) -> float:
    """Between the thin network and the model, which is masked in place: no copy of slim's has a part in this truth."""
    norm = model.get_submodule("1")
    for parameter in (norm.weight, norm.bias):
        parameter[removed["1"]] = 0  # type: ignore[operator]
    expected, found = model.double().eval()(X.double()), thin.double().eval()(X.double())
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("trained", [False, True], ids=["new", "after a training step"])
@pytest.mark.parametrize("make", MODELS)
def test_it_is_planned_and_proved(make: Callable[[], nn.Module], trained: bool) -> None:
    model = make()
    if trained and make is not compiled_in_place:
        model(X).square().sum().backward()
    plan = slim.plan(model, X, ratio=0.5)
    assert plan.ratio_achieved == 0.5
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert {module for module in thin.modules()}.isdisjoint(model.modules())
    assert difference(model, thin, plan.removed) < 1e-10


@pytest.mark.parametrize("make", MODELS)
def test_it_goes_through_files(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    if make is not compiled_in_place:
        model(X).square().sum().backward()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model).eval()
    loaded = slim.load(slim.save(tmp_path / "thin.safetensors", thin, plan), model)
    whole = slim.load(slim.save(tmp_path / "whole.safetensors", model), model)
    wanted = thin(X), model.eval()(X)
    with torch.no_grad():
        for parameter in (*model.parameters(), *thin.parameters()):  # what was loaded has weights of its own
            parameter.zero_()
    assert torch.equal(loaded(X), wanted[0]) and torch.equal(whole(X), wanted[1])


@pytest.mark.parametrize("make", [keeps_features_in_a_list, holds_a_lock, forward_in_a_closure, masked_weights])
def test_it_is_exported(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make()
    model(X).square().sum().backward()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    thin(X).square().sum().backward()
    assert slim.export_onnx(thin, X, tmp_path / "thin.onnx").max_relative_error < 1e-4


@pytest.mark.parametrize("make", [keeps_features])
def test_nothing_cached_keeps_its_old_width(make: Callable[[], nn.Module]) -> None:
    model = make()
    model(X).sum().backward()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    had, has = dict(stored_tensors(model)), dict(stored_tensors(thin))
    assert had.keys() == has.keys() and had
    for path, tensor in has.items():
        assert 8 in had[path].shape and 8 not in tensor.shape, path
        assert not tensor.requires_grad or tensor.is_leaf
    fresh = make()  # one that never ran has none of it to thin
    assert not any(8 in t.shape for _, t in stored_tensors(plan.apply(fresh)))


class CachedForInference(nn.Module):
    """LeViT: what is added for each head is worked out once, until the network is trained again."""

    def __init__(self) -> None:
        super().__init__()
        self.biases, self.cached = nn.Parameter(torch.randn(8, 3)), dict[str, Tensor]()

    def train(self, mode: bool = True) -> "CachedForInference":
        if mode:
            self.cached = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not self.cached:
            self.cached["all"] = self.biases[:, [0, 2, 2, 1]]
        biases = self.biases[:, [0, 2, 2, 1]] if self.training else self.cached["all"]
        return x * biases.mean(1)[:, None, None]


@pytest.mark.parametrize("train", [True, False], ids=["dropped by train()", "kept"])
def test_what_is_cached_in_a_dict_for_inference_keeps_no_old_width(train: bool, monkeypatch: Any) -> None:
    if not train:
        monkeypatch.delattr(CachedForInference, "train")
    model = body().insert(2, CachedForInference()).eval()
    with torch.no_grad():
        model(X)
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    assert plan.ratio_achieved == 0.5 and not thin.training
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert difference(model, thin, plan.removed) < 1e-6  # what is cached is in float32


def test_planning_leaves_what_hooks_kept() -> None:
    features: dict[str, Tensor] = {}
    model = body()
    model[2].register_forward_hook(lambda module, args, out: features.update(last=out))
    model(X)
    before = features["last"]
    slim.plan(model, X, ratio=0.5)
    assert features.keys() == {"last"} and features["last"] is before


def test_what_can_not_be_copied_at_all_is_named() -> None:
    class Stubborn(nn.ReLU):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise TypeError("one of a kind")

    model = body()
    model[2] = nn.Sequential(Stubborn())
    with pytest.raises(slim.SlimError, match=r"module '2\.0' can't be copied: TypeError: one of a kind"):
        slim.plan(model, X)


def test_a_copy_shares_what_the_original_shares() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.same = [model[0].weight, model[1], {"again": model[0]}]
    copied: Any = clone(model)
    assert copied[1].weight is copied[0].weight is copied.same[0]
    assert copied.same[1] is copied[1] and copied.same[2]["again"] is copied[0]
    assert copied[0].weight is not model[0].weight


def test_what_modules_hold_is_tensors_alone() -> None:
    """Arrays take no part in what torch computes: a copy of one would be listed that nothing reads."""
    model: Any = body()
    held = torch.zeros(8)
    model.table, model.held = [np.zeros(8), {"deep": np.zeros((8, 8))}], [held, np.zeros(8)]
    assert [(path, tensor is held) for path, tensor in stored_tensors(model)] == [("held[0]", True)]
