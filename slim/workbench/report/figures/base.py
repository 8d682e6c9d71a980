"""What all figures of the page have in common: plain data for plotly.js, and one template for how they look.

A colour is a name such as "--before", or "--before/4d" with an opacity in hex: the page looks it up in its style sheet,
once for light and once for dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Series = dict[str, Any]
RUN_DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"]
RUN_SYMBOLS = ["circle", "square", "diamond", "cross", "triangle-up", "star"]
SIDES = {"before": "original", "after": "pruned", "int8": "INT8"}


@dataclass
class Figure:
    """A figure of the page."""

    name: str  # in the page's ids
    title: str
    caption: str  # what to see in it
    traces: list[Series]
    layout: dict[str, Any] = field(default_factory=dict)
    height: int = 380
    frames: list[dict[str, Any]] = field(default_factory=list)  # of a slider: label, detail, heights of the bars


def nested(**flat: Any) -> dict[str, Any]:
    """Return nested dictionaries from names with underscores, as plotly writes them.

    >>> nested(line_color="--plain", line_width=2, x=[1])
    {'line': {'color': '--plain', 'width': 2}, 'x': [1]}
    """
    out: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("_")
        place = out
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return out


def series(kind: str, x: Sequence[Any], y: Sequence[Any], name: str, hover: str = "", **look: Any) -> Series:
    """Return a trace of plotly's type `kind`; `hover` is what hovering says, `look` goes through `nested`."""
    about = {"hovertemplate": f"{hover}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    return {"type": kind, "x": list(x), "y": list(y), "name": name, **about, **nested(**look)}


def axes(x: str, y: str, **more: Any) -> dict[str, Any]:
    """Return a layout with titles on its two axes; `more` goes through `nested`."""
    return nested(xaxis_title_text=x, yaxis_title_text=y, **more)


def axis(name: str, index: int) -> str:
    """Return an axis's name, the first being 0: "xaxis", "xaxis2" in a layout, "x", "x2" elsewhere."""
    return name if index == 0 else f"{name}{index + 1}"


def note(text: str, x: float, y: float = 1, **more: Any) -> dict[str, Any]:
    """Return a text at `x` on the axis and `y` as a share of the plot's height, standing on that."""
    return nested(text=text, x=x, y=y, yref="paper", yanchor="bottom", **more)


def mark(x: float, text: str = "", *, width: int = 2, right: bool = False) -> dict[str, Any]:
    """Return layout with a dashed upright line at `x` and a text above it, to its left where `right` has no room."""
    line = nested(x0=x, x1=x, y0=0, y1=1, line_color="--threshold", line_width=width)
    above = note(text, x, font_color="--threshold", xanchor="right" if right else "left", xshift=4 if right else -4)
    return {"shapes": [line], "annotations": [above] if text else []}


def run_look(index: int, **more: Any) -> dict[str, Any]:
    """Return colour, dash and symbol of a run in a comparison, as `series` takes them."""
    number = index % len(RUN_DASHES)
    look = {"marker_symbol": RUN_SYMBOLS[number], "line_dash": RUN_DASHES[number]}
    return solid(f"--run-{number + 1}") | look | more


def solid(name: str) -> dict[str, str]:
    """Return line and marker in one colour, as `series` takes them."""
    return {"line_color": name, "marker_color": name}


_FONT = {"family": "--font", "size": 13, "color": "--ink"}
_AXIS = {
    "title": {"font": {"size": 13, "color": "--soft"}, "standoff": 8},
    "tickfont": {"size": 12, "color": "--soft"},
    **{"linecolor": "--rule", "zerolinecolor": "--rule", "gridcolor": "--grid", "automargin": True},
}
TEMPLATE: dict[str, Any] = {
    "layout": {
        **{"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "font": _FONT, "hovermode": "closest"},
        "hoverlabel": {"bgcolor": "--raised", "bordercolor": "--faint", "align": "left", "font": _FONT},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "--faint", "activecolor": "--ink"},
        "margin": {"l": 64, "r": 14, "t": 56, "b": 44},
        **{"xaxis": _AXIS, "yaxis": _AXIS, "annotationdefaults": {"showarrow": False}},
        "shapedefaults": nested(type="line", yref="paper", layer="below", line_dash="dash"),
    },
    "data": {"bar": [nested(marker_line_width=0)], "scatter": [nested(line_width=2, marker_size=7)]},
}
