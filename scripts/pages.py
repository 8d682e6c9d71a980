"""A page of Plotly figures that needs no network, in the look of report.html: light, dark, with words."""

from collections.abc import Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1d1d1f; --soft: #5c5f66; --rule: #dcdfe4; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181c; --ink: #e8eaed; --soft: #a5abb5; --rule: #33373e; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.5rem 3rem; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.5rem; }
p, ul { max-width: 50rem; color: var(--soft); margin: 0 0 1rem; }
ul { padding-left: 1.2rem; }
li { margin: 0 0 0.35rem; }
figure { margin: 1.5rem 0 0; border-top: 1px solid var(--rule); padding-top: 1rem; overflow-x: auto; }
figure > div { min-width: 60rem; }
@media (max-width: 62rem) { figure::before { content: "scrolls sideways →"; color: var(--soft); font-size: 0.85rem; } }
"""
SCRIPT = """
const theme = matchMedia("(prefers-color-scheme: dark)");
const paint = () => {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, rule] = ["--ink", "--soft", "--rule"].map((name) => style.getPropertyValue(name).trim());
  document.querySelectorAll(".plotly-graph-div").forEach((plot) => {
    const clear = "rgba(0,0,0,0)";
    const changes = { paper_bgcolor: clear, plot_bgcolor: clear, "font.color": ink };
    Object.assign(changes, { "modebar.bgcolor": clear, "modebar.color": soft, "modebar.activecolor": ink });
    for (const key of Object.keys(plot._fullLayout)) {
      if (/^[xy]axis\\d*$/.test(key))
        for (const line of ["gridcolor", "zerolinecolor"]) changes[`${key}.${line}`] = rule;
      if (/^scene\\d*$/.test(key))
        for (const axis of ["xaxis", "yaxis", "zaxis"]) changes[`${key}.${axis}.gridcolor`] = rule;
    }
    (plot.layout.sliders || []).forEach((_, i) => {
      Object.assign(changes, { [`sliders[${i}].bgcolor`]: rule, [`sliders[${i}].font.color`]: soft });
    });
    (plot.layout.updatemenus || []).forEach((_, i) => {
      Object.assign(changes, { [`updatemenus[${i}].bgcolor`]: rule, [`updatemenus[${i}].font.color`]: ink });
    });
    Plotly.relayout(plot, changes);
  });
  document.documentElement.dataset.theme = theme.matches ? "dark" : "light";
};
theme.addEventListener("change", paint);
addEventListener("load", paint);
"""


def page(title: str, text: str, figures: Sequence[Any]) -> str:
    """Return the page. Figures stand still, at their first frame, until somebody moves them. Paragraphs and lists of
    the text are Markdown's: an empty line between, "- " before an item."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=not i, auto_play=False, config={"displaylogo": False})
        for i, figure in enumerate(figures)
    ]
    body = "\n".join(f"<figure>{part}</figure>" for part in parts)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    shown = "\n".join(_block(block) for block in text.split("\n\n") if block)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main><h1>{escape(title)}</h1>\n{shown}\n{body}\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def _block(text: str) -> str:
    """Return a paragraph, or a list."""
    if not text.startswith("- "):
        return f"<p>{escape(text)}</p>"
    items = "".join(f"<li>{escape(line.removeprefix('- '))}</li>" for line in text.splitlines())
    return f"<ul>{items}</ul>"
