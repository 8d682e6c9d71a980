"""The figures of the page, as plotly.js takes them: plain data, layout, and a caption that says what to see.

A colour is a name such as "--before": the page looks it up in its style sheet, once for light and once for dark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from slim import tables
from slim.workbench.report import words
from slim.workbench.report.collect import Run
from slim.workbench.report.words import Record

Trace = dict[str, Any]
BINS = 48  # of the animated histogram
RIDGES = 60  # layers in the ridge plot, at most
GAMMA_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
NAMED = 44  # layers with their names under the bars, at most
HATCH = {"shape": "/", "fillmode": "overlay", "fgcolor": "--hatch", "fgopacity": 0.55, "size": 7, "solidity": 0.2}
SIDES = {"before": "original", "after": "pruned", "int8": "INT8"}
RUN_COLOURS = ["--run-1", "--run-2", "--run-3", "--run-4", "--run-5", "--run-6"]
RUN_DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
RUN_SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "star"]


@dataclass
class Figure:
    """`frames`: for a figure with a slider, what each position shows: a label and the heights of the bars."""

    name: str
    title: str
    caption: str
    traces: list[Trace]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 380
    frames: list[dict[str, Any]] = field(default_factory=list)


# -- training ----------------------------------------------------------------------------------------------------------


def training(run: Run) -> Figure:
    """Loss, accuracy, learning rate, λ, the share of zero γ, and the number of channels where a training prunes on its
    way, by epoch; all trainings in one time line."""
    panels: list[tuple[str, list[tuple[str, str, str]]]] = [
        ("loss", [("train_loss", "training", "--train"), ("val_loss", "validation", "--val")]),
        ("accuracy", [("train_accuracy", "training", "--train"), ("val_accuracy", "validation", "--val")]),
        ("learning rate", [("lr", "learning rate", "--plain")]),
        ("λ", [("strength", "λ", "--plain")]),
        ("share of γ", [("near_zero", "|γ| < 0.01", "--plain"), ("zero", "γ = 0", "--before")]),
    ]
    records = run.course
    shrinks = any(len({epoch.get("channels") for epoch in epochs}) > 1 for _, epochs in run.parts)
    if shrinks:
        panels.append(("channels", [("channels", "channels", "--after")]))
    panels = [(name, kept) for name, lines in panels if (kept := [line for line in lines if _any(records, line[0])])]
    heights = [1.5 if name in ("loss", "accuracy") else 1.0 for name, _ in panels]
    traces: list[Trace] = []
    layout: dict[str, Any] = {"hovermode": "x unified", "shapes": [], "annotations": []}
    tops = _stacked(layout, heights, gap=0.045)
    named: set[str] = set()
    for i, (panel, lines) in enumerate(panels):
        for key, label, colour in lines:
            start = 0
            for part, epochs in run.parts:
                share = "accuracy" in key or "zero" in key
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "lines+markers" if len(epochs) < 12 else "lines",
                        "x": [start + n + 1 for n in range(len(epochs))],
                        "y": [epoch.get(key) for epoch in epochs],
                        "name": label,
                        "legendgroup": label,
                        "showlegend": label not in named and len(lines) > 1,
                        "line": {
                            "color": colour,
                            "width": 2,
                            "dash": "dot" if key in ("val_loss", "val_accuracy", "zero") else "solid",
                            "shape": "hvh" if key == "channels" else "linear",
                        },
                        "marker": {"color": colour, "size": 5},
                        "xaxis": "x",
                        "yaxis": _axis("y", i),
                        "customdata": [f"{part}, epoch {epoch.get('epoch')}" for epoch in epochs],
                        "hovertemplate": f"{label} %{{y:{'.2%' if share else '.4g'}}}<extra>%{{customdata}}</extra>",
                    }
                )
                named.add(label)
                start += len(epochs)
        axis = layout[_layout_axis("y", i)]
        axis["title"] = {"text": panel}
        if panel in ("accuracy", "share of γ"):
            axis |= {"tickformat": ".0%", "rangemode": "normal" if panel == "accuracy" else "tozero"}
        elif panel == "loss":
            axis |= {"type": "log", **_log_ticks([e[key] for e in records for key, _, _ in lines if e.get(key)])}
        else:
            axis |= {"rangemode": "tozero", "exponentformat": "power"}
    start = 0
    for i, (part, epochs) in enumerate(run.parts):
        end = start + len(epochs)
        if i % 2:
            band = {"x0": start + 0.5, "x1": end + 0.5, "y0": 0, "y1": tops, "fillcolor": "--band"}
            layout["shapes"].append({"type": "rect", "yref": "paper", "layer": "below", "line": {"width": 0}, **band})
        place = {"x": (start + end + 1) / 2, "y": tops, "yref": "paper", "yanchor": "bottom"}
        layout["annotations"].append({"text": f"<b>{part}</b>", "showarrow": False, **place})
        start = end
    layout["xaxis"] = {
        "title": {"text": "epoch, all trainings one after the other"},
        "range": [0.5, start + 0.5],
        "anchor": _axis("y", len(panels) - 1),
        "tick0": 1 if start < 15 else 0,
        **({"dtick": 1} if start < 15 else {"nticks": 12}),
        "showgrid": False,
    }
    layout["legend"] = {"orientation": "h", "x": 0, "y": -0.09, "yanchor": "top"}
    last = [record for record in records if record.get("near_zero") is not None]
    zeros = (
        f" At the end of sparse training {last[-1]['near_zero']:.0%} of all penalised γ were below 0.01."
        if last
        else ""
    )
    validated = " Dotted: held-out validation images." if _any(records, "val_loss") else ""
    pruned = " Where the number of channels falls within a training, it pruned on its way." if shrinks else ""
    caption = (
        f"Training loss and accuracy are means over each epoch's augmented images.{validated} See whether loss and "
        f"accuracy recover after pruning, and whether the penalty λ pushed γ to zero before it cost accuracy."
        f"{zeros}{pruned}"
    )
    height = 70 + round(sum(heights) * 112)
    title = f"Loss, accuracy, learning rate, λ, γ{', channels' if shrinks else ''} by epoch"
    return Figure("training", title, caption, traces, layout, height)


def _log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Ticks at powers of ten, and at 2 and 5 times them where those alone would be too few."""
    values = [value for value in values if value > 0] or [1.0]
    low, high = np.log10(min(values)), np.log10(max(values))
    steps = [1] if high - low > 2 else [1, 2, 5]
    ticks = [step * 10.0**power for power in range(int(low) - 2, int(high) + 2) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def _stacked(layout: dict[str, Any], heights: Sequence[float], gap: float) -> float:
    """Axes y, y2, … one above the other, the first on top; returns where the top one ends."""
    top = 0.965
    unit = (top - gap * (len(heights) - 1)) / sum(heights)
    end = top
    for i, height in enumerate(heights):
        layout[_layout_axis("y", i)] = {"domain": [max(0.0, end - unit * height), end]}
        end -= unit * height + gap
    return top


# -- γ -----------------------------------------------------------------------------------------------------------------


def gamma_by_epoch(run: Run) -> Figure | None:
    """The histogram of all |γ| by epoch, with a slider. None for a run that recorded none."""
    frames = [
        (part, record, record["gamma"]["histogram"])
        for part, records in run.parts
        for record in records
        if (record.get("gamma") or {}).get("histogram")
    ]
    if not frames:
        return None
    threshold = (run.evidence.get("gamma") or {}).get("threshold")
    top = max([h["max"] for _, _, h in frames] + [threshold or 0.0]) or 1.0
    edges = np.linspace(0, top, BINS + 1)
    heights = [_rebinned(h["counts"], h["max"], edges) for _, _, h in frames]
    ends = [len(records) for _, records in run.parts]
    of = dict(zip([part for part, _ in run.parts], ends))
    shown = [
        {
            "label": f"{part}, epoch {record['epoch']} of {of[part]}",
            "detail": f"{record['near_zero']:.1%} of γ below 0.01, λ {record.get('strength') or 0:.2g}"
            if record.get("near_zero") is not None
            else "",
            "y": [round(float(n), 2) for n in counts],
        }
        for (part, record, _), counts in zip(frames, heights)
    ]
    bars: Trace = {
        "type": "bar",
        "x": [round(float(x), 6) for x in (edges[1:] + edges[:-1]) / 2],
        "y": shown[-1]["y"],
        "width": float(edges[1]),
        "marker": {"color": "--after", "line": {"width": 0}},
        "customdata": [[float(f"{a:.3g}"), float(f"{b:.3g}")] for a, b in pairwise(edges)],
        "hovertemplate": "|γ| %{customdata[0]} to %{customdata[1]}: %{y:,.0f} channels<extra></extra>",
    }
    highest = float(max(np.max(h) for h in heights))
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "|γ|"}, "range": [-0.01 * top, top * 1.01], "zeroline": False},
        "yaxis": {"title": {"text": "channels"}, "range": [0, 1.05 * highest]},
        "bargap": 0,
        "shapes": [],
        "annotations": [],
    }
    ending = ""
    if threshold is not None:
        _threshold_line(layout, threshold, threshold)
        ending = " The line is the threshold below which channels were removed in the end."
    caption = (
        "Move the slider, or press play: L1 pulls the scales of channels that the network can do without to zero, and "
        f"leaves the others. The further apart the two are, the less pruning costs.{ending}"
    )
    return Figure("gamma", "All |γ|, epoch by epoch", caption, [bars], layout, 360, shown)


