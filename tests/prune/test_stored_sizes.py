"""Sizes that modules keep and forward doesn't read: they follow the layer whose width they are, where only one is."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import StoredShared, difference, randomise
from torch import Tensor, nn

import slim
from slim.prune.stored_sizes import StoredSizes, Widths

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def conv_bn(i: int, o: int, k: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, k, padding=k // 2, groups=groups, bias=False), nn.BatchNorm2d(o))


def fused(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return conv.weight * scale.reshape(-1, 1, 1, 1), bn.bias - bn.running_mean * scale


class Halves(nn.Module):
    """Ultralytics' C2f: another forward reads the width of the parts that this one cuts by their number."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.c = width
        self.widths = (width, width)
        self.cv1, self.cv2 = conv_bn(3, 2 * width), nn.Conv2d(2 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).relu().chunk(2, 1)
        return self.cv2(torch.cat((a, b.tanh()), 1))

    def other(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).relu().split((self.c, self.c), 1)
        c, d = self.cv1(x).relu().split(self.widths, 1)
        assert torch.equal(a, c) and torch.equal(b, d)
        return self.cv2(torch.cat((a, b.tanh()), 1))


class Depthwise(nn.Module):
    """A block in training form, which becomes one convolution from sizes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = self.width = 24
        self.stem, self.wide, self.narrow = conv_bn(3, 24), conv_bn(24, 24, 3, 24), conv_bn(24, 24, 1, 24)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.wide(x) + self.narrow(x)).relu())

    def other(self, x: Tensor) -> Tensor:
        whole = nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.groups, dtype=x.dtype)
        (k3, b3), (k1, b1) = fused(*self.wide), fused(*self.narrow)
        whole.weight.data, whole.bias = k3 + F.pad(k1, [1] * 4), nn.Parameter(b3 + b1)
        return self.head(whole(self.stem(x).relu()).relu())


class Grouped(nn.Module):
    """A list of widths, of which one is the input of a grouped layer, and no size of its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [12, 24]
        self.stem, self.more = conv_bn(3, 12), conv_bn(12, 24, 3, 12)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.more(self.stem(x).relu()).relu())

    def other(self, x: Tensor) -> Tensor:
        taken, made = self.sizes
        x = self.stem(x).relu().reshape(len(x), taken, *x.shape[2:])
        return self.head(self.more(x).relu().reshape(len(x), made, *x.shape[2:]))


