"""Optimizers go on with the thinner network: all of torch's and timm's, one table."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import slim

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Make = Callable[[nn.Module], torch.optim.Optimizer]
NOT_FOR_CONVOLUTIONS = {"Optimizer", "SparseAdam", "Muon"}  # sparse gradients; matrices only: see below


@pytest.fixture(autouse=True)
def _nothing_is_compiled() -> Iterator[None]:
    """Kron and Muon compile parts of themselves, which takes a minute each."""
    with torch.compiler.set_stance("force_eager"):
        yield


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 48, 3, bias=False), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.Conv2d(48, 40, 3, bias=False), nn.BatchNorm2d(40), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 40, bias=False), nn.BatchNorm1d(40), nn.Linear(40, 2)),
    )
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.1, 1)
            nn.init.uniform_(module.bias, 0.1, 1)
    return model.double()  # so that small steps show


def step(model: nn.Module, optimizer: torch.optim.Optimizer, create_graph: bool = False) -> None:
    def closure() -> Any:  # the tensor, which torch takes although it asks for a float
        optimizer.zero_grad()
        loss: Tensor = model(X).square().mean()
        loss.backward(create_graph=create_graph)
        return loss

    optimizer.step(closure)


def of_kind(kind: Callable[..., torch.optim.Optimizer]) -> Make:
    return lambda model: kind(model.parameters(), lr=1e-3)


def of_torch() -> dict[str, Make]:
    kinds = {name: kind for name, kind in vars(torch.optim).items() if isinstance(kind, type)}
    return {
        f"torch:{name}": of_kind(kind)
        for name, kind in kinds.items()
        if issubclass(kind, torch.optim.Optimizer) and name not in NOT_FOR_CONVOLUTIONS
    }


def of_timm() -> dict[str, Make]:
    from timm import optim

    def made(name: str) -> Make:
        return lambda model: optim.create_optimizer_v2(model, name, lr=1e-3)

    return {
        f"timm:{name}": made(name)
        for name in (*map(str, optim.list_optimizers()), "lookahead_adam")
        if not name.startswith(("bnb", "fused"))  # which need a GPU
    }


OPTIMIZERS = of_torch() | of_timm()
SLOW = "kron"  # its preconditioners take a minute and more on two cores
CASES = [pytest.param(name, marks=pytest.mark.slow if SLOW in name else ()) for name in OPTIMIZERS]
START_ANEW = {"torch:LBFGS"}  # its history is one vector over all parameters


@pytest.mark.parametrize("name", CASES)
def test_an_optimizer_trains_the_thin_network(name: str) -> None:
    model = network()
    optimizer, graph = OPTIMIZERS[name](model), "adahessian" in name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of second derivatives
        step(model, optimizer, graph)
        step(model, optimizer, graph)
    plan = slim.plan(model, X, ratio=0.6)
    thin = plan.apply(model)
    groups = [group["params"] for group in optimizer.param_groups]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        plan.prune_optimizer(optimizer, model, thin)
    assert all(group["params"] is own for group, own in zip(optimizer.param_groups, groups))  # others hold the lists
    parameters = {id(p) for p in thin.parameters()}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == parameters
    assert {id(p) for p in optimizer.state} <= parameters
    if name in START_ANEW:
        assert "starts anew" in str(said[0].message) and not optimizer.state
    before = [p.detach().clone() for p in thin.parameters()], [p.detach().clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(6):  # lookahead moves its slow weights in the sixth
            step(thin, optimizer, graph)
    assert all(torch.equal(old, p) for old, p in zip(before[1], model.parameters()))
    moved = [not torch.equal(old, p) for old, p in zip(before[0], thin.parameters())]
    assert all(moved) and all(p.isfinite().all() for p in thin.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "torch:Adam",
        "torch:SGD",
        "torch:Adafactor",
        pytest.param("timm:kron", marks=pytest.mark.slow),
        "timm:adahessian",
    ],
)
def test_state_is_that_of_the_channels_that_stay(name: str) -> None:
    """By hand, with the axes written out."""
    model = network()
    optimizer = OPTIMIZERS[name](model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step(model, optimizer, "adahessian" in name)
    conv = model.get_parameter("3.weight")
    was = {key: value.clone() if isinstance(value, Tensor) else value for key, value in optimizer.state[conv].items()}
    plan = slim.plan(model, X, ratio=0.3)
    thin = plan.apply(model)
    plan.prune_optimizer(optimizer, model, thin)
    rows, columns = ([i for i in range(n) if i not in plan.removed[bn]] for bn, n in (("4", 40), ("1", 48)))
    now = optimizer.state[thin.get_parameter("3.weight")]
    expected: dict[str, Callable[[Tensor], Tensor]] = {
        "row_var": lambda t: t[rows][:, columns],  # [40, 48, 3, 1]
        "col_var": lambda t: t[rows][:, columns],  # [40, 48, 1, 3]
    }
    for key, value in was.items():
        if isinstance(value, Tensor) and value.dim():
            assert torch.equal(now[key], expected.get(key, lambda t: t[rows][:, columns])(value)), key
    if "Q" in was:  # a triangle for each axis
        assert torch.equal(now["Q"][0], was["Q"][0][rows][:, rows])
        assert torch.equal(now["Q"][1], was["Q"][1][columns][:, columns])


def test_state_of_an_optimizer_inside_another_goes_on() -> None:
    model = network()
    optimizer: Any = OPTIMIZERS["timm:lookahead_adam"](model)
    step(model, optimizer)
    states = optimizer._base_optimizer.state
    was = states[model.get_parameter("8.weight")]["exp_avg"]
    plan = slim.plan(model, X, ratio=0.4)
    thin = plan.apply(model)
    plan.prune_optimizer(optimizer, model, thin)
    rows, columns = ([i for i in range(40) if i not in plan.removed[bn]] for bn in ("9", "4"))
    assert torch.equal(states[thin.get_parameter("8.weight")]["exp_avg"], was[rows][:, columns])


class Averaging(torch.optim.Optimizer):
    """Slow weights in a list for each group, and another optimizer within; torch's own attributes are left out."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.defaults, self.state = inner, inner.param_groups, {}, {}  # type: ignore
        self.slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.inner.step(closure)
        for group, slow in zip(self.param_groups, self.slow):
            for fast, kept in zip(group["params"], slow):
                kept.lerp_(fast, 0.5)
                fast.copy_(kept)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad()