def _threshold_line(layout: dict[str, Any], threshold: float, place_on_axis: float) -> None:
    line = {"x0": place_on_axis, "x1": place_on_axis, "y0": 0, "y1": 1, "yref": "paper"}
    layout["shapes"].append({"type": "line", "line": {"color": "--threshold", "width": 2, "dash": "dash"}, **line})
    text = f"threshold {threshold:.3g}" if threshold >= 1e-3 else f"threshold, close to 0 ({threshold:.0e})"
    right = place_on_axis > 0.7 * layout["xaxis"]["range"][1]  # the words on the side with room for them
    place = {"x": place_on_axis, "y": 1, "yref": "paper", "yanchor": "bottom"}
    place |= {"xanchor": "right" if right else "left", "xshift": -6 if right else 6}
    layout["annotations"].append({"text": text, "showarrow": False, "font": {"color": "--threshold"}, **place})


def _rebinned(counts: Sequence[float], top: float, edges: np.ndarray) -> np.ndarray:
    """A histogram over equal bins from 0 to `top` in other bins: each old bin is spread evenly over its width."""
    old = np.linspace(0, top or edges[1] * 1e-6, len(counts) + 1)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(edges, old, below))


def gamma_by_layer(run: Run) -> Figure | None:
    """A ridge plot of |γ| when the channels were chosen, layer by layer. None where it isn't known."""
    layers: Mapping[str, Mapping[str, list[float]]] = (run.evidence.get("gamma") or {}).get("layers") or {}
    names = [name for name, values in layers.items() if values["kept"] or values["removed"]]
    if not names:
        return None
    left_out = len(names) - RIDGES
    if left_out > 0:
        names = [names[round(i * (len(names) - 1) / (RIDGES - 1))] for i in range(RIDGES)]
    # On an axis of √|γ|: that is where the small ones, between which the choice falls, lie apart
    roots = {name: {key: np.sqrt(values) for key, values in layers[name].items()} for name in names}
    top = max(float(np.max(values)) for each in roots.values() for values in each.values() if len(values)) or 1.0
    grid = np.linspace(-0.05 * top, 1.02 * top, 200)
    traces: list[Trace] = []
    for row, name in enumerate(names):
        base = len(names) - 1 - row
        curves = {key: _density(roots[name][key], grid, top) for key in ("removed", "kept")}
        tallest = max(float(curve.max()) for curve in curves.values()) or 1.0
        for key, colour in (("removed", "removed"), ("kept", "kept")):
            values = layers[name][key]
            if not values:
                continue
            height = base + 0.92 * curves[key] / tallest
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [round(float(x), 5) for x in (*grid, *grid[::-1])],
                    "y": [round(float(y), 3) for y in (*height, *([base] * len(grid)))],
                    "fill": "toself",
                    "fillcolor": f"--{colour}-fill",
                    "line": {"color": f"--{colour}", "width": 1.2},
                    "showlegend": False,
                    "hoveron": "fills",
                    "hoverinfo": "text",
                    "text": f"{name}: {len(values):,} {key}, |γ| {min(values):.3g} to {max(values):.3g}",
                }
            )
    for key in ("removed", "kept"):  # the legend, whichever layers have what
        marker = {"color": f"--{key}", "size": 11, "symbol": "square"}
        traces.append({"type": "scatter", "mode": "markers", "x": [None], "y": [None], "name": key, "marker": marker})
    layout: dict[str, Any] = {
        "xaxis": {
            "title": {"text": "|γ|, stretched near zero"},
            "range": [-0.05 * top, 1.02 * top],
            "zeroline": False,
            "tickvals": [value**0.5 for value in GAMMA_TICKS],
            "ticktext": [f"{value:g}" for value in GAMMA_TICKS],
        },
        "yaxis": {
            "tickvals": list(range(len(names))),
            "ticktext": list(reversed(names)),
            "range": [-0.1, len(names) + 0.05],
            "showgrid": True,
            "zeroline": False,
            "automargin": True,
        },
        "hovermode": "closest",
        "shapes": [],
        "annotations": [],
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
    }
    threshold = (run.evidence.get("gamma") or {}).get("threshold")
    if threshold is not None:
        _threshold_line(layout, threshold, threshold**0.5)
        layout["annotations"][-1]["yanchor"] = "top"
    ties = " Coupled channels are judged by their group, so single γ may lie across the line." if _has_ties(run) else ""
    some = f" Of {left_out + RIDGES} layers, {RIDGES} are shown." if left_out > 0 else ""
    caption = (
        "Each ridge is one layer's |γ| at the moment of pruning, the first layer on top, every ridge scaled to its own "
        f"height. Layers with most of their mass at zero lose most of their channels.{ties}{some}"
    )
    return Figure("ridges", "|γ| layer by layer", caption, traces, layout, max(300, 110 + 30 * len(names)))


