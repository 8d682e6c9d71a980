"""The cost model: what a network takes on a runtime, for any numbers of channels, from measured kernels.

Measured times lie in the user's cache folder, one file for each machine, runtime version and settings, so that another
network, or the same one tomorrow, measures only what is new.
"""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim.deploy.cost.operators import PlacedKernel, operators
from slim.deploy.cost.staircase import Surface, Total, levels, mean_surface, quantum
from slim.deploy.target import Kernel, SizedKernel, Target
from slim.errors import SlimError
from slim.files import read_text, replacing
from slim.progress import progress
from slim.prune.groups import Vectors
from slim.prune.knapsack import CostPart
from slim.trace.traced import Trace

# Where steps are looked for: a count of 33 to 97 channels on one side, 64 on the other, on a small image. Kind of
# operator and side -> kernel, reads, makes; 0 stands for the count that varies
PROBED = range(33, 98)
OTHER = 64
SHAPE, WINDOW = (1, 14, 14), ((3, 3), (1, 1), (1, 1), (1, 1))
LINES = {
    ("conv", 0): (Kernel("conv", SHAPE, WINDOW), 0, OTHER),
    ("conv", 1): (Kernel("conv", SHAPE, WINDOW), OTHER, 0),
    ("depthwise", 1): (Kernel("depthwise", SHAPE, WINDOW), 0, 0),
}

SECONDS = 20.0  # of measuring for one network, about
LONG = 0.1  # ms of an operator on an image, from which on a batch takes as many times as long as it has images
STEPS = (4, 2, 1)  # of the grids: every fourth count of each side, every second, all


@dataclass
class LatencyModel:
    """Milliseconds of one call, for a traced model whose channels are thinned.

    `operators` are what the network runs, `surfaces` what each of them costs, in the same order.
    """

    operators: list[PlacedKernel]
    surfaces: list[Surface]

    def parts(self) -> Iterator[CostPart]:
        """Yield what each operator costs."""
        for operator, surface in zip(self.operators, self.surfaces):
            cost, flops = surface, operator.kernel.flops
            yield CostPart(operator.reads, operator.makes, surface.widths, cost, flops, operator.switch)

    def __post_init__(self) -> None:
        sides = [size for operator in self.operators for size in (operator.reads, operator.makes)]
        self._follows = np.array([not isinstance(size, int) for size in sides], bool)
        self._counts = np.array([size if isinstance(size, int) else 0 for size in sides])
        self._labels = Vectors([size for size in sides if not isinstance(size, int)])
        self._switches = [(place, op.switch) for place, op in enumerate(self.operators) if op.switch is not None]
        self._total = Total(self.surfaces)

    def of(self, kept: NDArray[np.bool_]) -> float:
        """Return the milliseconds where `kept` says of every label of the trace whether it stays."""
        counts = self._counts.copy()
        counts[self._follows] = self._labels.count(kept)
        counts[[2 * place for place, label in self._switches if not kept[label]]] = 0
        return self._total(counts[::2], counts[1::2])


@dataclass
class SharedModel:
    """Shares of the unpruned network's time, for the same traced model in several settings.

    `taken` says what it takes in all of them, given its share in each; parts add up to the mean by `weights`.
    """

    models: Sequence[LatencyModel]
    weights: Sequence[float]
    taken: Callable[[Sequence[float]], float]
    labels: int  # of the trace

    def __post_init__(self) -> None:
        self.whole = [model.of(np.ones(self.labels, bool)) for model in self.models]

    def parts(self) -> Iterator[CostPart]:
        """Yield what each operator costs: the weighted mean of its shares of the time."""
        factors = [weight / whole for weight, whole in zip(self.weights, self.whole)]
        surfaces = [mean_surface(each, factors) for each in zip(*(model.surfaces for model in self.models))]
        yield from LatencyModel(self.models[0].operators, surfaces).parts()

    def of(self, kept: NDArray[np.bool_]) -> float:
        """Return the share where `kept` says of every label of the trace whether it stays."""
        return self.taken([model.of(kept) / whole for model, whole in zip(self.models, self.whole)])


def latency_model(traced: Trace, target: Target, batch_size: int = 1, seconds: float = SECONDS) -> LatencyModel:
    """Return the cost model of a traced model on a target, for batches of `batch_size`.

    What isn't in the cache is measured, for about `seconds` at most: on the coarsest grid first, then on finer ones as
    far as time allows, with a progress bar where it takes longer than 2 s. An operator that takes 0.1 ms or more on the
    smallest batch is measured on that, and its time taken to grow with the batch.
    """
    table = TimeTable(target)
    table.measure(_probes())
    widths = _widths(table)
    found = operators(traced, batch_size)
    measured = _as_measured(found, traced, table)
    whole = {_key(operator): _grid(operator, widths) for operator in measured}
    deadline = time.monotonic() + seconds
    grids: dict[Any, Grid] = {}
    for step in STEPS:
        finer = {key: grid.every(step) for key, grid in whole.items()}
        points = [(operator.kernel, *point) for operator in measured for point in _points(finer[_key(operator)])]
        if grids and table.seconds_for(points) > deadline - time.monotonic():
            break
        table.measure(points)
        grids = finer
    surfaces = []
    for operator, sample in zip(found, measured):
        grid, batches = grids[_key(sample)], operator.kernel.shape[0] / sample.kernel.shape[0]
        times = [[table[sample.kernel, *point] for point in row] for row in _rows(grid)]
        surfaces.append(Surface(grid.reads, grid.makes, batches * np.array(times), grid.widths))
    return LatencyModel(found, surfaces)


