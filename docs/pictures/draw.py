"""Draws the pictures of how-it-works.md: `python docs/pictures/draw.py`. Their colours suit light and dark pages."""

from pathlib import Path

HERE = Path(__file__).parent
INK, LINE, KEPT, GONE, OTHER = "#78909c", "#90a4ae", "#1e88e5", "#ef6c00", "#43a047"


def svg(width: int, height: int, *parts: str) -> str:
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
    arrow = (
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>'
    )
    return f'{start}font-size="14" fill="{INK}">{arrow}{"".join(parts)}</svg>\n'


def box(x: int, y: int, label: str, colour: str = LINE, width: int = 110, note: str = "") -> str:
    below = f'<text x="{x + width / 2}" y="{y + 58}" text-anchor="middle" font-size="12">{note}</text>' if note else ""
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="38" rx="6" fill="none" stroke="{colour}" stroke-width="2"/>'
        f'<text x="{x + width / 2}" y="{y + 24}" text-anchor="middle">{label}</text>{below}'
    )


def arrow(*points: tuple[int, int]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="2" marker-end="url(#a)"/>'


def channels(x: int, y: int, colour: str, gone: tuple[int, ...] = (), count: int = 6) -> str:
    return "".join(
        f'<rect x="{x + 15 * i}" y="{y}" width="11" height="11" rx="2" '
        f'fill="{"none" if i in gone else colour}" stroke="{colour}"/>'
        for i in range(count)
    )


def coupled() -> str:
    """A residual block: what the addition joins goes together, what lies inside is free."""
    gone, inner = (1, 4), (0, 3, 5)
    return svg(
        760, 190,
        box(10, 60, "conv, BN", KEPT), channels(22, 110, KEPT, gone),
        arrow((120, 79), (190, 79)),
        box(190, 60, "conv, BN", OTHER), channels(202, 110, OTHER, inner),
        arrow((300, 79), (370, 79)),
        box(370, 60, "conv, BN", KEPT), channels(382, 110, KEPT, gone),
        arrow((480, 79), (545, 79)),
        f'<circle cx="560" cy="79" r="14" fill="none" stroke="{LINE}" stroke-width="2"/>'
        '<text x="560" y="84" text-anchor="middle">+</text>',
        arrow((150, 79), (150, 25), (560, 25), (560, 64)),
        arrow((574, 79), (630, 79)), box(630, 60, "reader"), channels(642, 110, KEPT, gone),
        f'<text x="10" y="160" fill="{KEPT}">one group: the addition couples both</text>'
        f'<text x="330" y="160" fill="{OTHER}">another group: free of the rest</text>'
        '<text x="10" y="182" font-size="12">hollow: pruned, at the same places in all that is coupled</text>',
    )  # fmt: skip


def stages() -> str:
    """From a trained network to a file."""
    names = [
        ("train", "γ towards 0"), ("plan", "lowest groups"), ("rebuild", "thinner layers"),
        ("verify", "equal to 1e-10"), ("recover", "no labels"), ("fine-tune", "your loss"),
        ("export", "checked, timed"),
    ]  # fmt: skip
    parts = [box(10 + 128 * i, 20, name, KEPT, 100, note) for i, (name, note) in enumerate(names)]
    parts += [arrow((110 + 128 * i, 39), (136 + 128 * i, 39)) for i in range(len(names) - 1)]
    return svg(900, 90, *parts)


def recovery() -> str:
    """What a removed channel carried is predicted from the kept ones, and folded into the layer that reads them."""
    return svg(
        720, 130,
        '<text x="10" y="20">original</text>', channels(110, 10, KEPT), arrow((205, 16), (270, 20)),
        box(270, 2, "next layer", KEPT),
        '<text x="10" y="102">thin</text>', channels(110, 92, KEPT, (1, 4)), arrow((205, 98), (270, 98)),
        box(270, 80, "next layer, refitted", OTHER, 160),
        arrow((131, 86), (131, 30)),
        f'<text x="145" y="60" fill="{GONE}" font-size="12">least squares: removed ≈ kept · C</text>',
        f'<text x="450" y="104" fill="{OTHER}">W\' = W[kept] + W[removed] · Cᵀ</text>',
    )  # fmt: skip


if __name__ == "__main__":
    for draw in (coupled, stages, recovery):
        (HERE / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")