def _density(values: np.ndarray, grid: np.ndarray, top: float) -> np.ndarray:
    """A Gaussian kernel density times the number of values, with a width of 1.5 % of the axis."""
    out: np.ndarray = np.exp(-0.5 * ((grid[:, None] - values[None]) / (0.015 * top)) ** 2).sum(1)
    return out


def _has_ties(run: Run) -> bool:
    return any(row.get("tie") is not None for row in run.evidence.get("layers") or [])


# -- layers ------------------------------------------------------------------------------------------------------------


def layers(run: Run) -> Figure | None:
    """Every layer as a bar of channels kept and removed, joined beneath where channels are tied."""
    rows: list[Record] = run.evidence.get("layers") or []
    if not rows:
        return None
    shares = (run.evidence.get("latency") or {}).get("layers") or {}
    places = list(range(1, len(rows) + 1))
    hover = [layer_text(row, shares) for row in rows]
    prunable = [bool(row["norm"]) or row["after"] != row["before"] for row in rows]
    heights = {
        "kept": [row["after"] if yes else 0 for row, yes in zip(rows, prunable)],
        "removed": [row["before"] - row["after"] for row in rows],
        "fixed": [0 if yes else row["after"] for row, yes in zip(rows, prunable)],
    }
    labels = {"kept": "kept", "removed": "removed", "fixed": "not prunable"}
    traces: list[Trace] = [
        {
            "type": "bar",
            "x": places,
            "y": heights[key],
            "name": labels[key],
            "text": hover,
            "textposition": "none",
            "hovertemplate": "%{text}<extra></extra>",
            "marker": {
                "color": f"--{key}",
                "line": {"width": 0},
                **({"pattern": HATCH} if key == "removed" else {}),
            },
        }
        for key in heights
        if any(heights[key])
    ]
    lanes = _lanes(rows)
    bottom = min(0.4, 0.035 * (1 + max(lanes.values()))) + 0.02 if lanes else 0.0
    layout: dict[str, Any] = {
        "barmode": "stack",
        "bargap": 0.4 if len(rows) < 12 else 0.15,
        "hovermode": "closest",
        "xaxis": {
            "range": [0.4, len(rows) + 0.6],
            "tickvals": places if len(rows) <= NAMED else places[:: -(-len(rows) // NAMED)],
            "showgrid": False,
            "tickangle": -90 if len(rows) > 12 else 0,
            "automargin": True,
            "anchor": "y2" if lanes else "y",
        },
        "yaxis": {"title": {"text": "channels"}, "domain": [bottom, 1], "rangemode": "tozero"},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"},
    }
    layout["xaxis"]["ticktext"] = [_short(rows[place - 1]["name"]) for place in layout["xaxis"]["tickvals"]]
    for tie, lane in lanes.items():
        members = [place for place, row in zip(places, rows) if row.get("tie") == tie]
        names = ", ".join(rows[place - 1]["name"] for place in members[:6])
        more = f" and {len(members) - 6} more" if len(members) > 6 else ""
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": members,
                "y": [-lane] * len(members),
                "yaxis": "y2",
                "line": {"color": "--plain", "width": 1.5},
                "marker": {"color": "--plain", "size": 6},
                "hovertemplate": f"tied: {names}{more}<extra></extra>",
                "showlegend": False,
            }
        )
    if lanes:
        deepest = max(lanes.values())
        layout["yaxis2"] = {"domain": [0, bottom - 0.02], "range": [-deepest - 0.6, 0.6], "visible": False}
    gone = sum(heights["removed"])
    whole = sum(heights["kept"]) + gone
    ties = " Dots on one line beneath are layers whose channels go together or not at all." if lanes else ""
    caption = (
        f"{gone:,} of {whole:,} prunable output channels went, layers in the order of execution. The full height is "
        f"the original width, the hatched part is what was removed. Hover for shapes, FLOPs and time.{ties}"
    )
    return Figure("layers", "Channels of every layer", caption, traces, layout, 400 + (60 if len(rows) > 12 else 0))


