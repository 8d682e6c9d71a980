"""Figures of what pruning costs: the metric against the share of channels, and several runs' results."""

from collections.abc import Sequence
from typing import Any

from slim.workbench.report.advice import spread
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import COLUMNS
from slim.workbench.report.figures.base import Figure, Trace, axes, mark, run_look, trace


def tradeoff(runs: Sequence[RunRecords]) -> Figure | None:
    """Return the metric against the share of removed channels, without training; None where it wasn't measured."""
    known = [(i, run) for i, run in enumerate(runs) if run.evidence.get("tradeoff")]
    if not known:
        return None
    alone, metric, sweep = len(runs) == 1, runs[0].metric, known[0][1].evidence["tradeoff"]
    traces = [trace for i, run in known for trace in _sweep(run, i, alone=alone)]
    layout = axes("share of channels removed", metric.title, xaxis_tickformat=".0%", xaxis_range=[-0.02, 0.97])
    layout["yaxis"] |= {"rangemode": "tozero", **({"tickformat": ".0%"} if metric.share else {})}
    if alone and sweep.get("chosen") is not None:
        layout |= mark(sweep["chosen"], width=1)
    measured = f"on {sweep['images']:,} {sweep['split']} images"
    if metric.share:
        best = max(point[metric.name] for point in sweep["points"])
        measured += f" (95% intervals at the top: ±{100 * spread(best, sweep['images']):.1f} points)"
    skipped = ", ".join(f"{share:.0%}" for share in sweep.get("skipped") or [])
    caption = (
        f"The same network pruned to other sizes, without any training, {measured}. The star is the run's result after "
        "all its stages. Where the curve is still flat to the right of it, more could go; where it has fallen far, "
        "fine-tuning had to win back much."
        + (f" Not measured for lack of time or of channels: {skipped}." if skipped else "")
    )
    title = f"{metric.title.capitalize()} against the share of channels removed"
    return Figure("tradeoff", title, caption, traces, layout, 400)


def _sweep(run: RunRecords, index: int, *, alone: bool) -> list[Trace]:
    """The curves of a run: right after pruning, recovered, and its result as a star."""
    sweep, prefix = run.evidence["tradeoff"], "" if alone else f"{run.name}, "
    value = ".2%" if run.metric.share else ".4g"
    both = any(point.get("recovered") is not None for point in sweep["points"])
    traces: list[Trace] = []
    for key, label in ((run.metric.name, "right after pruning"), ("recovered", "recovered, without training")):
        points = [point for point in sweep["points"] if point.get(key) is not None]
        lesser = both and key == run.metric.name  # of two curves
        look = run_look(index, mode="lines+markers", line_dash="dot" if lesser else "solid")
        look |= {"line_color": "--before", "marker_color": "--before"} if alone and lesser else {}
        hover = (
            f"<b>{label}</b><br>%{{x:.1%}} of channels removed<br>{run.metric.title} %{{y:{value}}}<br>"
            "FLOPs left %{customdata[0]:.1%}, parameters %{customdata[1]:.1%}"
        )
        if points:
            x, y = [point["ratio"] for point in points], [point[key] for point in points]
            left = [[point["flops"], point["params"]] for point in points]
            traces.append(trace("scatter", x, y, prefix + label, hover, customdata=left, **look))
    if sweep.get("chosen") is not None and sweep.get("result") is not None:
        look = {"mode": "markers", "marker_size": 15, "marker_symbol": "star"}
        look["marker_color"] = "--threshold" if alone else run_look(index)["marker_color"]
        hover = f"<b>the run's result</b><br>%{{x:.1%}} removed, {run.metric.title} %{{y:{value}}}"
        name = prefix + ("this run's result" if alone else "result")
        traces.append(trace("scatter", [sweep["chosen"]], [sweep["result"]], name, hover, **look))
    return traces


def frontier(runs: Sequence[RunRecords], key: str) -> Figure | None:
    """Return the final metric of several runs against what is left of `key`, with the best trade-offs joined."""
    metric, column = runs[0].metric, COLUMNS[key]
    points = [
        (run.after[key], run.after[metric.name], i, run)
        for i, run in enumerate(runs)
        if run.after.get(metric.name) is not None and run.after.get(key) and run.before.get(key)
    ]
    if len(points) < 2:
        return None

    def beats(p: Any, q: Any) -> bool:
        return p[:2] != q[:2] and p[0] <= q[0] and not metric.is_better(q[1], p[1])

    best = sorted(p[:2] for p in points if not any(beats(q, p) for q in points))
    line: dict[str, Any] = {"mode": "lines", "line_color": "--plain", "line_width": 1.5, "line_dash": "dash"}
    sizes, heights = zip(*best)
    traces = [trace("scatter", sizes, heights, "frontier", line_shape="hv", **line)]
    for size, value, i, run in points:
        share = f"{column.heading} {column.format(size)}, {size / run.before[key]:.1%} of the original"
        look = {"mode": "markers+text", "text": [run.name], "textposition": "top center", "cliponaxis": False}
        hover = f"<b>{run.name}</b><br>{metric.title} {metric.format(value)}<br>{share}"
        traces.append(trace("scatter", [size], [value], run.name, hover, **run_look(i, marker_size=13), **look))
    values = [value for _, value, *_ in points]
    spread = max(values) - min(values) or 0.01
    layout = axes(
        column.heading + (" (ms)" if key == "latency_ms" else ""),
        f"{metric.title} on the test images",
        xaxis_range=[0, 1.12 * max(size for size, *_ in points)],
        yaxis_range=[min(values) - 0.25 * spread, max(values) + 0.25 * spread],
        yaxis_tickformat="" if not metric.share else ".1%" if spread < 0.08 else ".0%",
        showlegend=False,
    )
    caption = (
        f"Each point is a run's result. {'Up' if metric.direction == 'max' else 'Down'} and to the left is better; the "
        f"dashed line joins the runs that no other beats in both {metric.title} and {column.heading}."
    )
    title = f"{metric.title.capitalize()} against {column.heading}"
    return Figure(f"frontier-{key}", title, caption, traces, layout)
