"""HTML in few words: elements, tables, a remark on what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

__all__ = ["Cell", "escape", "missing", "table", "tag"]


def tag(name: str, content: str = "", **attributes: Any) -> str:
    """An element with `content` (HTML) inside. `class_` is class, `data_x` is data-x; None and False leave one out."""
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{escape(str(value))}"')
    opened = f"<{' '.join(words)}>"
    return opened if name in ("img", "input") else f"{opened}{content}</{name}>"


@dataclass
class Cell:
    """A cell: what it shows (HTML), and the value it is sorted and copied by, if that differs."""

    shown: str
    value: Any = None
    wrap: bool = False


def table(
    headings: Sequence[tuple[str, str]],  # (heading, class of its column: "", "number" or "number with-change")
    rows: Sequence[Sequence[Cell]],
    caption: str = "",
    *,
    sortable: bool = False,
    id: str | None = None,
    strong: int | None = None,  # the row that is the result
) -> str:
    """A table that scrolls sideways where it is too wide."""
    head = "".join(
        tag("th", tag("button", name, type="button") if sortable else name, scope="col", class_=kind or None)
        for name, kind in headings
    )
    body = "".join(
        tag(
            "tr",
            "".join(
                tag("td", cell.shown, class_="wrap" if cell.wrap else kind or None, data_value=cell.value)
                for cell, (_, kind) in zip(row, headings)
            ),
            class_="result" if i == strong else None,
        )
        for i, row in enumerate(rows)
    )
    parts = (tag("caption", caption) if caption else "") + tag("thead", tag("tr", head)) + tag("tbody", body)
    return tag("div", tag("table", parts, class_="sortable" if sortable else None, id=id), class_="scroll")


def missing(text: str) -> str:
    """A remark in place of what isn't there."""
    return tag("p", escape(text), class_="missing")
