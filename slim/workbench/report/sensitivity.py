"""sensitivity.html: what each group of layers is worth, as a heat map and a table."""

from pathlib import Path

from slim.files import replacing
from slim.prune.sensitivity import Sensitivity
from slim.workbench.report.figures.base import TEMPLATE, Figure, axes, nested
from slim.workbench.report.page import plotly
from slim.workbench.report.rendering import render
from slim.workbench.tasks.metric import Metric


def write(found: Sensitivity, metric: Metric | None, name: str, path: Path) -> Path:
    """Write the page, whole or not at all. `metric`: what was measured; None for the distance of outputs."""
    with replacing(path) as temporary:
        temporary.write_text(html(found, metric, name), encoding="utf-8")
    return path


def html(found: Sensitivity, metric: Metric | None, name: str) -> str:
    """Return the page."""
    title = metric.title if metric else "distance to the original"
    figures = {figure.name: figure for figure in (heat_map(found, title, recovered=r) for r in (False, True)) if figure}
    recovered = any(group.recovered for group in found.groups)
    lede = (
        f"{name}: each of {len(found.groups)} groups of layers was pruned alone. The redder, the more it costs: keep "
        f"those layers (--keep), and take more from the others (--layer_ratios)."
    )
    return render(
        "sensitivity.html",
        found=found,
        form=metric.format if metric else "{:.3g}".format,
        measure=title,
        recovered=recovered,
        figures=figures,
        data={"template": TEMPLATE, "figures": {name: vars(figure) for name, figure in figures.items()}},
        plotly=plotly(),
        date="",
        lede=lede,
    )


def heat_map(found: Sensitivity, title: str, *, recovered: bool) -> Figure | None:
    """Return what is lost by group and share, right after pruning or recovered; None where that wasn't measured."""
    rows = [group.recovered if recovered else group.pruned for group in found.groups]
    if not any(rows):
        return None
    width = len(found.shares)
    lost = [[_rounded(found.lost(v)) for v in row] + [None] * (width - len(row)) for row in rows]
    worst = max((value for row in lost for value in row if value is not None), default=0.0)
    trace = {
        "type": "heatmap",
        "x": [f"−{share:.0%}" for share in found.shares],
        "y": [group.name for group in found.groups],
        "z": lost,
        "zmin": 0,
        "zmax": max(worst, 1e-12),
        "colorscale": [[0, "--paper"], [1, "--removed"]],
        "hovertemplate": f"%{{y}}, %{{x}} of its channels: {title} worse by %{{z:.4g}}<extra></extra>",
        **nested(colorbar_title_text="lost", xgap=2, ygap=2),
    }
    layout = axes("share of the group's channels removed", "", yaxis_autorange="reversed", yaxis_showgrid=False)
    after = "with recovery" if recovered else "right after pruning"
    caption = f"How much {title} is lost where a group is pruned alone, {after}. Groups in the order of the network."
    height = 150 + 22 * len(rows)
    return Figure("recovered" if recovered else "pruned", f"Lost, {after}", caption, [trace], layout, height)


def _rounded(value: float) -> float | None:
    return None if value != value else float(f"{value:.4g}")
