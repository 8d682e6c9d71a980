"""Figures of the trainings: one run's in panels, several runs' metric side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from slim.workbench.report import words
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import Record
from slim.workbench.report.figures.base import Figure, Trace, anchor, axes, axis, nested, note, run_look, trace

TOP, GAP = 0.965, 0.045  # where the panels end, and what lies between two of them
FEW = 15  # epochs that each get a tick


def training(run: RunRecords) -> Figure:
    """Return loss, metric, learning rate, λ, small γ, and channels where a training prunes, by epoch in one line."""
    metric, records = run.metric, run.course
    shrinks = any(len({epoch.get("channels") for epoch in epochs}) > 1 for _, epochs in run.parts)
    share = ".2%" if metric.share else ".4g"
    panels: dict[str, list[tuple[str, str, str, str]]] = {  # title -> key, label, colour, format of each line
        "loss": [("train_loss", "training", "--train", ".4g"), ("val_loss", "validation", "--val", ".4g")],
        metric.title: [
            (f"train_{metric.name}", "training", "--train", share),
            (f"val_{metric.name}", "validation", "--val", share),
        ],
        "learning rate": [("lr", "learning rate", "--plain", ".4g")],
        "λ": [("strength", "λ", "--plain", ".4g")],
        "share of γ": [("near_zero", "|γ| < 0.01", "--plain", ".2%"), ("zero", "γ = 0", "--before", ".2%")],
        "channels": [("channels", "channels", "--after", ".4g")] if shrinks else [],
    }
    panels = {title: [line for line in lines if _any(records, line[0])] for title, lines in panels.items()}
    panels = {title: lines for title, lines in panels.items() if lines}
    heights = [1.5 if title in ("loss", metric.title) else 1.0 for title in panels]
    traces: list[Trace] = []
    layout: dict[str, Any] = {"hovermode": "x unified", **_stacked(heights), **_bands(run)}
    for i, (title, lines) in enumerate(panels.items()):
        for line in lines:
            shown = len(lines) > 1 and line[1] not in {trace["name"] for trace in traces}
            traces.append(_curve(run, *line) | {"yaxis": anchor("y", i), "showlegend": shown})
        layout[axis("y", i)] |= nested(title_text=title) | _scale(title, lines, run)
    layout["xaxis"] = _epochs(len(records)) | {"anchor": anchor("y", len(panels) - 1)}
    layout["legend"] = {"y": -0.09, "yanchor": "top"}
    title = f"Loss, {metric.title}, learning rate, λ, γ{', channels' if shrinks else ''} by epoch"
    return Figure("training", title, _caption(run, shrinks), traces, layout, height=70 + round(sum(heights) * 112))


def _curve(run: RunRecords, key: str, name: str, colour: str, form: str) -> Trace:
    """A line with a gap before each training, so that they aren't joined."""
    x: list[int] = []
    y: list[float | None] = []
    where: list[str] = []
    for part, epochs in run.parts:
        start, gap = (x[-1], 1) if x else (0, 0)
        x += [*[start] * gap, *range(start + 1, start + len(epochs) + 1)]
        y += [*[None] * gap, *(epoch.get(key) for epoch in epochs)]
        where += [*[""] * gap, *(f"{part}, epoch {epoch.get('epoch')}" for epoch in epochs)]
    look: dict[str, Any] = {"line_color": colour, "marker_color": colour, "marker_size": 5, "legendgroup": name}
    look |= {"mode": "lines+markers" if len(run.course) < 36 else "lines", "customdata": where}
    look |= {"line_dash": "dot"} if key.startswith("val_") or key == "zero" else {}
    look |= {"line_shape": "hvh"} if key == "channels" else {}
    hover = f"{name} %{{y:{form}}}<extra>%{{customdata}}</extra>"
    return trace("scatter", x, y, name, **look) | {"hovertemplate": hover}