def _as_measured(found: list[PlacedKernel], traced: Trace, table: "TimeTable") -> list[PlacedKernel]:
    """Return the operators for one image in place of those that take long with that."""
    single = operators(traced, 1)
    if [one.kernel for one in single] == [operator.kernel for operator in found]:
        return found
    whole = [(one.kernel, *_full(one)) for one in single]
    table.measure(whole)
    return [one if table[sized] >= LONG else operator for one, operator, sized in zip(single, found, whole)]


def _full(operator: PlacedKernel) -> tuple[int, int]:
    """Return the channels that an operator reads and makes where none are pruned."""
    reads, makes = (size if isinstance(size, int) else len(size) for size in (operator.reads, operator.makes))
    return (reads if operator.kernel.mixes else makes), makes


@dataclass
class Grid:
    """The counts at which a kernel is measured. One that works channel by channel has a single row."""

    reads: list[int]
    makes: list[int]
    widths: tuple[int, int]
    mixes: bool

    def every(self, step: int) -> "Grid":
        """Return the grid with every `step`-th count of each side, the ends included."""
        reads, makes = (sorted({side[0], *side[::-step]}) for side in (self.reads, self.makes))
        return replace(self, reads=reads, makes=makes)


def _key(operator: PlacedKernel) -> tuple[Kernel, int, int, bool, bool]:
    return operator.kernel, *_full(operator), isinstance(operator.reads, int), isinstance(operator.makes, int)


def _grid(operator: PlacedKernel, widths: dict[str, tuple[int, int]]) -> Grid:
    kernel = operator.kernel
    read, made = widths.get(kernel.kind, (1, 1))
    # what isn't counted by group comes in multiples of the groups (of the multiplier, for depthwise)
    if kernel.whole:
        width = kernel.whole, kernel.whole
    elif kernel.kind == "conv_transpose":
        width = math.lcm(read, kernel.groups), made
    else:
        width = read, math.lcm(made, kernel.groups)
    along = []
    for size, step in zip((operator.reads, operator.makes), width):
        along.append([size] if isinstance(size, int) else levels(len(size), step))
    if not kernel.mixes:
        along[0] = [1]
    return Grid(along[0], along[1], width if kernel.mixes else (1, width[1]), kernel.mixes)


def _rows(grid: Grid) -> Iterator[list[tuple[int, int]]]:
    for r in grid.reads:
        yield [(r if grid.mixes else m, m) for m in grid.makes]


def _points(grid: Grid) -> Iterator[tuple[int, int]]:
    for row in _rows(grid):
        yield from row


def _probes() -> Iterator[SizedKernel]:
    for kernel, reads, makes in LINES.values():
        for count in PROBED:
            yield kernel, reads or count, makes or count


def _widths(table: "TimeTable") -> dict[str, tuple[int, int]]:
    """Return the widths of the steps in which each kind of kernel climbs, in channels read and made."""
    found = {
        place: quantum(PROBED, [table[kernel, reads or count, makes or count] for count in PROBED])
        for place, (kernel, reads, makes) in LINES.items()
    }
    dense = found["conv", 0], found["conv", 1]
    depthwise = found["depthwise", 1]
    return {"conv": dense, "conv_transpose": dense, "depthwise": (depthwise, depthwise)}


# -- measured times ----------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return where measured times are kept: $SLIM_CACHE, or slim's folder in the user's cache folder."""
    if given := os.environ.get("SLIM_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "slim"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "slim" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slim"


class TimeTable:
    """Milliseconds of kernels on a target, kept in a file; one that can't be read is measured anew."""

    def __init__(self, target: Target) -> None:
        self.target, self.identity = target, target.identity
        self._pace = 0.0  # seconds for each kernel
        name = hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        self.path = cache_folder() / f"latency-{name}.json"
        self.times = self._read()

    def __getitem__(self, sized: SizedKernel) -> float:
        return self.times[self._text(sized)]

    def measure(self, sized: Iterable[SizedKernel]) -> None:
        """Measure what is missing, and save after every batch, so that an interrupted run goes on where it was."""
        missing = self._missing(sized)
        if not missing:
            return
        start = time.monotonic()
        with progress(f"timing {len(missing)} operators on {self.target}", len(missing)) as advance:
            for batch in self.target.time(missing):
                measured = {self._text(each): float(ms) for each, ms in batch}
                self.times |= measured
                self._write()
                advance(len(measured))
        self._pace = (time.monotonic() - start) / len(missing)

    def seconds_for(self, sized: Iterable[SizedKernel]) -> float:
        """Return how long it will take to measure what is missing, at the pace of the last time."""
        return self._pace * len(self._missing(sized))

    def _missing(self, sized: Iterable[SizedKernel]) -> list[SizedKernel]:
        return [each for each in dict.fromkeys(sized) if self._text(each) not in self.times]

    @staticmethod
    def _text(sized: SizedKernel) -> str:
        kernel, reads, makes = sized
        return f"{_open_list(kernel)}, {reads}, {makes}]"

    def _read(self) -> dict[str, float]:
        try:
            content = json.loads(read_text("cost model", self.path))
            fits = content["identity"] == self.identity
            return {str(key): float(ms) for key, ms in content["ms"].items()} if fits else {}
        except (SlimError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _write(self) -> None:
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps({"identity": self.identity, "ms": self.times}), encoding="utf-8")


@cache
def _open_list(kernel: Kernel) -> str:
    """Return a kernel's fields as a JSON list that isn't closed yet: a table is asked for it thousands of times."""
    return json.dumps(astuple(kernel))[:-1]
