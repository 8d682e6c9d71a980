"""What is left of tensors and layers, layer type by layer type, and plans that don't fit."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.prune.rebuild import Change, kept, rebuild, resize, set_sizes, take_over, thin_tensor
from slim.trace.codes import NUMBERED
from slim.trace.copy import named_modules

WHOLE = torch.arange(24.0).view(2, 3, 4)


@pytest.mark.parametrize(
    ("cuts", "left"),
    [
        ({}, WHOLE),
        ({0: [1]}, WHOLE[:1]),
        ({2: [0, 3]}, WHOLE[:, :, 1:3]),
        ({0: [0], 1: [2]}, WHOLE[1:, :2]),
        ({1: []}, WHOLE),
        ({1: [0, 1, 2]}, WHOLE[:, :0]),
        ({3: [0]}, WHOLE),  # of a state that isn't as it was planned: it is left as it is
        ({1: [3]}, WHOLE),
        ({1: [2]}, WHOLE[:, :2]),
    ],
)
def test_what_is_left_of_a_tensor(cuts: dict[int, list[int]], left: Tensor) -> None:
    found = thin_tensor(WHOLE, cuts)
    assert torch.equal(found, left) and found.is_contiguous() and found.dtype == WHOLE.dtype
    if all(d < 3 and max(gone, default=0) < WHOLE.shape[d] for d, gone in cuts.items()):
        assert thin_tensor(WHOLE.to("meta"), cuts).shape == left.shape
    assert kept(5, [0, 3]).tolist() == [1, 2, 4] and kept(2, []).tolist() == [0, 1]


def test_indices_are_numbered_anew() -> None:
    order = torch.tensor([4, 0, 5, 2])
    assert thin_tensor(order, {0: [1], NUMBERED: [0, 3]}).tolist() == [2, 3, 1]
    assert thin_tensor(order, {NUMBERED: [1]}).tolist() == [3, 0, 4, 1]


@pytest.mark.parametrize("rank", [4, 5])
def test_memory_formats_stay(rank: int) -> None:
    shape, formats = (3, 4, 2, 2, 2)[:rank], {4: torch.channels_last, 5: torch.channels_last_3d}
    tensor = torch.randn(shape).to(memory_format=formats[rank])
    found = thin_tensor(tensor, {0: [1], 1: [0]})
    assert found.is_contiguous(memory_format=formats[rank]) and not found.is_contiguous()
    assert torch.equal(found, tensor[[0, 2]][:, 1:]) and thin_tensor(torch.randn(shape), {0: [1]}).is_contiguous()


Layer = tuple[Callable[[], nn.Module], dict[str, dict[int, list[int]]], dict[str, Any]]
LAYERS: dict[str, Layer] = {
    "linear": (
        lambda: nn.Linear(4, 3), {"weight": {0: [1], 1: [0, 2]}, "bias": {0: [1]}},
        {"in_features": 2, "out_features": 2},
    ),
    "convolution": (
        lambda: nn.Conv2d(4, 6, 3), {"weight": {0: [1], 1: [0, 2]}, "bias": {0: [1]}},
        {"in_channels": 2, "out_channels": 5, "groups": 1},
    ),
    "in groups": (
        lambda: nn.Conv2d(4, 6, 3, groups=2), {"weight": {0: [0, 3], 1: [1]}, "bias": {0: [0, 3]}},
        {"in_channels": 2, "out_channels": 4, "groups": 2},
    ),
    "depthwise": (
        lambda: nn.Conv2d(4, 4, 3, groups=4), {"weight": {0: [0]}, "bias": {0: [0]}},
        {"in_channels": 3, "out_channels": 3, "groups": 3},
    ),
    "depthwise, two of each": (
        lambda: nn.Conv2d(4, 8, 3, groups=4), {"weight": {0: [0, 1]}, "bias": {0: [0, 1]}},
        {"in_channels": 3, "out_channels": 6, "groups": 3},
    ),
    "of one channel": (
        lambda: nn.Conv2d(1, 4, 3), {"weight": {0: [0]}, "bias": {0: [0]}},
        {"in_channels": 1, "out_channels": 3, "groups": 1},
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3), {"weight": {0: [1], 1: [0, 2]}, "bias": {0: [0, 2]}},
        {"in_channels": 3, "out_channels": 4, "groups": 1},
    ),
    "transposed, in groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), {"weight": {0: [0, 2], 1: [1]}, "bias": {0: [1, 4]}},
        {"in_channels": 2, "out_channels": 4, "groups": 2},
    ),
    "transposed, depthwise, two of each": (
        lambda: nn.ConvTranspose2d(4, 8, 3, groups=4), {"weight": {0: [0]}, "bias": {0: [0, 1]}},
        {"in_channels": 3, "out_channels": 6, "groups": 3},
    ),
    "BatchNorm": (
        lambda: nn.BatchNorm2d(4), {k: {0: [1]} for k in ("weight", "bias", "running_mean", "running_var")},
        {"num_features": 3},
    ),
    "BatchNorm without scale": (
        lambda: nn.BatchNorm2d(4, affine=False), {k: {0: [1]} for k in ("running_mean", "running_var")},
        {"num_features": 3},
    ),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), {k: {0: [1, 3]} for k in ("weight", "bias")}, {"num_channels": 2}),
    "bilinear": (
        lambda: nn.Bilinear(3, 4, 2, bias=False), {"weight": {0: [0], 1: [1], 2: [0, 3]}},
        {"in1_features": 2, "in2_features": 2, "out_features": 1},
    ),
    "embedding": (lambda: nn.Embedding(5, 4), {"weight": {1: [0]}}, {"embedding_dim": 3, "num_embeddings": 5}),
    "bag": (lambda: nn.EmbeddingBag(5, 4), {"weight": {1: [0]}}, {"embedding_dim": 3}),
    "PReLU": (lambda: nn.PReLU(4), {"weight": {0: [0]}}, {"num_parameters": 3}),
    "LSTM": (lambda: nn.LSTM(4, 2), {"weight_ih_l0": {1: [0]}}, {"input_size": 3, "hidden_size": 2}),
    "LSTMCell": (lambda: nn.LSTMCell(4, 2), {"weight_ih": {1: [0]}}, {"input_size": 3, "hidden_size": 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_layers_store_their_new_sizes(case: str) -> None:
    make, cuts, sizes = LAYERS[case]
    model = nn.Sequential(make()).half()
    model[0].requires_grad_(False)
    thin = rebuild(model, Change({f"0.{name}": cut for name, cut in cuts.items()}))
    layer, before = thin[0], model[0]  # type: ignore[index]
    assert {name: getattr(layer, name) for name in sizes} == sizes
    for name, tensor in (*before.named_parameters(), *before.named_buffers()):
        now = dict((*layer.named_parameters(), *layer.named_buffers()))[name]
        assert torch.equal(now, thin_tensor(tensor, cuts.get(name, {}))) and now is not tensor
        assert now.dtype == tensor.dtype and not now.requires_grad and type(now) is type(tensor)
    assert thin.training and not rebuild(model.eval(), Change({})).training


def test_groups_that_a_plan_sets_are_not_guessed() -> None:
    layer = nn.Conv2d(4, 8, 1, groups=4)
    layer.weight.data = layer.weight.data[:4]
    resize(layer, groups_are_set=True)
    assert (layer.groups, layer.in_channels, layer.out_channels) == (4, 4, 4)
    resize(nn.ReLU())


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.width, self.sizes, self.pair = 8, [4, 4], (1, 2)
        self.config = {"deep": SimpleNamespace(heads=2)}
        self.inner = nn.Sequential(nn.Linear(2, 2))
        self.name = "x"


def test_sizes_are_set_where_modules_keep_them() -> None:
    model: Any = nn.Sequential(Keeps())
    set_sizes(
        dict(named_modules(model)),
        {
            "0.width": 5,
            "0.sizes": [1, 2],
            "0.pair": [3, 4],
            "0.config.deep.heads": 1,
            "0.missing": 3,
            "0.config.no.x": 4,
        },
    )
    held = model[0]
    assert (held.width, held.sizes, held.pair, held.config["deep"].heads) == (5, [1, 2], (3, 4), 1)
    assert not hasattr(held, "missing")


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"0.name": 3}, "0.name isn't a size such as 3"),
        ({"0.width": [3]}, "0.width isn't a size such as [3]"),
        ({"0.sizes": 3}, "0.sizes isn't a size such as 3"),
        ({"1.width": 3}, "it has no module '1'"),
        ({"0.inner.5.width": 3}, "it has no module '0.inner.5'"),
    ],
)
def test_sizes_that_modules_do_not_keep(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(SlimError) as error:
        set_sizes(dict(named_modules(nn.Sequential(Keeps()))), sizes)
    assert str(error.value) == f"the plan doesn't fit this model: {said}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Change({"1.weight": {0: [0]}}), "the plan doesn't fit this model: it has no parameter or buffer '1.weight'"),
        (Change({"0.weight": {2: [0]}}), "the plan doesn't fit this model: '0.weight' has shape (3, 4)"),
        (Change({"0.weight": {0: [3]}}), "the plan doesn't fit this model: '0.weight' has shape (3, 4)"),
        (
            Change({"0.weight": {0: [1]}}),
            "the plan contradicts itself: it leaves 3 of 0.bias for 2 channels",
        ),
        (Change({}, emptied={"1": [0, 0]}), "the plan doesn't fit this model: it has no module '1'"),
    ],
)
def test_changes_that_do_not_fit(change: Change, said: str) -> None:
    with pytest.raises(SlimError) as error:
        rebuild(nn.Sequential(nn.Linear(4, 3)), change)
    assert str(error.value) == said


def test_what_is_optional_may_be_missing_or_smaller() -> None:
    model: Any = nn.Sequential(nn.Linear(4, 3))
    model.cache = torch.zeros(2)
    change = Change({"nowhere": {0: [0]}, "cache": {0: [5]}}, optional={"nowhere", "cache"})
    thin: Any = rebuild(model, change)
    assert thin.cache.shape == (2,) and thin.cache is not model.cache


class Caches(nn.Module):
    """Keeps something for inference, and drops it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = torch.zeros(3)
        self.inner = nn.Linear(2, 2)

    def train(self, mode: bool = True) -> "Caches":
        if mode:
            self.cache = None
        return super().train(mode)


def test_what_is_kept_for_inference_is_dropped_and_modes_stay() -> None:
    model: Any = nn.Sequential(Caches()).eval()
    model[0].inner.training = True
    thin: Any = rebuild(model, Change({}))
    assert thin[0].cache is None and model[0].cache is not None
    assert [m.training for m in thin.modules()] == [m.training for m in model.modules()] == [False, False, True]


def test_a_model_becomes_the_thin_one() -> None:
    model, thin = nn.Sequential(nn.Linear(4, 3)), nn.ModuleDict({"x": nn.Linear(2, 2)})
    take_over(model, thin)
    assert type(model) is nn.ModuleDict and model["x"] is thin["x"]
    compiled: Any = nn.Linear(2, 2)
    compiled._compiled_call_impl = compiled.forward  # as compile() leaves it
    call = vars(compiled)["_compiled_call_impl"]
    take_over(compiled, nn.Linear(3, 3))
    assert compiled.in_features == 3 and vars(compiled)["_compiled_call_impl"] is call
