"""Latency, throughput and memory, side by side.

`runners`  what is timed: ONNX files in onnxruntime, checkpoints in PyTorch (eager and compiled)
`timing`   runs in turn, and what follows from them: percentiles, speed-ups with an interval
`memory`   the peak of a process of its own
`profile`  which nodes of an ONNX file take the time
`result`   the figures as a table, a picture and JSON
"""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from slim.bench.memory import peak_memory
from slim.bench.profile import NodeTime, operator_profile
from slim.bench.result import BenchReport, BenchRow
from slim.bench.runners import SESSION_SETTINGS, OnnxRunner, Runner, TorchRunner, open_runners
from slim.bench.timing import rows_of, time_in_turn
from slim.errors import SlimError

__all__ = ["SESSION_SETTINGS", "BenchReport", "BenchRow", "NodeTime", "benchmark", "short_names"]


def benchmark(
    models: Mapping[str, str | Path],
    *,
    batch_sizes: Sequence[int] = (1, 32),
    threads: int = 0,
    provider: str = "auto",
    runs: int = 50,
    warmup: int = 10,
    image_size: int | None = None,
    compiled: bool = True,
    memory: bool = True,
    profile: int = 0,
    allow_code: bool = False,
) -> BenchReport:
    """Time the files in `models` (name -> path) against each other; the first is what speed-ups refer to.

    An ONNX file runs in onnxruntime. A checkpoint (.safetensors) runs in PyTorch, as "NAME (eager)" and, with
    `compiled`, as "NAME (compiled)" by torch.compile, on the GPU where the provider is one. For each batch size,
    each gets one random input batch, `warmup` runs that aren't counted, then `runs` timed runs, in turn with the
    others. On a GPU, inputs and outputs stay in its memory.

    threads: 0 for all cores; provider: as in slim.OnnxModel; batch_sizes: images in one call; image_size: pixels,
    for ONNX files of other makers that leave height and width open; memory: also measure the peak memory of each
    file in a process of its own (about a second for each); profile: how many of each ONNX file's slowest nodes the
    table shows (0: no profile); allow_code: as in slim.load.

    Raises SlimError for a missing or broken file, an absent provider, a setting out of range, an input whose shape
    the file leaves open beyond that, and a checkpoint that torch.compile can't compile here.
    """
    if not models:
        raise SlimError("benchmark got no files: expected at least one")
    if not batch_sizes:
        raise SlimError("batch_sizes is empty: expected at least one")
    for name, value, least in (
        ("runs", runs, 1), ("warmup", warmup, 0), ("batch size", min(batch_sizes), 1), ("profile", profile, 0),
    ):  # fmt: skip
        if value < least:
            raise SlimError(f"{name} {value}: expected at least {least}")

    runners: dict[str, Runner] = {}
    for name, path in models.items():
        runners |= open_runners(name, path, provider, threads, image_size, compiled, allow_code)
    times = {}
    for batch_size in batch_sizes:
        calls = {name: runner.prepare(batch_size) for name, runner in runners.items()}
        times[batch_size] = time_in_turn(calls, runs, warmup)
    sizes = {name: runner.file_size for name, runner in runners.items()}
    peaks: dict[str, dict[int, int]] = {}
    if memory:
        peaks = {name: peak_memory(runner, batch_sizes, image_size, allow_code) for name, runner in runners.items()}
    rows: list[BenchRow] = []
    for batch_size, each in times.items():
        rows += rows_of(batch_size, each, {name: peak.get(batch_size) for name, peak in peaks.items()}, sizes)
    profiles = {
        name: operator_profile(runner, batch_sizes[0])
        for name, runner in runners.items()
        if profile and isinstance(runner, OnnxRunner)
    }
    return BenchReport(
        rows,
        provider=", ".join(dict.fromkeys(runner.provider for runner in runners.values())),
        threads=threads,
        runs=runs,
        warmup=warmup,
        machine=_machine(),
        onnxruntime=onnxruntime.__version__,
        torch=version("torch") if any(isinstance(runner, TorchRunner) for runner in runners.values()) else None,
        profiles=profiles,
        profile_shown=profile,
    )


def short_names(paths: Sequence[str | Path]) -> dict[str, Path]:
    """A name for each path: the file's own where that tells them apart, with its folder where it doesn't. A path that
    comes again, to see how far equal files differ, gets a number."""
    depth = 1
    different = {Path(path).absolute() for path in paths}
    while len({path.parts[-depth:] for path in different}) < len(different):
        depth += 1
    named: dict[str, Path] = {}
    for path in map(Path, paths):
        name = again = "/".join(path.absolute().parts[-depth:])
        count = 1
        while again in named:
            count += 1
            again = f"{name} ({count})"
        named[again] = path
    return named


def _machine() -> str:
    """Processor, cores and system, such as "AMD EPYC 7763, 2 cores, Linux x86_64"."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
