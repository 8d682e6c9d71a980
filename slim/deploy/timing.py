"""Runs in turn, and what follows from their times."""

import gc
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from slim.deploy.bench.result import BenchRow

RESAMPLES = 1000
CONFIDENCE = 95  # percent
SAMPLES_KEPT = 200  # times of a row that stay in the result, to draw


def time_in_turn(calls: Mapping[str, Callable[[], Any]], runs: int, warmup: int) -> dict[str, np.ndarray]:
    """Milliseconds of each timed run, for each call; entry i of all of them are from the same round.

    Runs alternate in one process, so that a slow moment of the machine falls on all alike: each round has all calls
    once, in an order of its own, because with a fixed one whoever follows the largest network finds the coldest caches
    (of three files, two of them the same, those two differed by a quarter). Only the call is timed, after a warm-up,
    with Python's garbage collector off.
    """
    times: dict[str, list[int]] = {name: [] for name in calls}
    order = np.random.default_rng(0)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(warmup + runs):
            for name in order.permutation(list(calls)):
                call = calls[name]
                start = time.perf_counter_ns()
                call()
                times[name].append(time.perf_counter_ns() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(each[warmup:]) / 1e6 for name, each in times.items()}


def rows_of(
    batch_size: int,
    times: Mapping[str, np.ndarray],
    peaks: Mapping[str, int | None],
    file_sizes: Mapping[str, int | None],
    compared: Collection[str],
) -> list[BenchRow]:
    """The rows of one batch size. `compared` names those that get a speed-up, over the first of `times`."""
    first = next(iter(times.values()))
    rows = []
    for name, each in times.items():
        p10, median, p90, p99 = (float(value) for value in np.percentile(each, [10, 50, 90, 99]))
        speedup = low = high = None
        if name in compared:
            speedup = float(np.median(first)) / median
            low, high = speedup_interval(first, each)
        rows.append(
            BenchRow(
                model=name,
                batch_size=batch_size,
                median_ms=median,
                p10_ms=p10,
                p90_ms=p90,
                p99_ms=p99,
                throughput=1000 * batch_size / median,
                speedup=speedup,
                speedup_low=low,
                speedup_high=high,
                memory=peaks.get(name),
                file_size=file_sizes.get(name),
                samples_ms=thinned(each),
            )
        )
    return rows


def speedup_interval(first: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of median(first) / median(other), for times taken in turn.

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


def thinned(times: np.ndarray) -> list[float]:
    """At most 200 of the times in their order, evenly chosen, to the microsecond's tenth."""
    chosen = np.linspace(0, len(times) - 1, min(len(times), SAMPLES_KEPT)).round().astype(int)
    return [round(float(value), 4) for value in times[chosen]]
