"""The stage that writes ONNX files: in float, checked against PyTorch, and in 8-bit integers, checked on images."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slim.deploy.guard import Compared, compare_files, in_words
from slim.deploy.targets import SUFFIXES, export
from slim.errors import SlimError
from slim.tables import threads_in_words
from slim.workbench import data, report
from slim.workbench.config import RunConfig
from slim.workbench.data import Data
from slim.workbench.report import card
from slim.workbench.run import asked
from slim.workbench.run.folder import Run
from slim.workbench.run.measuring import benchmark_rules
from slim.workbench.run.networks import Trained, normalised_as, unpruned_beside
from slim.workbench.tasks import Classification

if TYPE_CHECKING:
    from slim.deploy.onnx.predict import OnnxModel
    from slim.deploy.onnx.write import ExportReport


def export_stage(run: Run, source: Path, *, unpruned: Path | None = None) -> list[Path]:
    """Write the network in `source` as model.onnx and, if it exists, `unpruned` as baseline.onnx; by default that is
    sparse.safetensors beside `source`, or baseline.safetensors where the sparse network was pruned already.

    An earlier model.int8.onnx goes, for it was made from another network. Where INT8 is asked for and refused
    (SlimError), all other files are there.
    """
    from slim.deploy.onnx.predict import OnnxModel  # imports onnxruntime

    with run.lock():
        run.records.check()
        before, unpruned = run.open(source), unpruned or unpruned_beside(source)
        whole = run.open(unpruned) if unpruned else None  # both are sound before one is written
        path, int8, baseline = run.path("onnx"), run.path("int8"), run.folder / "baseline.onnx"
        others = _for_another_runtime(run, before)  # first, for it may refuse
        made, written = write_onnx(before, path, run.settings), [path, *others]
        outdated = int8.exists()
        int8.unlink(missing_ok=True)
        if whole is not None:
            write_onnx(whole, baseline, run.settings)
            written.append(baseline)
        record = before.metrics | {"file_size": made.file_size, "max_relative_error": made.max_relative_error}
        if before.dataset and before.dataset.task.labelled:
            record[before.dataset.task.metric.name] = _metric(OnnxModel(path), before.dataset)
        compared = compare_files(baseline, path, asked.runtime(run.settings)) if whole is not None else []
        record["settings"] = [each.to_dict() for each in compared]
        run.records.enter("onnx", record, run.settings)
        run.console.print(report.stage_table({before.stage: before.metrics, "onnx": record}, "export"))
        _show_errors(run, made)
        show_slower(run)
        try:
            if run.settings.export.int8:
                written.append(int8_stage(run, source))
        finally:
            if outdated and not int8.exists():
                run.console.print(f"removed the earlier {int8}: it was made from another model.onnx")
            written.append(card.write(path))
        return written


def _for_another_runtime(run: Run, network: Trained) -> list[Path]:
    """Write the network for the runtime that the settings name beside onnxruntime; return its file if there is one."""
    runtime = run.settings.export.to
    if runtime == "onnx":
        return []
    path = run.folder / f"model{SUFFIXES[runtime]}"
    difference = export(network.model, network.example, path)
    run.console.print(f"{path.name} is within {difference:.0e} of the network (relative)")
    return [path]


def int8_stage(run: Run, source: Path) -> Path:
    """Quantise the model.onnx beside `source`, the network that it was exported from, as model.int8.onnx: on training
    images, and only if the test images say that it is as good. SlimError where it isn't."""
    from slim.deploy.bench.benchmark import benchmark  # these import onnxruntime and onnx
    from slim.deploy.onnx.predict import OnnxModel
    from slim.deploy.onnx.quantize import quantize_onnx

    settings = run.settings
    dataset = _data_for(run, run.open(source), source)
    files = {stage: run.path(stage) for stage in ("onnx", "int8")}
    net = OnnxModel(files["onnx"])
    size = 32
    images = data.sample_inputs(dataset, settings.export.calibration_images, settings.seed)
    calibration = (_as_taken(net, some, dataset) for some in images.split(size))
    metric = dataset.task.metric
    sign = 1 if metric.direction == "max" else -1  # quantize_onnx wants more where it is better
    agreeing = (
        (_as_taken(net, some, dataset), None) for some in images.split(size)
    )  # where nothing says what is right
    made = quantize_onnx(
        files["onnx"],
        files["int8"],
        calibration,
        (lambda file: sign * _metric(file, dataset)) if dataset.task.labelled else agreeing,
        max_loss=settings.export.max_loss,
        method=settings.export.calibration,
        reduce_range=settings.export.reduce_range,
    )
    was = run.records.summary()["onnx"] | {metric.name: sign * made.float_accuracy, "metric": metric.to_dict()}
    run.records.enter("onnx", was, settings)
    record = was | {metric.name: sign * made.accuracy, "file_size": made.file_size}
    for key in ("latency_ms", "speedup", "differs", "bench", "settings", "max_relative_error"):
        record.pop(key, None)
    run.records.enter("int8", record, settings)
    bench = settings.bench
    sizes = bench.batch_sizes[:1] if net.batch.holds(bench.batch_sizes[0]) else [net.batch.unit]
    timed = replace(bench, batch_sizes=sizes, threads=bench.threads[:1], memory=False, profile=0)
    timing = benchmark(files, **benchmark_rules(timed))
    rows = {row.model: {"latency_ms": row.median_ms} for row in timing.rows}
    run.console.print(report.stage_table({"onnx": was | rows["onnx"], "int8": record | rows["int8"]}, "INT8"))
    return files["int8"]