def layer_text(row: Record, shares: Mapping[str, Mapping[str, float]]) -> str:
    """What hovering over a layer says."""
    shape = [_shape(row["shape_before"]), _shape(row["shape_after"])]
    lines = [
        f"<b>{row['name']}</b>  {row['kind']}",
        f"channels {row['before']:,} → {row['after']:,} (inputs {row['inputs_before']:,} → {row['inputs_after']:,})",
        f"output {shape[0]} → {shape[1]}" if shape[0] != shape[1] else f"output {shape[0]}",
        f"FLOPs {tables.count(row['flops_before'])} → {tables.count(row['flops_after'])}",
        f"parameters {tables.count(row['params_before'])} → {tables.count(row['params_after'])}",
    ]
    times = [(shares.get(side) or {}).get(row["name"]) for side in ("before", "after")]
    if any(time is not None for time in times):
        said = ["–" if time is None else f"{time:.1%}" for time in times]
        lines.append(f"share of the time {said[0]} → {said[1]}")
    if row["norm"]:
        lines.append(f"γ in {row['norm']}")
    if row["floor"]:
        lines.append(f"{row['floor']:,} kept by the floor")
    if row["frozen"]:
        lines.append(f"{row['frozen']:,} frozen: {row['reason']}")
    if row.get("tie") is not None:
        lines.append(f"tied with others (group {row['tie'] + 1})")
    return "<br>".join(lines)


