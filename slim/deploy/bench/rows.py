"""The figures of one network at one batch size."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from slim.deploy.timing import Times, samples, speedup_interval
from slim.tables import WIDE, threads_in_words

BUSY = 0.1  # share of the cores that other processes may take before it is said


@dataclass(frozen=True)
class BenchRow:
    """One network at one batch size. Times are in milliseconds per batch."""

    model: str
    batch_size: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float  # images per second, at the median
    speedup: float | None  # median of the first network / median of this one; None: their inputs differ
    speedup_low: float | None  # 95 % interval of that
    speedup_high: float | None
    memory: int | None = None  # peak, bytes; None: not measured
    file_size: int | None = None  # bytes
    threads: int = 0  # 0: all cores
    samples_ms: list[float] = field(default_factory=list)  # the times themselves in their order, at most 200 of them

    @property
    def setting(self) -> str:
        """Batch size and threads, such as "batch 1, 2 threads"."""
        return f"batch {self.batch_size}, {threads_in_words(self.threads)}"

    @property
    def differs(self) -> bool:
        """Say whether the interval leaves out 1: the difference from the first is no accident of this measurement."""
        if self.speedup_low is None or self.speedup_high is None:
            return False
        return not self.speedup_low <= 1 <= self.speedup_high


def cautions(rows: Sequence[BenchRow], other_work: float) -> list[str]:
    """Return what to think of before believing the rows: other work on the machine (share of its cores, 0 to 1), wide
    intervals."""
    found = []
    if other_work > BUSY:
        found.append(f"busy machine: other processes took {other_work:.0%} of its cores meanwhile")
    wide = [row for row in rows if row.speedup_low and row.speedup_high and row.speedup_high > WIDE * row.speedup_low]
    if wide:
        named = ", ".join(f"{row.model} at {row.setting}" for row in wide)
        found.append(f"wide intervals, so little is known of the speed-up of {named}: measure again, with more runs")
    return found


def rows_of(
    batch_size: int,
    threads: int,
    times: Mapping[str, Times],
    peaks: Mapping[str, int | None],
    file_sizes: Mapping[str, int | None],
    compared: Collection[str],
) -> list[BenchRow]:
    """Return the rows of one batch size and number of threads. `compared` names those that get a speed-up, over the
    first of `times`."""
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
                threads=threads,
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
                samples_ms=samples(each),
            )
        )
    return rows
