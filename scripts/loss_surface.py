"""The loss of a classifier with two parameters as a surface, plain and with L1, L2 and both.

    python scripts/loss_surface.py [--p 0.9] [--x 1.0]

Two classes with scores z₁ = β₁·x and z₂ = β₂·x, and the probability p of the first: the cross-entropy is

    f(β) = log(e^(β₁x) + e^(β₂x)) − p·β₁x − (1 − p)·β₂x.

It depends on β₁ − β₂ alone, so it has a valley and no single minimum. The page scripts/results/loss_surface-DATE.html
shows the four surfaces (drag to turn, scroll to zoom) and their contours, for several λ by a slider, with the paths of
subgradient descent, proximal gradient descent and coordinate descent; the table says which of them reach exact zeros.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from shared import bullets, listed, parser_of, ran_on, save, table, write
from torch import Tensor

import slim

KINDS = ["plain", "L1", "L2", "both"]
STRENGTHS = [0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45]
START = (3.0, 0.4)
STEP, STEPS = 0.5, 400


def loss(beta: Tensor, p: float, x: float) -> Tensor:
    """f of β [..., 2]."""
    z = beta * x
    return z.logsumexp(-1) - p * z[..., 0] - (1 - p) * z[..., 1]


def gradient(beta: Tensor, p: float, x: float) -> Tensor:
    error = x * (torch.sigmoid((beta[..., 0] - beta[..., 1]) * x) - p)
    return torch.stack([error, -error], -1)


def penalty(kind: str, strength: float) -> slim.Penalty:
    """Both: λ·(|β₁| + |β₂|) + λ/2·(β₁² + β₂²)."""
    choices: dict[str, Callable[[], slim.Penalty]] = {
        "plain": lambda: slim.L1(0.0),
        "L1": lambda: slim.L1(strength),
        "L2": lambda: slim.L2(strength),
        "both": lambda: slim.ElasticNet(2 * strength, 0.5),
    }
    return choices[kind]()


def minimum(kind: str, strength: float, p: float, x: float) -> tuple[float, float]:
    """A minimum in closed form (L2 and both: of one equation in one unknown), for p > ½ and x > 0.

    With d = β₁ − β₂, plain: any point with σ(dx) = p; here the one with β₁ = −β₂. L1: σ(dx) = p − λ/x, any point with
    β₁ ≥ 0 ≥ β₂ on that line; 0 where p − λ/x ≤ ½. L2: β₁ = −β₂ = b with (p − σ(2bx))·x = λ·b; both: λ·(1 + b).
    """
    if kind == "plain" or strength == 0:
        return _half(math.log(p / (1 - p)) / x)
    if kind == "L1":
        share = p - strength / x
        return _half(math.log(share / (1 - share)) / x if share > 0.5 else 0.0)
    constant = strength if kind == "both" else 0.0
    low, high = 0.0, 100.0
    for _ in range(200):
        b = (low + high) / 2
        rises = (p - 1 / (1 + math.exp(-2 * b * x))) * x > constant + strength * b
        low, high = (b, high) if rises else (low, b)
    return _half(2 * low)


def _half(d: float) -> tuple[float, float]:
    return d / 2, -d / 2


def descend(method: str, kind: str, strength: float, p: float, x: float) -> Tensor:
    """The path [steps + 1, 2] of one method from START."""
    pressure = penalty(kind, strength)
    beta = torch.tensor(START, dtype=torch.float64)
    path = [beta]
    for number in range(STEPS):
        if method == "subgradient":
            beta = beta - STEP * (gradient(beta, p, x) + pressure.subgradient(beta))
        elif method == "proximal":
            beta = pressure.prox(beta - STEP * gradient(beta, p, x), STEP)
        else:
            beta = _along(beta, number % 2, pressure, p, x)
        path.append(beta)
    return torch.stack(path)


def _along(beta: Tensor, which: int, pressure: slim.Penalty, p: float, x: float) -> Tensor:
    """The exact minimum along one coordinate: where the proximal step stands still, found by bisection."""

    def moves(value: float) -> float:
        at = beta.clone()
        at[which] = value
        return float((pressure.prox(at - gradient(at, p, x), 1.0) - at)[which])

    found = beta.clone()
    low, high = -20.0, 20.0
    at_zero = moves(0.0)
    if abs(at_zero) < 1e-12:  # to rounding
        found[which] = 0.0
        return found
    low, high = (0.0, high) if at_zero > 0 else (low, 0.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if moves(middle) > 0 else (low, middle)
    found[which] = (low + high) / 2
    return found


def surfaces(p: float, x: float, points: int = 41) -> tuple[np.ndarray, dict[tuple[str, float], np.ndarray]]:
    axis = torch.linspace(-4, 4, points, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    plain = loss(grid, p, x)
    heights = {}
    for kind in KINDS:
        for strength in STRENGTHS:
            one = penalty(kind, strength)
            added = torch.stack([one.value(beta) for beta in grid.reshape(-1, 2)]).reshape(plain.shape)
            heights[kind, strength] = (plain + added).numpy().round(4)
    return axis.numpy(), heights


def draw(p: float, x: float) -> tuple[go.Figure, go.Figure]:
    """The surfaces, and the contours with the paths."""
    axis, heights = surfaces(p, x)
    solid = make_subplots(
        2, 2, specs=[[{"type": "surface"}] * 2] * 2, subplot_titles=KINDS, horizontal_spacing=0, vertical_spacing=0.03
    )
    flat = make_subplots(2, 2, subplot_titles=KINDS, vertical_spacing=0.12, x_title="β₁", y_title="β₂")
    colours = {"subgradient": "red", "proximal": "cyan", "coordinate": "orange"}

    def traces(strength: float) -> tuple[list[Any], list[Any]]:
        above, below = [], []
        for kind in KINDS:
            z = heights[kind, strength]
            above.append(go.Surface(x=axis, y=axis, z=z, showscale=False, contours_z={"show": True}))
            below.append(go.Contour(x=axis, y=axis, z=z, ncontours=30, showscale=False, colorscale="Viridis"))
            for method, colour in colours.items():
                path = descend(method, kind, strength, p, x).numpy().round(4)
                shown = {"name": method, "legendgroup": method, "showlegend": kind == KINDS[0]}
                line: dict[str, Any] = {"color": colour}
                below.append(go.Scatter(x=path[:, 0], y=path[:, 1], mode="lines+markers", line=line, **shown))
        return above, below

    both: dict[float, tuple[list[Any], list[Any]]] = {strength: traces(strength) for strength in STRENGTHS}
    places = [(1, 1), (1, 2), (2, 1), (2, 2)]
    for i, (row, col) in enumerate(places):
        solid.add_trace(both[STRENGTHS[0]][0][i], row=row, col=col)
        for trace in both[STRENGTHS[0]][1][4 * i : 4 * i + 4]:
            flat.add_trace(trace, row=row, col=col)
    for figure, part, title in ((solid, 0, "loss + penalty (drag, scroll)"), (flat, 1, "contours and paths")):
        figure.frames = [go.Frame(name=f"{s:g}", data=both[s][part], traces=[*range(len(both[s][part]))]) for s in both]
        redraw = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
        steps = [{"label": f"{s:g}", "method": "animate", "args": [[f"{s:g}"], redraw]} for s in STRENGTHS]
        figure.update_layout(
            title=f"{title}: p = {p}, x = {x}",
            sliders=[{"steps": steps, "currentvalue": {"prefix": "λ = "}}],
            height=1000,
        )
    eye = {"x": 1.5, "y": 1.5, "z": 1.2}  # far enough that the labels of all axes are in the picture
    solid.update_scenes(xaxis_title="β₁", yaxis_title="β₂", zaxis_title="loss", camera_eye=eye)
    return solid, flat


@dataclass(frozen=True)
class End:
    """Where a method ended: its height above the minimum, and how many of the two parameters are exactly 0."""

    kind: str
    strength: float
    method: str
    gap: float
    zeros: int


def seen(ends: Sequence[End]) -> str:
    """Return who reached zero and who came how close to the minimum, for each penalty, from the numbers alone."""
    said = []
    for kind in dict.fromkeys(end.kind for end in ends):
        mine = [end for end in ends if end.kind == kind]
        methods = list(dict.fromkeys(end.method for end in mine))
        some = [m for m in methods if any(end.zeros for end in mine if end.method == m)]
        origin = sorted({end.strength for end in mine if end.zeros == 2})
        reached = f"{listed(some)} ended at an exact zero" if some else "no method ended at an exact zero"
        both = f", at the origin itself for λ = {listed([f'{s:g}' for s in origin])}" if origin else ""
        worst = {m: max(end.gap for end in mine if end.method == m) for m in methods}
        heights = listed([f"{gap:.2g} ({method})" for method, gap in worst.items()])
        said.append(f"With {kind}, {reached}{both}; at most {heights} above the minimum.")
    return bullets(said)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--p", type=float, default=0.9, help="probability of the first class, in (½, 1)")
    parser.add_argument("--x", type=float, default=1.0, help="the input, above 0")
    args = parser.parse_args()
    p, x = args.p, args.x
    if not (0.5 < p < 1 and x > 0):
        parser.error(f"p is {p} and x is {x}: expected p in (0.5, 1) and x above 0")
    torch.set_num_threads(1)
    rows, ends = [], []
    for kind in KINDS[1:]:
        for strength in (0.02, 0.1, 0.3, 0.45):
            one = penalty(kind, strength)
            best = torch.tensor(minimum(kind, strength, p, x), dtype=torch.float64)
            lowest = float(loss(best, p, x) + one.value(best))
            for method in ("subgradient", "proximal", "coordinate"):
                path = descend(method, kind, strength, p, x)
                end = path[-1]
                gap = float(loss(end, p, x) + one.value(end)) - lowest
                beta = ", ".join(f"{value:.4f}" for value in end.tolist())
                zeros = int((end == 0).sum())
                first = int((path == 0).any(1).nonzero()[0]) if zeros else ""
                rows.append([kind, f"{strength:g}", method, beta, f"{gap:.1e}", zeros, first])
                ends.append(End(kind, strength, method, gap, zeros))
    header = ["penalty", "λ", "method", "β after 400 steps", "above the minimum", "exact zeros", "first at step"]
    text = (
        f"# The loss surface of a classifier with two parameters\n\n"
        f"{ran_on('plotly')}\n\n"
        f"p = {p}, x = {x}, from β = {START}, step size {STEP}. The minimum is in closed form.\n\n"
        + table(header, rows)
        + f"\n\nSeen:\n\n{seen(ends)}"
    )
    print("drawing", flush=True)
    see = (
        "Drag to turn a surface, scroll to zoom; the sliders choose λ. Plain, the loss depends on β₁ − β₂ alone: a "
        f"valley without a single minimum.\n\nAfter {STEPS} steps:\n\n{seen(ends)}"
    )
    html = save("loss_surface", *draw(p, x), title="The loss surface of two parameters", text=see)
    print(write("loss_surface", text).read_text())
    print(f"picture: {html}, {html.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