def _lanes(rows: Sequence[Record]) -> dict[int, int]:
    """For each tie the lane beneath the bars to draw it in: the first that is free over its whole extent."""
    extent: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        if row.get("tie") is not None:
            extent.setdefault(row["tie"], []).append(place)
    busy: list[int] = []  # where each lane is free again
    lanes = {}
    for tie, places in sorted(extent.items(), key=lambda item: item[1][0]):
        if len(places) < 2:
            continue
        lane = next((i for i, end in enumerate(busy) if end < places[0]), len(busy))
        busy[lane : lane + 1] = [places[-1]]
        lanes[tie] = lane
    return lanes


def _short(name: str) -> str:
    return name if len(name) <= 22 else "…" + name[-21:]


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


# -- trade-off ---------------------------------------------------------------------------------------------------------


def tradeoff(runs: Sequence[Run]) -> Figure | None:
    """Accuracy against the share of channels removed, without training; one curve for each run."""
    known = [
        (i, run, sweep) for i, run in enumerate(runs) if (sweep := run.evidence.get("tradeoff") or {}).get("points")
    ]
    if not known:
        return None
    traces: list[Trace] = []
    alone = len(runs) == 1
    for i, run, sweep in known:
        recovered = any(point.get("recovered") is not None for point in sweep["points"])
        colour = RUN_COLOURS[i % len(RUN_COLOURS)]
        for key, label in (("accuracy", "right after pruning"), ("recovered", "recovered, without training")):
            plain = key == "accuracy" and recovered  # the lesser of two curves
            points = [point for point in sweep["points"] if point.get(key) is not None]
            if not points:
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": [point["ratio"] for point in points],
                    "y": [point[key] for point in points],
                    "name": label if alone else f"{run.name}, {label}",
                    "line": {
                        "color": colour if not (alone and plain) else "--before",
                        "width": 2,
                        "dash": "dot" if plain else "solid",
                    },
                    "marker": {"size": 7, "symbol": RUN_SYMBOLS[i % len(RUN_SYMBOLS)]},
                    "customdata": [[point["flops"], point["params"]] for point in points],
                    "hovertemplate": (
                        f"<b>{label}</b><br>%{{x:.1%}} of channels removed<br>accuracy %{{y:.2%}}<br>"
                        "FLOPs left %{customdata[0]:.1%}, parameters %{customdata[1]:.1%}<extra></extra>"
                    ),
                }
            )
        if sweep.get("chosen") is not None and sweep.get("result") is not None:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [sweep["chosen"]],
                    "y": [sweep["result"]],
                    "name": "this run's result" if alone else f"{run.name}, result",
                    "marker": {"size": 15, "symbol": "star", "color": "--threshold" if alone else colour},
                    "hovertemplate": "<b>the run's result</b><br>%{x:.1%} removed, accuracy %{y:.2%}<extra></extra>",
                }
            )
    sweep = known[0][2]
    layout: dict[str, Any] = {
        "xaxis": {"title": {"text": "share of channels removed"}, "tickformat": ".0%", "range": [-0.02, 0.97]},
        "yaxis": {"title": {"text": "accuracy"}, "tickformat": ".0%", "rangemode": "tozero"},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "hovermode": "closest",
        "shapes": [],
    }
    if alone and sweep.get("chosen") is not None:
        line = {"x0": sweep["chosen"], "x1": sweep["chosen"], "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
        layout["shapes"].append({"type": "line", "line": {"color": "--threshold", "width": 1, "dash": "dash"}, **line})
    accuracy = (max(point["accuracy"] for point in sweep["points"]) * sweep["images"] + 2) / (sweep["images"] + 4)
    spread = 196 * (accuracy * (1 - accuracy) / (sweep["images"] + 4)) ** 0.5  # points; Agresti and Coull's interval
    skipped = sweep.get("skipped") or []
    left = (
        f" Not measured for lack of time or of channels: {', '.join(f'{r:.0%}' for r in skipped)}." if skipped else ""
    )
    caption = (
        f"The same network pruned to other ratios, without any training, on {sweep['images']:,} {sweep['split']} "
        f"images (95% intervals at the top: ±{spread:.1f} points). The star is the run's result after all its stages. "
        "Where the curve is still flat to the right of it, more could go; where it has fallen far, fine-tuning had to "
        f"win back much.{left}"
    )
    return Figure("tradeoff", "Accuracy against the share of channels removed", caption, traces, layout, 400)


def frontier(runs: Sequence[Run], key: str, title: str) -> Figure | None:
    """Final accuracy of several runs against what is left of `key`, with the best trade-offs joined."""
    points = []
    for i, run in enumerate(runs):
        before, after = run.before, run.after
        if after.get("accuracy") is not None and after.get(key) and before.get(key):
            points.append((after[key], after["accuracy"], run.name, i, after[key] / before[key]))
    if len(points) < 2:
        return None
    best = [p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q[:2] != p[:2] for q in points)]
    best.sort()
    show = tables.milliseconds if key == "latency_ms" else tables.count
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [p[0] for p in best],
            "y": [p[1] for p in best],
            "name": "frontier",
            "line": {"color": "--plain", "width": 1.5, "dash": "dash", "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    for value, accuracy, name, i, share in points:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [value],
                "y": [accuracy],
                "text": [name],
                "textposition": "top center",
                "cliponaxis": False,
                "showlegend": False,
                "name": name,
                "marker": {
                    "size": 13,
                    "color": RUN_COLOURS[i % len(RUN_COLOURS)],
                    "symbol": RUN_SYMBOLS[i % len(RUN_SYMBOLS)],
                },
                "hovertemplate": (
                    f"<b>{name}</b><br>accuracy %{{y:.2%}}<br>{title} {show(value)}, {share:.1%} of the original"
                    "<extra></extra>"
                ),
            }
        )
    values, accuracies = [p[0] for p in points], [p[1] for p in points]
    spread = max(accuracies) - min(accuracies) or 0.01
    layout = {
        "xaxis": {"title": {"text": title}, "range": [0, 1.12 * max(values)]},
        "yaxis": {
            "title": {"text": "accuracy on the test images"},
            "tickformat": ".1%" if spread < 0.08 else ".0%",
            "range": [min(accuracies) - 0.25 * spread, max(accuracies) + 0.25 * spread],
        },
        "hovermode": "closest",
        "showlegend": False,
    }
    caption = (
        "Each point is a run's result. Up and to the left is better; the dashed line joins the runs that no other "
        f"beats in both accuracy and {title}."
    )
    return Figure(f"frontier-{key}", f"Accuracy against {title}", caption, traces, layout, 380)


