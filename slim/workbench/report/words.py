"""Numbers and names as people read them: the same in the terminal, on the page, in Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slim.tables import duration, percent
from slim.workbench.tasks.metric import Metric

Record = Mapping[str, Any]  # what summary.json holds for a stage

STAGES = {  # a stage's key in summary.json -> what it is called
    "baseline": "baseline",
    "sparse": "sparse",
    "pruned": "pruned",
    "recovered": "recovered",
    "finetuned": "fine-tuned",
    "onnx": "ONNX",
    "int8": "INT8",
}


def stage(key: str) -> str:
    """A stage's name in words; one that isn't known keeps its key."""
    return STAGES.get(key, key.replace("_", " "))


def headline(before: Record, after: Record) -> str:
    """What pruning gave and took, in one line."""
    parts = []
    metric = Metric.of(after)
    if metric.name in before and metric.name in after:
        parts.append(f"{metric.title} {metric.format_change(before[metric.name], after[metric.name])}")
    for key, name in (("params", "parameters"), ("flops", "FLOPs")):
        if before.get(key) and key in after:
            parts.append(f"{after[key] / before[key] - 1:+.0%} {name}")
    if "speedup" in after:
        parts.append(f"{after['speedup']:.2f}× as fast")
    return ", ".join(parts)


def totals(epochs: Sequence[Record]) -> dict[str, float]:
    """What a training took, from its records: `seconds` in all, images per second of its steps, and the share of the
    steps' time in which they waited for images."""
    sums = {key: sum(e[key] for e in epochs) for key in ("seconds", "images", "training_seconds", "waiting_seconds")}
    return {
        "seconds": sums["seconds"],
        "images_per_second": sums["images"] / sums["training_seconds"],
        "waiting": sums["waiting_seconds"] / sums["training_seconds"],
    }


def effort(epochs: Sequence[Record]) -> str:
    """The same in one line."""
    took = totals(epochs)
    speed, waiting = f"{took['images_per_second']:,.0f} images/s", percent(took["waiting"])
    return f"{len(epochs)} epochs in {duration(took['seconds'])}; steps at {speed}, {waiting} of it waiting for images"


def measured_on(record: Record) -> str:
    """What the latencies of a stage hold for, in words; "" where none was measured."""
    bench = record.get("bench") or {}
    if not bench.get("rows"):
        return ""
    provider = str(bench.get("provider", "")).removesuffix("ExecutionProvider")
    threads = "all cores" if not bench.get("threads") else f"{bench['threads']} threads"
    return f"onnxruntime, {provider}, {threads}, batch {bench['rows'][0]['batch_size']}, median"


def closing(wrote: Sequence[Path], following: str) -> str:
    """The last line of a command: what it wrote, and which command comes next."""
    names = [str(path) for path in wrote] if len(wrote) < 4 else [f"{len(wrote)} files in {wrote[0].parent}"]
    *others, last = names or ["nothing"]
    return f"wrote {', '.join(others) + ' and ' if others else ''}{last}; next: {following}"
