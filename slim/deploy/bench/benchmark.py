"""Latency, throughput and memory, side by side.

`runners`  what is timed: ONNX files in onnxruntime, checkpoints in PyTorch (eager and compiled)
`timing`   runs in turn, and what follows from them: percentiles, speed-ups with an interval
`memory`   the peak of a process of its own
`profile`  which nodes of an ONNX file take the time
`result`   the figures as a table, a picture and JSON
"""

import os
import platform
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import onnxruntime

from slim.deploy.bench.memory import peak_memory
from slim.deploy.bench.profile import NodeTime, operator_profile
from slim.deploy.bench.result import BenchReport, BenchRow
from slim.deploy.bench.runners import OnnxRunner, Runner, TorchRunner, open_runners, shapes_in_words
from slim.deploy.timing import rows_of, time_in_turn
from slim.errors import SlimError

__all__ = ["BenchReport", "BenchRow", "NodeTime", "benchmark", "short_names"]

BATCH_SIZES = (1, 32)


def benchmark(
    models: Mapping[str, str | Path],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: int = 0,
    provider: str = "auto",
    runs: int = 50,
    warmup: int = 10,
    image_size: int | None = None,
    compiled: bool = True,
    memory: bool = True,
    profile: int = 0,
    allow_code: str | Collection[str] = (),
) -> BenchReport:
    """Time the files in `models` (name -> path) against each other; the first is what speed-ups refer to.

    An ONNX file runs in onnxruntime. A checkpoint (.safetensors) runs in PyTorch, as "NAME (eager)" and, with
    `compiled`, as "NAME (compiled)" by torch.compile, on the GPU where the provider is one. For each batch size,
    each gets one random input batch, `warmup` runs that aren't counted, then `runs` timed runs, in turn with the
    others. On a GPU, inputs and outputs stay in its memory.

    A speed-up is given where a file takes images of the same shape as the first; the report's `notes` say where not.

    threads: 0 for all cores; provider: as in slim.OnnxModel; batch_sizes: images in one call; where they are the
    default and ONNX files have a fixed batch size, those sizes instead; image_size: pixels, for ONNX files of other
    makers that leave height and width open (refused where a file takes another size); memory: also measure the peak
    memory of each file in a process of its own (about a second for each); profile: how many of each ONNX file's
    slowest nodes the table shows (0: no profile); allow_code: as in slim.load.

    Raises SlimError for a missing or broken file, an absent provider, a setting out of range, an input whose shape
    the file leaves open beyond that, a network that doesn't run on such a batch or image, and a checkpoint that
    torch.compile can't compile here.
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
    taken = _batch_sizes(runners, batch_sizes)
    times = {}
    for batch_size in dict.fromkeys(size for sizes in taken.values() for size in sizes):
        calls = {name: runner.prepare(batch_size) for name, runner in runners.items() if batch_size in taken[name]}
        times[batch_size] = time_in_turn(calls, runs, warmup)
    sizes = {name: runner.file_size for name, runner in runners.items()}
    peaks: dict[str, dict[int, int]] = {}
    if memory:
        peaks = {name: peak_memory(runner, taken[name], image_size, allow_code) for name, runner in runners.items()}
    first, alike = _like_the_first(runners)
    rows: list[BenchRow] = []
    for batch_size, each in times.items():
        compared = alike if first in each else []
        rows += rows_of(batch_size, each, {name: peak.get(batch_size) for name, peak in peaks.items()}, sizes, compared)
    profiles = {
        name: operator_profile(runner, taken[name][0])
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
        notes=_notes(runners, batch_sizes, taken),
    )


def _batch_sizes(runners: Mapping[str, Runner], asked: Sequence[int]) -> dict[str, Sequence[int]]:
    """The batch sizes of each: those asked for, or, where these are the default and files have fixed ones, the fixed
    ones, which a file with an open batch is measured at too."""
    fixed = sorted({runner.fixed_batch for runner in runners.values() if runner.fixed_batch is not None})
    if fixed and tuple(asked) == BATCH_SIZES:
        return {name: fixed if runner.fixed_batch is None else [runner.fixed_batch] for name, runner in runners.items()}
    for runner in runners.values():
        for size in asked:
            if isinstance(runner, OnnxRunner):
                runner.check_batch(size)
    return dict.fromkeys(runners, asked)


def _like_the_first(runners: Mapping[str, Runner]) -> tuple[str, list[str]]:
    """The first one's name, and of those that take images of the same shape."""
    first = next(iter(runners))
    return first, [name for name, runner in runners.items() if runner.shapes == runners[first].shapes]


def _notes(runners: Mapping[str, Runner], asked: Sequence[int], taken: Mapping[str, Sequence[int]]) -> list[str]:
    notes = []
    if any(list(sizes) != list(asked) for sizes in taken.values()):
        fixed = [f"{name}: {runner.fixed_batch}" for name, runner in runners.items() if runner.fixed_batch is not None]
        notes.append(f"batch sizes are those that files have fixed ({', '.join(fixed)})")
    first, alike = _like_the_first(runners)
    for name, runner in runners.items():
        if name not in alike:
            shapes = shapes_in_words(runner.shapes), shapes_in_words(runners[first].shapes)
            notes.append(f"no speed-up of {name}: its input is {shapes[0]}, that of {first} {shapes[1]}")
        elif not set(taken[name]) & set(taken[first]):
            notes.append(f"no speed-up of {name}: its batch size isn't that of {first}")
    return notes


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
