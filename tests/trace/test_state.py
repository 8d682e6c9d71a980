"""Each run of a trace begins from the same state of the modules, and leaves the model alone."""

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slim
from slim.trace.state import restored

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Stateful(nn.Module):
    """Eight channels in the body, two in the head; what forward does between is a case's own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        nn.init.uniform_(self.norm.weight, 0.1, 1)
        self.prepare()

    def prepare(self) -> None: ...

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.norm(self.conv(x)).relu()))


class Grid(Stateful):
    """A grid that is built when the input has another shape, in inference only."""

    shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training:
            return y
        if self.shape != y.shape:
            self.shape, self.grid = y.shape, torch.arange(y.shape[-1]) + 0.5
        return y.sigmoid() + self.grid


class GridsBySize(Stateful):
    """The same in a dict, by size."""

    def prepare(self) -> None:
        self.grids: dict[tuple[int, ...], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        size = tuple(y.shape[-2:])
        if size not in self.grids:
            self.grids[size] = torch.ones(size).cumsum(0)
        return y + self.grids[size]


class PositionTable(Stateful):
    """A buffer that grows to what is needed."""

    table: Tensor

    def prepare(self) -> None:
        self.register_buffer("table", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.table.shape[-1] < y.shape[-1]:
            self.table = torch.linspace(0, 1, y.shape[-1], dtype=y.dtype)
        return y * (1 + self.table[: y.shape[-1]])


class Membrane(Stateful):
    """A spiking neuron's potential: made in the first forward, carried to the next."""

    potential: Tensor | None

    def prepare(self) -> None:
        self.potential, self.width = None, 8  # which forward doesn't read

    def between(self, x: Tensor) -> Tensor:
        if self.potential is None:
            self.potential = torch.zeros_like(x)
        self.potential = 0.9 * self.potential + x
        return self.potential


class MembraneBuffer(Stateful):
    """The same in a buffer."""

    potential: Tensor

    def prepare(self) -> None:
        self.register_buffer("potential", torch.zeros(()))

    def between(self, x: Tensor) -> Tensor:
        if self.potential.shape != x.shape:
            self.potential = torch.zeros_like(x)
        self.potential = 0.9 * self.potential + x
        return self.potential


