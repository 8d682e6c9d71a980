"""What a run tells in the terminal: a live table while it trains, a table for each stage, one for the whole.

Tables drop their least important columns where the terminal is too narrow for all. Where the output isn't a terminal,
progress is a plain line now and then. Colours follow NO_COLOR and the terminal, as rich does.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track

from slim import tables
from slim.tables import FittingTable
from slim.workbench.report import words
from slim.workbench.report.words import Record
from slim.workbench.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from slim.deploy.bench.result import BenchReport
    from slim.prune.plan import PruningPlan
    from slim.workbench import train

Item = TypeVar("Item")

FEW = 100  # images that need no bar
LINES_PER_TRAINING = 10  # where there is no terminal to draw in
EPOCHS_SHOWN = 8  # in the live table
SPARKS = "▁▂▃▄▅▆▇█"


@contextmanager
def training(
    console: Console, title: str, epochs: int, metric: Metric = ACCURACY
) -> Iterator[tuple[Callable[["train.Progress"], None], Callable[[dict[str, Any]], None]]]:
    """Shows a training; yields what `slim.workbench.train.fit` takes as `on_step` and `on_epoch`."""
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        expand=True,
    )
    task = bar.add_task(title, total=None, state="")
    records: list[dict[str, Any]] = []

    def on_step(now: "train.Progress") -> None:
        state = f"{now.epoch}/{now.epochs}"
        if console.width >= 60:
            state = f"epoch {state}  loss {now.loss:.3f}"
        bar.update(task, total=now.steps, completed=now.step, state=state)

    def on_epoch(record: dict[str, Any]) -> None:
        epoch = record["epoch"]
        records.append(record)
        if not console.is_terminal and (epoch % max(1, epochs // LINES_PER_TRAINING) == 0 or epoch == epochs):
            console.print(f"{title} {epoch}/{epochs}  {epoch_line(record, metric)}")

    def shown() -> RenderableType:
        return Group(epoch_table(records[-EPOCHS_SHOWN:], metric), bar) if records else bar

    if not console.is_terminal:
        yield on_step, on_epoch
        return
    with Live(console=console, get_renderable=shown, refresh_per_second=8):
        yield on_step, on_epoch


def prune_line(step: int, plan: "PruningPlan") -> str:
    """What one prune within a training did."""
    before, after = plan.totals["channels"]
    return f"pruned after step {step:,}: {before:,} → {after:,} channels"


def epoch_line(record: Record, metric: Metric = ACCURACY) -> str:
    """An epoch's record in one plain line."""
    parts = [f"loss {record['train_loss']:.3f}", f"{short(metric)} {metric.format(record[f'train_{metric.name}'], 1)}"]
    if record.get(f"val_{metric.name}") is not None:
        parts[-1] += f"  val {metric.format(record[f'val_{metric.name}'], 1)}"
    if record.get("near_zero") is not None:
        parts[-1] += f"  γ≈0 {record['near_zero']:.0%}"
    return "  ".join(parts)


def short(metric: Metric) -> str:
    """A metric's name where there is little room."""
    return "acc" if metric == ACCURACY else metric.title


