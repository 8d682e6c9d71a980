"""Each penalty against finite differences and against the minimum of its proximal objective, found by search."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

import slim
from slim import SlimError
from slim.sparsity import METHODS, PENALTIES, Penalty, penalty

LAMBDA = 0.7
CASES: dict[str, Penalty] = {
    "L1": slim.L1(LAMBDA),
    "L2": slim.L2(LAMBDA),
    "ElasticNet": slim.ElasticNet(LAMBDA, l1_ratio=0.3),
    "L½": slim.Lp(LAMBDA, p=0.5),
    "L⅕": slim.Lp(LAMBDA, p=0.2),
    "Lp, p=1": slim.Lp(LAMBDA, p=1),
    "L1.2": slim.Lp(LAMBDA, p=1.2),
    "L3": slim.Lp(LAMBDA, p=3),
    "L4": slim.Lp(LAMBDA, p=4),
    "DeadZoneL1": slim.DeadZoneL1(LAMBDA, a=0.25),
    "TransformedL1, a=1": slim.TransformedL1(LAMBDA, a=1.0),
    "TransformedL1, a=0.2": slim.TransformedL1(LAMBDA, a=0.2),
    "Polarization": slim.Polarization(LAMBDA, t=1.3),
    "GroupLasso": slim.GroupLasso(LAMBDA, torch.arange(40) % 7),
    "L0": slim.L0(LAMBDA),
}
SEPARABLE = [n for n, p in CASES.items() if "proximal" in p.methods and n != "GroupLasso"]

# The formulas of the issue and the papers, written a second time, in NumPy.
FORMULAS: dict[str, Any] = {
    "L1": lambda x: np.abs(x).sum(),
    "L2": lambda x: (x**2).sum() / 2,
    "ElasticNet": lambda x: 0.3 * np.abs(x).sum() + 0.35 * (x**2).sum(),
    "L½": lambda x: np.sqrt(np.abs(x)).sum(),
    "L⅕": lambda x: (np.abs(x) ** 0.2).sum(),
    "Lp, p=1": lambda x: np.abs(x).sum(),
    "L1.2": lambda x: (np.abs(x) ** 1.2).sum(),
    "L3": lambda x: (np.abs(x) ** 3).sum(),
    "L4": lambda x: (x**4).sum(),
    "DeadZoneL1": lambda x: np.maximum(0, np.abs(x) - 0.25).sum(),
    "TransformedL1, a=1": lambda x: (2 * np.abs(x) / (1 + np.abs(x))).sum(),
    "TransformedL1, a=0.2": lambda x: (1.2 * np.abs(x) / (0.2 + np.abs(x))).sum(),
    "Polarization": lambda x: 1.3 * np.abs(x).sum() - np.abs(x - x.mean()).sum(),
    "GroupLasso": lambda x: sum(math.sqrt(len(x[g::7])) * np.linalg.norm(x[g::7]) for g in range(min(7, len(x)))),
    "L0": lambda x: np.count_nonzero(x),
}


def values(count: int = 40) -> Tensor:
    x = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.where(x.abs() < 0.01, 0.3, x)  # away from the kink at 0


@pytest.mark.parametrize("name", CASES)
def test_value_is_the_formula(name: str) -> None:
    x = values()
    x[::5] = 0
    assert float(CASES[name].value(x)) == pytest.approx(LAMBDA * FORMULAS[name](x.numpy()), rel=1e-12)


@pytest.mark.parametrize("name", [n for n in CASES if n != "L0"])
def test_subgradient_is_the_slope_of_the_formula(name: str) -> None:
    x = values().numpy()
    eps = 1e-6
    slopes = []
    for i in range(len(x)):
        up, down = x.copy(), x.copy()
        up[i] += eps
        down[i] -= eps
        slopes.append(LAMBDA * (FORMULAS[name](up) - FORMULAS[name](down)) / (2 * eps))
    ours = CASES[name].subgradient(torch.from_numpy(x)).numpy()
    assert np.abs(ours).max() > 0.1
    np.testing.assert_allclose(ours, slopes, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("L0", "Polarization")])
def test_the_subgradient_at_zero_is_zero(name: str) -> None:
    x = values()
    x[::7] = 0.0  # one whole group among them
    x[1] = -0.0
    assert (CASES[name].subgradient(x)[x == 0] == 0).all()


def test_polarization_pulls_zeros_only_by_the_mean() -> None:
    x = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)  # mean 2: signs −, −, 0, +; their mean −1/4
    expected = 0.7 * torch.tensor([0 + 1 - 0.25, 1.3 + 1 - 0.25, 1.3 - 0.25, 1.3 - 1 - 0.25], dtype=torch.float64)
    torch.testing.assert_close(slim.Polarization(0.7, t=1.3).subgradient(x), expected)


@pytest.mark.parametrize("step", [0.003, 0.1, 1.0, 6.0])
@pytest.mark.parametrize("name", SEPARABLE)
def test_proximal_operator_is_the_minimum(name: str, step: float) -> None:
    """No point of a fine grid, refined around its best, has a lower objective; and ours is at that point."""
    v = torch.cat([values(30), torch.tensor([0.0, 0.25, -0.26, 1e-3, -3.0], dtype=torch.float64)])
    ours = CASES[name].prox(v, step).numpy()
    for start, found in zip(v.numpy(), ours):

        def objective(x: Any, start: float = start) -> Any:
            each = np.vectorize(lambda one: FORMULAS[name](np.array([one])))(x)
            return (x - start) ** 2 / 2 + step * LAMBDA * each

        best, width = 0.0, abs(start)
        for _ in range(4):
            grid = np.append(np.linspace(best - width, best + width, 201), [best, 0.0])
            best, width = grid[objective(grid).argmin()], width / 20
        assert objective(np.array([found]))[0] <= objective(np.array([best]))[0] + 1e-12
        assert found == pytest.approx(best, abs=1e-4 * max(1, abs(start)))


@pytest.mark.parametrize("name", SEPARABLE)
def test_each_value_may_have_its_own_step(name: str) -> None:
    v = values()
    steps = torch.rand(len(v), dtype=torch.float64)
    steps[:4] = 0
    together = CASES[name].prox(v, steps)
    one_by_one = torch.cat([CASES[name].prox(v[i : i + 1], float(steps[i])) for i in range(len(v))])
    torch.testing.assert_close(together, one_by_one, rtol=1e-12, atol=1e-14)
    assert torch.equal(together[:4], v[:4])
    assert torch.equal(CASES[name].prox(v, 0.0), v)
    assert torch.isfinite(CASES[name].prox(torch.zeros(3), torch.tensor([0.0, 0.1, 5.0]))).all()


@pytest.mark.parametrize("uneven", [False, True])
def test_group_lasso_against_a_minimiser(uneven: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(24, generator=generator, dtype=torch.float64)
    groups = torch.arange(24) // 6
    v[:6] *= 0.02  # one group that goes
    step = torch.rand(24, generator=generator, dtype=torch.float64) if uneven else torch.full((24,), 0.4).double()
    if uneven:
        step[:6] += 0.2
        step[20] = 0.0
        step[12:15] = 30.0
    ours = slim.GroupLasso(0.5, groups).prox(v, step).numpy()
    for group in range(4):
        mine = np.arange(6) + 6 * group
        some = step.numpy()[mine] > 0
        start, pace = v.numpy()[mine], np.where(some, step.numpy()[mine], 1)

        def objective(x: Any, start: Any = start, pace: Any = pace, some: Any = some) -> float:
            x = np.where(some, x, start)
            return float(((x - start) ** 2 / pace).sum() / 2 + 0.5 * math.sqrt(6) * np.linalg.norm(x))

        found = minimize(objective, start * 0.5 + 1e-3, method="BFGS", options={"gtol": 1e-10}).x
        best = (
            np.zeros(6) if some.all() and objective(np.zeros(6)) <= objective(found) else np.where(some, found, start)
        )
        np.testing.assert_allclose(ours[mine], best, atol=2e-6)
    assert (ours[:6] == 0).all() and (ours[6:] != 0).all()


def test_group_lasso_in_float32_leaves_float64_exact() -> None:
    x, penalty = values(21), slim.GroupLasso(LAMBDA, torch.arange(21) % 7)
    expected = penalty.value(x)
    assert penalty.value(x.float()).dtype == torch.float32
    assert torch.equal(penalty.value(x), expected)


def test_group_lasso_with_equal_steps_is_block_soft_thresholding_in_float32() -> None:
    v = torch.randn(30, generator=torch.Generator().manual_seed(3))
    groups = torch.arange(30) // 3
    norms = v.view(10, 3).norm(dim=1, keepdim=True)
    expected = v.view(10, 3) * (1 - 0.6 * math.sqrt(3) / norms).clamp(min=0)
    assert ((expected == 0).all(1)).any()
    torch.testing.assert_close(slim.GroupLasso(0.6, groups).prox(v, 1.0).view(10, 3), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(slim.GroupLasso(0.6, groups).prox(v, 0.0), v)


@pytest.mark.parametrize("name", [n for n, p in CASES.items() if "proximal" in p.methods])
def test_proximal_operators_are_finite_in_float32(name: str) -> None:
    v = torch.cat([torch.logspace(-30, 4, 19), torch.zeros(1), -torch.logspace(-30, 4, 20)])
    for step in (0.0, 1e-8, 1e-3, 1.0, 100.0):
        out = CASES[name].prox(v, step)
        assert torch.isfinite(out).all()
        assert (out.abs() <= v.abs() * (1 + 1e-5)).all() and (out * v >= 0).all()


def test_names_and_mistakes() -> None:
    assert set(PENALTIES.values()) == {type(case) for case in CASES.values()}
    assert penalty("lp", 0.1, p=3) == slim.Lp(0.1, 3)
    with pytest.raises(SlimError, match=r"lp can't take \{'q': 3\}: expected p$"):
        penalty("lp", 0.1, q=3)
    for wrong in (
        lambda: penalty("l11", 0.1),
        lambda: penalty("l1", 0.1, p=3),
        lambda: slim.Lp(0.1, p=0),
        lambda: slim.Lp(0.1, p=-1),
        lambda: slim.DeadZoneL1(0.1, a=-1),
        lambda: slim.ElasticNet(0.1, l1_ratio=1.5),
        lambda: slim.TransformedL1(0.1, a=0),
        lambda: slim.Polarization(0.1).prox(torch.ones(2), 1.0),
        lambda: slim.L0(0.1).subgradient(torch.ones(2)),
        lambda: slim.GroupLasso(0.1, torch.arange(3)).value(torch.ones(4)),
    ):
        with pytest.raises(SlimError, match=r"expected|did you mean") as caught:
            wrong()
        assert "\n" not in str(caught.value)
    assert {method for case in CASES.values() for method in case.methods} == set(METHODS)


@dataclass
class Huber(slim.Penalty):
    """A user's own: λ·Σ h(x), h(x) = x²/2 within ±1 and |x| − ½ beyond."""

    def value(self, x: Tensor) -> Tensor:
        return self.strength * torch.where(x.abs() < 1, x.square() / 2, x.abs() - 0.5).sum()

    def subgradient(self, x: Tensor) -> Tensor:
        return self.strength * x.clamp(-1, 1)

    def prox(self, x: Tensor, step: Tensor | float) -> Tensor:
        s = step * self.strength
        return torch.where(x.abs() <= 1 + s, x / (1 + s), x - s * x.sign())


def test_a_penalty_of_your_own_is_a_class_of_ten_lines() -> None:
    ends = []
    for method in METHODS:
        model = torch.nn.BatchNorm1d(4).double()
        with torch.no_grad():
            model.weight.copy_(torch.tensor([0.2, -0.9, 1.5, -3.0]))
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        sparsity = slim.sparsify(model, optimizer, Huber(0.5), method=method)
        for _ in range(1000):
            optimizer.zero_grad()
            ((0 * model.weight).sum() + (sparsity.loss() if method == "loss" else 0)).backward()
            optimizer.step()
        ends.append(model.weight.detach())
    expected = torch.tensor([0.2 * math.exp(-0.5), -0.9 * math.exp(-0.5), 1.0, -2.5], dtype=torch.float64)  # the flow
    for end in ends:
        torch.testing.assert_close(end, expected, rtol=1e-3, atol=1e-3)
