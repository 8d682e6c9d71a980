"""Figures of what pruning costs: the metric against the share of channels, and several runs' results."""

from collections.abc import Sequence

from slim.tables import capitalised
from slim.workbench.report.advice import spread
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import COLUMNS
from slim.workbench.report.figures.base import Figure, Series, axes, mark, run_look, series, solid


def tradeoff(runs: Sequence[RunRecords]) -> Figure | None:
    """Return the metric against the share of removed channels, without training; None where it wasn't measured."""
    known = [(i, run) for i, run in enumerate(runs) if run.evidence.get("tradeoff")]
    if not known:
        return None
    alone, metric, sweep = len(runs) == 1, runs[0].metric, known[0][1].evidence["tradeoff"]
    traces = [trace for i, run in known for trace in _sweep(run, i, alone=alone)]
    look = {"xaxis_tickformat": ".0%", "xaxis_range": [-0.02, 0.97], "yaxis_rangemode": "tozero"}
    layout = axes("share of channels removed", metric.title, yaxis_tickformat=".0%" if metric.share else "", **look)
    if alone and sweep.get("chosen") is not None:
        layout |= mark(sweep["chosen"], width=1)
    measured = f"on {sweep['images']:,} {sweep['split']} images"
    if metric.share:
        best = max(point[metric.name] for point in sweep["points"])
        measured += f" (95% intervals at the top: ±{100 * spread(best, sweep['images']):.1f} points)"
    caption = (
        f"The same network pruned to other sizes, without any training, {measured}. The star is the run's result after "
        "all its stages. Where the curve is still flat to the right of it, more could go; where it has fallen far, "
        "fine-tuning had to win back much."
    )
    if sweep.get("skipped"):
        skipped = ", ".join(f"{share:.0%}" for share in sweep["skipped"])
        caption += f" Not measured for lack of time or of channels: {skipped}."
    title = f"{capitalised(metric.title)} against the share of channels removed"
    return Figure("tradeoff", title, caption, traces, layout, 400)


def _sweep(run: RunRecords, index: int, *, alone: bool) -> list[Series]:
    """Return the curves of a run: right after pruning, recovered, and its result as a star."""
    sweep, prefix = run.evidence["tradeoff"], "" if alone else f"{run.name}, "
    value = f"{run.metric.title} %{{y:{run.metric.spec()}}}"
    left = "FLOPs left %{customdata[0]:.1%}, parameters %{customdata[1]:.1%}"
    traces: list[Series] = []
    for key, label in (("recovered", "recovered, without training"), (run.metric.name, "right after pruning")):
        points = [point for point in sweep["points"] if point.get(key) is not None]
        look = run_look(index, mode="lines+markers", line_dash="dot" if traces else "solid")
        look |= solid("--before") if alone and traces else {}
        hover = f"<b>{label}</b><br>%{{x:.1%}} of channels removed<br>{value}<br>{left}"
        if points:
            x, y = [point["ratio"] for point in points], [point[key] for point in points]
            sizes = [[point["flops"], point["params"]] for point in points]
            traces.insert(0, series("scatter", x, y, prefix + label, hover, customdata=sizes, **look))
    if sweep.get("chosen") is not None and sweep.get("result") is not None:
        look = run_look(index, mode="markers", marker_size=15, marker_symbol="star")
        look |= solid("--threshold") if alone else {}
        hover = f"<b>the run's result</b><br>%{{x:.1%}} removed, {value}"
        name = prefix + ("this run's result" if alone else "result")
        traces.append(series("scatter", [sweep["chosen"]], [sweep["result"]], name, hover, **look))
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
    best: list[tuple[float, float]] = []  # by size; each has a better metric than all that are smaller
    for size, value in sorted((p[:2] for p in points), key=lambda p: (p[0], metric.loss(0, p[1]))):
        if not best or metric.is_better(value, best[-1][1]):
            best.append((size, value))
    line = {"color": "--plain", "width": 1.5, "dash": "dash", "shape": "hv"}
    traces = [series("scatter", [p[0] for p in best], [p[1] for p in best], "frontier", mode="lines", line=line)]
    for size, value, i, run in points:
        share = f"{column.heading} {column.format(size)}, {size / run.before[key]:.1%} of the original"
        hover = f"<b>{run.name}</b><br>{metric.title} {metric.format(value)}<br>{share}"
        look = {"mode": "markers+text", "text": [run.name], "textposition": "top center", "cliponaxis": False}
        traces.append(series("scatter", [size], [value], run.name, hover, **run_look(i, marker_size=13), **look))
    sizes, values, *_ = zip(*points, strict=True)
    low, high = min(values), max(values)
    margin = (high - low or 0.01) / 4
    layout = axes(
        column.heading + (" (ms)" if key == "latency_ms" else ""),
        f"{metric.title} on the test images",
        xaxis_range=[0, 1.12 * max(sizes)],
        yaxis_range=[low - margin, high + margin],
        yaxis_tickformat=metric.spec(1 if margin < 0.02 else 0) if metric.share else "",
        showlegend=False,
    )
    caption = (
        f"Each point is a run's result. {'Up' if metric.direction == 'max' else 'Down'} and to the left is better; the "
        f"dashed line joins the runs that no other beats in both {metric.title} and {column.heading}."
    )
    title = f"{capitalised(metric.title)} against {column.heading}"
    return Figure(f"frontier-{key}", title, caption, traces, layout)