def test_copies_of_weights_that_an_optimizer_keeps_in_lists_are_cut() -> None:
    model = network()
    optimizer: Any = Averaging(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    step(model, optimizer)
    plan = slim.plan(model, X, ratio=0.4)
    thin = plan.apply(model)
    plan.prune_optimizer(optimizer, model, thin)
    for slow, parameter in zip(optimizer.slow[0], thin.parameters()):
        torch.testing.assert_close(slow, parameter.detach(), rtol=0, atol=0)  # as they were after a step
    step(thin, optimizer)
    with pytest.raises(slim.SlimError, match=r"Averaging has no hooks, .* expected the optimizer that it wraps"):
        slim.sparsify(thin, optimizer, slim.L1(1e-3))


def test_a_matrix_of_muon() -> None:
    model = network()
    optimizer = torch.optim.Muon([model.get_parameter("8.weight")], lr=1e-3)  # 40 × 40
    step(model, optimizer)
    plan = slim.plan(model, X, ratio=0.4)
    thin = plan.apply(model)
    momentum = optimizer.state[model.get_parameter("8.weight")]["momentum_buffer"]
    plan.prune_optimizer(optimizer, model, thin)
    rows, columns = ([i for i in range(40) if i not in plan.removed[bn]] for bn in ("9", "4"))
    assert torch.equal(optimizer.state[thin.get_parameter("8.weight")]["momentum_buffer"], momentum[rows][:, columns])
    step(thin, optimizer)


class Kept(torch.optim.Optimizer):
    """SGD that keeps whatever it is told of each parameter."""

    def __init__(self, parameters: Iterable[nn.Parameter], keep: Callable[[Tensor], dict[str, Any]]) -> None:
        super().__init__(parameters, {})
        self.keep = keep

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            if not self.state[parameter]:
                self.state[parameter].update(self.keep(parameter))


@pytest.mark.parametrize(
    "keep, shape",
    [
        (lambda p: {"mean": p.mean(3)}, [20, 24, 3]),
        (lambda p: {"mean": p.mean(0)}, [24, 3, 3]),
        (lambda p: {"left": p.flatten(1) @ p.flatten(1).T}, [20, 20]),
        (lambda p: {"per axis": [torch.eye(n) for n in p.shape]}, [[20, 20], [24, 24], [3, 3], [3, 3]]),
        (lambda p: {"number": 3, "step": torch.ones(())}, []),
        (lambda p: {"flat": p.flatten().clone()}, None),
        (lambda p: {"pairs": [p.flatten(1), p.flatten(1)]}, None),
    ],
    ids=["mean over the kernel", "mean over outputs", "square", "for each axis", "scalars", "flat", "pairs"],
)
def test_shapes_that_tell_their_axes_and_shapes_that_do_not(
    keep: Callable[[Tensor], dict[str, Any]], shape: list[Any] | None
) -> None:
    model = network()
    conv = model.get_parameter("3.weight")
    optimizer = Kept([conv], lambda p: keep(p.detach()))
    optimizer.step()
    plan = slim.plan(model, X, ratio=0.5, scope="layer", round_to=1)
    thin = plan.apply(model)
    assert list(thin.get_parameter("3.weight").shape) == [20, 24, 3, 3]
    if shape is None:
        with pytest.warns(UserWarning, match="Kept starts anew for 1 parameters, such as 3.weight"):
            plan.prune_optimizer(optimizer, model, thin)
        assert not optimizer.state
        return
    plan.prune_optimizer(optimizer, model, thin)
    [(parameter, state)] = optimizer.state.items()
    assert parameter is thin.get_parameter("3.weight")
    for value in state.values():
        found = [list(v.shape) for v in value] if isinstance(value, list) else list(getattr(value, "shape", []))
        assert found == shape or found == []


def test_an_optimizer_of_another_model() -> None:
    model, other = network(), network()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    with pytest.raises(slim.SlimError, match="the SGD holds no parameter of this model"):
        plan.prune_optimizer(torch.optim.SGD(other.parameters(), 0.1), model, thin)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan.prune_optimizer(optimizer, model, thin)
    with pytest.raises(slim.SlimError, match="holds no parameter"):
        plan.prune_optimizer(optimizer, model, thin)  # a second time