def epoch_table(records: Sequence[Record], metric: Metric = ACCURACY) -> FittingTable:
    """Epochs one below the other, with the histogram of |γ| as a sparkline where γ was penalised."""
    table = FittingTable(drops=["val loss", "lr", "images/s", "λ", metric.title, "|γ|, 0 to largest", "loss"])
    columns: dict[str, Callable[[Record], str]] = {
        "epoch": lambda r: str(r["epoch"]),
        "loss": lambda r: f"{r['train_loss']:.4f}",
        metric.title: lambda r: metric.format(r[f"train_{metric.name}"], 1),
    }
    optional: dict[str, tuple[str, Callable[[Record], str]]] = {
        "val loss": ("val_loss", lambda r: f"{r['val_loss']:.4f}"),
        f"val {short(metric)}": (f"val_{metric.name}", lambda r: metric.format(r[f"val_{metric.name}"], 1)),
        "lr": ("lr", lambda r: f"{r['lr']:.3g}"),
        "λ": ("strength", lambda r: f"{r['strength']:.2g}"),
        "γ≈0": ("near_zero", lambda r: f"{r['near_zero']:.1%}"),
        "|γ|, 0 to largest": ("gamma", lambda r: sparkline(r["gamma"]["histogram"]["counts"])),
        "images/s": ("images_per_second", lambda r: f"{r['images_per_second']:,.0f}"),
    }
    columns |= {name: show for name, (key, show) in optional.items() if any(r.get(key) for r in records)}
    for name in columns:
        table.add_column(name, justify="left" if name.startswith("|") else "right", no_wrap=True)
    for record in records:
        known = {name for name in columns if name not in optional or record.get(optional[name][0]) is not None}
        table.add_row(*(show(record) if name in known else "" for name, show in columns.items()))
    return table


def sparkline(counts: Sequence[float], width: int = 16) -> str:
    """A histogram in one line of blocks: neighbouring bins together, heights by the square root of the counts (the
    few large γ stay visible beside the many at zero); an empty bin is a blank."""
    step = max(1, math.ceil(len(counts) / width))
    merged = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
    top = max(merged, default=0)
    return "".join(
        SPARKS[min(len(SPARKS) - 1, int(math.sqrt(n / top) * len(SPARKS)))] if n > 0 else " " for n in merged
    )


def counted(work: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """Goes through `work` with a bar on stderr, if that is a terminal and there is enough to wait for."""
    console = Console(stderr=True)
    hidden = total < FEW or not console.is_terminal
    yield from track(work, what, total, console=console, transient=True, disable=hidden)


def stage_table(stages: Mapping[str, Record], title: str) -> FittingTable:
    """Stages side by side, in the columns for which any of them has a value."""
    metric = Metric.of(next(reversed(list(stages.values())), {}))
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        metric.name: (metric.title, metric.format),
        "params": ("parameters", lambda v: f"{v:,}"),
        "flops": ("FLOPs", tables.count),
        "channels": ("channels", lambda v: f"{v:,}"),
        "file_size": ("file", tables.size),
        "latency_ms": ("latency", lambda v: f"{v:.3f} ms"),
    }
    table = FittingTable(title, drops=["channels", "file", "parameters", "latency", "FLOPs"])
    table.add_column("stage", no_wrap=True)
    shown = [key for key in columns if any(record.get(key) is not None for record in stages.values())]
    for key in shown:
        table.add_column(columns[key][0], justify="right", no_wrap=True)
    for stage, record in stages.items():
        table.add_row(
            words.stage(stage),
            *(columns[key][1](record[key]) if record.get(key) is not None else "" for key in shown),
        )
    return table


def pass_table(passes: Sequence[Mapping[str, Record]]) -> FittingTable:
    """What each pass of sparse training, pruning and fine-tuning left, from the summaries of their stages."""
    table = FittingTable("by pass", drops=["channels", "pruned", "sparse"])
    table.add_column("pass", justify="right")
    for name in ("channels", "parameters", "FLOPs", "sparse", "pruned", "fine-tuned"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, stages in enumerate(passes, start=1):
        left = stages["finetuned"]
        metric = Metric.of(left)
        values = [metric.format(stages[stage][metric.name]) for stage in ("sparse", "pruned", "finetuned")]
        table.add_row(str(number), f"{left['channels']:,}", f"{left['params']:,}", tables.count(left["flops"]), *values)
    return table


def conditions(made: "BenchReport") -> str:
    """What the first latencies of a benchmark hold for."""
    provider = made.provider.removesuffix("ExecutionProvider")
    threads = "all cores" if made.threads == 0 else f"{made.threads} threads"
    return f"onnxruntime, {provider}, {threads}, batch {made.rows[0].batch_size}"
