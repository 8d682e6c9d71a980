"""Kinds of models beside the plain ones: wrappers are seen through, what can't be traced is refused in one line."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import slim

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def body() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
    nn.init.uniform_(made[1].weight, 0.1, 1)  # type: ignore[arg-type]
    return made.eval()


class Holding(nn.Module):
    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        return self.held(x)


class Differentiating(Holding):
    """Forward code that goes along a gradient of its own."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            features = self.held[:3](x).detach().requires_grad_()  # type: ignore[index]
            (slope,) = torch.autograd.grad(features.square().sum(), features)
        return self.held[3](features + slope)  # type: ignore[index]


def compiled(model: nn.Module) -> nn.Module:
    made = torch.compile(model, backend="eager")
    assert isinstance(made, nn.Module)
    return made


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "compiled": lambda: compiled(body()),
    "compiled, around a module": lambda: compiled(Holding(body())),
    "a part compiled": lambda: Holding(compiled(body())),
    "a forward with gradients": lambda: Differentiating(body()),
    "DataParallel": lambda: nn.DataParallel(body()),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapper_is_planned_by_what_it_wraps(case: str) -> None:
    model = WRAPPED[case]()
    plan = slim.plan(model, X, ratio=0.5)
    assert plan.ratio_achieved == 0.5
    thin = plan.apply(model)
    assert not isinstance(thin, torch._dynamo.OptimizedModule)
    assert slim.verify(model, thin, plan, X) < 1e-10
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan.prune_optimizer(optimizer, model, thin)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in thin.parameters()}
    recovered = slim.recover(model, thin, plan, torch.randn(32, 3, 8, 8))
    assert recovered.chosen == "regression"


def test_a_forward_that_is_compiled_is_traced_as_it_stands() -> None:
    def refusing(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        raise AssertionError("a trace needs no compiled code")

    class Decorated(Holding):
        @torch.compile(backend=refusing)
        def forward(self, x: Tensor) -> Tensor:
            return self.held(x)

    assert slim.plan(Decorated(body()), X, ratio=0.5).ratio_achieved == 0.5


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_distributed_model_is_planned_by_what_it_wraps(one_process: None) -> None:
    model = nn.parallel.DistributedDataParallel(body().train())
    model(X).square().sum().backward()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    assert isinstance(thin, nn.Sequential) and plan.ratio_achieved == 0.5
    assert slim.verify(model, thin, plan, X) < 1e-10
    with pytest.raises(slim.SlimError, match="held is a DistributedDataParallel inside the model"):
        slim.plan(Holding(model), X)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "scripted": (lambda: torch.jit.script(body()), "the model is a TorchScript module: expected the torch.nn.Module"),
    "a part that is": (lambda: Holding(torch.jit.script(body())), "held is a TorchScript module"),
    "lazy": (lazy, r"0 \(LazyConv2d\) has no shape yet: run the model on a batch first"),
    "a tensor": (lambda: X, "model is a Tensor: expected a torch.nn.Module"),
    "a class": (lambda: nn.ReLU, "model is a type: expected a torch.nn.Module"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_traced_is_refused_in_one_line(case: str) -> None:
    make, said = REFUSED[case]
    with pytest.raises(slim.SlimError, match=said) as caught:
        slim.plan(make(), X, ratio=0.5)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_batchnorm_in_a_list_is_named_as_the_cause() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
            self.more = [nn.BatchNorm2d(8)]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.more[0](self.norm(self.first(x)).relu()))

    with pytest.raises(
        slim.SlimError, match=r"a norm that is no submodule \(nn\.ModuleList registers those of a list\)"
    ):
        slim.plan(Net(), X, ratio=0.5)


INPUTS: dict[str, tuple[object, str]] = {
    "None": (None, "example_inputs is a NoneType: expected a tensor, a tuple or a dict"),
    "a number": (3, "example_inputs is a int: expected a tensor"),
    "an array": (X.numpy(), "example_inputs is a ndarray: expected a tensor"),
    "no samples": (X[:0], "example_inputs is an empty batch"),
    "no arguments": ((), r"can't be run on example_inputs: TypeError: .*missing 1 required positional argument"),
    "another shape": (torch.randn(1, 5, 8, 8), "can't be run on example_inputs: RuntimeError: Given groups=1"),
    "a list of what it doesn't take": ([None], "can't be run on example_inputs: TypeError: conv2d"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_inputs_that_show_nothing_are_refused_in_one_line(case: str) -> None:
    inputs, said = INPUTS[case]
    model = body()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    for refused in (lambda: slim.plan(model, inputs), lambda: slim.verify(model, thin, plan, inputs)):
        with pytest.raises(slim.SlimError, match=said) as caught:
            refused()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_an_error_of_a_rule_is_not_told_as_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(op: object) -> object:
        raise IndexError("no such label")

    monkeypatch.setattr("slim.trace.tracer.rule_for", lambda func: broken)
    for inputs, said in ((X, "slim can't follow this model, which runs on .* by itself: IndexError: no such label"),
                         (X[:, :1], "the model can't be run on example_inputs")):  # fmt: skip
        with pytest.raises(slim.SlimError, match=said):
            slim.plan(body(), inputs)


def test_arguments_in_another_order_are_refused_in_one_line() -> None:
    model = body()
    plan = slim.plan(model, X, ratio=0.5)
    thin = plan.apply(model)
    tries: list[tuple[Callable[[], object], str]] = [
        (lambda: slim.plan(X, model), "model is a Tensor"),  # type: ignore[arg-type]
        (lambda: slim.verify(thin, model, plan, X), "the plan doesn't fit this model: 0.weight has shape"),
        (lambda: slim.verify(model, plan, thin, X), "is a PruningPlan: expected a torch.nn.Module"),  # type: ignore
        (lambda: slim.verify(model, thin, X, plan), "plan is a Tensor: expected what slim.plan"),  # type: ignore
        (lambda: torch.inference_mode()(slim.plan)(model, X), "within torch.inference_mode"),
        (lambda: plan.apply(None), "model is of type NoneType"),  # type: ignore[arg-type]
    ]
    for refused, said in tries:
        with pytest.raises(slim.SlimError, match=said):
            refused()
