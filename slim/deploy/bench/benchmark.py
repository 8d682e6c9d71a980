"""Latency, throughput and memory, side by side.

`runners`  what is timed: files in their runtime; `modules`: networks in PyTorch
`rows`     what follows from their times: percentiles, speed-ups with an interval
`memory`   the peak of a process of its own
`result`   the figures as a table, a picture and JSON
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxruntime import __version__ as onnxruntime_version

from slim.deploy.bench.memory import peak_memory
from slim.deploy.bench.result import BenchReport
from slim.deploy.bench.rows import BenchRow, cautions, rows_of
from slim.deploy.bench.runners import FileRunner, Runner, shapes_in_words
from slim.deploy.load import OtherWork
from slim.deploy.target import BatchUnit, NodeTime
from slim.deploy.targets import target_of
from slim.deploy.timing import Rounds, machine, time_in_turn
from slim.errors import SlimError
from slim.progress import progress

if TYPE_CHECKING:
    from torch import nn

BATCH_SIZES = (1, 32)


def benchmark(
    models: "Mapping[str, str | Path | nn.Module | Runner]",
    example_inputs: Any = None,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    threads: int | Sequence[int] = 0,
    provider: str = "auto",
    runs: int = 50,
    warmup: int = 10,
    image_size: int | None = None,
    memory: bool = True,
    profile: int = 0,
) -> BenchReport:
    """Time `models` (name -> network) against each other; the first is what speed-ups refer to.

    A path is an ONNX file, which runs in onnxruntime. A module runs in PyTorch on images like `example_inputs`
    ([N, C, H, W], of any N), on the GPU where the provider is one. A `Runner` times what it likes.
    For each batch size, each gets one random input batch, `warmup` runs that aren't counted, then `runs` timed runs, in
    turn with the others. On a GPU, inputs and outputs stay in its memory.

    A speed-up is given where a network takes images of the same shape as the first; the report's `notes` say where not.

    threads: 0 for all cores; several are measured one after the other (a `Runner` once); provider: as in
    slim.OnnxModel; batch_sizes: images in one call; where they are the default and ONNX files have a fixed batch size,
    those sizes instead; image_size: pixels, for ONNX files of other makers that leave height and width open (refused
    where a file takes another size); memory: also measure the peak memory of each in a process of its own (about a
    second for each); profile: how many of each ONNX file's slowest nodes the table shows (0: no profile).

    Raises SlimError for a missing or broken file, an absent provider, a setting out of range, an input whose shape
    the file leaves open beyond that, and a network that doesn't run on such a batch or image.

    >>> made = slim.benchmark({"base": "base.onnx", "thin": "thin.onnx"}, batch_sizes=[1], runs=5, memory=False)
    >>> [row.model for row in made.rows]  # print(made) for the table
    ['base', 'thin']
    """
    _check_settings(models, batch_sizes, {"runs": (runs, 1), "warmup": (warmup, 0), "profile": (profile, 0)})
    settings = [threads] if isinstance(threads, int) else list(dict.fromkeys(threads))
    rows: list[BenchRow] = []
    busiest = 0.0
    for number in reversed(settings):  # the first comes last: what follows is about its runners
        own = models if number == settings[0] else {n: model for n, model in models.items() if not _is_runner(model)}
        runners = {n: _runner(n, model, example_inputs, provider, number, image_size) for n, model in own.items()}
        _check_image_size(runners, image_size)
        taken = _batch_sizes(runners, batch_sizes) if runners else {}
        found, others = _rows(runners, taken, number, Rounds(runs), warmup, memory and number == settings[0])
        rows, busiest = found + rows, max(busiest, others)
    return BenchReport(
        rows,
        provider=", ".join(dict.fromkeys(runner.provider for runner in runners.values())),
        threads=list(dict.fromkeys(row.threads for row in rows)),
        runs=runs,
        warmup=warmup,
        machine=machine(),
        onnxruntime=onnxruntime_version,
        torch=version("torch") if any(not isinstance(runner, FileRunner) for runner in runners.values()) else None,
        profiles=_profiles(runners, taken) if profile else {},
        profile_shown=profile,
        notes=_notes(runners, batch_sizes, taken),
        cautions=cautions(rows, busiest),
    )


def _rows(
    runners: Mapping[str, Runner],
    taken: Mapping[str, Sequence[int]],
    threads: int,
    rounds: Rounds,
    warmup: int,
    memory: bool,
) -> tuple[list[BenchRow], float]:
    """Return the rows of one number of threads, and the share of the machine that others took while it was busiest."""
    times, busiest, peaks = {}, 0.0, {}
    batch_sizes, watched = dict.fromkeys(size for sizes in taken.values() for size in sizes), runners if memory else {}
    with progress("timing side by side", len(batch_sizes) + len(watched)) as advance:
        for batch_size in batch_sizes:
            calls = {name: runner.prepare(batch_size) for name, runner in runners.items() if batch_size in taken[name]}
            with OtherWork() as others:
                times[batch_size] = time_in_turn(calls, rounds, warmup)
            busiest = max(busiest, others.share or 0.0)
            advance(1)
        for name, runner in watched.items():
            peaks[name] = peak_memory(runner, taken[name])
            advance(1)
    sizes = {name: runner.file_size for name, runner in runners.items()}
    rows: list[BenchRow] = []
    for batch_size, each in times.items():
        first, alike = _like_the_first(runners)
        compared = alike if first in each else []
        peak = {name: peak.get(batch_size) for name, peak in peaks.items()}
        rows += rows_of(batch_size, threads, each, peak, sizes, compared)
    return rows, busiest


def _check_settings(
    models: Mapping[str, Any], batch_sizes: Sequence[int], numbers: Mapping[str, tuple[int, int]]
) -> None:
    if not isinstance(models, Mapping):
        raise SlimError(f"benchmark got a {type(models).__name__}: expected networks by name, {{'thin': …}}")
    if not models:
        raise SlimError("benchmark got no networks: expected at least one")
    if not batch_sizes:
        raise SlimError("batch_sizes is empty: expected at least one")
    for name, (value, least) in {**numbers, "batch size": (min(batch_sizes), 1)}.items():
        if value < least:
            raise SlimError(f"{name} {value}: expected at least {least}")


def _runner(name: str, model: Any, example_inputs: Any, provider: str, threads: int, image_size: int | None) -> Runner:
    if isinstance(model, (str, Path)):
        return FileRunner(name, model, target_of(model, provider, threads), image_size)
    if _is_runner(model):
        runner: Runner = model
        return runner
    from slim.deploy.bench.modules import TorchRunner  # imports torch

    if not hasattr(example_inputs, "shape"):
        raise SlimError(f"{name!r} is a module: expected example_inputs, images [N, C, H, W] as it takes them")
    return TorchRunner(model, tuple(example_inputs.shape[1:]), provider=provider, threads=threads)


def _is_runner(model: Any) -> bool:
    return hasattr(model, "prepare")


def _check_image_size(runners: Mapping[str, Runner], image_size: int | None) -> None:
    for name, runner in runners.items():
        if image_size and all(shape[-2:] != (image_size, image_size) for shape in runner.shapes):
            raise SlimError(
                f"image_size {image_size}: {name!r} takes {shapes_in_words(runner.shapes)} alone: expected no "
                "image_size, or files that leave height and width open"
            )


def _profiles(runners: Mapping[str, Runner], taken: Mapping[str, Sequence[int]]) -> dict[str, list[NodeTime]]:
    return {name: each.profile(taken[name][0]) for name, each in runners.items() if isinstance(each, FileRunner)}


def _batch_sizes(runners: Mapping[str, Runner], asked: Sequence[int]) -> dict[str, Sequence[int]]:
    """Return the batch sizes of each: those asked for, or, where these are the default and files have fixed ones, the
    fixed ones, which a file with an open batch is measured at too."""
    fixed = sorted({runner.batch.unit for runner in runners.values() if runner.batch != BatchUnit()})
    if fixed and tuple(asked) == BATCH_SIZES:
        return {name: fixed if runner.batch == BatchUnit() else [runner.batch.unit] for name, runner in runners.items()}
    for runner in runners.values():
        for size in asked:
            if isinstance(runner, FileRunner):
                runner.check_batch(size)
    return dict.fromkeys(runners, asked)


def _like_the_first(runners: Mapping[str, Runner]) -> tuple[str, list[str]]:
    """Return the first one's name, and of those that take images of the same shape."""
    first = next(iter(runners))
    return first, [name for name, runner in runners.items() if runner.shapes == runners[first].shapes]


def _notes(runners: Mapping[str, Runner], asked: Sequence[int], taken: Mapping[str, Sequence[int]]) -> list[str]:
    notes = []
    if any(list(sizes) != list(asked) for sizes in taken.values()):
        fixed = [f"{name}: {runner.batch}" for name, runner in runners.items() if runner.batch != BatchUnit()]
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
    """Return a name for each path: the file's own where that tells them apart, with its folder where it doesn't.

    A path that comes again, to see how far equal files differ, gets a number.
    """
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