def write_onnx(network: Trained, path: Path, settings: RunConfig) -> "ExportReport":
    """Export a network as the settings say, with what its file says of it."""
    from slim.deploy.onnx.write import export_onnx  # imports torch's exporter

    export, images, data_of = settings.export, network.images, network.dataset
    if export.preprocess and data_of is not None and not isinstance(data_of.task, Classification):
        kind = type(data_of.task).__name__
        raise SlimError(f"export.preprocess ends in probabilities of classes: expected false for {kind}")
    return export_onnx(
        network.model,
        network.example,
        path,
        batch=export.batch,
        opset=export.opset,
        dynamic_size=export.dynamic_size,
        preprocess=export.preprocess,
        float64=export.float64,
        metadata={
            "task": settings.task if data_of is not None and data_of.task.labelled else None,
            "classes": images.classes,
            "mean": images.mean,
            "std": images.std,
            "plan_digest": network.plans[-1].digest if network.plans else None,
        },
    )


def show_slower(run: Run) -> None:
    """Say in which settings the exported network isn't faster than the unpruned one, and why; and where the benchmark,
    which is another measurement, doesn't bear it out."""
    record = run.records.summary().get("onnx", {})
    settings = [Compared.from_dict(each) for each in record.get("settings", [])]
    for line in in_words(settings):
        run.console.print(line)
    timed = [row for row in record.get("bench", {}).get("rows", []) if row["model"] == "onnx"]
    doubtful = [row for row in timed if row["speedup_low"] is not None and row["speedup_low"] <= 1]
    if settings and doubtful and all(each.faster for each in settings):
        where = "; ".join(f"batch {row['batch_size']}, {threads_in_words(row['threads'])}" for row in doubtful)
        run.console.print(
            f"but the benchmark shows no speed-up at {where}: measure again on a quiet machine, with slim-bench"
        )


def _show_errors(run: Run, made: "ExportReport") -> None:
    run.console.print(f"the ONNX file equals PyTorch's network to {made.max_relative_error:.0e} (relative)")
    if made.float64_engine:
        reached = "not compared" if made.float64_error is None else f"equal to {made.float64_error:.0e}"
        run.console.print(f"in float64, before optimisation: {reached} ({made.float64_engine})")


def _data_for(run: Run, network: Trained, source: Path) -> Data:
    """Return images like those that a network was trained on; SlimError where the settings name others."""
    dataset = network.dataset or normalised_as(network.images, run.dataset())
    shape, classes = dataset.spec.shape, dataset.spec.classes or ()
    if shape != network.images.shape or len(classes) != len(network.images.classes or classes):
        raise SlimError(
            f"data.name is {run.settings.data.name!r}, with {len(classes)} classes of images {list(shape or ())}: "
            f"INT8 needs images like those that {source} was trained on, {list(network.images.shape or ())}"
        )
    return dataset


def _metric(net: "OnnxModel", dataset: Data) -> float:
    """Return the task's metric on the test images, run in onnxruntime."""
    task = dataset.task
    sums = [
        task.tally(torch.from_numpy(net(images))[: len(labels)], labels)
        for images, labels in _test_batches(net, dataset)
    ]
    return task.value(torch.stack(sums).sum(0))


def _test_batches(net: "OnnxModel", dataset: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the test images as a file takes them, with their targets."""
    for images, labels in data.ordered(dataset, [] if dataset.test is None else dataset.test, 256, torch.device("cpu")):
        yield _as_taken(net, images, dataset), labels


def _as_taken(net: "OnnxModel", images: Tensor, dataset: Data) -> Tensor:
    """Return normalised images [N, C, H, W] as they are, or as the pixels that they were where the file normalises;
    copies of the last image are added where it takes multiples of a number."""
    if net.batch.multiples and (missing := -len(images) % net.batch.unit):
        images = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])])
    if not net.raw:
        return images
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (dataset.spec.mean, dataset.spec.std))
    return ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
