"""The stages after training: ONNX files, INT8, latency, the page."""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from slim import checkpoint
from slim.checkpoint import STAGES
from slim.deploy import onnx as export
from slim.errors import SlimError
from slim.workbench import data, report
from slim.workbench.config import BenchConfig, RunConfig
from slim.workbench.data import Dataset
from slim.workbench.models.load import load
from slim.workbench.report import card, page

if TYPE_CHECKING:
    from slim.deploy.bench.result import BenchReport
    from slim.deploy.bench.runners import Runner
from slim.workbench.run.networks import Trained, load_data, normalised_as, open_network, unpruned_beside
from slim.workbench.run.records import enter, enter_latency, read_records

CHECKPOINT = ".safetensors"  # ends the names of checkpoints


def export_stage(
    source: Path,
    settings: RunConfig,
    *,
    unpruned: Path | None = None,
    allow_code: str | Collection[str] = (),
    console: Console | None = None,
) -> list[Path]:
    """Write the network in `source` as model.onnx and, if it exists, `unpruned` as baseline.onnx; by default
    that is sparse.safetensors beside `source`, or baseline.safetensors where the sparse network was pruned already.

    An earlier model.int8.onnx goes, for it was made from another network. Where INT8 is asked for and refused
    (SlimError), all other files are there."""
    console = console or Console()
    read_records(source.parent)
    before = open_network(source, settings, allow_code)
    unpruned = unpruned or unpruned_beside(source)
    whole = (
        open_network(unpruned, settings, allow_code) if unpruned.exists() else None
    )  # both are sound before one is written
    path, int8 = (source.with_name(STAGES[stage][0]) for stage in ("onnx", "int8"))
    made, written = write_onnx(before, path, settings), [path]
    outdated = int8.exists()
    int8.unlink(missing_ok=True)
    if whole is not None:
        written.append(source.with_name("baseline.onnx"))
        write_onnx(whole, written[-1], settings)
    record = before.metrics | {"file_size": made.file_size, "max_relative_error": made.max_relative_error}
    if before.dataset:
        record[before.dataset.task.metric.name] = _onnx_metric(path, before.dataset)
    enter(path.parent, "onnx", record, settings)
    console.print(report.stage_table({before.stage: before.metrics, "onnx": record}, "export"))
    console.print(f"the ONNX file equals PyTorch's network to {made.max_relative_error:.0e} (relative)")
    if made.float64_engine:
        reached = "not compared" if made.float64_error is None else f"equal to {made.float64_error:.0e}"
        console.print(f"in float64, before optimisation: {reached} ({made.float64_engine})")
    try:
        if settings.export.int8:
            written.append(int8_stage(source, settings, allow_code=allow_code, console=console))
    finally:
        if outdated and not int8.exists():
            console.print(f"removed the earlier {int8}: it was made from another model.onnx")
        written.append(card.write(path))
    return written


def int8_stage(
    source: Path, settings: RunConfig, *, allow_code: str | Collection[str] = (), console: Console | None = None
) -> Path:
    """Quantise the model.onnx beside `source`, the network that it was exported from, as model.int8.onnx: on training
    images, and only if the test images say that it is as good. SlimError where it isn't."""
    from slim.deploy.bench.benchmark import benchmark  # imports onnxruntime

    console = console or Console()
    before = open_network(source, settings, allow_code)
    dataset = before.dataset or normalised_as(before.facts, load_data(settings, allow_code=allow_code))
    shape = list(dataset.test.images.shape[1:])
    if shape != before.facts["input_shape"] or len(dataset.classes) != len(before.facts["classes"] or dataset.classes):
        raise SlimError(
            f"data.name is {settings.data.name!r}, with {len(dataset.classes)} classes of images {shape}: INT8 needs "
            f"images like those that {source} was trained on, {before.facts['input_shape']}"
        )
    files = {stage: source.with_name(STAGES[stage][0]) for stage in ("onnx", "int8")}
    net = export.OnnxModel(files["onnx"])
    size = 32
    batches = data.batches(dataset.train, dataset, size, shuffle_seed=settings.seed)
    calibration = (_as_taken(net, images, dataset) for images, _ in batches)
    made = export.quantize_onnx(
        files["onnx"],
        files["int8"],
        islice(calibration, math.ceil(settings.export.calibration_images / size)),
        _test_batches(net, dataset),
        max_loss=settings.export.max_loss,
        method=settings.export.calibration,
        reduce_range=settings.export.reduce_range,
    )
    summary, _ = read_records(source.parent)
    was = summary["onnx"] | {"accuracy": made.float_accuracy}
    enter(source.parent, "onnx", was, settings)
    record = was | {"accuracy": made.accuracy, "file_size": made.file_size}
    for key in ("latency_ms", "speedup", "bench", "max_relative_error"):
        record.pop(key, None)
    enter(source.parent, "int8", record, settings)
    timed = replace(settings.bench, batch_sizes=settings.bench.batch_sizes[:1], memory=False, profile=0)
    timing = benchmark(files, **_rules(timed))
    rows = {row.model: {"latency_ms": row.median_ms} for row in timing.rows}
    console.print(report.stage_table({"onnx": was | rows["onnx"], "int8": record | rows["int8"]}, "INT8"))
    return files["int8"]


