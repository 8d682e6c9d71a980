"""Latency and throughput of ONNX files, side by side in onnxruntime.

Runs alternate A B A B in one process, so that a slow moment of the machine falls on all files alike. Only the
call of the session is timed, after a warm-up, with Python's garbage collector off.
"""

import gc
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich import box
from rich.table import Table

from slim.errors import SlimError
from slim.export.session import open_session

# By default, a session's idle threads spin for a while after each run: they would take the cores from the
# next file's run. With two networks in turn on 2 cores, that multiplied the 90th percentile by 5.
SESSION_SETTINGS = {"session.force_spinning_stop": "1"}
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


@dataclass(frozen=True)
class BenchRow:
    """One file at one batch size. Times are in milliseconds per batch."""

    model: str
    batch_size: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    p99_ms: float
    throughput: float  # images per second, at the median
    speedup: float  # median of the first file / median of this one
    speedup_p10: float  # spread of the speed-up: percentiles of the ratio taken round by round
    speedup_p90: float


@dataclass(frozen=True)
class BenchReport:
    rows: list[BenchRow]  # by batch size, then in the order of the files
    provider: str
    threads: int  # 0: all cores
    runs: int
    warmup: int
    machine: str
    onnxruntime: str  # version

    def row(self, model: str, batch_size: int) -> BenchRow:
        return {(row.model, row.batch_size): row for row in self.rows}[model, batch_size]

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain lists, strings and numbers, as JSON takes them."""
        return asdict(self)

    def __str__(self) -> str:
        from slim.report import render  # a later room, for words only

        return render(self.table())

    def table(self) -> Table:
        threads = "all threads" if self.threads == 0 else f"{self.threads} thread{'s' * (self.threads > 1)}"
        table = Table(
            title="ONNX Runtime latency in ms per batch",
            caption=f"{self.provider}, {threads}, {self.runs} runs in turn after {self.warmup} to warm up\n"
            f"onnxruntime {self.onnxruntime} on {self.machine}",
            box=box.SIMPLE_HEAD,
            padding=0,
        )
        table.add_column("model", min_width=max(len(row.model) for row in self.rows), no_wrap=True)
        for heading in ("batch", "median", "p10", "p90", "p99", "images/s", "speed-up", "p10–p90"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            times = [f"{ms:.3f}" for ms in (row.median_ms, row.p10_ms, row.p90_ms, row.p99_ms)]
            speedup = [f"{row.speedup:.2f}×", f"{row.speedup_p10:.2f}–{row.speedup_p90:.2f}"]
            table.add_row(row.model, str(row.batch_size), *times, f"{row.throughput:,.0f}", *speedup)
        return table


def benchmark(
    models: Mapping[str, str | Path],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: int = 0,
    provider: str = "auto",
    runs: int = 50,
    warmup: int = 10,
) -> BenchReport:
    """Time the ONNX files in `models` (name -> path) against each other; the first is what speed-ups refer
    to.

    For each batch size, every file gets one random input batch, `warmup` runs that aren't counted, then
    `runs` timed runs, in turn with the other files. `threads` (0: all cores) and `provider` are those of
    slim.OnnxModel. Data goes in and out through CPU memory.

    Raises SlimError for a missing or broken file, an absent provider, a setting out of range, and an input
    whose shape the file leaves open beyond the batch.
    """
    if not models:
        raise SlimError("benchmark got no files: expected at least one")
    if not batch_sizes:
        raise SlimError("batch_sizes is empty: expected at least one")
    for name, value, least in (("runs", runs, 1), ("warmup", warmup, 0), ("batch size", min(batch_sizes), 1)):
        if value < least:
            raise SlimError(f"{name} {value}: expected at least {least}")

    sessions = {name: open_session(path, provider, threads, SESSION_SETTINGS) for name, path in models.items()}
    started = dict.fromkeys(session.get_providers()[0] for session in sessions.values())
    rows: list[BenchRow] = []
    for batch_size in batch_sizes:
        feeds = {name: _random_feed(name, session, batch_size) for name, session in sessions.items()}
        rows += _rows(batch_size, _time(sessions, feeds, runs, warmup))
    return BenchReport(rows, ", ".join(started), threads, runs, warmup, _machine(), onnxruntime.__version__)


def _random_feed(name: str, session: onnxruntime.InferenceSession, batch_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    feed = {}
    for entry in session.get_inputs():
        if entry.type not in DTYPES:
            raise SlimError(f"input {entry.name!r} of {name!r} is {entry.type}: expected one of {', '.join(DTYPES)}")
        batch, *shape = entry.shape
        if not all(isinstance(size, int) for size in shape):
            raise SlimError(f"input {entry.name!r} of {name!r} has shape {entry.shape}: expected only the batch open")
        if isinstance(batch, int) and batch != batch_size:
            raise SlimError(f"batch size {batch_size}: {name!r} has the fixed batch size {batch}")
        feed[entry.name] = random.standard_normal((batch_size, *shape)).astype(DTYPES[entry.type])
    return feed


def _time(
    sessions: Mapping[str, onnxruntime.InferenceSession],
    feeds: Mapping[str, dict[str, np.ndarray]],
    runs: int,
    warmup: int,
) -> dict[str, np.ndarray]:
    """Milliseconds of each timed run, for each file; entry i of all of them are from the same round."""
    times: dict[str, list[int]] = {name: [] for name in sessions}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(warmup + runs):
            for name, session in sessions.items():
                start = time.perf_counter_ns()
                session.run(None, feeds[name])
                times[name].append(time.perf_counter_ns() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: np.array(each[warmup:]) / 1e6 for name, each in times.items()}


def _rows(batch_size: int, times: Mapping[str, np.ndarray]) -> list[BenchRow]:
    first = next(iter(times.values()))
    rows = []
    for name, each in times.items():
        p10, median, p90, p99 = (float(value) for value in np.percentile(each, [10, 50, 90, 99]))
        low, high = (float(value) for value in np.percentile(first / each, [10, 90]))
        speedup = float(np.median(first)) / median
        rows.append(BenchRow(name, batch_size, median, p10, p90, p99, 1000 * batch_size / median, speedup, low, high))
    return rows


def _machine() -> str:
    """Processor, cores and system, such as "AMD EPYC 7763, 2 cores, Linux x86_64"."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
