"""Plan, apply, verify on every kind of network: the thin network is the masked original, or nothing is touched."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from networks import TRAPS, ZOO, Aux, RandomNet, cbr, difference, masked, net, randomise
from torch import nn

import slim
from slim.workbench.models import build

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def prune(model: nn.Module, x: Any = X, **settings: Any) -> tuple[slim.PruningPlan, Any]:
    plan = slim.plan(model, x, **settings)
    return plan, plan.apply(model)


@pytest.mark.parametrize("name", ZOO)
def test_thin_is_masked(name: str) -> None:
    model = randomise(ZOO[name]()).eval()
    plan, thin = prune(model, ratio=0.4)
    assert plan.ratio_achieved > 0.3
    assert difference(model, thin, plan.removed, X) < 1e-12
    assert slim.verify(model, thin, plan, X) < 1e-10
    total = sum(m.num_features for m in thin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    assert plan.totals["channels"][1] == total
    assert plan.totals["params"][1] == sum(p.numel() for p in thin.parameters())


@pytest.mark.parametrize("name", TRAPS)
def test_what_cannot_go_stays(name: str) -> None:
    make, whole = TRAPS[name]
    model = randomise(make()).eval()
    try:
        plan, thin = prune(model, ratio=0.4)
    except slim.SlimError as error:
        assert "would remove nothing" in str(error)
        return
    assert not set(whole) & plan.removed.keys()
    assert plan.frozen and plan.shortfall
    assert difference(model, thin, plan.removed, X) < 1e-12


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("mode", ["couple", "select"])
def test_random_networks(seed: int, mode: str) -> None:
    model = randomise(RandomNet(seed), seed).eval()
    plan, thin = prune(model, ratio=0.4, mode=mode)
    assert plan.ratio_achieved > 0.3, model.kinds
    assert difference(model, thin, plan.removed, X) < 1e-12
    slim.verify(model, thin, plan, X)


@pytest.mark.parametrize("seed", [s for s in range(60) if "grouped" in RandomNet(s).kinds])
def test_random_networks_that_lose_whole_groups(seed: int) -> None:
    model = randomise(RandomNet(seed), seed).eval()
    plan, thin = prune(model, ratio=0.4, grouped="whole")
    assert plan.ratio_achieved > 0.2, model.kinds
    assert difference(model, thin, plan.removed, X) < 1e-12


SMALL = [
    f"slim:{n}"
    for n in ("vgg7", "vgg11", "vgg19", "resnet20", "resnet56", "preresnet164", "densenet40", "mlp", "lenet")
]


@pytest.mark.parametrize("arch", SMALL)
@pytest.mark.parametrize("mode", ["couple", "select"])
def test_the_papers_networks(arch: str, mode: str) -> None:
    kwargs: dict[str, Any] = {"image_size": 32} if arch in ("slim:mlp", "slim:lenet") else {}
    model = randomise(build(arch, num_classes=10, gamma=None, **kwargs)).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plan, thin = prune(model, x, ratio=0.5, mode=mode)
    assert abs(plan.ratio_achieved - 0.5) < 0.01
    assert difference(model, thin, plan.removed, x) < 1e-12
    assert slim.verify(model, thin, plan, x) < 1e-10


UNLIKE = "resnet18 resnext50_32x4d densenet121 mobilenet_v3_small efficientnet_b0 regnet_y_400mf googlenet"


@pytest.mark.parametrize("name", [*UNLIKE.split(), "shufflenet_v2_x0_5"])
def test_torchvision(name: str) -> None:
    kwargs = {"init_weights": False} if name == "googlenet" else {}
    model = randomise(torchvision.models.get_model(name, **kwargs)).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plan, thin = prune(model, x, ratio=0.5)
    assert abs(plan.ratio_achieved - 0.5) < 0.01
    assert difference(model, thin, plan.removed, x) < 1e-12
    larger = torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert difference(model, thin, plan.removed, larger) < 1e-12  # another batch, another image size


TIMM = "res2net50_14w_8s resnest14d skresnet18 ghostnet_050 mixnet_s cspresnet50 selecsls42 repvgg_a0 rexnet_100"


@pytest.mark.parametrize("name", TIMM.split())
def test_timm(name: str) -> None:
    """Splits with stored sizes, stacks, mixed kernels, radix attention: what made peers fail."""
    timm = pytest.importorskip("timm")
    model = randomise(timm.create_model(name)).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plan, thin = prune(model, x, ratio=0.5)
    assert abs(plan.ratio_achieved - 0.5) < 0.01
    assert difference(model, thin, plan.removed, x) < 1e-12


def test_segmentation_detection_and_video() -> None:
    tv = torchvision.models
    none = {"weights": None, "weights_backbone": None}
    for model, x in (
        (tv.segmentation.lraspp_mobilenet_v3_large(**none), torch.randn(1, 3, 64, 64)),
        (tv.detection.fasterrcnn_mobilenet_v3_large_320_fpn(**none, min_size=96), ([torch.rand(3, 96, 112)],)),
        (tv.video.r3d_18(weights=None), torch.randn(1, 3, 4, 32, 32)),
    ):
        randomise(model).eval()
        plan, thin = prune(model, x, ratio=0.5)
        assert abs(plan.ratio_achieved - 0.5) < 0.01
        slim.verify(model, thin, plan, x)


@pytest.mark.parametrize("name", ["resnext50_32x4d", "regnet_x_400mf"])
def test_whole_groups_go(name: str) -> None:
    model = randomise(torchvision.models.get_model(name)).eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plan, thin = prune(model, x, ratio=0.5, grouped="whole")
    assert abs(plan.ratio_achieved - 0.5) < 0.01
    assert difference(model, thin, plan.removed, x) < 1e-12
    fewer = 0
    for name, old in model.named_modules():
        if isinstance(old, nn.Conv2d) and old.groups > 1:
            new = thin.get_submodule(name)
            assert new.in_channels // new.groups == old.in_channels // old.groups  # groups keep their width
            fewer += new.groups < old.groups
    assert fewer > 5
    again = slim.PruningPlan.from_dict(plan.to_dict()).apply(model)
    assert torch.equal(again(x), thin(x))


class Averaged(nn.Module):
    """The mean over each group of four channels, twice: a grouped convolution whose weight is no parameter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, x.new_full((8, 4, 1, 1), 0.25), groups=4)