def progress(runs: Sequence[Run]) -> Figure | None:
    """Accuracy by epoch of several runs, all trainings of a run one after the other."""
    key = "val_accuracy" if all(_any(run.course, "val_accuracy") for run in runs) else "train_accuracy"
    traces: list[Trace] = []
    for i, run in enumerate(runs):
        if not run.course:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if len(run.course) > 1 else "markers",
                "x": list(range(1, len(run.course) + 1)),
                "y": [epoch.get(key) for epoch in run.course],
                "name": run.name,
                "line": {
                    "color": RUN_COLOURS[i % len(RUN_COLOURS)],
                    "dash": RUN_DASHES[i % len(RUN_DASHES)],
                    "width": 2,
                },
                "customdata": [f"{words.stage(str(e.get('stage')))}, epoch {e.get('epoch')}" for e in run.course],
                "hovertemplate": f"<b>{run.name}</b> %{{customdata}}<br>%{{y:.2%}}<extra></extra>",
            }
        )
    if not traces:
        return None
    which = "validation" if key.startswith("val") else "training"
    layout = {
        "xaxis": {"title": {"text": "epoch, all trainings of a run one after the other"}},
        "yaxis": {"title": {"text": f"{which} accuracy"}, "tickformat": ".0%"},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"},
        "hovermode": "closest",
    }
    caption = f"Accuracy on the {which} images, epoch by epoch. A step down is where a run was pruned or started anew."
    return Figure("progress", "Accuracy by epoch", caption, traces, layout, 380)


