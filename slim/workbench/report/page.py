"""report.html: one page that explains a run, or compares several. It opens offline and asks for nothing.

Text, tables and small images are plain HTML; figures are data that plotly.js draws. plotly.js lies in the page itself,
compressed: it takes 2 MB instead of 5. A content security policy forbids every request.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from slim.files import replacing
from slim.version import __version__
from slim.workbench.report import comparison, sections
from slim.workbench.report.collect import Run
from slim.workbench.report.figures import Figure
from slim.workbench.report.html import escape, tag

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write(runs: Sequence[Run], path: Path) -> Path:
    """Write the page of one run, or the comparison of several, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(html(runs), encoding="utf-8")
    return path


def html(runs: Sequence[Run]) -> str:
    """The page of one run, or the comparison of several."""
    page = Page()
    if len(runs) == 1:
        [run] = runs
        page.title, page.heading, page.lede = f"{run.name}: slim report", run.name, sections.lede(run)
        page.opening = sections.headline(run) + sections.facts(run)
        sections.add_to(page, run)
    else:
        page.title, page.heading, page.lede = "slim: runs compared", "Runs compared", comparison.lede(runs)
        comparison.add_to(page, runs)
    return page.html(max(str(run.made.get("date", "")) for run in runs))


class Page:
    """Collects sections and figures, and puts them together."""

    def __init__(self) -> None:
        self.title = self.heading = self.lede = self.opening = ""
        self._sections: list[tuple[str, str, str]] = []
        self._figures: dict[str, Figure] = {}

    def section(self, name: str, title: str, *parts: str) -> None:
        self._sections.append((name, title, "".join(parts)))

    def figure(self, figure: Figure | None) -> str:
        """The place of a figure, with its title and caption; nothing for None."""
        if figure is None:
            return ""
        self._figures[figure.name] = figure
        name = figure.name
        plot = tag(
            *("div", ""),
            **{"class": "plot waiting", "id": f"plot-{name}", "role": "img", "aria-label": figure.title},
            style=f"height:{figure.height}px",
        )
        parts = [tag("p", escape(figure.title), class_="title", id=f"title-{name}")]
        parts += [_slider(figure)] if figure.frames else []
        parts += [plot, tag("figcaption", escape(figure.caption))]
        return tag("figure", "".join(parts), aria_labelledby=f"title-{name}")

    def html(self, date: str) -> str:
        links = "".join(tag("a", escape(title), href=f"#{name}") for name, title, _ in self._sections)
        body = "\n".join(
            tag(
                "section",
                tag("h2", escape(title), id=f"head-{name}") + content,
                id=name,
                aria_labelledby=f"head-{name}",
            )
            for name, title, content in self._sections
        )
        data = {
            name: {"traces": f.traces, "layout": f.layout, "height": f.height, "frames": f.frames}
            for name, f in self._figures.items()
        }
        made = f" on {escape(date[:10])}" if date else ""
        no_script = "The figures need JavaScript; text, tables and images are all here without it."
        return f"""<!doctype html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="description" content="{escape(self.lede)}">
<title>{escape(self.title)}</title>
<link rel="icon" href="data:,">
<style>
{_text("page.css")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to content</a>
<nav aria-label="Sections"><div>
<div class="links">{links}</div><button type="button" id="theme">Dark</button>
</div></nav>
<header class="top"><h1>{escape(self.heading)}</h1><p class="lede">{escape(self.lede)}</p>{self.opening}</header>
<main id="main">
<noscript><p class="missing">{no_script}</p></noscript>
{body}
</main>
<footer>Made by slim {__version__}{made}. This page holds everything that it shows and makes no request.</footer>
<script type="application/json" id="figures">{_json(data)}</script>
<script type="text/plain" id="plotly">{_plotly() if data else ""}</script>
<script>
{_text("page.js")}</script>
</body>
</html>
"""


def _slider(figure: Figure) -> str:
    last = len(figure.frames) - 1
    steps = tag("input", type="range", min=0, max=last, value=last, aria_label="epoch", disabled=last == 0)
    parts = [
        tag("button", "Play", type="button", disabled=last == 0),
        steps,
        tag("label", tag("input", type="checkbox") + "logarithmic"),
        tag("output", escape(figure.frames[last]["label"]), aria_live="polite"),
    ]
    return tag("div", "".join(parts), class_="slider", id=f"slider-{figure.name}")


def _text(name: str) -> str:
    return files("slim.workbench.report").joinpath(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _plotly() -> str:
    """plotly.js as plotly's own package brings it, compressed."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