def bench_stage(
    source: Path, settings: RunConfig, *, console: Console | None = None
) -> "tuple[list[Path], BenchReport]":
    """Measure `source`, a run's model.onnx, against the baseline.onnx beside it."""
    files = {"baseline": source.with_name("baseline.onnx"), "onnx": source}
    if "int8" in read_records(source.parent)[0]:
        files["int8"] = source.with_name(STAGES["int8"][0])
    made = bench_files({name: path for name, path in files.items() if path.exists()}, settings, console=console)
    return [enter_latency(source.parent, made, settings), card.write(source)], made


def bench_files(
    files: Mapping[str, Path],
    settings: RunConfig,
    *,
    allow_code: str | Collection[str] = (),
    console: Console | None = None,
) -> "BenchReport":
    """Measure ONNX files and checkpoints against the first of them."""
    from slim.deploy.bench.benchmark import benchmark  # imports onnxruntime

    console = console or Console()
    networks: dict[str, str | Path | Runner] = {}
    for name, path in files.items():
        opened = _in_pytorch(name, path, settings.bench, allow_code) if path.suffix == CHECKPOINT else {name: path}
        networks |= opened
    made = benchmark(networks, **_rules(settings.bench))
    console.print(made.table())
    if made.profiles:
        console.print(made.profile_table())
    return made


def _rules(bench: BenchConfig) -> dict[str, Any]:
    """Return what `slim.benchmark` is asked for."""
    return {name: value for name, value in asdict(bench).items() if name != "compiled"}


def _in_pytorch(name: str, path: Path, bench: BenchConfig, allow_code: str | Collection[str]) -> "dict[str, Runner]":
    """Return a checkpoint as what is timed: "NAME (eager)" and, where the settings say so, "NAME (compiled)"."""
    from slim.deploy.bench.modules import TorchRunner

    shape = checkpoint.read_metadata(path)["input_shape"]
    if shape is None:
        raise SlimError(f"{path} doesn't say how large its images are: expected input_shape in slim.save")
    model = load(path, allow_code=allow_code)
    modes = {"eager": False, "compiled": True} if bench.compiled else {"eager": False}
    return {
        f"{name} ({mode})": TorchRunner(
            model, shape, compiled=compiled, provider=bench.provider, threads=bench.threads, file=path
        )
        for mode, compiled in modes.items()
    }


def report_stage(
    folders: Sequence[Path],
    page_path: Path | None = None,
    *,
    measure: bool = True,
    seconds: float | None = None,
    command: str | None = None,
    allow_code: str | Collection[str] = (),
    console: Console | None = None,
) -> list[Path]:
    """Make the page of a run, report.html in its folder, or of several, comparison.html beside the first. Before that,
    `measure` what they show and the runs didn't record (the sweep over ratios for `seconds`, by default as the run's
    settings say). `command` is the command line that made the run."""
    console = console or Console()
    for folder in folders:
        report.collect(folder)  # a folder that is no run says so before anything is measured
    written = []
    if measure:
        from slim.workbench.run.evidence import gather  # imports onnxruntime

        for folder in folders:
            written.append(gather(folder, allow_code=allow_code, command=command, seconds=seconds, say=console.print))
    home = folders[0] / "report.html" if len(folders) == 1 else folders[0].parent / "comparison.html"
    return [page.write([report.collect(folder) for folder in folders], page_path or home), *written]


def write_onnx(trained: Trained, path: Path, settings: RunConfig) -> "export.ExportReport":
    asked, facts = settings.export, trained.facts
    return export.export_onnx(
        trained.model,
        trained.example,
        path,
        batch=asked.batch,
        opset=asked.opset,
        dynamic_size=asked.dynamic_size,
        preprocess=asked.preprocess,
        float64=asked.float64,
        metadata={
            "classes": facts["classes"],
            "mean": facts["mean"],
            "std": facts["std"],
            "plan_digest": trained.plans[-1].digest if trained.plans else None,
        },
    )


def _onnx_metric(path: Path, dataset: Dataset) -> float:
    """The task's metric on the test images, run in onnxruntime."""
    net, task = export.OnnxModel(path), dataset.task
    sums = [task.tally(torch.from_numpy(net(images)), labels) for images, labels in _test_batches(net, dataset)]
    return task.value(torch.stack(sums).sum(0))


def _test_batches(net: "export.OnnxModel", dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """The test images as a file takes them, with their labels."""
    for images, labels in data.batches(dataset.test, dataset, 256):
        yield _as_taken(net, images, dataset), labels


def _as_taken(net: "export.OnnxModel", images: Tensor, dataset: Dataset) -> Tensor:
    """Normalised images [N, C, H, W] as they are, or as the pixels that they were where the file normalises."""
    if not net.raw:
        return images
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (dataset.spec.mean, dataset.spec.std))
    return ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
