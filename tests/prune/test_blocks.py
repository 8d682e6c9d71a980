"""Whole residual blocks: which can go, that the network without them is the masked original, and that nothing stays."""

import copy
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from networks import difference, masked, randomise
from residual import Block, Wanted, around
from torch import Tensor, nn

import slim
from slim.errors import SlimError
from slim.prune.budgets import BoundBudget, Costs
from slim.prune.groups import Groups
from slim.prune.plan import PruningPlan
from slim.prune.plan_format import hash_of
from slim.prune.residual import Residual
from slim.trace.branches import find_branches
from slim.trace.emptied import Emptied
from slim.trace.size import network_size
from slim.trace.traced import trace

X = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SMALL = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, Sequence[str]]] = {  # how many blocks can go, some that will
    "resnet18": (torchvision.models.resnet18, 5, ("layer1.0", "layer3.1")),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 10, ("features.5.conv", "features.16.conv")),
    "convnext": (lambda: timm.create_model("convnext_atto"), 12, ("stages.0.blocks.1", "stages.2.blocks.3")),
    "squeeze and excitation": (lambda: timm.create_model("mobilenetv3_small_050"), 7, ("blocks.2.2",)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_without_blocks_it_is_the_masked_original(name: str) -> None:
    """In inference and in training; and the parameters, FLOPs and layers that the plan says are left."""
    build, count, names = NETWORKS[name]
    torch.manual_seed(0)
    model = randomise(build()).eval()
    assert len(find_branches(trace(model, X))) == count
    plan = slim.plan(model, X, slim.Flops(0.8), score=Wanted(names), blocks=True)
    assert list(plan.blocks) == list(names)
    thin = plan.apply(model)
    assert difference(model, thin, plan.removed, X) < 1e-12
    assert slim.verify(model, thin, plan, X) < 1e-10
    size = network_size(thin, X)
    assert (size.params, size.flops) == (plan.totals["params"][1], plan.totals["flops"][1])
    expected, found = (_trained_on(net, X) for net in (masked(model, plan.removed), copy.deepcopy(thin)))
    assert (expected - found).abs().max() < 1e-9 * expected.abs().max()


def _trained_on(net: nn.Module, x: Tensor) -> Tensor:
    """What a network gives in training, in float64, but for what is random."""
    net.double().train()
    for module in net.modules():
        if isinstance(module, nn.Dropout | torchvision.ops.StochasticDepth):
            module.eval()
    found: Tensor = net(x.double())
    return found


class ReadTwice(Block):
    """The branch goes into the head of the next block, too."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return F.relu(out + x) * out.mean()


class WritesToStream(Block):
    """The branch changes what it is added to, through a view."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x[:].tanh_())))) + x


class NotZero(Block):
    """One half where it is masked."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x).sigmoid()


class OfOneLayer(Block):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn1(self.conv1(x))


class Smaller(Block):
    """Works on half of the resolution in between."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.conv1 = nn.Conv2d(c, c, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.branch(x), scale_factor=2.0)


class NoChannels(Block):
    """Forward code that can't run without any."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return x + self.bn2(self.conv2(out * (16 / out.shape[1])))


class Twice(Block):
    """One branch, applied twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.branch(x)
        return x + self.branch(x)


class Layers(nn.Module):
    """A network's own weights, used by functions."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight, self.bn = nn.Parameter(torch.randn(c, c, 1, 1)), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn(F.conv2d(F.conv2d(x, self.weight).relu(), self.weight))


@pytest.mark.parametrize("kind", [ReadTwice, WritesToStream, NotZero, OfOneLayer, Smaller, NoChannels, Twice, Layers])
def test_blocks_that_stay(kind: type[nn.Module]) -> None:
    assert find_branches(trace(around(kind(16)), SMALL)) == []


class Variant(Block):
    """What a function makes of the stream and the layers."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__(8)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self, x)


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


def narrowed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8))


