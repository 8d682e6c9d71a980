"""Templates for the page (HTML) and for Markdown; what comes from outside is escaped as its medium needs it."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slim import tables
from slim.version import __version__
from slim.workbench.report.columns import headline, stage_name


def render(template: str, **shown: Any) -> str:
    """Return a template filled in; the ending of its name, html or md, says how text is escaped."""
    return _environment(template.rpartition(".")[2]).get_template(template).render(shown)


@cache
def _environment(medium: str) -> Environment:
    made = Environment(
        loader=PackageLoader("slim.workbench.report"),
        autoescape=medium == "html",
        finalize=markdown if medium == "md" else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    numbers = (tables.count, tables.milliseconds, tables.change, tables.percent, tables.number, tables.shape)
    made.filters |= {function.__name__: function for function in (*numbers, tables.capitalised, code)}
    made.globals |= {"stage": stage_name, "headline": headline, "version": __version__}
    return made


def markdown(value: Any) -> str:
    """Return text that Markdown shows as it is: no formatting, no HTML, on one line."""
    if isinstance(value, Markup):
        return value
    text = tables.printable(str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|#~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)  # within a word, _ does nothing


def code(value: Any) -> Markup:
    """Return text as a code span of Markdown, whatever backticks are in it."""
    text = tables.printable(str(value))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")