@pytest.mark.parametrize("how", ["within", "whole"])
def test_groups_of_a_weight_that_is_no_parameter_stay(how: str) -> None:
    model = randomise(nn.Sequential(*cbr(3, 16), Averaged(), *cbr(8, 16), nn.Conv2d(16, 5, 1))).eval()
    plan, thin = prune(model, ratio=0.3, grouped=how)
    assert plan.removed.keys() == {"5"} and difference(model, thin, plan.removed, X) < 1e-12


@pytest.mark.parametrize("groups", [4, 8])
@pytest.mark.parametrize("how", ["within", "whole"])
def test_transposed_groups(groups: int, how: str) -> None:
    model = nn.Sequential(
        *cbr(3, 16), nn.ConvTranspose2d(16, 24, 2, stride=2, groups=groups), nn.BatchNorm2d(24), *cbr(24, 12, g=4),
        nn.Conv2d(12, 5, 1),
    )  # fmt: skip
    randomise(model).eval()
    plan, thin = prune(model, ratio=0.4, grouped=how)
    assert plan.ratio_achieved > 0.2
    assert difference(model, thin, plan.removed, X) < 1e-12


@pytest.mark.parametrize("arch", ["slim:preresnet164", "slim:densenet40"])
def test_select_leaves_the_stream_whole_and_couple_does_not(arch: str) -> None:
    model = randomise(build(arch, num_classes=10, gamma=None))
    x = torch.randn(1, 3, 32, 32)
    streams = {}
    for mode in ("couple", "select"):
        plan, thin = prune(model, x, ratio=0.4, mode=mode)
        streams[mode] = {n: m.out_channels for n, m in thin.named_modules() if isinstance(m, nn.Conv2d)}
        assert bool(plan.selects) == (mode == "select")
    before = {n: m.out_channels for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    unread = [n for n in before if streams["select"][n] == before[n] and streams["couple"][n] < before[n]]
    assert unread  # convolutions that write the stream keep their width only where readers choose


def test_training_only_heads_are_thinned_too() -> None:
    model = randomise(Aux())
    plan, thin = prune(model, ratio=0.4)
    assert "aux.fc.weight" in plan.cuts
    out, aux = thin.train()(X)
    (out.sum() + aux.sum()).backward()


def test_planning_leaves_the_model_as_it_was() -> None:
    model = randomise(torchvision.models.resnet18()).train()
    model.bn1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    plan = slim.plan(model, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    plan.apply(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert modes == [m.training for m in model.modules()] and hooks == [len(m._forward_hooks) for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(hasattr(t, a) for t in model.state_dict(keep_vars=True).values() for a in ("_codes", "_slim_name"))


def test_thin_keeps_mode_dtype_format_and_requires_grad() -> None:
    model = randomise(torchvision.models.resnet18()).to(memory_format=torch.channels_last).bfloat16().train()
    model.layer1[0].bn1.eval()
    model.conv1.weight.requires_grad_(False)
    _, thin = prune(model, torch.randn(1, 3, 64, 64).bfloat16(), ratio=0.3)
    assert [m.training for m in thin.modules()] == [m.training for m in model.modules()]
    assert {p.dtype for p in thin.parameters()} == {torch.bfloat16}
    assert thin.layer2[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not thin.conv1.weight.requires_grad and thin.fc.weight.requires_grad
    assert not {p.data_ptr() for p in thin.parameters()} & {p.data_ptr() for p in model.parameters()}


def test_stored_sizes_of_modules_follow() -> None:
    model = randomise(torchvision.models.mobilenet_v3_small()).eval()
    _, thin = prune(model, torch.randn(1, 3, 64, 64), ratio=0.5)
    for m in thin.modules():
        if isinstance(m, nn.Conv2d):
            assert list(m.weight.shape[:2]) == [m.out_channels, m.in_channels // m.groups]
        elif isinstance(m, nn.BatchNorm2d):
            assert m.num_features == len(m.weight) == len(m.get_buffer("running_mean"))
        elif isinstance(m, nn.Linear):
            assert list(m.weight.shape) == [m.out_features, m.in_features]


@pytest.mark.parametrize("mode", ["couple", "select"])
def test_passes_compose(mode: str) -> None:
    model = randomise(build("slim:preresnet164", num_classes=10, gamma=None)).eval()
    x = torch.randn(1, 3, 32, 32)
    first, once = prune(model, x, ratio=0.3, mode=mode)
    second, twice = prune(once, x, ratio=0.3, mode=mode)
    assert difference(once, twice, second.removed, x) < 1e-12
    assert slim.verify(once, twice, second, x) < 1e-10
    assert second.totals["channels"] == (first.totals["channels"][1], second.totals["channels"][1])


@pytest.mark.parametrize("mode", ["couple", "select"])
def test_thin_trains_pickles_exports_and_compiles(mode: str) -> None:
    model = randomise(build("slim:densenet40", num_classes=10, gamma=None))
    x = torch.randn(2, 3, 32, 32)
    _, thin = prune(model, x, ratio=0.5, mode=mode)
    thin.train()(x).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in thin.parameters())
    thin.eval()
    buffer = io.BytesIO()
    torch.save(thin, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(again(x), thin(x))
    assert torch.equal(pickle.loads(pickle.dumps(thin))(x), thin(x))
    exported = torch.export.export(thin, (x,)).module()
    assert torch.allclose(exported(x), thin(x), atol=1e-5)


def test_thin_compiles() -> None:
    model = randomise(ZOO["residual"]())
    _, thin = prune(model, ratio=0.4)
    thin.eval()
    compiled = torch.compile(thin, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(X), thin(X), atol=1e-6)


def test_thin_in_distributed_training(tmp_path: Path) -> None:
    """DDP refuses parameters that get no gradient, and shapes that don't fit its buckets."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model = randomise(ZOO["residual"]())
        _, thin = prune(model, ratio=0.4)
        alone = copy.deepcopy(thin).train()
        wrapped = nn.parallel.DistributedDataParallel(thin.train())
        for _ in range(2):
            for network in (wrapped, alone):
                network.zero_grad()
                network(X).square().sum().backward()
        for a, b in zip(wrapped.parameters(), alone.parameters()):
            assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_synchronised_batchnorm() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(randomise(ZOO["residual"]())).eval()
    plan, thin = prune(model, ratio=0.4)
    assert difference(model, thin, plan.removed, X) < 1e-12
    norms = [m for m in thin.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert norms and all(m.num_features == len(m.weight) for m in norms)
    assert plan.removed == prune(randomise(ZOO["residual"]()).eval(), ratio=0.4)[0].removed


def test_a_plan_applies_elsewhere(tmp_path: Path) -> None:
    """Made here, applied in a fresh process to a network of its own: the same weights, bit for bit."""
    model = randomise(torchvision.models.resnet18(), 3).eval()
    plan = slim.plan(model, torch.randn(1, 3, 64, 64), ratio=0.5)
    plan.save(tmp_path / "plan.json")
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    code = f"""
import slim, torch, torchvision
model = torchvision.models.resnet18()
model.load_state_dict(torch.load(r"{tmp_path}/whole.pt"))
thin = slim.PruningPlan.load(r"{tmp_path}/plan.json").apply(model)
torch.save(thin.state_dict(), r"{tmp_path}/thin.pt")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    here, there = plan.apply(model).state_dict(), torch.load(tmp_path / "thin.pt")
    assert here.keys() == there.keys() and all(torch.equal(here[k], there[k]) for k in here)


def test_shared_and_nested() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = cbr(3, 12), cbr(1, 12)
            self.head = nn.Linear(12, 3)
            self.twin = nn.Linear(12, 3)
            self.twin.weight = self.head.weight

        def forward(self, image: torch.Tensor, depth: torch.Tensor) -> dict[str, Any]:
            z = self.left(image) + self.right(depth)
            return {"a": self.head(z.mean((2, 3))), "b": [self.twin(z.amax((2, 3)))]}

    model = randomise(Two()).eval()
    inputs = {"image": torch.randn(2, 3, 8, 8), "depth": torch.randn(2, 1, 8, 8)}
    plan, thin = prune(model, inputs, ratio=0.5)
    assert thin.twin.weight is thin.head.weight
    assert slim.verify(model, thin, plan, inputs) < 1e-10
    a, b = masked(model, plan.removed)(**inputs), thin(**inputs)
    assert torch.allclose(a["a"], b["a"], atol=1e-5) and torch.allclose(a["b"][0], b["b"][0], atol=1e-5)


@pytest.mark.parametrize("d", [1, 3])
def test_one_and_three_dimensions(d: int) -> None:
    conv, bn = (nn.Conv1d, nn.BatchNorm1d) if d == 1 else (nn.Conv3d, nn.BatchNorm3d)
    model = nn.Sequential(
        conv(2, 16, 3), bn(16), nn.ReLU(), conv(16, 16, 3, groups=2), bn(16), nn.ReLU(), conv(16, 4, 1), nn.Flatten()
    )
    x = torch.randn(2, 2, *[7] * d)
    randomise(model).eval()
    plan, thin = prune(model, x, ratio=0.5)
    assert plan.ratio_achieved == 0.5 and difference(model, thin, plan.removed, x) < 1e-12


def test_explain_names_what_is_tied() -> None:
    text = slim.explain(ZOO["residual"](), X)
    assert "16 groups: a.0.1" in text and "16 groups: stem.1, a.1.1" in text
    frozen = slim.explain(net(lambda s, x: s.a(x.softmax(1)), a=cbr(16, 16)), X)
    assert "frozen: 16 groups in stem.1: _softmax" in frozen


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_optimizer_goes_on(kind: str) -> None:
    """A step of the thin network is the step of the masked one on what is kept: momentum came along."""
    torch.manual_seed(0)
    model = randomise(ZOO["residual"]()).double().eval()
    make = {"sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), "adam": lambda p: torch.optim.Adam(p, 0.01)}[kind]
    x, optimizer = X.double(), make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    plan = slim.plan(model, x, ratio=0.4)
    thin = plan.apply(model)
    state = {n: {k: v for k, v in optimizer.state[p].items()} for n, p in model.named_parameters()}
    plan.prune_optimizer(optimizer, model, thin)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in thin.parameters()}
    key = "momentum_buffer" if kind == "sgd" else "exp_avg"
    for name, p in thin.named_parameters():
        expected = state[name][key]
        for dim, gone in plan.cuts.get(name, {}).items():
            kept = [i for i in range(expected.shape[dim]) if i not in gone]
            expected = expected.index_select(dim, torch.tensor(kept))
        assert torch.equal(optimizer.state[p][key], expected)
    thin(x).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(
    "name", ["stored split size", "stored sizes alike", "stored sizes shared", "stored unequal sizes"]
)
def test_sizes_that_modules_store_follow_and_are_told(name: str) -> None:
    model = randomise(ZOO[name]()).eval()
    plan, thin = prune(model, ratio=0.4)
    assert plan.sizes and not plan.frozen
    for attribute, size in plan.sizes.items():
        owner, _, key = attribute.rpartition(".")
        before, after = getattr(model.get_submodule(owner), key), getattr(thin.get_submodule(owner), key)
        assert after == size != before and type(after) is type(before)