def _bands(run: RunRecords) -> dict[str, Any]:
    """The name of each training above its epochs, every second on a band."""
    shapes, notes, start = [], [], 0
    for i, (part, epochs) in enumerate(run.parts):
        end = start + len(epochs)
        if i % 2:
            edges = {"x0": start + 0.5, "x1": end + 0.5, "y0": 0, "y1": TOP}
            shapes.append(nested(type="rect", line_width=0, fillcolor="--band", **edges))
        notes.append(note(f"<b>{part}</b>", (start + end + 1) / 2, TOP))
        start = end
    return {"shapes": shapes, "annotations": notes}


def _stacked(heights: Sequence[float]) -> dict[str, Any]:
    """Axes y, y2, … one above the other, the first on top."""
    unit, end, axes = (TOP - GAP * (len(heights) - 1)) / sum(heights), TOP, {}
    for i, height in enumerate(heights):
        axes[axis("y", i)] = {"domain": [max(0.0, end - unit * height), end]}
        end -= unit * height + GAP
    return axes


def _scale(title: str, lines: Sequence[tuple[str, ...]], run: RunRecords) -> dict[str, Any]:
    if title == "loss":
        return {"type": "log", **_log_ticks([epoch.get(key) for epoch in run.course for key, *_ in lines])}
    if title == run.metric.title:
        return {"tickformat": ".0%"} if run.metric.share else {}
    share = {"tickformat": ".0%"} if title == "share of γ" else {"exponentformat": "power"}
    return {"rangemode": "tozero", **share}


def _epochs(count: int) -> dict[str, Any]:
    ticks = {"tick0": 1, "dtick": 1} if count < FEW else {"tick0": 0, "nticks": 12}
    title = nested(title_text="epoch, all trainings one after the other")
    return {**title, "range": [0.5, count + 0.5], "showgrid": False, **ticks}


def _log_ticks(values: Sequence[float | None]) -> dict[str, Any]:
    """Ticks at powers of ten, and at 2 and 5 times them where those alone would be too few."""
    known = [value for value in values if value and value > 0] or [1.0]
    low, high = np.log10(min(known)), np.log10(max(known))
    steps = [1] if high - low > 2 else [1, 2, 5]
    ticks = [step * 10.0**power for power in range(int(low) - 2, int(high) + 2) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _caption(run: RunRecords, shrinks: bool) -> str:
    name, small = run.metric.title, [e["near_zero"] for e in run.course if e.get("near_zero") is not None]
    parts = [f"Training loss and {name} are means over each epoch's augmented images."]
    parts += ["Dotted: held-out validation images."] if _any(run.course, "val_loss") else []
    parts.append(
        f"See whether loss and {name} recover after pruning, and whether the penalty λ pushed γ to zero before it "
        f"cost {name}."
    )
    parts += [f"At the end of sparse training {small[-1]:.0%} of all penalised γ were below 0.01."] if small else []
    parts += ["Where the number of channels falls within a training, it pruned on its way."] if shrinks else []
    return " ".join(parts)


def progress(runs: Sequence[RunRecords]) -> Figure | None:
    """Return the metric of several runs by epoch; None where no run has any."""
    metric = runs[0].metric
    held_out = all(_any(run.course, f"val_{metric.name}") for run in runs)
    key = f"{'val' if held_out else 'train'}_{metric.name}"
    hover = f"%{{customdata}}<br>%{{y:{'.2%' if metric.share else '.4g'}}}"
    traces = [
        trace(
            *("scatter", range(1, len(run.course) + 1), [epoch.get(key) for epoch in run.course], run.name),
            f"<b>{run.name}</b> {hover}",
            customdata=[f"{words.stage(str(e.get('stage')))}, epoch {e.get('epoch')}" for e in run.course],
            **run_look(i, mode="lines" if len(run.course) > 1 else "markers"),
        )
        for i, run in enumerate(runs)
        if run.course
    ]
    if not traces:
        return None
    which = "validation" if held_out else "training"
    layout = axes("epoch, all trainings of a run one after the other", f"{which} {metric.title}")
    layout["yaxis"] |= {"tickformat": ".0%"} if metric.share else {}
    name = metric.title.capitalize()
    caption = f"{name} on the {which} images, epoch by epoch. A step is where a run was pruned or started anew."
    return Figure("progress", f"{name} by epoch", caption, traces, layout)


def _any(records: Sequence[Record], key: str) -> bool:
    return any(record.get(key) is not None for record in records)
