"""Figures of the latency: single runs, and the operators that take the time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slim import tables
from slim.deploy.timing import speedup_interval
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import Record
from slim.workbench.report.figures.base import SIDES, Figure, Trace, anchor, axes, axis, nested, note, trace

OPERATORS = 12  # kinds shown, at most


def times(run: RunRecords) -> Figure | None:
    """Return the times of single runs of the original and the pruned network, by batch size and threads."""
    evidence = run.evidence.get("latency") or {}
    cases: list[Record] = evidence.get("times") or []
    if not cases:
        return None
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)
    traces: list[Trace] = []
    layout: dict[str, Any] = {"annotations": [], "showlegend": False}
    for i, case in enumerate(cases):
        row, column = divmod(i, columns)
        left, right = column / columns + 0.02 * column, (column + 1) / columns - 0.02 * (columns - 1 - column)
        below, above = (0.1 if row < lines - 1 else 0.0), 0.2 / lines  # room for ticks, and for two lines of title
        low, high = 1 - (row + 1) / lines + below, 1 - row / lines - above
        slowest = max(float(np.percentile(each, 92)) for each in case["ms"].values())
        layout[axis("x", i)] = nested(
            **{"domain": [left, right], "anchor": anchor("y", i), "nticks": 6, "title_text": "ms"},
            **{"title_standoff": 4, "rangemode": "tozero", "range": [0, 1.25 * slowest]},
        )
        layout[axis("y", i)] = {
            **{"domain": [low, high], "anchor": anchor("x", i), "showgrid": False, "showticklabels": column == 0},
            "range": [-0.45, len(case["ms"]) - 0.25],
        }
        layout["annotations"].append(note(_title(case), left, high, xref="paper", xanchor="left", align="left"))
        sides = [side for side in reversed(SIDES) if side in case["ms"]]
        traces += [_box(side, case["ms"][side], i) for side in sides]
    provider = str(evidence.get("provider", "")).removesuffix("ExecutionProvider")
    caption = (
        f"Each point is one run in onnxruntime ({provider}), original and pruned in turn in one process; the box spans "
        "the middle half with the median inside. Further left is faster. The slowest outliers lie beyond the axis."
    )
    height = 60 + (110 + 60 * len(cases[0]["ms"])) * lines
    return Figure("latency", "Latency of single runs", caption, traces, layout, height)


def _title(case: Record) -> str:
    before, after = (np.array(case["ms"][side]) for side in ("before", "after"))
    fast = tables.speedup(float(np.median(before) / np.median(after)), *speedup_interval(before, after))
    threads = f"{case['threads']} thread{'s' * (case['threads'] > 1)}"
    return f"<b>batch {case['batch_size']}, {threads}</b><br>{fast.replace('in latency ', '')}"


def _box(side: str, ms: list[float], index: int) -> Trace:
    p10, median, p90 = np.percentile(ms, [10, 50, 90])
    label, place = SIDES[side], {"xaxis": anchor("x", index), "yaxis": anchor("y", index)}
    look = {"boxpoints": "all", "jitter": 0.8, "pointpos": 1.5, "width": 0.34, "whiskerwidth": 0.5, "orientation": "h"}
    look |= {"marker_size": 4, "marker_color": f"--{side}", "marker_opacity": 0.45, "hoveron": "points+boxes"}
    look |= {"line_color": f"--{side}", "line_width": 1.5, "fillcolor": f"--{side}-fill"}
    hover = f"{label}: this run %{{x:.3g}} ms<br>median {median:.3g}, p10 {p10:.3g}, p90 {p90:.3g}"
    return trace("box", ms, [label] * len(ms), label, hover, **place, **look)


def operators(run: RunRecords) -> Figure | None:
    """Return the operators that take the time, original beside pruned."""
    evidence: Mapping[str, Mapping[str, float]] = (run.evidence.get("latency") or {}).get("operators") or {}
    if not evidence:
        return None
    found = {side: _unfused(evidence[side]) for side in SIDES if side in evidence}
    kinds = {kind for each in found.values() for kind in each}
    shown = sorted(kinds, key=lambda kind: max(each.get(kind, 0) for each in found.values()))[-OPERATORS:]
    traces = [
        trace(
            *("bar", [each.get(kind, 0) for kind in shown], shown, SIDES[side]),
            f"<b>%{{y}}</b>, {SIDES[side]}<br>%{{x:.3g}} ms, %{{customdata:.1%}} of the time",
            customdata=[each.get(kind, 0) / (sum(each.values()) or 1) for kind in shown],
            **{"orientation": "h", "marker_color": f"--{side}"},
        )
        for side, each in reversed(found.items())
    ]
    layout = axes("ms (batch of 1, one thread)", "", yaxis_showgrid=False, bargap=0.25, bargroupgap=0.05)
    layout |= {"legend": {"traceorder": "reversed"}}
    most = " and ".join(dict.fromkeys(max(each, key=lambda kind: each[kind]) for each in found.values() if each))
    caption = (
        "Time by kind of operator, by onnxruntime's profiler; activations that it fuses into a layer count there. Most "
        f"of the time goes to {most}: what doesn't shrink beside it is what pruning can't help."
    )
    height = 120 + 22 * len(shown) * len(found)
    return Figure("operators", "Operators that take the time", caption, traces, layout, height)


def _unfused(operators: Mapping[str, float]) -> dict[str, float]:
    """FusedConv, QLinearConv, QGemm and the like with their kind, so that all networks have the same bars."""
    out: dict[str, float] = {}
    for kind, ms in operators.items():
        plain = kind.removeprefix("Fused").removeprefix("QLinear")
        plain = "Gemm" if plain == "QGemm" else plain
        out[plain] = out.get(plain, 0.0) + ms
    return out
