"""The sections of the page that compares several runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slim import tables
from slim.workbench.report import figures, words
from slim.workbench.report.collect import Run
from slim.workbench.report.html import Cell, escape, missing, table, tag
from slim.workbench.report.sections import Column

if TYPE_CHECKING:
    from slim.workbench.report.page import Page

FRONTIERS = (("flops", "FLOPs"), ("params", "parameters"), ("latency_ms", "latency (ms)"))


def add_to(page: "Page", runs: Sequence[Run]) -> None:
    """Add all sections of a comparison."""
    page.section("results", "Results", results(runs), differences(runs))
    fronts = [page.figure(figures.frontier(runs, key, title)) for key, title in FRONTIERS]
    page.section(
        "frontier", "Frontier", *fronts, "" if any(fronts) else missing("Fewer than two runs have a result yet.")
    )
    sweep = page.figure(figures.tradeoff(runs)) or missing("No run has a sweep of ratios.")
    page.section("trade-off", "Trade-off", sweep)
    progress = page.figure(figures.progress(runs)) or missing("No run has recorded an epoch.")
    page.section("training", "Training", progress)


def lede(runs: Sequence[Run]) -> str:
    """Which runs, and the best of them in one sentence."""
    said = f"{len(runs)} runs side by side: {', '.join(run.name for run in runs)}."
    pruned = [run for run in runs if run.after.get("accuracy") is not None]
    if pruned:
        best = max(pruned, key=lambda run: float(run.after["accuracy"]))
        said += f" After pruning, {best.name} is the most accurate with {tables.percent(best.after['accuracy'], 2)}."
    return said


def results(runs: Sequence[Run]) -> str:
    """The last network of each run, against its own network before pruning."""
    columns: list[Column] = [
        ("accuracy", "accuracy", lambda v: tables.percent(v, 2)),
        ("parameters", "params", tables.count),
        ("FLOPs", "flops", tables.count),
        ("channels", "channels", lambda v: f"{v:,}"),
        ("latency", "latency_ms", tables.milliseconds),
    ]
    rows = []
    for run in runs:
        last = words.stage(list(run.stages)[-1]) if run.stages else "none finished"
        rows.append([Cell(escape(run.name)), Cell(escape(last))])
        for _, key, say in columns:
            now, was = run.after.get(key), run.before.get(key)
            note = ""
            if now is not None and was:
                note = tables.points(was, now).removesuffix(" points") if key == "accuracy" else tables.change(was, now)
            value = was if now is None else now
            shown = "" if value is None else say(value)
            rows[-1].append(Cell(f"{shown} {tag('small', note)}", "" if value is None else value))
    headings = [("run", ""), ("last stage", ""), *((name, "number with-change") for name, _, _ in columns)]
    caption = (
        "The last network of each run. Small numbers are the change against the run's own network before pruning; of "
        "accuracy, in points. Click a heading to sort."
    )
    return table(headings, rows, caption, sortable=True)


def differences(runs: Sequence[Run]) -> str:
    """The settings in which the runs differ."""
    flat = [dict(_flat(run.settings)) for run in runs]
    every = [key for key in dict.fromkeys(key for each in flat for key in each) if key != "name"]
    keys = [key for key in every if len({str(each.get(key)) for each in flat}) > 1]
    heading = tag("h3", "Settings that differ")
    if not keys:
        return heading + tag("p", "None: all runs have the same settings.")
    rows = [[Cell(tag("code", escape(key))), *(Cell(escape(str(each.get(key, "")))) for each in flat)] for key in keys]
    return heading + table([("setting", ""), *((escape(run.name), "") for run in runs)], rows)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