class FilledOnce(Stateful):
    """A buffer that the first forward makes, as wide as what it sees, and no later one."""

    scale: Tensor | None

    def prepare(self) -> None:
        self.register_buffer("scale", None)

    def between(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = 1 + x.detach().square().mean((0, 2, 3))
        return x * self.scale[:, None, None].to(x)


class Growing(Stateful):
    """A buffer that holds what all forwards have seen."""

    seen: Tensor

    def prepare(self) -> None:
        self.register_buffer("seen", torch.zeros(0, 8))

    def between(self, x: Tensor) -> Tensor:
        self.seen = torch.cat([self.seen.to(x), x.mean((2, 3))])
        return x + self.seen.mean(0)[:, None, None]


class KeptWidth(Stateful):
    """A size that is worked out once."""

    @functools.cached_property
    def width(self) -> int:
        return len(self.norm.weight)

    def between(self, x: Tensor) -> Tensor:
        return x.reshape(-1, self.width, 6, 6)


@functools.lru_cache
def ruler(size: int) -> Tensor:
    return torch.linspace(0, 1, size)


class KeptElsewhere(Stateful):
    """A table that a function keeps, whatever is undone on the modules."""

    def between(self, x: Tensor) -> Tensor:
        return x * ruler(x.shape[-1]).to(x)


class Counter(Stateful):
    """A buffer that forward replaces, a list that it fills, and another path from the third forward on."""

    seen: Tensor

    def prepare(self) -> None:
        self.register_buffer("seen", torch.zeros(()))
        self.calls: list[int] = []

    def between(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        self.calls.append(len(self.calls))
        return x if len(self.calls) < 3 else x + 0 * x.square()


class DroppedPath(Stateful):
    """A second layer that a training forward may skip."""

    def prepare(self) -> None:
        self.more, self.again = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        nn.init.uniform_(self.again.weight, 0.1, 1)

    def draw(self) -> float:
        return random.random()

    def between(self, x: Tensor) -> Tensor:
        if self.training and self.draw() < 0.5:
            return x
        return self.again(self.more(x)).relu()


class DroppedByNumpy(DroppedPath):
    def draw(self) -> float:
        return float(np.random.rand())


class DroppedByTorch(DroppedPath):
    def draw(self) -> float:
        return torch.rand(1).item()


class DroppedByItsOwn(DroppedPath):
    """Generators that the network holds."""

    def __init__(self) -> None:
        super().__init__()
        self.python, self.numpy, self.old = random.Random(0), np.random.default_rng(0), np.random.RandomState(0)
        self.torch = torch.Generator().manual_seed(0)

    def draw(self) -> float:
        draws = [self.python.random(), self.numpy.random(), self.old.rand()]
        return (sum(draws) + torch.rand(1, generator=self.torch).item()) % 1


class InferenceOnly(DroppedPath):
    def draw(self) -> float:
        return 0.0


class ExitByValue(DroppedPath):
    """Inference stops early by what it sees, and training does not."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * 0 if not self.training and y.softmax(1).max() < 0 else y


class OneOfSeveral(Stateful):
    """One layer in training or where gradients are taken, and another in inference; or one of several that is drawn, by
    torch or by its own."""

    def __init__(self, choose: str) -> None:
        super().__init__()
        self.choose, self.own = choose, random.Random(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3))

    def between(self, x: Tensor) -> Tensor:
        one_of_two = {"mode": self.training, "grad mode": torch.is_grad_enabled(), "gradient": x.requires_grad}
        if self.choose in one_of_two:
            return self.layers[int(one_of_two[self.choose])](x)
        number = self.own.randrange(3) if self.choose == "own" else int(torch.randint(3, ()).item())
        return self.layers[number if self.choose != "training" or self.training else 0](x)


CASES = [
    *(Grid, GridsBySize, KeptElsewhere, PositionTable, Membrane, MembraneBuffer, Counter),
    *(FilledOnce, Growing, KeptWidth),
]
DROPPED = [DroppedPath, DroppedByNumpy, DroppedByTorch, DroppedByItsOwn, InferenceOnly, ExitByValue]


@torch.no_grad()
def difference(kind: type[Stateful], thin: nn.Module, removed: dict[str, list[int]]) -> float:
    masked = kind()
    for name, gone in removed.items():
        norm = masked.get_submodule(name)
        norm.weight[gone], norm.bias[gone] = 0, 0  # type: ignore[operator]
    expected, found = masked.double().eval()(X.double()), thin.double().eval()(X.double())
    return float((expected - found).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", CASES)
def test_state_that_forward_writes_freezes_nothing(kind: type[Stateful]) -> None:
    model = kind()
    plan = slim.plan(model, X, ratio=0.5)
    assert plan.ratio_achieved == 0.5 and not plan.frozen
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert difference(kind, thin, plan.removed) < 1e-10
    model.train()(X)  # what that leaves is cut as well
    assert plan.apply(model)(X).shape == (4, 2, 6, 6)


class Selecting(DroppedPath):
    """As many values as are above 0, which are others in inference, take no part in the check of the next layer."""

    def between(self, x: Tensor) -> Tensor:
        return self.again(self.more(x * x[x > 0].mean())).relu()


def test_sizes_that_follow_from_values_may_be_others_in_inference() -> None:
    model = Selecting()
    plan = slim.plan(model, X, ratio=0.25)
    assert plan.removed.keys() == {"again"} and plan.frozen == {"read through an index after norm": {"norm": 8}}
    assert difference(Selecting, plan.apply(model), plan.removed) < 1e-10


@pytest.mark.parametrize("choose", ["mode", "grad mode", "gradient", "own", "torch", "training"])
def test_layers_that_other_draws_or_the_other_mode_run_are_planned(choose: str) -> None:
    model = OneOfSeveral(choose)
    plan = slim.plan(model, X, ratio=0.5)
    met = range(2 if "mode" in choose or choose == "gradient" else 3)
    assert {layer.name for layer in plan.layers} == {"norm", *(f"layers.{i}.1" for i in met)}
    assert plan.ratio_achieved > 0.4 and not plan.frozen
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    for draw in range(8):
        torch.manual_seed(draw)
        assert thin.train(draw % 2 == 0)(X).shape == (4, 2, 6, 6)


class OneOfMany(Stateful):
    """More layers than a few draws lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(7))

    def between(self, x: Tensor) -> Tensor:
        return self.layers[random.randrange(7)](x)


@pytest.mark.parametrize("seed", range(3))
def test_all_layers_that_draws_lead_to_are_planned_and_recovery_knows_that_they_differ(seed: int) -> None:
    random.seed(seed)
    model = OneOfMany()
    plan = slim.plan(model, X, ratio=0.5)
    assert {layer.name for layer in plan.layers} == {"norm", *(f"layers.{i}.1" for i in range(7))}
    thin: Any = plan.apply(model)
    for layer in thin.layers:
        assert layer[0].in_channels == thin.norm.num_features < 8
    recovered = slim.recover(model, thin, plan, X.repeat(4, 1, 1, 1))
    assert recovered.model(X).shape == (4, 2, 6, 6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", DROPPED)
def test_layers_that_one_mode_skips_are_planned(kind: type[Stateful], seed: int) -> None:
    model = kind()
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    plan = slim.plan(model, X, ratio=0.5)
    assert {layer.name for layer in plan.layers} == {"norm", "again"} and plan.ratio_achieved == 0.5
    thin = plan.apply(model)
    assert slim.verify(model, thin, plan, X) < 1e-10
    assert difference(kind, thin, plan.removed) < 1e-10


def drawn_by_numpy() -> list[int]:
    state = np.random.get_state()
    assert isinstance(state, tuple)
    return state[1].tolist()


@pytest.mark.parametrize("kind", [*CASES, *DROPPED])
def test_a_plan_leaves_the_model_and_the_generators_alone(kind: type[Stateful]) -> None:
    model = kind()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    draws = random.getstate(), torch.get_rng_state(), drawn_by_numpy()
    held = {name: str(value) for name, value in vars(model).items()}
    slim.plan(model, X, ratio=0.5)
    assert held == {name: str(value) for name, value in vars(model).items()}
    assert draws[0] == random.getstate() and torch.equal(draws[1], torch.get_rng_state())
    assert draws[2] == drawn_by_numpy()


def changed(change: Callable[[nn.Module], object]) -> tuple[nn.Module, dict[str, object]]:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.cache, model.names, model.table = {"a": [1, 2]}, {"x"}, torch.arange(3)  # type: ignore[assignment]
    before = dict(vars(model)), {n: b.clone() for n, b in model.named_buffers()}, list(model.children())
    with restored(model):
        change(model)
    assert dict(vars(model)).keys() == before[0].keys()
    assert all(torch.equal(b, before[1][n]) for n, b in model.named_buffers()) and list(model.children()) == before[2]
    return model, vars(model)


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "an attribute": lambda m: setattr(m, "new", 1),
    "an item in a dict in place": lambda m: m.cache.update(b=1),  # type: ignore
    "an item in a list in a dict": lambda m: m.cache["a"].append(3),  # type: ignore
    "a set": lambda m: m.names.clear(),  # type: ignore
    "a tensor in place": lambda m: m.table.add_(1),  # type: ignore
    "a buffer in place": lambda m: m[1].running_mean.add_(1),  # type: ignore
    "a buffer replaced": lambda m: setattr(m[1], "running_var", torch.zeros(4)),  # type: ignore
    "a buffer more": lambda m: m.register_buffer("more", torch.zeros(1)),
    "a module": lambda m: setattr(m, "0", nn.Identity()),
    "a class": lambda m: setattr(m[1], "__class__", nn.BatchNorm3d),  # type: ignore
    "the mode": lambda m: m.eval(),
}


@pytest.mark.parametrize("case", CHANGES)
def test_whatever_changes_is_put_back(case: str) -> None:
    model, held = changed(CHANGES[case])
    assert held["cache"] == {"a": [1, 2]} and held["names"] == {"x"} and model.table.tolist() == [0, 1, 2]  # type: ignore
    assert type(model[1]) is nn.BatchNorm2d and model[1].training  # type: ignore[index]


class ChangesItsInputs(nn.Module):
    """pytorchvideo's SlowFast: what a stage makes of a list of clips takes their places in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, images: list[Tensor], settings: dict[str, int]) -> Tensor:
        images[0] = images[0] * settings.pop("scale")
        images[0] = self.body(images[0])
        return images.pop()


def test_forward_code_may_change_the_lists_and_dicts_that_it_is_given() -> None:
    model, inputs = ChangesItsInputs().eval(), ([torch.randn(2, 3, 8, 8)], {"scale": 2})
    plan = slim.plan(model, inputs, ratio=0.5, score=slim.Random(seed=0))
    assert slim.verify(model, plan.apply(model), plan, inputs) < 1e-10
    assert inputs[0][0].shape == (2, 3, 8, 8) and inputs[1] == {"scale": 2}
