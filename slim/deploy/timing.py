"""The only timer: calls in turn, and what their times say. It knows nothing of what it times."""

import functools
import gc
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]  # milliseconds, one of each round

RESAMPLES = 1000
CONFIDENCE = 95  # percent
SAMPLES_KEPT = 200  # times that are kept, to draw


@dataclass(frozen=True)
class Rounds:
    """How many rounds are timed: `least`, and then more until `most` are done, `seconds` have passed or the times until
    then are `enough`. Without `most`, exactly `least`."""

    least: int
    most: float | None = None
    seconds: float = math.inf
    enough: Callable[[Mapping[str, Times]], bool] | None = None


def time_in_turn(calls: Mapping[str, Callable[[], object]], rounds: Rounds, warmup: int = 1) -> dict[str, Times]:
    """Return the milliseconds of each timed run, for each call; entry i of all of them is from the same round.

    Runs alternate in one process, so that a slow moment of the machine falls on all alike: each round has all calls
    once, in an order of its own, because with a fixed one whoever follows the largest network finds the coldest caches
    (of three files, two of them the same, those two differed by a quarter). Only the call is timed, after `warmup`
    rounds, with Python's garbage collector off.
    """
    most = rounds.least if rounds.most is None else rounds.most
    patience = 1e9 * rounds.seconds
    order = np.random.default_rng(0)
    times: list[list[float]] = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(warmup):
            _round(calls, order)
        start, look = time.perf_counter_ns(), rounds.least
        while len(times) < most and (len(times) < rounds.least or time.perf_counter_ns() - start <= patience):
            if rounds.enough and len(times) >= look:
                if rounds.enough(_by_call(calls, times)):
                    break
                look += max(1, len(times) // 8)
            times.append(_round(calls, order))
    finally:
        if collecting:
            gc.enable()
    return _by_call(calls, times)


def _round(calls: Mapping[str, Callable[[], object]], order: np.random.Generator) -> list[float]:
    """Run every call once; milliseconds in the order of `calls`."""
    called = list(calls.values())
    times = [0.0] * len(called)
    for index in order.permutation(len(called)):
        call = called[index]
        start = time.perf_counter_ns()
        call()
        times[index] = (time.perf_counter_ns() - start) / 1e6
    return times


def _by_call(calls: Mapping[str, object], times: list[list[float]]) -> dict[str, Times]:
    return dict(zip(calls, np.array(times).reshape(-1, len(calls)).T))


def speedup_interval(first: Times, other: Times) -> tuple[float, float]:
    """Return a 95 % interval of median(first) / median(other), for times taken in turn.

    Moving-block bootstrap (Künsch, Annals of Statistics 17, 1989): whole stretches of n^(1/3) rounds are drawn, of both
    together, so that neither what slows both at once nor slow stretches of the machine count as precision.
    """
    n = len(first)
    block = max(1, round(n ** (1 / 3)))
    draw = np.random.default_rng(0)
    starts = draw.integers(0, n, (RESAMPLES, -(-n // block)))
    rounds = ((starts[:, :, None] + np.arange(block)) % n).reshape(RESAMPLES, -1)[:, :n]
    ratios = np.median(first[rounds], axis=1) / np.median(other[rounds], axis=1)
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return float(low), float(high)


def median_precision(values: Times) -> float:
    """Return half of the 95 % interval of the median, relative to it.

    The median lies between the values whose ranks are √n (two standard deviations of a binomial) off the middle.
    """
    ranked = np.sort(values)
    middle, off = len(ranked) / 2, len(ranked) ** 0.5
    low, high = ranked[max(0, math.floor(middle - off))], ranked[min(len(ranked) - 1, math.ceil(middle + off))]
    return float((high - low) / 2 / np.median(ranked))


def samples(times: Times) -> list[float]:
    """Return at most 200 of the times in their order, evenly chosen, to the microsecond's tenth."""
    chosen = np.linspace(0, len(times) - 1, min(len(times), SAMPLES_KEPT)).round().astype(int)
    return [round(float(value), 4) for value in times[chosen]]


def machine() -> str:
    """Return processor, number of cores and system, such as "AMD EPYC 7763, 2 cores, Linux x86_64"."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
        processor = named[1] if named else processor
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


@functools.cache
def gpu() -> str:
    """Return the NVIDIA GPUs of this machine and their driver, such as "NVIDIA H100 80GB HBM3, driver 570.86.15"; an
    empty text where nvidia-smi, which comes with the driver, finds none."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    rows = [line.rpartition(",") for line in said.splitlines() if "," in line]
    return ", ".join(sorted({name.strip() for name, _, _ in rows})) + f", driver {rows[0][2].strip()}" if rows else ""
