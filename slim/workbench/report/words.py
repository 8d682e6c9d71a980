"""Names and sentences as people read them: the same in the terminal, on the page, in Markdown."""

from collections.abc import Sequence
from typing import Any

from slim.tables import duration, percent
from slim.workbench.report.columns import Record

STAGES = {"finetuned": "fine-tuned", "onnx": "ONNX", "int8": "INT8"}  # the others are called by their key


def stage(key: str) -> str:
    """Return the name of a stage, given its key in summary.json."""
    return STAGES.get(key, key.replace("_", " "))


def totals(epochs: Sequence[Record]) -> dict[str, float]:
    """Return what a training took, from its records: `seconds` in all, images per second of its steps, and the share
    of the steps' time in which they waited for images."""
    sums = {key: sum(e[key] for e in epochs) for key in ("seconds", "images", "training_seconds", "waiting_seconds")}
    return {
        "seconds": sums["seconds"],
        "images_per_second": sums["images"] / sums["training_seconds"],
        "waiting": sums["waiting_seconds"] / sums["training_seconds"],
    }


def effort(epochs: Sequence[Record]) -> str:
    """Return the same in one line."""
    took = totals(epochs)
    speed, waiting = f"{took['images_per_second']:,.0f} images/s", percent(took["waiting"])
    return f"{len(epochs)} epochs in {duration(took['seconds'])}; steps at {speed}, {waiting} of it waiting for images"


def conditions(bench: dict[str, Any]) -> str:
    """Return what a benchmark's latencies hold for, given `BenchReport.to_dict()`; "" where there are none."""
    if not bench.get("rows"):
        return ""
    provider = str(bench.get("provider", "")).removesuffix("ExecutionProvider")
    threads = f"{bench['threads']} threads" if bench.get("threads") else "all cores"
    return f"onnxruntime, {provider}, {threads}, batch {bench['rows'][0]['batch_size']}, median"
