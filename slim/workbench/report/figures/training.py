"""Figures of the trainings: one run's in panels, several runs' metric side by side."""

import math
from collections.abc import Sequence
from typing import Any

from slim.tables import capitalised
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import Record, stage_name
from slim.workbench.report.figures.base import Figure, Series, axes, axis, nested, note, run_look, series, solid
from slim.workbench.tasks.metric import Metric

TOP = 0.965  # where the panels end


def training(run: RunRecords) -> Figure:
    """Return loss, metric, learning rate, λ, small γ, and channels where a training prunes, by epoch in one line."""
    metric, records = run.metric, run.course
    shrinks = any(len({epoch.get("channels") for epoch in epochs}) > 1 for _, epochs in run.parts)
    share = metric.spec()
    lines = [  # panel, key, label, colour, format
        ("loss", "train_loss", "training", "--train", ".4g"),
        ("loss", "val_loss", "validation", "--val", ".4g"),
        (metric.title, f"train_{metric.name}", "training", "--train", share),
        (metric.title, f"val_{metric.name}", "validation", "--val", share),
        ("learning rate", "lr", "learning rate", "--plain", ".4g"),
        ("λ", "strength", "λ", "--plain", ".4g"),
        ("share of γ", "near_zero", "|γ| < 0.01", "--plain", ".2%"),
        ("share of γ", "zero", "γ = 0", "--before", ".2%"),
        ("channels", "channels", "channels", "--after", ".4g"),
    ]
    drawn = {"channels": shrinks, "λ": _penalised(records)}
    lines = [line for line in lines if _any(records, line[1]) and drawn.get(line[0], True)]
    panels = list(dict.fromkeys(panel for panel, *_ in lines))
    epochs = nested(
        title_text="epoch, all trainings one after the other", range=[0.5, len(records) + 0.5], showgrid=False
    )
    epochs |= {"dtick": 1} if len(records) < 15 else {"nticks": 12}
    grid = {"rows": len(panels), "columns": 1, "pattern": "coupled", "ygap": 0.22, "domain": {"y": [0, TOP]}}
    layout = {"hovermode": "x unified", "grid": grid, "xaxis": epochs, **_bands(run)}
    layout |= {axis("yaxis", i): _scale(panel, metric, _decades(records)) for i, panel in enumerate(panels)}
    layout["legend"] = {"y": -0.09, "yanchor": "top"}
    traces: list[Series] = []
    for panel, key, label, colour, form in lines:
        several = sum(panel == other for other, *_ in lines) > 1
        shown = several and label not in {trace["name"] for trace in traces}
        place = {"yaxis": axis("y", panels.index(panel)), "showlegend": shown}
        traces.append(_curve(run, key, label, colour, form) | place)
    title = f"{', '.join([capitalised(panels[0]), *panels[1:]])} by epoch"
    return Figure("training", title, _caption(run, shrinks), traces, layout, height=90 + 126 * len(panels))


def _curve(run: RunRecords, key: str, name: str, colour: str, form: str) -> Series:
    """Return a line with a gap before each training, so that they aren't joined."""
    points: list[tuple[int, float | None, str]] = []
    number = 0
    for part, epochs in run.parts:
        points.append((number, None, ""))
        points += [(number + i, e.get(key), f"{part}, epoch {e.get('epoch')}") for i, e in enumerate(epochs, 1)]
        number += len(epochs)
    x, y, where = zip(*points[1:], strict=True)
    look: Series = {"mode": "lines+markers" if number < 36 else "lines", "marker_size": 5, "legendgroup": name}
    look |= {"line_dash": "dot"} if key.startswith("val_") or key == "zero" else {}
    look |= {"line_shape": "hvh"} if key == "channels" else {}
    hover = f"{name} %{{y:{form}}}<extra>%{{customdata}}</extra>"
    return series("scatter", x, y, name, customdata=where, **solid(colour), **look) | {"hovertemplate": hover}


