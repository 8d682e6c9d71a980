"""Whole networks in onnxruntime: exported, timed side by side, and a plan corrected until it keeps its budget."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slim.deploy.cost.runtime import Runtime

TOLERANCE = 0.03  # of the budget
AIM = 0.02  # of the budget: as measured once, so that it is within the tolerance when measured again
ATTEMPTS = 8
ROUNDS = 15  # at least
SECONDS = (1.0, 12.0)  # at least; at most, where the machine is too busy to tell sooner
PRECISION = TOLERANCE / 3  # of the share that is measured: half of its 95 % interval


class Network:
    """A network as `slim.export_onnx` writes it, in an onnxruntime session, with a batch to run.

    Whether the file computes what the network does is left to `check`: a plan in between need only be timed.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, runtime: Runtime) -> None:
        from slim.deploy.onnx.session import SESSION_SETTINGS, open_session, ready_call
        from slim.deploy.onnx.write import Draft

        self.draft = Draft(model, example_inputs)
        with TemporaryDirectory() as folder:
            path = self._write(folder)
            session = open_session(path, runtime.provider, runtime.threads, SESSION_SETTINGS)
        tensors = (leaf for leaf in tree_leaves(example_inputs) if isinstance(leaf, Tensor))
        feed = {
            entry.name: _batch(tensor, runtime.batch_size)
            for entry, tensor in zip(session.get_inputs(), tensors, strict=True)
        }
        self.call = ready_call(session, feed)

    def _write(self, folder: str) -> Path:
        path = Path(folder, "network.onnx")
        path.write_bytes(self.draft.content)
        return path

    def check(self) -> None:
        """Raises SlimError where the file differs from the network."""
        with TemporaryDirectory() as folder:
            path = self._write(folder)
            self.draft.check(path, path.name)

    def run(self) -> None:
        """One call, on the example's images."""
        self.call()


def _batch(tensor: Tensor, size: int) -> NDArray[Any]:
    tensor = tensor.detach().cpu()[torch.arange(size) % tensor.shape[0]]
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def in_turn(networks: Sequence[Network]) -> NDArray[np.float64]:
    """Milliseconds of calls in turn, after a warm-up: an array [rounds, networks].

    Goes on until the share that `share_of` gives is known well enough, or patience ends.
    """
    rounds: list[list[float]] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for network in networks:
            network.run()
        start = time.perf_counter()
        enough = ROUNDS
        while True:
            if len(rounds) >= enough:
                passed = time.perf_counter() - start
                if passed > SECONDS[1] or (passed > SECONDS[0] and _half_interval(np.array(rounds)) <= PRECISION):
                    break
                enough += max(1, len(rounds) // 8)
            times = []
            for network in networks:
                began = time.perf_counter_ns()
                network.run()
                times.append((time.perf_counter_ns() - began) / 1e6)
            rounds.append(times)
    finally:
        if collecting:
            gc.enable()
    return np.array(rounds)


def share_of(times: NDArray[np.float64]) -> float:
    """What the last network takes of the time of the first: the median over rounds, as a machine that is busy for a
    while slows down both calls of a round. With a single network, its median time."""
    return float(np.median(_shares(times)))


def _shares(times: NDArray[np.float64]) -> NDArray[np.float64]:
    return times[:, -1] / times[:, 0] if times.shape[1] > 1 else times[:, 0]


def _half_interval(times: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of `share_of`, relative to it: the median lies between the shares whose ranks are √n
    (two standard deviations of a binomial) off the middle."""
    shares = np.sort(_shares(times))
    middle, off = len(shares) / 2, len(shares) ** 0.5
    low, high = shares[math.floor(middle - off)], shares[min(len(shares) - 1, math.ceil(middle + off))]
    return float((high - low) / 2 / np.median(shares))


Plan = TypeVar("Plan")


@dataclass(frozen=True)
class Attempt(Generic[Plan]):
    """A plan with what the model predicted and the runtime took, as shares of the budget."""

    plan: Plan
    predicted: float
    took: float

    @property
    def meets(self) -> bool:
        return self.off <= AIM

    @property
    def off(self) -> float:
        return abs(self.took - 1)


def correct(
    planned: Callable[[float], tuple[Plan, float]], measured: Callable[[Plan], float], budget: float
) -> Attempt[Plan]:
    """A plan that keeps `budget` within 3 %, as measured.

    `planned(target)` is the best plan that the cost model says takes at most `target`, with what it says of it;
    `measured(plan)` is what it takes. The target moves until a plan meets the budget, between one that was too slow and
    one that was faster than it need be, in proportion to what the model missed by. It stops within 2 %, as another
    measurement will differ. Where no plan comes so close, the closest within 3 %; where none does (steps of the
    staircase can be larger than that), the slowest that keeps the budget, else the fastest.
    """
    tried: list[Attempt[Plan]] = []
    slow, fast = np.inf, 0.0  # targets whose plans were too slow, and faster than need be
    target = budget
    for _ in range(ATTEMPTS):
        plan, predicted = planned(target)
        if any(math.isclose(predicted, attempt.predicted * budget) for attempt in tried):
            middle = (fast + slow) / 2
            if target == middle or not fast < slow < np.inf:
                break  # nothing lies in between
            target = middle
            continue
        took = measured(plan)
        tried.append(Attempt(plan, predicted / budget, took / budget))
        if tried[-1].meets:
            return tried[-1]
        if took > budget:
            slow = min(slow, predicted)
        else:
            fast = max(fast, target)
        target = predicted * budget / took
        if not fast < target < slow:
            target = (fast + slow) / 2 if fast < slow < np.inf else target
        if fast >= slow:  # noise: what was too slow is below what was fast enough
            slow, fast = np.inf, 0.0
    if within := [attempt for attempt in tried if attempt.off <= TOLERANCE]:
        return min(within, key=lambda a: a.off)
    keeping = [attempt for attempt in tried if attempt.took <= 1]
    return max(keeping, key=lambda a: a.took) if keeping else min(tried, key=lambda a: a.took)