class Nested(nn.Module):
    """The widths of layers further down."""

    def __init__(self) -> None:
        super().__init__()
        self.features = 20
        self.body = nn.Sequential(nn.Sequential(conv_bn(3, 20, 3), nn.ReLU()))
        self.head = nn.Conv2d(20, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def other(self, x: Tensor) -> Tensor:
        head = nn.Conv2d(self.features, 4, 1, dtype=x.dtype)
        head.load_state_dict(self.head.state_dict())
        return head(self.body(x))


@pytest.mark.parametrize("kind", [Halves, Depthwise, Grouped, Nested])
def test_other_methods_find_the_sizes_of_the_thin_network(kind: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = randomise(kind()).eval()
    plan = slim.plan(model, X, ratio=0.5)
    plan = slim.PruningPlan.from_dict(plan.to_dict())
    thin = plan.apply(model)
    assert plan.sizes and difference(model, thin, plan.removed, X) < 1e-12
    for name, size in plan.sizes.items():
        before, after = (
            getattr(m.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for m in (model, thin)
        )
        assert after == size != before and type(after) is type(before)
    thin, x = thin.double(), X.double()
    other: Any = thin.other
    torch.testing.assert_close(other(x), thin(x), rtol=1e-12, atol=1e-12)
    assert model.other(X).shape == model(X).shape  # and the original keeps its own


class Keeps(nn.Module):
    """Three layers, and a number that may mean one of their sizes."""

    def __init__(self, size: Any, first: int = 16, second: int = 24, made: int = 10) -> None:
        super().__init__()
        self.size = size
        self.a, self.b, self.c = conv_bn(3, first), conv_bn(first, second, 3), nn.Conv2d(second, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


class Resized(Keeps):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(super().forward(x), size=self.size).mean((2, 3))


class ResizedInTraining(Keeps):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return (F.interpolate(x, size=self.size) if self.training else x).mean((2, 3))


class ResizedInInference(Keeps):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return (x if self.training else F.interpolate(x, size=self.size)).mean((2, 3))


class Built(Keeps):
    """A number that the network is built with, by a method of its own."""

    def __init__(self, width: int) -> None:
        super().__init__(0)
        self.size = width
        self.d = self._layer()

    def _layer(self) -> nn.Module:
        return nn.Conv2d(3, self.size, 1)


class Final(Keeps):
    def __init_subclass__(cls) -> None:
        raise TypeError("final")


STAY: dict[str, Callable[[], nn.Module]] = {
    "no width": lambda: Keeps(17),
    "two layers of this width": lambda: Keeps(16, 16, 16),
    "a width that stays as well": lambda: Keeps(10, 10),
    "a kernel's size": lambda: Keeps(3, 3),
    "a list of which one is no width": lambda: Keeps([16, 17]),
    "a flag": lambda: Keeps(True),
    "part of a width, but not pruned alike": lambda: Keeps(8),
    "what forward reads": lambda: Resized(16),
    "what forward reads in training": lambda: ResizedInTraining(16),
    "what forward reads in inference": lambda: ResizedInInference(16),
    "what only building it takes": lambda: Built(16),
    "a class that has no subclasses": lambda: Final(16),
}


@pytest.mark.parametrize("name", STAY)
def test_what_may_mean_something_else_stays(name: str) -> None:
    torch.manual_seed(0)
    model = randomise(STAY[name]()).eval()
    scores = {n: m.weight for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    plan = slim.plan(model, X, ratio=0.5, score=scores)
    thin = plan.apply(model)
    assert not plan.sizes and thin.size == model.size
    assert type(thin) is type(model) and difference(model, thin, plan.removed, X) < 1e-12


def test_a_size_set_later_is_not_asked_of_a_network_built_anew() -> None:
    model = randomise(Keeps(0)).eval()
    model.noted = 16  # type: ignore[assignment]
    plan = slim.plan(model, X, ratio=0.5)
    assert plan.apply(model).noted == plan.sizes["noted"] < 16
    anew = Keeps(0)
    anew.load_state_dict(model.state_dict())
    assert not hasattr(plan.apply(anew), "noted")


def timm_pruned(name: str) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model, x = randomise(timm.create_model(name, num_classes=10)).eval(), torch.randn(1, 3, 64, 64)
    return slim.plan(model, x, ratio=0.5).apply(model).double(), x.double()


@pytest.mark.parametrize("name", ["mobileone_s0", "fastvit_t8", "repvgg_a0", "repghostnet_050"])
@torch.no_grad()
def test_thin_networks_of_timm_can_be_reparameterized(name: str) -> None:
    thin, x = timm_pruned(name)
    whole = copy.deepcopy(thin)
    blocks = [block for block in whole.modules() if hasattr(block, "reparameterize")]
    for block in blocks:
        block.reparameterize()
    assert blocks and sum(1 for _ in whole.parameters()) < sum(1 for _ in thin.parameters())
    torch.testing.assert_close(whole(x), thin(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121", "regnetx_002", "mobilenetv3_small_100"])
@torch.no_grad()
def test_thin_networks_of_timm_take_a_new_head(name: str) -> None:
    thin, x = timm_pruned(name)
    assert thin.num_features == thin.forward_features(x).shape[1]
    thin.reset_classifier(5)
    assert thin.double()(x).shape == (1, 5)


class Fused(nn.Module):
    """Attention that computes the width of a head from that of its input, so that no head can go."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.more = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(((q @ k.transpose(2, 3)).softmax(3) @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.more(x)


class Talking(nn.Module):
    """Attention whose heads are mixed, so that none can go; their number divides that of the positions, too."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.norm = 4, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mix = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.more = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        seen = self.mix[0]((q @ k.transpose(2, 3)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(3)
        seen = self.mix[1](seen.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + self.proj((seen @ v).transpose(1, 2).reshape(b, n, c))
        return x + self.more(x)


class Stack(nn.Module):
    """Blocks alike, over pixels as tokens or over the map."""

    def __init__(self, block: Callable[[int], nn.Module], number: int) -> None:
        super().__init__()
        self.stem, self.tokens = conv_bn(3, 16), block in (Fused, Talking)
        self.places = nn.Parameter(torch.zeros(1, 144, 16 if self.tokens else 1))
        self.blocks, self.head = nn.Sequential(*[block(16) for _ in range(number)]), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.blocks(x.flatten(2).transpose(1, 2) + self.places if self.tokens else x)
        return self.head(y.transpose(1, 2).reshape(x.shape) if self.tokens else y)


@pytest.mark.parametrize("block", [Fused, Talking, StoredShared])
def test_what_holds_in_several_blocks_is_not_found_out_in_each(
    block: Callable[[int], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More blocks take no more attempts; what can go still goes."""
    attempts: list[object] = []
    follow = StoredSizes.follow

    def counted(*args: Any) -> Any:
        attempts.append(args)
        return follow(*args)

    monkeypatch.setattr(StoredSizes, "follow", counted)
    counts = []
    for number in (4, 7):
        torch.manual_seed(0)
        model = randomise(Stack(block, number)).eval()
        attempts.clear()
        plan = slim.plan(model, X, ratio=0.4, round_to=1, score=slim.Magnitude())
        counts.append(len(attempts))
        assert plan.ratio_achieved > 0.35
        thin = plan.apply(model)
        assert difference(model, thin, plan.removed, X) < 1e-12
    assert counts[0] == counts[1]


class Split(nn.Module):
    """Attention that splits its channels by two sizes, and joins them by a third, as LeViT's does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c, self.key, self.value, self.joined = width, 4, 8, 32
        self.qkv, self.proj = conv_bn(width, 4 * 16), conv_bn(32, width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).view(b, 4, -1, h * w).split([self.key, self.key, self.value], 2)
        seen = (q.transpose(2, 3) @ k).softmax(3)
        return x + self.proj((v @ seen).reshape(b, self.joined, h, w))


def test_sizes_that_helped_in_one_block_are_tried_first_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[object] = []
    misfit = StoredSizes._misfit

    def counted(*args: Any) -> Any:
        tries.append(args)
        return misfit(*args)

    monkeypatch.setattr(StoredSizes, "_misfit", counted)
    counts = []
    for number in (3, 8):
        torch.manual_seed(0)
        model = randomise(Stack(Split, number)).eval()
        tries.clear()
        plan = slim.plan(model, X, ratio=0.4, round_to=1)
        counts.append(len(tries))
        assert plan.ratio_achieved > 0.35
        assert difference(model, plan.apply(model), plan.removed, X) < 1e-12
    assert counts[1] - counts[0] <= 3 * 5


def test_a_table_of_numbers_is_read_once_for_each_number() -> None:
    """And not at all once one of them has no meaning: position tables hold tens of thousands."""

    class Tables(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = conv_bn(3, 16), nn.Conv2d(16, 4, 1)
            self.widths, self.places = [16] * 10_000, [16, 5, *range(10_000)]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x))

    model, asked = randomise(Tables()).eval(), []
    after = Widths._after

    def noted(self: Widths, prefix: str, number: int, *others: Any) -> int | None:
        asked.append(number)
        return after(self, prefix, number, *others)

    with mock.patch.object(Widths, "_after", noted):
        thin = slim.plan(model, X, ratio=0.5, round_to=1).apply(model)
    assert set(asked) == {16, 5} and len(asked) <= 3 * 2
    assert thin.widths == [8] * 10_000 and thin.places == model.places


class Windows(nn.Module):
    """Attention in windows that are as wide as there are heads, by chance."""

    def __init__(self, c: int = 32, heads: int = 4, window: int = 4) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.embed, self.norm = nn.Conv2d(3, c, 2, 2), nn.LayerNorm(c)
        self.qkv, self.proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
        self.bias = nn.Parameter(torch.randn(heads, window**2, window**2))
        self.mlp, self.head = nn.Sequential(nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)), nn.Linear(c, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x).permute(0, 2, 3, 1))
        b, h, w, c = x.shape
        n = self.window
        parts = x.view(b, h // n, n, w // n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, n * n, c)
        q, k, v = self.qkv(parts).reshape(-1, n * n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT * (c // self.heads) ** -0.5 + self.bias
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n * n, c)
        mixed = self.proj(mixed).view(b, h // n, w // n, n, n, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        x = x + mixed
        return self.head((x + self.mlp(self.norm(x))).mean((1, 2)))


class ChannelsLast(nn.Module):
    """Turns maps whose last dimension is as long as the channels should be, as torchseg does at the end of an encoder:
    a thin one that is as wide as it was before passes for one of those."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 12), conv_bn(12, 20), conv_bn(20, 24)])
        self.out_channels, self.head = [12, 20, 24], nn.Conv2d(56, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x := stage(x) for stage in self.stages]
        for i, width in enumerate(self.out_channels):
            if maps[i].shape[1] != width and maps[i].shape[-1] == width:
                maps[i] = maps[i].permute(0, 3, 1, 2)
        return self.head(torch.cat([*maps[:-1], maps[-1].relu().tanh().sin()], 1))


def test_a_size_that_forward_compares_later_follows() -> None:
    torch.manual_seed(0)
    model = randomise(ChannelsLast()).eval()
    plan = slim.plan(model, X, ratio=0.4, round_to=1, layer_ratios={"stages.0.*": 0.25})
    assert plan.ratio_achieved == pytest.approx(0.4, abs=0.02), plan.frozen
    thin: Any = plan.apply(model)
    assert thin.out_channels[0] == 9
    assert difference(model, thin, plan.removed, X) < 1e-12


@pytest.mark.parametrize("seed", [0, 1])
def test_a_size_that_only_looks_like_that_of_several_layers_is_given_up(seed: int) -> None:
    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(2, 3, 16, 16)

    plan = slim.plan(model, x, ratio=0.3, score=slim.Random(seed), round_to=1)
    assert set(plan.removed) == {"mlp.0"} and "qkv" in str(plan.frozen)
    assert slim.verify(model, plan.apply(model), plan, x) < 1e-10


@pytest.mark.parametrize(
    ("conv", "norm", "x"),
    [
        (nn.Conv1d, nn.InstanceNorm1d, X[:, :, 0]),
        (nn.Conv2d, nn.InstanceNorm2d, X),
        (nn.Conv2d, nn.InstanceNorm2d, X[0]),
        (nn.Conv3d, nn.InstanceNorm3d, X[:, :, None].repeat(1, 1, 4, 1, 1)),
    ],
)
def test_norms_without_parameters_know_their_channels(conv: Any, norm: Any, x: Tensor) -> None:
    net: Any = nn.Sequential(conv(3, 8, 1), norm(8), nn.ReLU(), conv(8, 2, 1))
    plan = slim.plan(net, x, ratio=0.5, score=slim.Magnitude())
    thin: Any = plan.apply(net)
    assert thin[1].num_features == thin[0].out_channels == 4 and net[1].num_features == 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert difference(net, thin, plan.removed, x) < 1e-12


@dataclass(frozen=True)
class Config:
    width: int
    more: dict[str, Any] = field(default_factory=dict)


class Configured(nn.Module):
    """Forward code reads the width of both layers in what an attribute holds, as `of` finds it there."""

    def __init__(self, config: Any, of: Callable[[Any], int], width: int = 16) -> None:
        super().__init__()
        self.config, self.of = config, of
        self.first, self.second, self.head = conv_bn(3, width), conv_bn(width, width, 3), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = x.reshape(len(x), self.of(self.config), -1).view(len(x), -1, 12, 12)
        return self.head(self.second(x).relu().mean((2, 3)))


class Both(nn.Module):
    """Two modules that hold one and the same configuration, for layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        config = SimpleNamespace(width=16)
        self.one, self.other = (Configured(config, lambda held: held.width) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(x), self.other(x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Configured({"width": 16, "depth": 2}, lambda held: held["width"]),
        lambda: Configured(SimpleNamespace(width=16, name="b0"), lambda held: held.width),
        lambda: Configured(Config(16), lambda held: held.width),
        lambda: Configured(Config(3, {"stages": [16, 8]}), lambda held: held.more["stages"][0]),
        lambda: Configured(
            {"backbone": {"stem": SimpleNamespace(width=16)}}, lambda held: held["backbone"]["stem"].width
        ),
        Both,
    ],
)
def test_sizes_within_what_an_attribute_holds_follow(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = randomise(make()).eval()
    before = copy.deepcopy([vars(module).get("config") for module in model.modules()])
    plan = slim.plan(model, X, ratio=0.5, score=slim.Random(seed=1), round_to=1)
    thin = plan.apply(model)
    assert not plan.frozen and plan.sizes and difference(model, thin, plan.removed, X) < 1e-10
    assert [vars(module).get("config") for module in model.modules()] == before
    plan.save(tmp_path / "plan.json")
    anew = slim.PruningPlan.load(tmp_path / "plan.json").apply(model)
    assert all(torch.equal(a, b) for a, b in zip(anew(X), thin(X)))


class Part(nn.Module):
    """A module that holds the width of a layer, for those that it is a part of."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.layer = width, conv_bn(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).relu()


class ReadsParts(nn.Module):
    """RAFT: channels are split by the size of a part that runs later, once what is there has been compared with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv_bn(3, 48), nn.Conv2d(48, 4, 1)
        self.parts = nn.ModuleList([Part(32)])
        self.part = Part(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        rest = x.shape[1] - self.part.hidden
        if rest <= 0 or rest != self.parts[0].hidden:
            raise ValueError(f"{x.shape[1]} channels: expected {self.part.hidden} and {self.parts[0].hidden}")
        a, b = x.split([self.part.hidden, rest], 1)
        return self.last(torch.cat([self.part(a), self.parts[0](b)], 1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sizes_of_modules_that_another_one_reads_follow(seed: int) -> None:
    model = randomise(ReadsParts()).eval()
    plan = slim.plan(model, X, ratio=0.5, score=slim.Random(seed), round_to=1)
    thin: Any = plan.apply(model)
    assert plan.ratio_achieved > 0.49 and not plan.frozen
    assert thin.part.hidden == thin.part.layer[0].in_channels and thin.parts[0].hidden < 32
    assert difference(model, thin, plan.removed, X) < 1e-10


def test_a_plan_of_another_network_does_not_reach_into_its_configuration() -> None:
    model = randomise(Configured({"width": 16}, lambda held: held["width"])).eval()
    plan = slim.plan(model, X, ratio=0.5, score=slim.Random(seed=1), round_to=1)
    for name, told in (("settings.width", "has no module 'settings'"), ("config", "config isn't a size")):
        plan.sizes = {name: 3}
        with pytest.raises(slim.SlimError, match=f"doesn't fit this model: .*{told}"):
            plan.apply(model)
