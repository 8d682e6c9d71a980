"""How long networks are timed in turn, and how a plan is corrected until it keeps its budget."""

from typing import Any

import numpy as np
import pytest

from slim.deploy import timing
from slim.deploy.cost import correction, network


class Waiting:
    """A network whose calls move a clock by `ms`, give or take `noise`, and by four times that while others work."""

    def __init__(self, ms: float, clock: dict[str, float], noise: float) -> None:
        self.ms, self.clock, self.noise, self.random = ms, clock, noise, np.random.default_rng(0)
        self.runs = [self.run]

    def run(self) -> None:
        busy = 4 if self.clock["s"] % 5 > 1 else 1
        self.clock["s"] += busy * self.ms / 1000 * np.exp(self.noise * self.random.standard_normal())


@pytest.mark.parametrize("noise, low, high", [(0.0, 1.0, 1.3), (0.2, 2.0, 5.9), (1.5, 6.0, 20.0)])
def test_times_in_turn_until_the_share_is_known(
    noise: float, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"s": 0.0}
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: round(clock["s"] * 1e9))
    networks: Any = [Waiting(0.5, clock, 0.0), Waiting(0.3, clock, noise)]
    times = network.in_turn(networks)
    assert low <= clock["s"] <= high
    assert noise > 1 or abs(network.share_of(times) / 0.6 - 1) < 0.02


def test_a_share_far_from_the_one_asked_for_is_timed_for_less_long(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {}
    for asked in (0.6, 0.2):
        clock = {"s": 0.0}
        monkeypatch.setattr(timing.time, "perf_counter_ns", lambda clock=clock: round(clock["s"] * 1e9))
        networks: Any = [Waiting(0.5, clock, 0.0), Waiting(0.3, clock, 0.3)]
        original, thin = networks
        [found] = network.timed(original, thin, asked)
        taken[asked] = clock["s"]
        assert abs(found.share / 0.6 - 1) < (0.02 if asked == 0.6 else 0.2)
    assert taken[0.2] < 0.5 * taken[0.6]


@pytest.mark.parametrize("budget", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("bias, floor, noise", [(1.0, 0.0, 0.0), (1.4, 0.05, 0.01), (0.7, 0.0, 0.01)])
def test_correction_meets_the_budget(budget: Any, bias: float, floor: float, noise: float) -> None:
    random = np.random.default_rng(0)
    steps = np.linspace(0.02, 1, 200)  # what the model says of the plans that there are

    def planned(target: float) -> tuple[float, float]:
        predicted = steps[steps <= target].max(initial=steps[0])
        return predicted, predicted

    def truth(plan: float) -> float:
        return floor + (bias - floor) * plan**1.2 / bias

    best = correction.correct(planned, lambda plan: truth(plan) * (1 + noise * random.standard_normal()), budget)
    assert abs(truth(best.plan) / budget - 1) < 0.03 + 3 * noise


def test_correction_looks_between_what_was_too_fast_and_too_slow() -> None:
    """As once measured on ResNet-50: in proportion, the target falls back on a plan that was tried."""
    took = {0.6: 0.5692, 0.63: 0.5732, 0.645: 0.6, 0.658: 0.624}

    def planned(target: float) -> tuple[float, float]:
        predicted = max(step for step in took if step <= target + 1e-3)
        return predicted, predicted

    assert correction.correct(planned, took.__getitem__, 0.6).plan == 0.645


def test_correction_with_coarse_steps_keeps_below() -> None:
    steps = np.array([0.1, 0.3, 0.6, 1.0])

    def planned(target: float) -> tuple[float, float]:
        predicted = steps[steps <= target].max(initial=steps[0])
        return predicted, predicted

    assert correction.correct(planned, lambda plan: 1.1 * plan, 0.5).plan == 0.3
    assert correction.correct(planned, lambda plan: 0.8 * plan, 0.5).plan == 0.6  # 0.48: more than 3 % off, but below
    assert correction.correct(planned, lambda plan: plan, 0.05).plan == 0.1  # nothing keeps it: the fastest