# -- latency -----------------------------------------------------------------------------------------------------------


def times(run: Run) -> Figure | None:
    """Times of single runs of the original and the pruned network, by batch size and threads."""
    found: list[Record] = (run.evidence.get("latency") or {}).get("times") or []
    if not found:
        return None
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    traces: list[Trace] = []
    layout: dict[str, Any] = {"annotations": [], "hovermode": "closest"}
    for i, case in enumerate(found):
        row, column = divmod(i, columns)
        left, right = column / columns + 0.02 * column, (column + 1) / columns - 0.02 * (columns - 1 - column)
        below, above = (0.1 if row < lines - 1 else 0.0), 0.2 / lines  # room for ticks, and for two lines of title
        low, high = 1 - (row + 1) / lines + below, 1 - row / lines - above
        layout[_layout_axis("x", i)] = {
            "domain": [left, right],
            "anchor": _axis("y", i),
            "title": {"text": "ms", "standoff": 4},
            "rangemode": "tozero",
            "range": [0, 1.25 * max(float(np.percentile(each, 92)) for each in case["ms"].values())],
            "nticks": 6,
        }
        layout[_layout_axis("y", i)] = {
            "domain": [low, high],
            "anchor": _axis("x", i),
            "showgrid": False,
            "showticklabels": column == 0,
            "range": [-0.45, len(case["ms"]) - 0.25],
        }
        threads = f"{case['threads']} thread{'s' * (case['threads'] > 1)}"
        medians = {side: float(np.median(each)) for side, each in case["ms"].items()}
        faster = medians["before"] / medians["after"]
        title = f"<b>batch {case['batch_size']}, {threads}</b><br>{faster:.2f}× as fast"
        place = {"x": left, "y": high, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        place["align"] = "left"
        layout["annotations"].append({"text": title, "showarrow": False, **place})
        for side, label in reversed([(side, label) for side, label in SIDES.items() if side in case["ms"]]):
            each = case["ms"][side]
            p10, median, p90 = np.percentile(each, [10, 50, 90])
            traces.append(
                {
                    "type": "box",
                    "orientation": "h",
                    "x": each,
                    "y": [label] * len(each),
                    "name": label,
                    "boxpoints": "all",
                    "jitter": 0.8,
                    "pointpos": 1.5,
                    "width": 0.34,
                    "whiskerwidth": 0.5,
                    "marker": {"size": 4, "color": f"--{side}", "opacity": 0.45},
                    "line": {"color": f"--{side}", "width": 1.5},
                    "fillcolor": f"--{side}-fill",
                    "xaxis": _axis("x", i),
                    "yaxis": _axis("y", i),
                    "showlegend": False,
                    "hoveron": "points+boxes",
                    "hovertemplate": (
                        f"{label}: this run %{{x:.3g}} ms<br>median {median:.3g}, p10 {p10:.3g}, p90 {p90:.3g}"
                        "<extra></extra>"
                    ),
                }
            )
    provider = str((run.evidence.get("latency") or {}).get("provider", "")).removesuffix("ExecutionProvider")
    caption = (
        f"Each point is one run in onnxruntime ({provider}), original and pruned in turn in one process; the box spans "
        "the middle half with the median inside. Further left is faster. The slowest outliers lie beyond the axis."
    )
    return Figure(
        "latency", "Latency of single runs", caption, traces, layout, 60 + (110 + 60 * len(found[0]["ms"])) * lines
    )


def operators(run: Run) -> Figure | None:
    """The operators that take the time, original beside pruned."""
    found: Mapping[str, Mapping[str, float]] = (run.evidence.get("latency") or {}).get("operators") or {}
    if not found:
        return None
    found = {side: _unfused(each) for side, each in found.items()}
    kinds = sorted(
        {kind for each in found.values() for kind in each}, key=lambda k: max(s.get(k, 0) for s in found.values())
    )
    kinds = kinds[-12:]
    totals = {side: sum(each.values()) for side, each in found.items()}
    traces: list[Trace] = [
        {
            "type": "bar",
            "orientation": "h",
            "y": kinds,
            "x": [found[side].get(kind, 0) for kind in kinds],
            "name": label,
            "marker": {"color": f"--{side}"},
            "customdata": [found[side].get(kind, 0) / (totals[side] or 1) for kind in kinds],
            "hovertemplate": f"<b>%{{y}}</b>, {label}<br>%{{x:.3g}} ms, %{{customdata:.1%}} of the time<extra></extra>",
        }
        for side, label in reversed(SIDES.items())
        if side in found
    ]
    layout = {
        "xaxis": {"title": {"text": "ms (batch of 1, one thread)"}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "showgrid": False},
        "bargap": 0.25,
        "bargroupgap": 0.05,
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "reversed"},
        "hovermode": "closest",
    }
    largest = {side: max(each, key=lambda k: each[k]) for side, each in found.items() if each}
    most = " and ".join(dict.fromkeys(largest[side] for side in SIDES if side in largest))
    caption = (
        "Time by kind of operator, by onnxruntime's profiler; activations that it fuses into a layer count there. Most "
        f"of the time goes to {most}: what doesn't shrink beside it is what pruning can't help."
    )
    return Figure(
        "operators", "Operators that take the time", caption, traces, layout, 120 + 22 * len(kinds) * len(found)
    )


def _unfused(operators: Mapping[str, float]) -> dict[str, float]:
    """FusedConv, QLinearConv, QGemm and the like with their kind, so that all networks have the same bars."""
    out: dict[str, float] = {}
    for kind, ms in operators.items():
        for prefix in ("Fused", "QLinear"):
            kind = kind.removeprefix(prefix)
        kind = "Gemm" if kind == "QGemm" else kind
        out[kind] = out.get(kind, 0.0) + ms
    return out


# -- helpers -----------------------------------------------------------------------------------------------------------


def _any(records: Sequence[Record], key: str) -> bool:
    return any(record.get(key) is not None for record in records)


def _axis(letter: str, index: int) -> str:
    return letter if index == 0 else f"{letter}{index + 1}"


def _layout_axis(letter: str, index: int) -> str:
    return f"{letter}axis" if index == 0 else f"{letter}axis{index + 1}"
