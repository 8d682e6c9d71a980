"""How a stage's record is told, column by column and in words: the same in terminal, page, Markdown and card."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from slim import tables
from slim.tables import threads_in_words
from slim.workbench.tasks.metric import Metric

Record = Mapping[str, Any]  # what summary.json holds for a stage
STAGES = {"finetuned": "fine-tuned", "onnx": "ONNX", "int8": "INT8"}  # the others are called by their key


@dataclass(frozen=True)
class Column:
    """How one value of a stage is shown."""

    key: str  # in the stage's record
    heading: str
    format: Callable[[Any], str]
    brief: Callable[[Any], str] | None = None  # where there is little room, if not as everywhere
    change: Callable[[Any, Any], str] = tables.change  # how one value became another

    def text(self, record: Record, *, brief: bool = False) -> str:
        """Return the value as text, in its brief form where there is one; "" where there is no value."""
        show = self.brief if brief and self.brief else self.format
        return "" if record.get(self.key) is None else show(record[self.key])

    def change_text(self, before: Record, after: Record) -> str:
        """Return how the value changed; "" where it didn't, or isn't known on both sides; ≈ for a latency whose change
        the benchmark doesn't bear out."""
        was, now = before.get(self.key), after.get(self.key)
        if not was or now is None or now == was:
            return ""
        unclear = self.key == "latency_ms" and after.get("differs") is False
        return "≈" if unclear else self.change(was, now).replace("-", "−")


COLUMNS = {
    column.key: column
    for column in (
        Column("params", "parameters", "{:,}".format, tables.count),
        Column("flops", "FLOPs", tables.count),
        Column("channels", "channels", "{:,}".format),
        Column("file_size", "file", tables.size),
        Column("latency_ms", "latency", tables.milliseconds),
    )
}


def is_record(value: Any) -> bool:
    """Say whether a value may be the record of a stage: what is shown of it are finite numbers."""
    if not isinstance(value, dict):
        return False
    metric = value.get("metric") or {"name": "accuracy", "direction": "max"}
    if not isinstance(metric, dict) or not {"name", "direction"} <= metric.keys() <= _METRIC.keys():
        return False
    if not all(isinstance(metric[key], _METRIC[key]) for key in metric):
        return False
    shown = (value.get(key) for key in (*COLUMNS, metric["name"], "speedup"))
    return all(each is None or (_is_number(each) and abs(each) < LARGEST) for each in shown)


_METRIC = {"name": str, "direction": str, "share": bool, "unit": str}
LARGEST = 1e18  # of a number that is shown


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def every_column(metric: Metric) -> list[Column]:
    """Return all columns, that of the task's metric first."""
    return [Column(metric.name, metric.title, metric.format, change=metric.format_change), *COLUMNS.values()]


def columns(records: Iterable[Record]) -> list[Column]:
    """Return the columns for which any record has a value."""
    known = list(records)
    metric = Metric.of(known[-1] if known else {})
    return [column for column in every_column(metric) if any(r.get(column.key) is not None for r in known)]


def headline(before: Record, after: Record) -> str:
    """Return what pruning gave and took, in one line."""
    metric = Metric.of(after)
    both = metric.name in before and metric.name in after
    parts = [f"{metric.title} {metric.format_change(before[metric.name], after[metric.name])}"] if both else []
    for key in ("params", "flops"):
        if before.get(key) and key in after:
            parts.append(f"{after[key] / before[key] - 1:+.0%} {COLUMNS[key].heading}".replace("-", "−"))
    return ", ".join([*parts, speed(after)] if "speedup" in after else parts)


def speed(record: Record) -> str:
    """Return how much faster than the unpruned network a stage's is, as far as its benchmark bears it out."""
    rows = (record.get("bench") or {}).get("rows") or []
    row: Record = next((row for row in rows if row.get("speedup") == record["speedup"]), {})
    return tables.speedup(record["speedup"], row.get("speedup_low"), row.get("speedup_high"))


def stage_name(key: str) -> str:
    """Return the name of a stage, given its key in summary.json."""
    return STAGES.get(key, key.replace("_", " "))


def conditions(bench: dict[str, Any]) -> str:
    """Return what a benchmark's latencies hold for, given `BenchReport.to_dict()`; "" where there are none."""
    if not bench.get("rows"):
        return ""
    runtime = re.sub(r"(\w+)ExecutionProvider", r"onnxruntime, \1", str(bench.get("provider", "")))
    first = bench["rows"][0].get("threads", bench.get("threads", 0))
    threads = threads_in_words(first) if first else "all cores"
    return f"{runtime}, {threads}, batch {bench['rows'][0]['batch_size']}, median"
