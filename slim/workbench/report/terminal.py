"""What a run tells in the terminal: a live table while it trains, a table for each stage, one for the whole.

Tables drop their least important columns where the terminal is too narrow for all. Where the output isn't a terminal,
progress is a plain line now and then. Colours follow NO_COLOR and the terminal, as rich does.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from slim.tables import FittingTable
from slim.workbench.report.columns import COLUMNS, Record, columns, stage_name
from slim.workbench.tasks.metric import ACCURACY, Metric

if TYPE_CHECKING:
    from slim.workbench import train

LINES_PER_TRAINING = 10  # where there is no terminal to draw in
EPOCHS_SHOWN = 8  # in the live table
HISTOGRAM = "|γ|, 0 to largest"  # a column's heading
SPARKS = "▁▂▃▄▅▆▇█"  # eight heights


@contextmanager
def training(
    console: Console, title: str, epochs: int, metric: Metric = ACCURACY
) -> Iterator[tuple[Callable[["train.Progress"], None], Callable[[dict[str, Any]], None]]]:
    """Show a training; yield what `slim.workbench.train.fit` takes as `on_step` and `on_epoch`."""
    about, state = TextColumn("[bold]{task.description}"), TextColumn("{task.fields[state]}")
    bar = Progress(about, BarColumn(None), state, TimeRemainingColumn(compact=True), console=console, expand=True)
    task = bar.add_task(title, total=None, state="")
    records: list[dict[str, Any]] = []

    def on_step(progress: "train.Progress") -> None:
        done = f"{progress.epoch}/{progress.epochs}"
        text = f"epoch {done}  loss {progress.loss:.3f}" if console.width >= 60 else done
        bar.update(task, total=progress.steps, completed=progress.step, state=text)

    def on_epoch(record: dict[str, Any]) -> None:
        records.append(record)
        epoch = record["epoch"]
        if not console.is_terminal and (epoch % max(1, epochs // LINES_PER_TRAINING) == 0 or epoch == epochs):
            console.print(f"{title} {epoch}/{epochs}  {epoch_line(record, metric)}")

    def shown() -> RenderableType:
        return Group(epoch_table(records[-EPOCHS_SHOWN:], metric), bar) if records else bar

    live = Live(console=console, get_renderable=shown, refresh_per_second=8)
    with live if console.is_terminal else nullcontext():
        yield on_step, on_epoch


def epoch_line(record: Record, metric: Metric = ACCURACY) -> str:
    """Return an epoch's record in one plain line."""
    held_out, near_zero = record.get(f"val_{metric.name}"), record.get("near_zero")
    train, text = record.get(f"train_{metric.name}"), f"loss {record['train_loss']:.3f}"
    text += "" if train is None else f"  {_short(metric)} {metric.format(train, 1)}"
    text += f"  val {metric.format(held_out, 1)}" if held_out is not None else ""
    return text + (f"  γ≈0 {near_zero:.0%}" if near_zero is not None else "")


def epoch_table(records: Sequence[Record], metric: Metric = ACCURACY) -> FittingTable:
    """Return epochs one below the other, with the histogram of |γ| as a sparkline where γ was penalised."""
    drops = ["val loss", "lr", "images/s", "λ", metric.title, HISTOGRAM, "loss"]
    every: list[tuple[str, str, Callable[[Any], str]]] = [  # heading, key, format
        ("epoch", "epoch", str),
        ("loss", "train_loss", "{:.4f}".format),
        (metric.title, f"train_{metric.name}", lambda value: metric.format(value, 1)),
        ("val loss", "val_loss", "{:.4f}".format),
        (f"val {_short(metric)}", f"val_{metric.name}", lambda value: metric.format(value, 1)),
        ("lr", "lr", "{:.3g}".format),
        ("λ", "strength", "{:.2g}".format),
        ("γ≈0", "near_zero", "{:.1%}".format),
        (HISTOGRAM, "gamma", lambda value: sparkline(value["histogram"]["counts"])),
        ("images/s", "images_per_second", "{:,.0f}".format),
    ]
    shown = [column for column in every if column[0] in ("epoch", "loss") or any(r.get(column[1]) for r in records)]
    rows = [["" if r.get(key) is None else form(r[key]) for _, key, form in shown] for r in records]
    return _table([heading for heading, *_ in shown], rows, drops)


def _table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], drops: Sequence[str], title: str = ""
) -> FittingTable:
    table = FittingTable(title, drops)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("stage", HISTOGRAM) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _short(metric: Metric) -> str:
    return "acc" if metric == ACCURACY else metric.title


def sparkline(counts: Sequence[float], width: int = 16) -> str:
    """Return a histogram in one line of blocks: neighbouring bins together, heights by the square root of the
    counts (the few large γ stay visible beside the many at zero); an empty bin is a blank."""
    step = max(1, math.ceil(len(counts) / width))
    merged = [sum(counts[i : i + step]) for i in range(0, len(counts), step)]
    top = max(merged, default=0)
    return "".join(SPARKS[min(7, int(8 * math.sqrt(n / top)))] if n > 0 else " " for n in merged)


def stage_table(stages: Mapping[str, Record], title: str) -> FittingTable:
    """Return stages side by side, in the columns for which any of them has a value."""
    drops = [COLUMNS[key].heading for key in ("channels", "file_size", "params", "latency_ms", "flops")]
    shown = columns(stages.values())
    rows = [[stage_name(key), *(column.text(record) for column in shown)] for key, record in stages.items()]
    return _table(["stage", *(column.heading for column in shown)], rows, drops, title)


def pass_table(passes: Sequence[Mapping[str, Record]]) -> FittingTable:
    """Return what each pass of sparse training, pruning and fine-tuning left, from the summaries of their stages."""
    shown = [stage for stage in ("sparse", "pruned", "finetuned") if all(stage in stages for stages in passes)]
    headings = ["pass", "channels", "parameters", "FLOPs", *map(stage_name, shown)]
    rows = []
    for number, stages in enumerate(passes, start=1):
        left, metric = stages[shown[-1]], Metric.of(stages[shown[-1]])
        values = [metric.format(stages[stage][metric.name]) for stage in shown]
        rows.append([str(number), *(COLUMNS[key].text(left) for key in ("channels", "params", "flops")), *values])
    return _table(headings, rows, ["channels", "pruned", "sparse"], "by pass")