Variation = tuple[Callable[[], nn.Module], list[tuple[str, int, int, int]], list[tuple[str, int]]]
LAST = [("1.conv1", 0), ("1.bn1", 0), ("1.conv2", 0), ("1.bn2", 8)]
RELU = [*LAST, ("1.relu", 0)]
VARIANTS: dict[str, Variation] = {  # name, addition, operand and steps of each; what is emptied, and still gives
    "first": (lambda: Variant(lambda s, x: s.branch(x) + x), [("1", 0, 0, 5)], RELU),
    "second": (lambda: Variant(lambda s, x: x + s.branch(x)), [("1", 0, 1, 5)], RELU),
    "in place": (lambda: Variant(lambda s, x: x.add_(s.branch(x))), [("1", 0, 1, 5)], RELU),
    "scaled": (lambda: Variant(lambda s, x: x + 0.5 * s.branch(x)), [("1", 0, 1, 6)], RELU),
    "with scales": (
        lambda: Variant(lambda s, x: x + s.scale * s.branch(x), scale=nn.Parameter(torch.ones(8, 1, 1))),
        [("1", 0, 1, 6)],
        RELU,
    ),
    "of positive numbers": (lambda: Variant(lambda s, x: x + s.branch(x).relu()), [("1", 0, 1, 6)], RELU),
    "not zero at its end": (lambda: Variant(lambda s, x: x + s.branch(x).sigmoid()), [], []),
    "not zero within": (
        lambda: Variant(lambda s, x: x + s.bn2(s.conv2(s.bn1(s.conv1(x)).sigmoid()))),
        [("1", 0, 1, 5)],
        LAST,
    ),
    "without a norm at its end": (
        lambda: Variant(lambda s, x: x + s.conv2(s.bn1(s.conv1(x)).relu())),
        [("1", 0, 1, 4)],
        [("1.conv1", 0), ("1.bn1", 0), ("1.conv2", 8)],
    ),
    "squeeze and excitation": (
        lambda: Variant(lambda s, x: x + s.se(s.branch(x)), se=Squeezed()),
        [("1", 0, 1, 11)],
        [*LAST[:3], ("1.bn2", 0), ("1.relu", 0), ("1.se", 8)],
    ),
    "two ways to its end": (
        lambda: Variant(
            lambda s, x: x + s.bn2(s.conv2(s.bn1(s.conv1(x)).relu())) * s.gate(x).tanh(), gate=nn.Conv2d(8, 8, 1)
        ),
        [("1", 0, 1, 8)],
        [*LAST, ("1.gate", 8)],
    ),
    "a stream that is added again": (lambda: Variant(lambda s, x: (x + s.branch(x)) + x), [("1", 0, 1, 5)], RELU),
    "doubled": (lambda: Variant(lambda s, x: x + (lambda y: y + y)(s.branch(x))), [("1", 1, 1, 6)], RELU),
    "plus a number": (lambda: Variant(lambda s, x: x + (s.branch(x) + 1)), [], []),
    "subtracted": (lambda: Variant(lambda s, x: x - s.branch(x)), [], []),
    "beside a projection": (
        lambda: Variant(
            lambda s, x: s.side(x) + s.branch(x), side=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        ),
        [("1", 0, 1, 5)],
        RELU,
    ),
    "two of them": (
        lambda: Variant(lambda s, x: x + s.branch(x) + s.more(x), more=narrowed()),
        [("1", 0, 1, 5), ("1.more", 1, 1, 4)],
        [*RELU, ("1.more", 8)],
    ),
    "one within another": (
        lambda: Variant(lambda s, x: x + s.more(x + s.branch(x)), more=narrowed()),
        [("1", 0, 1, 5)],
        RELU,
    ),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_what_a_branch_is(case: str) -> None:
    make, branches, emptied = VARIANTS[case]
    found = find_branches(trace(around(make(), width=8), SMALL[:2]))
    assert [(b.name, b.addition, b.operand, len(b.steps)) for b in found] == branches
    assert [(name, len(labels)) for b in found for name, (_, labels) in b.emptied.items()] == emptied
    assert {dim for b in found for dim, _ in b.emptied.values()} <= {1} and {b.dim for b in found} <= {1}
    for branch in found:
        assert {name.rpartition(".")[0] for name in branch.tensors} == {*branch.producers}
        assert all(name.startswith(tuple(branch.emptied)) for name in branch.tensors) and len(branch.stream) == 8


def thinned(keep: float = 0.3) -> tuple[nn.Module, nn.Module, PruningPlan]:
    """A network of four blocks, without two of them and some channels."""
    net = around(*(Block(16) for _ in range(4)))
    plan = slim.plan(net, SMALL[:2], slim.Flops(keep), score=Wanted(["2", "4"]), blocks=True, round_to=1)
    assert list(plan.blocks) == ["2", "4"] and plan.removed["1.bn1"]
    return net, plan.apply(net), plan


@pytest.mark.parametrize("width", [13, 14, 15])
def test_a_block_is_as_large_as_the_channels_of_its_own(width: int) -> None:
    """The weights of its convolutions are those of the channels between them, but for the norm of the last."""
    sizes = []

    class Watched(slim.Params):
        def bind(self, costs: Costs) -> BoundBudget:
            sizes.append(costs.groups.size[costs.groups.blocks].tolist())
            return super().bind(costs)

    net = around(*(Block(width) for _ in range(4)), width=width)
    slim.plan(net, SMALL[:2], Watched(0.5), score=Wanted(["2", "4"]), blocks=True, round_to=1)
    assert sizes[0] == [width] * 4


def test_the_plan_says_which_blocks_go() -> None:
    _, _, plan = thinned()
    assert "2 whole blocks go: 2, 4" in str(plan)
    assert {layer.name: layer.after for layer in plan.layers if layer.name.startswith("2.")} == {
        name: 0 for name in ("2.conv1", "2.bn1", "2.conv2", "2.bn2") if name in {layer.name for layer in plan.layers}
    }


def test_files_and_copies_hold_the_same(tmp_path: Path) -> None:
    net, thin, plan = thinned()
    plan.save(tmp_path / "plan.json")
    again = PruningPlan.load(tmp_path / "plan.json")
    assert again.to_dict() == plan.to_dict()
    slim.save(tmp_path / "thin.safetensors", thin, plan)
    copies = [again.apply(net), slim.load(tmp_path / "thin.safetensors", net), copy.deepcopy(thin)]
    for other in [*copies, pickle.loads(pickle.dumps(thin))]:
        assert torch.equal(other(SMALL), thin(SMALL))
        assert sum(isinstance(module, Emptied) for module in other.modules()) == 8
    record = plan.to_dict() | {"blocks": {"2": {"2.bn2": [1]}}}
    with pytest.raises(SlimError, match=r"blocks is .*: expected blocks with modules"):
        PruningPlan.from_dict(record | {"hash": hash_of(record)})


def test_optimizers_go_on() -> None:
    net, _, plan = thinned()
    optimizer = torch.optim.Adam(net.parameters())
    net.train()(SMALL).sum().backward()
    optimizer.step()
    thin = plan.apply(net)
    plan.prune_optimizer(optimizer, net, thin)
    left = {id(parameter) for parameter in thin.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == left
    optimizer.zero_grad()
    thin.train()(SMALL).sum().backward()
    before = {name: p.detach().clone() for name, p in thin.named_parameters() if p.numel()}
    optimizer.step()
    assert all(p.requires_grad == (p.numel() > 0) for p in thin.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in thin.named_parameters() if p.numel())


def test_recovered_on_images() -> None:
    net, thin, plan = thinned()
    found = slim.recover(net, thin, plan, SMALL)
    assert found.chosen == "regression" and found.distance["regression"] < 0.5 * found.distance["none"]
    assert not found.left


def test_planned_again() -> None:
    """The zeros that stand for a branch follow the stream's channels."""
    _, thin, _ = thinned(0.4)
    plan = slim.plan(thin, SMALL[:2], slim.Flops(0.5), score=Wanted(["1"]), blocks=True, round_to=1)
    assert list(plan.blocks) == ["1"] and plan.removed["0.1"]
    assert difference(thin, plan.apply(thin), plan.removed, SMALL[:2]) < 1e-12


def test_nothing_of_them_in_the_onnx_file(tmp_path: Path) -> None:
    _, thin, plan = thinned()
    slim.export_onnx(thin, SMALL[:2], tmp_path / "thin.onnx")
    graph = onnx.load(tmp_path / "thin.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Conv") == 2 + 2 * 2 and kinds.count("Add") == 2 and kinds.count("Relu") == 2 + 2 * 2
    assert not {"ConstantOfShape", "Expand", "Shape"} & {*kinds}
    gone = {module for modules in plan.blocks.values() for module in modules}
    assert not [each.name for each in graph.initializer if each.name.rpartition(".")[0] in gone]


def test_what_is_missed_without_a_branch() -> None:
    """Against a regression on the activations themselves: what the reader gives of the branch, predicted from the
    stream, as a share of the variance of what it gives."""
    torch.manual_seed(0)
    net: Any = around(Block(16))
    block = net[1]
    block.forward = lambda x: x + block.branch(x)
    net[2][0] = nn.Conv2d(16, 32, 1, bias=False)
    traced = trace(net, SMALL)
    branches = find_branches(traced)
    assert [branch.name for branch in branches] == ["1"]
    [missed] = Residual(SMALL).missed_without(Groups(traced, net), branches)
    with torch.no_grad():
        x, reader = net[0](SMALL), net[2][0]
        added = block.branch(x)
        read = (x, reader(added), reader(x + added))
        stream, given, whole = (t.movedim(1, -1).reshape(-1, t.shape[1]).double() for t in read)
    design = torch.cat([stream, torch.ones(len(stream), 1)], 1)
    left = given - design @ torch.linalg.lstsq(design, given).solution
    share = float(left.var(0).sum() / whole.var(0).sum())
    assert missed == pytest.approx(share, rel=0.01)


def test_layers_that_are_kept_keep_their_block() -> None:
    net = around(*(Block(16) for _ in range(3)))
    plan = slim.plan(net, SMALL[:2], slim.Flops(0.6), score=Wanted(["1", "2", "3"]), blocks=True, keep="2.bn1")
    assert "2" not in plan.blocks and "1" in plan.blocks


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"score": slim.Magnitude()}, r"blocks by Magnitude, which knows of channels alone: expected slim\.Residual"),
        ({"score": Wanted([]), "scope": "layer"}, "blocks with scope 'layer': expected 'global'"),
        ({"score": Wanted([]), "blocks": 1}, "blocks is of type int"),
    ],
)
def test_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SlimError, match=said):
        slim.plan(around(Block(16)), SMALL, slim.Flops(0.5), **({"blocks": True} | given))
