"""Is a thin network faster than the original, in each setting it will run in? And if not, which node is slower?"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from slim.deploy.bench.runners import FileRunner
from slim.deploy.cost.network import Network
from slim.deploy.cost.runtime import Runtime, Runtimes
from slim.deploy.target import Executable, InputArrays
from slim.deploy.timing import Rounds, Times, speedup_interval, time_in_turn
from slim.errors import NothingToPrune, SlimError
from slim.progress import progress
from slim.prune.plan import PruningPlan

COMPARING = "timing the thin network beside the original"
PRECISION = 0.03  # of the speed-up: half of its interval, from which on it is known well enough
SECONDS = 2.0  # for each setting
PROFILED = (20, 5)  # runs, and those before that aren't counted
WIDER = (16, 32)  # multiples of channels to keep where the network is slower by its plan for time


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

    @property
    def faster(self) -> bool:
        """Say whether it is faster, by more than an accident of the measurement."""
        return self.low > 1

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return asdict(self) | {"slower": self.slower}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Compared":
        """Return what `to_dict` gave."""
        return cls(**{name: value for name, value in record.items() if name != "slower"})

    def __str__(self) -> str:
        why = f": {self.slower_node}" if self.slower_node else ""
        return f"{self.speedup:.2f}× as fast ({self.low:.2f}–{self.high:.2f}) in {self.setting}{why}"


Comparison = Callable[[PruningPlan], list[Compared]]  # of the network of a plan with the original


def in_words(settings: Sequence[Compared]) -> list[str]:
    """Return a line for each setting in which the thin network isn't faster, or one for all where it always is."""
    others = [each for each in settings if not each.faster]
    lines = [
        f"{'slower than' if each.slower else 'not measurably faster than'} the unpruned network: {each}"
        for each in others
    ]
    if settings and not others:
        least = min(each.speedup for each in settings)
        where = f"in all {len(settings)} settings, {least:.2f}× or more" if len(settings) > 1 else f"by {least:.2f}×"
        lines = [f"faster than the unpruned network {where}"]
    return lines


def compare(original: Network, thin: Network, runtime: Runtime | Runtimes) -> list[Compared]:
    """Time two networks in turn in each setting of `runtime`, 2 s at most for each."""
    found = []
    with progress(COMPARING, len(runtime.each)) as advance:
        for each, before, after, feed in zip(runtime.each, original.opened, thin.opened, thin.feeds):
            found.append(_compared(str(each), before, after, feed))
            advance(1)
    return found


def against(model: nn.Module, example_inputs: Any, runtime: Runtime | Runtimes) -> Comparison:
    """Return what compares networks of plans for `model` with it, which is exported once."""
    original = cache(lambda: Network(model, example_inputs, runtime))

    def compared(plan: PruningPlan) -> list[Compared]:
        return compare(original(), Network(plan.apply(model), example_inputs, runtime, original(), plan), runtime)

    return compared


def compare_files(
    original: Path, thin: Path, runtime: Runtime | Runtimes, image_size: int | None = None
) -> list[Compared]:
    """Time two exported files in turn in each setting of `runtime` whose batch they take, 2 s at most for each.

    `image_size`: pixels, where they leave height and width open."""
    found = []
    with progress(COMPARING, len(runtime.each)) as advance:
        for each in runtime.each:
            before, after = (FileRunner(path.name, path, each.target, image_size) for path in (original, thin))
            if before.batch.holds(each.batch_size) and after.batch.holds(each.batch_size):
                found.append(_compared(str(each), before.opened, after.opened, after.feed(each.batch_size)))
            advance(1)
    return found


def _compared(setting: str, original: Executable, thin: Executable, feed: InputArrays) -> Compared:
    calls = {"original": original.timed_call(feed), "thin": thin.timed_call(feed)}
    times = time_in_turn(calls, TIMED, warmup=2)
    low, high = speedup_interval(times["original"], times["thin"])
    speedup = float(np.median(times["original"]) / np.median(times["thin"]))
    return Compared(setting, speedup, low, high, slower_node(original, thin, feed) if high < 1 else "")


def _is_known(times: Mapping[str, Times]) -> bool:
    low, high = speedup_interval(times["original"], times["thin"])
    return high - low < 2 * PRECISION * low


TIMED = Rounds(7, 400, SECONDS, _is_known)


def slower_node(original: Executable, thin: Executable, feed: InputArrays) -> str:
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
    """The plan that was kept, how it compares with the original in each setting, and how many plans were tried.

    `notes` say what went otherwise than by measured cost."""

    plan: PruningPlan
    compared: list[Compared]
    tried: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def slower(self) -> list[Compared]:
        """Return the settings in which it is slower than the original."""
        return [each for each in self.compared if each.slower]


def fastest_planned(wanted: Callable[[Any], PruningPlan], runtime: Runtime | Runtimes, compared: Comparison) -> Guarded:
    """Return the plan by measured cost, or where its network is slower than the original, one with wider steps.

    `wanted(round_to)` plans, with all else as it is to be. What the runtime can't run is planned without it, and isn't
    timed. Raises SlimError as `wanted` does.
    """
    try:
        made = wanted(runtime)
    except NothingToPrune:
        raise
    except SlimError as error:
        made = wanted(None)  # or once more what isn't the runtime's fault
        return Guarded(made, [], notes=[f"sizes don't follow from times: {error}"])
    if not made.removed:
        return Guarded(made, [])
    try:
        found = never_slower(chain([made], _possible(wanted(step) for step in WIDER)), compared)
    except SlimError as error:  # a network for other runtimes
        return Guarded(made, [], notes=[f"not timed against the unpruned network: {error}"])
    if found.plan is not made:
        found.notes.append(f"by measured cost it would be slower: {found.plan.rounding} in its place")
    return found


def _possible(plans: Iterator[PruningPlan]) -> Iterator[PruningPlan]:
    """Yield plans up to the first that can't be made: steps too wide to remove anything."""
    with suppress(NothingToPrune):
        yield from plans


def never_slower(plans: Iterable[PruningPlan], compared: Comparison) -> Guarded:
    """Return the first of `plans` whose network is slower than the original in no setting.

    Where there is none, that whose slowest setting is the fastest. Plans are made as they are needed.
    """
    tried: list[Guarded] = []
    for plan in plans:
        if any(plan.digest == earlier.plan.digest for earlier in tried):
            continue
        tried.append(Guarded(plan, compared(plan), len(tried) + 1))
        if not tried[-1].slower:
            return tried[-1]
    return max(tried, key=lambda each: min((one.speedup for one in each.compared), default=0.0))
