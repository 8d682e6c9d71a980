"""The stage that measures latency: a run's files, or any others, side by side."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim import checkpoint
from slim.errors import SlimError
from slim.workbench import models
from slim.workbench.config import BenchConfig
from slim.workbench.report import card
from slim.workbench.run.folder import Run

if TYPE_CHECKING:
    from slim.deploy.bench.result import BenchReport
    from slim.deploy.bench.runners import Runner

CHECKPOINT = ".safetensors"  # ends the names of checkpoints


def bench_stage(run: Run, source: Path) -> "tuple[list[Path], BenchReport]":
    """Measure `source`, a run's model.onnx, against the baseline.onnx beside it, and enter what was found."""
    files = {"baseline": source.with_name("baseline.onnx"), "onnx": source}
    if "int8" in run.records.summary():
        files["int8"] = run.path("int8")
    with run.lock():
        made = bench_files(run, {name: path for name, path in files.items() if path.exists()})
        return [run.records.enter_latency(made, run.settings), card.write(source)], made


def bench_files(run: Run, files: Mapping[str, Path]) -> "BenchReport":
    """Measure ONNX files and checkpoints against the first of them, and show the figures."""
    from slim.deploy.bench.benchmark import benchmark  # imports onnxruntime

    networks: dict[str, str | Path | Runner] = {}
    for name, path in files.items():
        networks |= _in_pytorch(run, name, path) if path.suffix == CHECKPOINT else {name: path}
    made = benchmark(networks, **benchmark_rules(run.settings.bench))
    run.console.print(made.table())
    if made.profiles:
        run.console.print(made.profile_table())
    return made


def bench_networks(run: Run, files: Mapping[str, Path]) -> "BenchReport":
    """Measure checkpoints against the first of them in PyTorch, as they are, and show the figures."""
    from slim.deploy.bench.benchmark import benchmark  # imports onnxruntime

    eager = run.replace(settings=replace(run.settings, bench=replace(run.settings.bench, compiled=False)))
    networks: dict[str, Any] = {}
    for stage, path in files.items():
        networks[stage] = next(iter(_in_pytorch(eager, stage, path).values()))
    made = benchmark(networks, **benchmark_rules(run.settings.bench))
    run.console.print(made.table())
    return made


def benchmark_rules(bench: BenchConfig) -> dict[str, Any]:
    """Return what `slim.benchmark` is asked for."""
    return {name: value for name, value in asdict(bench).items() if name not in ("compiled", "weights")}


def _in_pytorch(run: Run, name: str, path: Path) -> "dict[str, Runner]":
    """Return a checkpoint as what is timed: "NAME (eager)" and, where the settings say so, "NAME (compiled)"."""
    from slim.deploy.bench.modules import TorchRunner

    example, bench = run.example(), run.settings.bench
    example = checkpoint.read_metadata(path)["input_shape"] if example is None else example
    if example is None:
        raise SlimError(f"{path} doesn't say how large its images are: expected images= in slim.save")
    model = models.load(path, allow_code=run.allow_code)
    modes = {"eager": False, "compiled": True} if bench.compiled else {"eager": False}
    return {
        f"{name} ({mode})": TorchRunner(
            model, example, compiled=compiled, provider=bench.provider, threads=bench.threads[0], file=path
        )
        for mode, compiled in modes.items()
    }
