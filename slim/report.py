"""What a run tells in the terminal: progress while it trains, a table for each stage, one for the whole.

Tables fit into 80 columns. Where the output isn't a terminal, progress is a plain line now and then.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from slim import train
    from slim.bench import BenchReport
    from slim.planning import PruningPlan

LINES_PER_TRAINING = 10  # where there is no terminal to draw a bar in

BAR = 20  # characters for a whole layer

Record = Mapping[str, Any]  # what summary.json holds for a stage


@contextmanager
def training(
    console: Console, title: str, epochs: int
) -> Iterator[tuple[Callable[["train.Progress"], None], Callable[[dict[str, Any]], None]]]:
    """Shows a training; yields what `slim.train.fit` takes as `on_step` and `on_epoch`."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(title, total=None, state="")

    def on_step(now: "train.Progress") -> None:
        zeros = "" if now.near_zero is None else f"  γ≈0 {now.near_zero:.0%}"
        state = f"{now.epoch}/{now.epochs}  loss {now.loss:.3f}  acc {now.accuracy:.1%}{zeros}"
        bar.update(task, total=now.steps, completed=now.step, state=state)

    def on_epoch(record: dict[str, Any]) -> None:
        epoch = record["epoch"]
        if not console.is_terminal and (epoch % max(1, epochs // LINES_PER_TRAINING) == 0 or epoch == epochs):
            val = "" if record["val_accuracy"] is None else f"  val {record['val_accuracy']:.1%}"
            zeros = "" if record["near_zero"] is None else f"  γ≈0 {record['near_zero']:.0%}"
            accuracy = f"acc {record['train_accuracy']:.1%}{val}{zeros}"
            console.print(f"{title} {epoch}/{epochs}  loss {record['train_loss']:.3f}  {accuracy}")

    with bar:
        yield on_step, on_epoch


def stage_table(stages: Mapping[str, Record], title: str) -> Table:
    """Stages side by side, in the columns for which any of them has a value."""
    labels = {"finetuned": "fine-tuned", "onnx": "ONNX"}
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "accuracy": ("accuracy", lambda v: f"{v:.2%}"),
        "params": ("parameters", lambda v: f"{v:,}"),
        "flops": ("FLOPs", count),
        "channels": ("channels", lambda v: f"{v:,}"),
        "file_size": ("file", size),
        "latency_ms": ("latency", lambda v: f"{v:.3f} ms"),
    }
    table = _table(title)
    table.add_column("stage")
    shown = [key for key in columns if any(key in record for record in stages.values())]
    for key in shown:
        table.add_column(columns[key][0], justify="right")
    for stage, record in stages.items():
        table.add_row(
            labels.get(stage, stage),
            *(columns[key][1](record[key]) if key in record else "" for key in shown),
        )
    return table


def plan_table(plan: "PruningPlan") -> Table:
    """The layers of a pruning plan: channels before and after, the share that stays, what was held back."""
    table = _table(f"pruning plan: {plan.ratio_achieved:.1%} of all BatchNorm channels go")
    table.add_column("layer", overflow="fold")
    for name in ("before", "after", "held by floor", "frozen"):
        table.add_column(name, justify="right")
    table.add_column("stays")
    for layer in plan.layers:
        held = [str(n) if n else "" for n in (layer.floor, layer.frozen)]
        bar = "█" * max(1, round(BAR * layer.after / layer.before)) if layer.after else ""
        table.add_row(layer.name, f"{layer.before:,}", f"{layer.after:,}", *held, bar.ljust(BAR, "░"))
    return table


def render(table: Table, width: int = 80) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def headline(before: Record, after: Record) -> str:
    """What pruning gave and took, in one line."""
    points = 100 * (after["accuracy"] - before["accuracy"])
    parts = [f"accuracy {points:+.2f} points"]
    for key, name in (("params", "parameters"), ("flops", "FLOPs")):
        parts.append(f"{after[key] / before[key] - 1:+.0%} {name}")
    if "speedup" in after:
        parts.append(f"{after['speedup']:.2f}× as fast")
    return ", ".join(parts)


def conditions(made: "BenchReport") -> str:
    """What the first latencies of a benchmark hold for."""
    provider = made.provider.removesuffix("ExecutionProvider")
    threads = "all cores" if made.threads == 0 else f"{made.threads} threads"
    return f"onnxruntime, {provider}, {threads}, batch {made.rows[0].batch_size}"


def closing(wrote: Sequence[object], following: str) -> str:
    """The last line of a command: what it wrote, and which command comes next."""
    *others, last = map(str, wrote)
    return f"wrote {', '.join(others) + ' and ' if others else ''}{last}; next: {following}"


def count(number: float) -> str:
    """12,345,678 as "12.3 M"."""
    return _scaled(number, ("", " k", " M", " G", " T"))


def size(number: float) -> str:
    """A number of bytes, such as "1.2 MB" (10⁶)."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB"))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)


def _scaled(number: float, units: Sequence[str]) -> str:
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    decimals = 0 if power == 0 or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}{units[power]}"