def _bands(run: RunRecords) -> dict[str, Any]:
    """Return the name of each training above its epochs, every second on a band."""
    shapes, notes, start = [], [], 0
    for i, (part, epochs) in enumerate(run.parts):
        end = start + len(epochs)
        if i % 2:
            edges = {"x0": start + 0.5, "x1": end + 0.5, "y0": 0, "y1": TOP}
            shapes.append(nested(type="rect", line_width=0, fillcolor="--ink/0c", **edges))
        notes.append(note(f"<b>{part}</b>", (start + end + 1) / 2, TOP))
        start = end
    return {"shapes": shapes, "annotations": notes}


def _decades(records: Sequence[Record]) -> float:
    """Return over how many powers of ten the losses run."""
    losses = [loss for record in records for key in ("train_loss", "val_loss") if (loss := record.get(key) or 0) > 0]
    return math.log10(max(losses) / min(losses)) if losses else 0.0


def _scale(panel: str, metric: Metric, decades: float) -> dict[str, Any]:
    """Return how a panel's values are drawn. Of losses over many powers of ten these alone have room for a number."""
    scales: dict[str, dict[str, Any]] = {
        "loss": {"type": "log", "tickformat": "~g", "dtick": "D2" if decades < 1.5 else 1},
        metric.title: {"tickformat": ".0%" if metric.share else ""},
        "share of γ": {"rangemode": "tozero", "tickformat": ".0%"},
    }
    return nested(title_text=panel) | scales.get(panel, {"rangemode": "tozero", "exponentformat": "power"})


def _caption(run: RunRecords, shrinks: bool) -> str:
    name, small = run.metric.title, [e["near_zero"] for e in run.course if e.get("near_zero") is not None]
    texts = {
        f"Training loss and {name} are means over each epoch's augmented images.": True,
        "Dotted: held-out validation images.": _any(run.course, "val_loss"),
        f"See whether loss and {name} recover after pruning.": len(run.parts) > 1,
        f"See whether the penalty λ pushed γ to zero before it cost {name}.": _penalised(run.course),
        f"At the end of sparse training {(small or [0])[-1]:.0%} of all penalised γ were below 0.01.": small,
        "Where the number of channels falls within a training, it pruned on its way.": shrinks,
    }
    return " ".join(text for text, applies in texts.items() if applies)


def _penalised(records: Sequence[Record]) -> bool:
    """Say whether a penalty was at work."""
    return any(record.get("strength") for record in records)


def progress(runs: Sequence[RunRecords]) -> Figure | None:
    """Return the metric of several runs by epoch; None where no run has any."""
    metric = runs[0].metric
    held_out = all(_any(run.course, f"val_{metric.name}") for run in runs)
    key = f"{'val' if held_out else 'train'}_{metric.name}"
    hover = f"%{{customdata}}<br>%{{y:{metric.spec()}}}"
    traces = [
        series(
            *("scatter", range(1, len(run.course) + 1), [epoch.get(key) for epoch in run.course], run.name),
            f"<b>{run.name}</b> {hover}",
            customdata=[f"{stage_name(str(e.get('stage')))}, epoch {e.get('epoch')}" for e in run.course],
            **run_look(i, mode="lines" if len(run.course) > 1 else "markers"),
        )
        for i, run in enumerate(runs)
        if run.course
    ]
    if not traces:
        return None
    which = "validation" if held_out else "training"
    layout = axes("epoch, all trainings of a run one after the other", f"{which} {metric.title}")
    layout["yaxis"]["tickformat"] = ".0%" if metric.share else ""
    name = capitalised(metric.title)
    caption = f"{name} on the {which} images, epoch by epoch. A step is where a run was pruned or started anew."
    return Figure("progress", f"{name} by epoch", caption, traces, layout)


def _any(records: Sequence[Record], key: str) -> bool:
    return any(record.get(key) is not None for record in records)
