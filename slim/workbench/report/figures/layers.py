"""The figure of all layers: channels kept and removed, and which layers are coupled."""

from collections.abc import Mapping, Sequence

from slim import tables
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import Record
from slim.workbench.report.figures.base import Figure, Series, axes, series, solid

NAMED = 44  # layers with their names under the bars, at most
HATCH = {"shape": "/", "fillmode": "overlay", "fgcolor": "--paper", "fgopacity": 0.55, "size": 7, "solidity": 0.2}


def layers(run: RunRecords) -> Figure | None:
    """Return every layer as a bar of channels kept and removed, joined beneath where channels are coupled."""
    rows: list[Record] = run.evidence.get("layers") or []
    if not rows:
        return None
    shares = (run.evidence.get("latency") or {}).get("layers") or {}
    places, many = list(range(1, len(rows) + 1)), len(rows) > 12
    fixed = [not row["norm"] and row["after"] == row["before"] for row in rows]
    bars = {  # label -> heights, look
        "kept": ([0 if still else row["after"] for row, still in zip(rows, fixed)], {"color": "--kept"}),
        "removed": ([row["before"] - row["after"] for row in rows], {"color": "--removed", "pattern": HATCH}),
        "not prunable": ([row["after"] if still else 0 for row, still in zip(rows, fixed)], {"color": "--fixed"}),
    }
    texts = [layer_text(row, shares) for row in rows]
    traces = [
        series("bar", places, heights, label, "%{hovertext}", hovertext=texts, marker=look)
        for label, (heights, look) in bars.items()
        if any(heights)
    ]
    lanes = _lanes(rows)
    deepest = max((lane for _, lane in lanes), default=0)
    bottom = min(0.4, 0.035 * (1 + deepest)) + 0.02 if lanes else 0.0
    named = places if len(rows) <= NAMED else places[:: -(-len(rows) // NAMED)]
    names = [rows[place - 1]["name"] for place in named]
    layout = axes(
        *("", "channels"),
        barmode="stack",
        bargap=0.15 if many else 0.4,
        xaxis_range=[0.4, len(rows) + 0.6],
        xaxis_tickvals=named,
        xaxis_ticktext=[name if len(name) <= 22 else f"…{name[-21:]}" for name in names],
        xaxis_tickangle=-90 if many else None,
        xaxis_showgrid=False,
        xaxis_anchor="y2" if lanes else "y",
        yaxis_domain=[bottom, 1],
        yaxis_rangemode="tozero",
    )
    if lanes:
        traces += [_lane(rows, members, lane) for members, lane in lanes]
        layout["yaxis2"] = {"domain": [0, bottom - 0.02], "range": [-deepest - 0.6, 0.6], "visible": False}
    kept, gone = sum(bars["kept"][0]), sum(bars["removed"][0])
    ties = " Dots on one line beneath are coupled: a channel is removed in all of them or none." if lanes else ""
    caption = (
        f"{gone:,} of {kept + gone:,} prunable output channels were removed, layers in the order of execution. The "
        f"full height is the original width, the hatched part what was removed. Hover for shapes, FLOPs and time.{ties}"
    )
    return Figure("layers", "Channels of every layer", caption, traces, layout, 460 if many else 400)


def layer_text(row: Record, shares: Mapping[str, Mapping[str, float]]) -> str:
    """Return what hovering over a layer says. `shares`: side -> layer -> share of the time."""
    before, after = tables.shape(row["shape_before"]), tables.shape(row["shape_after"])
    times = [(shares.get(side) or {}).get(row["name"]) for side in ("before", "after")]
    lines = [
        f"<b>{row['name']}</b>  {row['kind']}",
        f"channels {row['before']:,} → {row['after']:,} (inputs {row['inputs_before']:,} → {row['inputs_after']:,})",
        f"output {before} → {after}" if before != after else f"output {before}",
        f"FLOPs {tables.count(row['flops_before'])} → {tables.count(row['flops_after'])}",
        f"parameters {tables.count(row['params_before'])} → {tables.count(row['params_after'])}",
    ]
    if any(time is not None for time in times):
        lines.append(f"share of the time {' → '.join('–' if t is None else f'{t:.1%}' for t in times)}")
    lines += [f"γ in {row['norm']}"] if row["norm"] else []
    lines += [f"{row['floor']:,} kept by the floor"] if row["floor"] else []
    lines += [f"{row['frozen']:,} frozen: {row['reason']}"] if row["frozen"] else []
    lines += [f"coupled with others (group {row['tie'] + 1})"] if row.get("tie") is not None else []
    return "<br>".join(lines)


def _lane(rows: Sequence[Record], members: Sequence[int], lane: int) -> Series:
    """Return a line beneath the bars that joins coupled layers."""
    names = ", ".join(rows[place - 1]["name"] for place in members[:6])
    more = f" and {len(members) - 6} more" if len(members) > 6 else ""
    look = {"mode": "lines+markers", "line_width": 1.5, "marker_size": 6, "yaxis": "y2", "showlegend": False}
    hover = f"coupled: {names}{more}"
    return series("scatter", members, [-lane] * len(members), "coupled", hover, **look, **solid("--plain"))


def _lanes(rows: Sequence[Record]) -> list[tuple[list[int], int]]:
    """Return the places of coupled layers, and the lane to draw each group in: the first that is free over its
    extent."""
    ties = dict.fromkeys(row["tie"] for row in rows if row.get("tie") is not None)
    groups = [[place for place, row in enumerate(rows, 1) if row.get("tie") == tie] for tie in ties]
    ends: list[int] = []  # of the last group in each lane
    lanes = []
    for places in groups:
        if len(places) > 1:
            lane = next((i for i, end in enumerate(ends) if end < places[0]), len(ends))
            ends[lane : lane + 1] = [places[-1]]
            lanes.append((places, lane))
    return lanes
