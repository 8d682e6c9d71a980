"""Channels that are constant where they are read, though not zero, go: the bias of what reads them takes that up.

The truth is the original with zeros in all that makes the pruned channels, in float64."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from networks import difference, randomise
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import slim

X, ROWS = torch.randn(2, 3, 10, 10).double(), torch.randn(4, 6).double()


class Then(nn.Module):
    """A function as a layer, with a parameter of its own."""

    def __init__(self, function: Callable[..., Tensor], *parameter: float) -> None:
        super().__init__()
        self.function = function
        self.p = nn.Parameter(torch.tensor(parameter)) if parameter else None

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x) if self.p is None else self.function(x, self.p)


def stem(width: int = 16) -> list[nn.Module]:
    return [nn.Conv2d(3, width, 3, bias=False), nn.BatchNorm2d(width)]


def after(function: Callable[..., Tensor], *parameter: float, reader: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(*stem(), Then(function, *parameter), nn.Linear(16, 4) if reader is None else reader)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def log_power(x: Tensor) -> Tensor:
    return torch.log(torch.clamp(F.avg_pool2d(x * x, 2), min=1e-6))


def statistics(x: Tensor) -> Tensor:
    return torch.cat([pooled(x), (x.var((2, 3)) + 1e-3).sqrt()], 1)


def gem(x: Tensor, p: Tensor) -> Tensor:
    return x.clamp(min=1e-3).pow(p).mean((2, 3)).pow(1 / p)


def shared_filter(x: Tensor, p: Tensor) -> Tensor:
    weight = p.sigmoid().view(1, 1, 1, 2).expand(x.shape[1], 1, 3, 2)
    return pooled(F.conv2d(x.exp(), weight, groups=x.shape[1]))


class Short(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.renorm(2, 0, 0.5)


def parametrized(layer: nn.Module) -> nn.Module:
    register_parametrization(layer, "weight", Short())
    return layer


class SeveralReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*stem())
        self.first, self.second, self.again = nn.Conv2d(16, 4, 3), nn.Conv2d(16, 4, 3, bias=False), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 - self.stem(x).sigmoid()
        means = pooled(x)
        return self.first(x) + self.second(x * 2) + (self.again(means) * self.again(means.flip(0)))[:, :, None, None]


class Joined(nn.Module):
    """What is zero, what is constant and what stays, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Sequential(*stem()), nn.Sequential(*stem(8))
        self.fc = nn.Linear(16 + 8 + 3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([pooled(self.one(x)), pooled(self.two(x)).exp(), pooled(x)], 1))


