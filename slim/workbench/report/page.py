"""report.html: one page that explains a run, or compares several. It opens offline and asks for nothing.

Text, tables and small images are plain HTML; figures are data that plotly.js draws. plotly.js lies in the page itself,
compressed: it takes 2 MB instead of 5. A content security policy forbids every request.
"""

import base64
import gzip
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from slim import tables
from slim.files import replacing
from slim.workbench.config import flattened
from slim.workbench.report import advice
from slim.workbench.report.collect import RunRecords, drawn_from
from slim.workbench.report.columns import columns, conditions, every_column, speed
from slim.workbench.report.figures import gamma, latency, layers, results, training
from slim.workbench.report.figures.base import TEMPLATE, Figure
from slim.workbench.report.rendering import render


def write(runs: Sequence[RunRecords], path: Path) -> Path:
    """Write the page of one run, or the comparison of several, whole or not at all."""
    with drawn_from(runs):
        text = html(runs)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def html(runs: Sequence[RunRecords]) -> str:
    """Return the page of one run, or the comparison of several."""
    figures = {figure.name: figure for figure in _figures(runs) if figure is not None}
    shown = {
        "figures": figures,
        "data": {"template": TEMPLATE, "figures": {name: vars(figure) for name, figure in figures.items()}},
        "plotly": plotly() if figures else "",
        "date": max(str(run.made.get("date", "")) for run in runs),
        "columns": columns(record for run in runs for _, record in run.rows),
    }
    if len(runs) > 1:
        shown |= {"runs": runs, "lede": comparison_lede(runs), "differences": _differences(runs)}
        return render("comparison.html", **shown)
    [run] = runs
    shown |= {
        "run": run,
        "task": str(run.settings.get("task") or "classification"),
        "named": True,
        "lede": lede(run),
        "cards": _cards(run),
        "facts": _facts(run),
    }
    shown |= {"how_far": advice.how_far(run), "deployment": advice.deployment(run)}
    shown |= {"settings": yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True)}
    return render("run.html", **shown)


def _figures(runs: Sequence[RunRecords]) -> list[Figure | None]:
    if len(runs) > 1:
        frontiers = [results.frontier(runs, key) for key in ("flops", "params", "latency_ms")]
        return [*frontiers, results.tradeoff(runs), training.progress(runs)]
    [run] = runs
    drawn = [training.training(run) if run.course else None, gamma.by_epoch(run), gamma.by_layer(run)]
    return [*drawn, layers.layers(run), results.tradeoff(runs), latency.times(run), latency.operators(run)]


def lede(run: RunRecords) -> str:
    """Return what the run did, in two or three sentences."""
    what = f"{run.arch} on {run.data}. " if run.arch and run.data else ""
    before, after, metric = run.before, run.after, run.metric
    if not after:
        return f"{what}This run has not been pruned yet; the page shows what there is."
    if not before:
        return f"{what}The network before pruning left no record, so there is nothing to compare with."
    removed = {
        key: 1 - after[key] / before[key] for key in ("channels", "params", "flops") if before.get(key) and key in after
    }
    said = f"Removing {removed['channels']:.0%} of the channels" if "channels" in removed else "Pruning"
    said += f" took {removed['params']:.1%} of the parameters and {removed['flops']:.1%} of the FLOPs"
    was, now = before.get(metric.name), after.get(metric.name)
    if was is not None and now is not None:
        by, nothing = (metric.format_change(was, value).lstrip("+−") for value in (now, was))
        change = "did not change" if by == nothing else f"{'rose' if now > was else 'fell'} by {by}"
        said += f"; {metric.title} {change}"
    fast = f"; {speed(after)}" if after.get("speedup") else ""
    return f"{what}{said}{fast}."


def comparison_lede(runs: Sequence[RunRecords]) -> str:
    """Return which runs there are, and the best of them, in one sentence each."""
    said = f"{len(runs)} runs side by side: {', '.join(run.name for run in runs)}."
    metric = runs[0].metric
    pruned = [run for run in runs if run.after.get(metric.name) is not None]
    if not pruned:
        return said
    best = min(pruned, key=lambda run: metric.loss(0, run.after[metric.name]))
    return f"{said} After pruning, {best.name} has the best {metric.title}: {metric.format(best.after[metric.name])}."


def _cards(run: RunRecords) -> list[dict[str, str]]:
    """Return the large figures: each value of the result, and what it was."""
    before, after = dict(run.before), run.after or run.before
    before["file_size"] = run.sizes.get("baseline.onnx") or before.get("file_size")
    names = {"flops": "FLOPs of one image", "file_size": "ONNX file" if "onnx" in run.stages else "File"}
    cards = []
    for column in every_column(run.metric) if after else ():
        if column.key == "channels":
            continue
        was, now = (column.text(record, brief=True) for record in (before, after))
        measured = column.key == "latency_ms" and after.get("speedup")
        by = speed(after) if measured else column.change_text(before, after)
        label = names.get(column.key, tables.capitalised(column.heading))
        cards.append({"label": label, "now": now.replace("%", " %"), "was": was if now and run.after else "", "by": by})
    return cards


def _facts(run: RunRecords) -> dict[str, str]:
    """Return when, where, with which versions and seed the run was made."""
    made, epochs, seconds = run.made, len(run.course), sum(epoch.get("seconds") or 0 for epoch in run.course)
    return {
        "Date": str(made.get("date", "")).replace("T", " ").replace("+00:00", " UTC"),
        "Machine": str(made.get("machine", "")),
        "Versions": ", ".join(f"{name} {version}" for name, version in (made.get("versions") or {}).items()),
        "Seed": str(run.settings.get("seed", "")),
        "Latency": conditions(run.bench),
        "Training": f"{epochs} epoch{'s' * (epochs > 1)} in {tables.duration(seconds)}" if seconds else "",
    }


def _differences(runs: Sequence[RunRecords]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ: name -> the value of each."""
    flat = [flattened(run.settings) for run in runs]
    keys = [key for key in dict.fromkeys(key for each in flat for key in each) if key != "name"]
    found = {key: [each.get(key, "") for each in flat] for key in keys}
    return {key: values for key, values in found.items() if len({str(value) for value in values}) > 1}


@cache
def plotly() -> str:
    """plotly.js as plotly's own package brings it, compressed."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
