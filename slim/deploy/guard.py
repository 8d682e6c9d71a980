"""Is a thin network faster than the original, in each setting it will run in? And if not, which node is slower?"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from slim.deploy.bench.runners import FileRunner
from slim.deploy.cost.network import Network
from slim.deploy.cost.runtime import Runtime, Runtimes
from slim.deploy.target import Executable, Feed
from slim.deploy.timing import Rounds, Times, speedup_interval, time_in_turn
from slim.prune.plan import PruningPlan

PRECISION = 0.03  # of the speed-up: half of its interval, from which on it is known well enough
SECONDS = 2.0  # for each setting
PROFILED = (20, 5)  # runs, and those before that aren't counted


@dataclass(frozen=True)
class Compared:
    """How much faster a thin network is than the original in one setting, with a 95 % interval."""

    setting: str
    speedup: float
    low: float
    high: float
    slower_node: str = ""  # where the thin network is slower: the node that takes most more, in words

    @property
    def slower(self) -> bool:
        """Say whether it is slower, by more than an accident of the measurement."""
        return self.high < 1

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self) | {"slower": self.slower}

    def __str__(self) -> str:
        why = f": {self.slower_node}" if self.slower_node else ""
        return f"{self.speedup:.2f}× as fast ({self.low:.2f}–{self.high:.2f}) in {self.setting}{why}"


def compare(original: Network, thin: Network, runtime: Runtime | Runtimes) -> list[Compared]:
    """Time two networks in turn in each setting of `runtime`, 2 s at most for each."""
    pairs = zip(original.opened, thin.opened, thin.feeds)
    return [_compared(str(each), *pair) for each, pair in zip(runtime.each, pairs)]


def compare_files(original: Path, thin: Path, runtime: Runtime | Runtimes) -> list[Compared]:
    """Time two exported files in turn in each setting of `runtime` whose batch they take, 2 s at most for each."""
    found = []
    for each in runtime.each:
        before, after = (FileRunner(path.name, path, each.target) for path in (original, thin))
        if before.batch.holds(each.batch_size) and after.batch.holds(each.batch_size):
            found.append(_compared(str(each), before.opened, after.opened, after.feed(each.batch_size)))
    return found


def _compared(setting: str, original: Executable, thin: Executable, feed: Feed) -> Compared:
    calls = {"original": original.timed_call(feed), "thin": thin.timed_call(feed)}
    times = time_in_turn(calls, TIMED, warmup=2)
    low, high = speedup_interval(times["original"], times["thin"])
    speedup = float(np.median(times["original"]) / np.median(times["thin"]))
    return Compared(setting, speedup, low, high, slower_node(original, thin, feed) if high < 1 else "")


def _is_known(times: Mapping[str, Times]) -> bool:
    low, high = speedup_interval(times["original"], times["thin"])
    return high - low < 2 * PRECISION * low


TIMED = Rounds(7, 400, SECONDS, _is_known)


def slower_node(original: Executable, thin: Executable, feed: Feed) -> str:
    """Return in words which node takes most more time in the thin network than in the original."""
    before, after = ({node.node: node for node in each.profile(feed, *PROFILED)} for each in (original, thin))
    more = {name: node.ms - (before[name].ms if name in before else 0.0) for name, node in after.items()}
    name = max(more, key=lambda each: more[each], default="")
    if not name or more[name] <= 0:
        return "no node is slower by itself: what is around them takes the time"
    was = f"{before[name].ms:.3g} before" if name in before else "not there before"
    return f"{after[name].operator} {name} takes {after[name].ms:.3g} ms, {was}"


@dataclass(frozen=True)
class Guarded:
    """The plan that was kept, how it compares with the original in each setting, and how many plans were tried."""

    plan: PruningPlan
    compared: list[Compared]
    tried: int

    @property
    def slower(self) -> list[Compared]:
        """Return the settings in which it is slower than the original."""
        return [each for each in self.compared if each.slower]


def never_slower(
    model: nn.Module, example_inputs: Any, plans: Iterable[PruningPlan], runtime: Runtime | Runtimes
) -> Guarded:
    """Return the first of `plans` whose network is slower than the original in no setting of `runtime`.

    Where there is none, that whose slowest setting is the fastest. Plans are made as they are needed. Networks are
    exported and timed in turn with the original. Raises SlimError where one can't be exported.
    """
    original = Network(model, example_inputs, runtime)
    tried: list[Guarded] = []
    for plan in plans:
        if any(plan.digest == earlier.plan.digest for earlier in tried):
            continue
        thin = Network(plan.apply(model), example_inputs, runtime, original, plan)
        tried.append(Guarded(plan, compare(original, thin, runtime), len(tried) + 1))
        if not tried[-1].slower:
            return tried[-1]
    return max(tried, key=lambda each: min(one.speedup for one in each.compared))
