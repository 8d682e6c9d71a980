"""Figures of the latency: single runs, and the operators that take the time."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from slim import tables
from slim.deploy.timing import speedup_interval
from slim.tables import threads_in_words
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import Record
from slim.workbench.report.figures.base import SIDES, Figure, Series, axes, axis, nested, note, series, solid

OPERATORS = 12  # kinds shown, at most


def times(run: RunRecords) -> Figure | None:
    """Return the times of single runs of the original and the pruned network, by batch size and threads."""
    evidence = run.evidence.get("latency") or {}
    cases: list[Record] = evidence.get("times") or []
    if not cases:
        return None
    columns = min(2, len(cases))
    lines = -(-len(cases) // columns)
    traces: list[Series] = []
    grid = {"rows": lines, "columns": columns, "pattern": "independent", "xgap": 0.08, "ygap": 0.4}
    layout: dict[str, Any] = {"annotations": [], "showlegend": False, "grid": grid}
    for i, case in enumerate(cases):
        slowest = max(float(np.percentile(each, 92)) for each in case["ms"].values())
        x, y = axis("x", i), axis("y", i)
        layout |= {axis("xaxis", i): nested(title_text="ms", title_standoff=4, nticks=6, range=[0, 1.25 * slowest])}
        heights = {"range": [-0.45, len(case["ms"]) - 0.25]}
        layout |= {axis("yaxis", i): {"showgrid": False, "showticklabels": i % columns == 0, **heights}}
        place = {"xref": f"{x} domain", "yref": f"{y} domain", "xanchor": "left", "align": "left"}
        layout["annotations"].append(note(_title(case), 0) | place)
        sides = [side for side in reversed(SIDES) if side in case["ms"]]
        traces += [_box(side, case["ms"][side]) | {"xaxis": x, "yaxis": y} for side in sides]
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
    return (
        f"<b>batch {case['batch_size']}, {threads_in_words(case['threads'])}</b><br>{fast.replace('in latency ', '')}"
    )


def _box(side: str, ms: list[float]) -> Series:
    p10, median, p90 = np.percentile(ms, [10, 50, 90])
    look = {"boxpoints": "all", "jitter": 0.8, "pointpos": 1.5, "width": 0.34, "whiskerwidth": 0.5, "orientation": "h"}
    look |= {"marker_size": 4, "marker_opacity": 0.45, "hoveron": "points+boxes", "line_width": 1.5}
    look |= {**solid(f"--{side}"), "fillcolor": f"--{side}/47"}
    hover = f"{SIDES[side]}: this run %{{x:.3g}} ms<br>median {median:.3g}, p10 {p10:.3g}, p90 {p90:.3g}"
    return series("box", ms, [SIDES[side]] * len(ms), SIDES[side], hover, **look)


def operators(run: RunRecords) -> Figure | None:
    """Return the operators that take the time, original beside pruned."""
    evidence: Mapping[str, Mapping[str, float]] = (run.evidence.get("latency") or {}).get("operators") or {}
    if not evidence:
        return None
    found = {side: _unfused(evidence[side]) for side in SIDES if side in evidence}
    kinds = {kind for each in found.values() for kind in each}
    shown = sorted(kinds, key=lambda kind: max(each.get(kind, 0) for each in found.values()))[-OPERATORS:]
    traces = [
        series(
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
    times: dict[str, float] = defaultdict(float)
    for kind, ms in operators.items():
        times[re.sub("^(Fused|QLinear|Q(?=Gemm))", "", kind)] += ms
    return times