class Attentive(nn.Module):
    """Attentive statistics pooling over time, with global context, as of ECAPA-TDNN."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(3, 16, 3), nn.BatchNorm1d(16))
        self.context = nn.Sequential(nn.Conv1d(48, 8, 1), nn.ReLU(), nn.BatchNorm1d(8), nn.Tanh(), nn.Conv1d(8, 16, 1))
        self.norm, self.fc = nn.BatchNorm1d(32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)

        def moments(weight: Tensor) -> tuple[Tensor, Tensor]:
            mean = (weight * x).sum(2)
            return mean, ((weight * (x - mean[:, :, None]).pow(2)).sum(2)).clamp(1e-6).sqrt()

        weight = x.new_ones(len(x), 1, x.shape[2]) / x.shape[2]
        context = [each[:, :, None].repeat(1, 1, x.shape[2]) for each in moments(weight)]
        weight = self.context(torch.cat([x, *context], 1)).softmax(2)
        return self.fc(self.norm(torch.cat(moments(weight), 1)))


FOLDED: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "log of pooled power, flattened": (lambda: after(lambda x: log_power(x).flatten(1), reader=nn.Linear(256, 4)), X),
    "into a convolution over all of it": (lambda: after(log_power, reader=nn.Conv2d(16, 4, 4)), X),
    "standard deviations beside means": (lambda: after(statistics, reader=nn.Linear(32, 4)), X),
    "generalised mean, its power learned": (lambda: after(gem, 3.0), X),
    "sigmoid": (lambda: after(lambda x: pooled(x).sigmoid()), X),
    "softplus before the pool": (lambda: after(lambda x: pooled(F.softplus(x))), X),
    "cosine": (lambda: after(lambda x: pooled(x.cos())), X),
    "one less": (lambda: after(lambda x: 1 - pooled(x)), X),
    "a learned number added": (lambda: after(lambda x, p: pooled(x) + F.softplus(p), 0.5), X),
    "a reader without bias": (lambda: after(lambda x: pooled(x) + 0.5, reader=nn.Linear(16, 4, bias=False)), X),
    "a convolution without padding": (lambda: after(torch.exp, reader=nn.Conv2d(16, 4, 3)), X),
    "one with stride, dilation and no bias": (
        lambda: after(torch.exp, reader=nn.Conv2d(16, 4, 3, 2, dilation=2, bias=False)),
        X,
    ),
    "one in groups": (lambda: after(torch.exp, reader=nn.Conv2d(16, 8, 3, groups=4)), X),
    "one padded by reflection": (
        lambda: after(torch.exp, reader=nn.Conv2d(16, 4, 3, padding=1, padding_mode="reflect")),
        X,
    ),
    "one filter over every channel": (lambda: after(shared_filter, 1.0, 2.0), X),
    "a weight that is computed": (lambda: after(gem, 2.0, reader=parametrized(nn.Linear(16, 4))), X),
    "a computed one, no bias": (lambda: after(gem, 2.0, reader=parametrized(nn.Linear(16, 4, bias=False))), X),
    "channels last": (lambda: after(lambda x: x.exp().permute(0, 2, 3, 1)), X),
    "tokens": (lambda: after(lambda x: x.exp().flatten(2).transpose(1, 2)), X),
    "a reader that is pruned itself": (
        lambda: nn.Sequential(
            *stem(), Then(torch.exp), nn.Conv2d(16, 16, 1, bias=False), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1)
        ),
        X,
    ),
    "no norm": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 2)),
        ROWS,
    ),
    "several readers, one of them twice": (SeveralReaders, X),
    "zeros, constants and what stays": (Joined, X),
    "attentive statistics": (Attentive, X[:, :, 0]),
}


def made(build: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return randomise(build()).double().eval()


def planned(model: nn.Module, x: Tensor, **settings: Any) -> slim.PruningPlan:
    usual: dict[str, Any] = {"ratio": 0.5, "score": slim.Random(1), "round_to": 1}
    return slim.plan(model, x, **(usual | settings))


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case: str) -> None:
    build, x = FOLDED[case]
    model = made(build)
    before = copy.deepcopy(model.state_dict())
    plan = planned(model, x)
    assert plan.constants and plan.ratio_achieved > 0.45 and not plan.shortfall
    thin: Any = plan.apply(model)
    assert difference(model, thin, plan.removed, x) < 1e-12
    assert slim.verify(model, thin, plan, x) < 1e-10
    assert plan.totals["params"][1] == sum(p.numel() for p in thin.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read = nn.Sequential(*stem()), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(pooled(self.stem(x)).exp(), self.read.weight)


class Gated(nn.Module):
    """One number for all channels, which follows the input, on top of what is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.read = nn.Sequential(*stem()), nn.Conv2d(3, 1, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.stem(x) + F.relu(self.one(x)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Sequential(*stem()), nn.Linear(16, 4, bias=False), nn.Linear(16, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = pooled(self.stem(x))
        return self.one(x.exp()) + self.two(x)


class Placed(nn.Module):
    """Constants that differ from place to place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.read = nn.Sequential(*stem()), nn.Conv2d(16, 4, 1)
        self.position = nn.Parameter(torch.randn(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.stem(x) + self.position)


FROZEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "zero padding meets it": (lambda: after(torch.exp, reader=nn.Conv2d(16, 4, 3, padding=1)), "3"),
    "padding that keeps the size": (lambda: after(torch.exp, reader=nn.Conv2d(16, 4, 3, padding="same")), "3"),
    "padded before": (lambda: after(lambda x: F.pad(x.exp(), (1, 1)), reader=nn.Conv2d(16, 4, 3)), "3"),
    "a transposed convolution": (lambda: after(torch.exp, reader=nn.ConvTranspose2d(16, 4, 3)), "3"),
    "an infinite constant": (lambda: after(lambda x: pooled(x).abs().log()), "3"),
    "a sum that follows the size": (lambda: after(lambda x: x.exp().sum((2, 3)).log()), "3"),
    "a layer's weight without the layer": (Functional, "read"),
    "a number that follows the input": (Gated, "read"),
    "a weight that two layers have": (Tied, "one"),
    "constants that differ by place": (Placed, "read"),
}


@pytest.mark.parametrize("case", FROZEN)
def test_frozen_by_name(case: str) -> None:
    build, name = FROZEN[case]
    x = torch.randn(2, 3, 12, 12).double()
    model = made(lambda: nn.Sequential(*stem(8), nn.Conv2d(8, 3, 1), nn.BatchNorm2d(3), build()))
    plan = planned(model, x, ratio=0.2, score=slim.Gamma())
    assert not plan.constants and [k for k in plan.frozen if k.endswith(f"not zero where 4.{name} reads it")]
    thin: Any = plan.apply(model)
    assert difference(model, thin, plan.removed, x) < 1e-12
    assert slim.verify(model, thin, plan, x) < 1e-10


def head(bias: bool) -> Any:
    return made(lambda: after(gem, 3.0, reader=nn.Linear(16, 4, bias=bias)))


@pytest.mark.parametrize("bias", [True, False])
def test_files(bias: bool, tmp_path: Path) -> None:
    model = head(bias)
    plan = planned(model, X)
    plan.save(tmp_path / "plan.json")
    loaded = slim.PruningPlan.load(tmp_path / "plan.json")
    assert loaded == plan and loaded.digest == plan.digest
    thin = loaded.apply(model)
    assert slim.verify(model, thin, loaded, X) < 1e-10
    slim.save(tmp_path / "thin.safetensors", thin, plan)
    other = made(lambda: after(gem, 2.0, reader=nn.Linear(16, 4, bias=bias)))  # its weights don't matter
    assert torch.equal(slim.load(tmp_path / "thin.safetensors", other)(X), thin(X))


def test_a_network_of_single_precision() -> None:
    """The bias is rounded once; the proof folds anew, in float64."""
    model = head(False).float()
    plan = planned(model, X.float())
    thin: Any = plan.apply(model)
    assert thin[3].bias.dtype == torch.float32 and difference(model, thin, plan.removed, X) < 1e-6
    assert slim.verify(model, thin, plan, X.float()) < 1e-10
    with torch.no_grad():
        thin[3].bias.add_(1e-3)
    with pytest.raises(slim.SlimError, match=r"3\.bias holds other values"):
        slim.verify(model, thin, plan, X.float())


def test_a_learned_constant_that_has_changed_since_is_noticed() -> None:
    model = made(FOLDED["a learned number added"][0])
    plan = planned(model, X)
    with torch.no_grad():
        model[2].p.add_(1)
    with pytest.raises(slim.SlimError, match="differs"):
        slim.verify(model, plan.apply(model), plan, X)


@pytest.mark.parametrize("bias", [True, False])
def test_optimizer_goes_on(bias: bool) -> None:
    model = head(bias).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(X).square().sum().backward()
    optimizer.step()
    plan = planned(model, X)
    thin: Any = plan.apply(model)
    moment = optimizer.state[model[3].weight]["exp_avg"]
    plan.prune_optimizer(optimizer, model, thin)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in thin.parameters()}
    stays = [i for i in range(16) if i not in plan.removed["1"]]
    assert torch.equal(optimizer.state[thin[3].weight]["exp_avg"], moment[:, stays])
    before = thin[3].bias.detach().clone()
    optimizer.zero_grad()
    thin(X).square().sum().backward()
    optimizer.step()
    assert bool((thin[3].bias != before).all())


def test_exported(tmp_path: Path) -> None:
    model = head(False).float()
    plan = planned(model, X.float())
    thin: Any = plan.apply(model)
    slim.export_onnx(thin, X.float(), tmp_path / "thin.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "thin.onnx")
    [found] = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    assert torch.allclose(torch.from_numpy(found), thin(X.float()), rtol=1e-4, atol=1e-5)


def test_in_small_steps() -> None:
    """What one step folds, the next one finds in the bias."""
    model = network = head(False)
    plans: list[slim.PruningPlan] = []
    removed: list[int] = []
    left = list(range(16))
    for ratio in (0.2, 0.4, 0.6):
        plan = planned(network, X, ratio=ratio, after=plans)
        thin = plan.apply(network)
        assert slim.verify(network, thin, plan, X) < 1e-10
        removed += [left[i] for i in plan.removed["1"]]
        left = [c for c in left if c not in removed]
        network = thin
        plans.append(plan)
    assert len(removed) == 9
    assert difference(model, network, {"0": removed, "1": removed}, X) < 1e-12


def test_recovered() -> None:
    model = head(False)
    plan = planned(model, X)
    images = torch.randn(64, 3, 10, 10).double()
    thin: Any = plan.apply(model)
    recovered = slim.recover(model, thin, plan, images)

    @torch.no_grad()
    def error(other: nn.Module) -> float:
        return float((other(images) - model(images)).square().sum())

    assert recovered.chosen == "regression" and error(recovered.model) < error(thin)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"9": [0.0] * 16}, "'9' has no weight of its own"),
        ({"1": [0.0] * 16}, "'1' has no weight of its own"),
        ({"3": [0.0] * 15}, "'3' reads 16 channels, expected 15"),
    ],
)
def test_a_plan_that_does_not_fit(change: dict[str, list[float]], said: str) -> None:
    model = head(True)
    plan = planned(model, X)
    plan.constants = change
    with pytest.raises(slim.SlimError, match=said):
        plan.apply(model)
