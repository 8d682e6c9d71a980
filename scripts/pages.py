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
p { max-width: 50rem; color: var(--soft); margin: 0 0 1rem; }
figure { margin: 1.5rem 0 0; border-top: 1px solid var(--rule); padding-top: 1rem; overflow-x: auto; }
figure > div { min-width: 60rem; }
"""
SCRIPT = """
const theme = matchMedia("(prefers-color-scheme: dark)");
const paint = () => {
  const style = getComputedStyle(document.documentElement);
  const [ink, soft, rule] = ["--ink", "--soft", "--rule"].map((name) => style.getPropertyValue(name).trim());
  document.querySelectorAll(".plotly-graph-div").forEach((plot) => {
    const changes = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", "font.color": ink };
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
    """Return the page. Figures stand still, at their first frame, until somebody moves them."""
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=not i, auto_play=False, config={"displaylogo": False})
        for i, figure in enumerate(figures)
    ]
    body = "\n".join(f"<figure>{part}</figure>" for part in parts)
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    shown = "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in text.split("\n\n") if paragraph)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><main><h1>{escape(title)}</h1>\n{shown}\n{body}\n</main><script>{SCRIPT}</script></body></html>\n"
    )
