"""Figures of |γ|: all channels by epoch, and each layer's when the channels were chosen."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import Record
from slim.workbench.report.figures.base import Figure, Series, axes, mark, series

BINS = 48  # of the animated histogram
SMALL = 0.01  # a γ that hardly does anything
RIDGES = 60  # layers in the ridge plot, at most
TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)


def by_epoch(run: RunRecords) -> Figure | None:
    """Return the histogram of all |γ| by epoch, with a slider; None for a run that recorded none."""
    found = [
        (record, f"{part}, epoch {record['epoch']} of {len(records)}")
        for part, records in run.parts
        for record in records
        if (record.get("gamma") or {}).get("histogram")
    ]
    if not found:
        return None
    threshold = (run.evidence.get("gamma") or {}).get("threshold")
    top = max(threshold or 0.0, *(record["gamma"]["histogram"]["max"] for record, _ in found)) or 1.0
    edges = np.linspace(0, top, BINS + 1)
    frames = [_frame(record, edges) | {"label": label} for record, label in found]
    bars = series(
        *("bar", ((edges[1:] + edges[:-1]) / 2).round(6).tolist(), frames[-1]["y"], "|γ|"),
        "|γ| %{customdata[0]} to %{customdata[1]}: %{y:,.0f} channels",
        width=float(edges[1]),
        marker_color="--after",
        customdata=[[float(f"{a:.3g}"), float(f"{b:.3g}")] for a, b in pairwise(edges)],
    )
    highest = max(max(frame["y"]) for frame in frames)
    layout = axes("|γ|", "channels", xaxis_range=[-0.01 * top, 1.01 * top], yaxis_range=[0, 1.05 * highest], bargap=0)
    layout["xaxis"]["zeroline"] = False
    caption = (
        "Move the slider, or press play: L1 pulls the scales of channels that the network can do without to zero, and "
        "leaves the others. The further apart the two are, the less pruning costs."
    )
    if threshold is not None:
        layout |= _threshold(threshold, threshold, top)
        caption += " The line is the threshold below which channels were removed in the end."
    return Figure("gamma", "All |γ|, epoch by epoch", caption, [bars], layout, 360, frames)


def _frame(record: Record, edges: np.ndarray) -> dict[str, Any]:
    histogram, small = record["gamma"]["histogram"], record.get("near_zero")
    detail = "" if small is None else f"{small:.1%} of γ below 0.01, λ {record.get('strength') or 0:.2g}"
    return {"detail": detail, "y": rebinned(histogram["counts"], histogram["max"], edges).round(2).tolist()}


def by_layer(run: RunRecords) -> Figure | None:
    """Return a ridge plot of |γ| when the channels were chosen, layer by layer; None where it isn't known."""
    evidence = run.evidence.get("gamma") or {}
    layers: Mapping[str, Mapping[str, list[float]]] = evidence.get("layers") or {}
    names = [name for name, values in layers.items() if values["kept"] or values["removed"]]
    if not names:
        return None
    shown = np.linspace(0, len(names) - 1, min(len(names), RIDGES)).round().astype(int)
    some = f" Of {len(names)} layers, {RIDGES} are shown." if len(names) > RIDGES else ""
    names = [names[i] for i in shown]
    # On an axis of √|γ|: that is where the small ones, between which the choice falls, lie apart
    top = float(np.sqrt(max(max(values, default=0) for name in names for values in layers[name].values()))) or 1.0
    traces = [ridge for base, name in enumerate(reversed(names)) for ridge in _ridge(name, layers[name], base, top)]
    for key in ("removed", "kept"):  # the legend, whichever layers have what
        look = {"size": 11, "symbol": "square", "color": f"--{key}"}
        traces.append(series("scatter", [None], [None], key, mode="markers", marker=look))
    layout = axes(
        *("|γ|, stretched near zero", ""),
        xaxis_range=[-0.05 * top, 1.02 * top],
        xaxis_zeroline=False,
        xaxis_tickvals=[value**0.5 for value in TICKS],
        xaxis_ticktext=[f"{value:g}" for value in TICKS],
        yaxis_tickvals=list(range(len(names))),
        yaxis_ticktext=names[::-1],
        yaxis_range=[-0.1, len(names) + 0.05],
        yaxis_zeroline=False,
        legend={"yref": "container", "y": 0},
        margin_b=76,
    )
    if evidence.get("threshold") is not None:
        layout |= _threshold(evidence["threshold"], evidence["threshold"] ** 0.5, top)
    coupled = any(row.get("tie") is not None for row in run.evidence.get("layers") or [])
    ties = " Coupled channels are judged by their group, so single γ may lie across the line." if coupled else ""
    caption = (
        "Each ridge is one layer's |γ| at the moment of pruning, the first layer on top, every ridge scaled to its own "
        f"height.{_near_zero(layers)}{ties}{some}"
    )
    return Figure("ridges", "|γ| layer by layer", caption, traces, layout, max(300, 150 + 30 * len(names)))


def _near_zero(layers: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Return how many of the channels that went and of those that stay have a small γ."""
    removed, kept = (np.concatenate([values[key] for values in layers.values()]) for key in ("removed", "kept"))
    if not (len(removed) and len(kept)):
        return ""
    low, others = (float((values < SMALL).mean()) for values in (removed, kept))
    return f" |γ| is below {SMALL} in {low:.0%} of the removed channels, and in {others:.0%} of those that stay."


def _ridge(name: str, values: Mapping[str, list[float]], base: int, top: float) -> list[Series]:
    """Return the densities of a layer's removed and kept channels, standing on `base`."""
    grid = np.linspace(-0.05 * top, 1.02 * top, 200)
    found = {key: np.array(values[key]) for key in ("removed", "kept") if values[key]}
    apart = {key: (grid[:, None] - np.sqrt(each)) / (0.015 * top) for key, each in found.items()}
    curves = {key: np.exp(-0.5 * each**2).sum(1) for key, each in apart.items()}  # Gaussian kernels
    tallest = max(float(curve.max()) for curve in curves.values()) or 1.0
    traces = []
    for key, each in found.items():
        y = (base + 0.92 * curves[key] / tallest).round(3).tolist()
        about = f"{name}: {len(each):,} {key}, |γ| {each.min():.3g} to {each.max():.3g}"
        look: Series = {"mode": "lines", "line_width": 1.2, "line_color": f"--{key}", "fillcolor": f"--{key}/5c"}
        look |= {"fill": "toself", "hoveron": "fills", "hoverinfo": "text", "text": about, "showlegend": False}
        x = grid.round(5).tolist()
        traces.append(series("scatter", [x[0], *x, x[-1]], [base, *y, base], key, **look))
    return traces


def _threshold(threshold: float, x: float, top: float) -> dict[str, Any]:
    text = f"threshold {threshold:.3g}" if threshold >= 1e-3 else f"threshold, close to 0 ({threshold:.0e})"
    return mark(x, text, right=x > 0.7 * top)


def rebinned(counts: Sequence[float], top: float, edges: np.ndarray) -> np.ndarray:
    """Return a histogram over equal bins from 0 to `top` in other bins: each old bin is spread evenly."""
    old = np.linspace(0, top or edges[1] * 1e-6, len(counts) + 1)
    below = np.concatenate([[0.0], np.cumsum(counts)])
    return np.diff(np.interp(edges, old, below))
