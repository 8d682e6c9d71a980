"""An optimizer with a kind of step of its own would go on without the penalty: sparsify says so."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from slim import L1, SlimError, sparsify


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is usually written: up the gradient, then back and down from there."""

    def __init__(self, parameters: object, base: type[torch.optim.Optimizer], rho: float = 0.05) -> None:
        super().__init__(parameters, {"rho": rho, "lr": 0.1})  # type: ignore[arg-type]
        self.base = base(self.param_groups, lr=0.1)  # type: ignore[call-arg]
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            self.state[p]["was"] = p.clone()
            p.add_(0.05 * p.grad)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["was"])
        self.base.step()
        self.zero_grad()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


X = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Loop = Callable[[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]], None]


def two_steps(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    assert isinstance(optimizer, SAM)
    loss().backward()
    optimizer.first_step()
    loss().backward()
    optimizer.second_step()


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def accumulating(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    for _ in range(8):
        loss().backward()
    optimizer.step()
    optimizer.zero_grad()


def with_closure(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss()
        found.backward()
        return found

    optimizer.step(closure)  # type: ignore[arg-type]


def run(kind: Callable[[nn.Module], torch.optim.Optimizer], loop: Loop, method: str, inner: bool = False) -> list[str]:
    model = network()
    optimizer = kind(model)
    sparsify(model, optimizer.base if inner else optimizer, L1(1e-3), method=method)  # type: ignore[attr-defined]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            loop(model, optimizer, lambda: model(X).square().mean())
    return [str(warning.message) for warning in caught if "took no step" in str(warning.message)]


def sam(model: nn.Module) -> torch.optim.Optimizer:
    return SAM(model.parameters(), torch.optim.SGD)


def test_a_step_of_another_name_is_warned_of_once() -> None:
    assert len(run(sam, two_steps, "subgradient")) == 1


def test_the_optimizer_inside_is_the_one_to_give() -> None:
    assert not run(sam, two_steps, "subgradient", inner=True)


@pytest.mark.parametrize("method", ["subgradient", "loss"])
@pytest.mark.parametrize(
    "kind, loop",
    [
        (lambda model: torch.optim.SGD(model.parameters(), 0.1), plain),
        (lambda model: torch.optim.Adam(model.parameters(), 0.1), accumulating),
        (lambda model: torch.optim.LBFGS(model.parameters()), with_closure),
    ],
    ids=["plain", "accumulating", "closure"],
)
def test_ordinary_loops_are_not(kind: Callable[[nn.Module], torch.optim.Optimizer], loop: Loop, method: str) -> None:
    assert not run(kind, loop, method)


def test_sparsify_refuses_what_is_no_optimizer() -> None:
    model = network()
    with pytest.raises(SlimError, match=r"is no optimizer: expected one of torch\.optim"):
        sparsify(model, L1(1e-4), torch.optim.SGD(model.parameters(), 0.1))  # type: ignore[arg-type]


def test_sparsify_refuses_what_is_no_penalty() -> None:
    model = network()
    with pytest.raises(SlimError, match=r"0\.001 is no penalty: expected one such as slim\.L1"):
        sparsify(model, torch.optim.SGD(model.parameters(), 0.1), 1e-3)  # type: ignore[arg-type]
