"""Numbers as people read them, and tables that fit the terminal: the same in every room."""

import copy
import html
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDE = 1.5  # the ends of a speed-up's interval, one over the other: above, the speed-up itself says little


def number(value: float) -> str:
    """Return 12345678 as "12,345,678"."""
    return f"{value:,}"


def count(number: float) -> str:
    """Return 12,345,678 as "12.3 M"."""
    return _scaled(number, ("", " k", " M", " G", " T"))


def size(number: float) -> str:
    """Return a number of bytes, such as "1.2 MB" (10⁶)."""
    return _scaled(number, (" B", " kB", " MB", " GB", " TB"))


def milliseconds(number: float) -> str:
    """Return a latency to three significant digits: "0.0812 ms", "1.56 ms", "143 ms"."""
    decimals = 4 if number < 0.0995 else 3 if number < 0.995 else 2 if number < 9.95 else 1 if number < 99.5 else 0
    return f"{number:,.{decimals}f} ms"


def capitalised(words: str) -> str:
    """Return words as they begin a line: "Mean iou" of "mean iou"; "mAP" has capitals of its own."""
    return words if words != words.lower() else words.capitalize()


def shape(sizes: Sequence[int]) -> str:
    """Return a shape such as "64×8×8"."""
    return "×".join(map(str, sizes))


def percent(share: float, decimals: int = 1) -> str:
    """Return 0.6 as "60.0%"."""
    return f"{share:.{decimals}%}"


def change(before: float, after: float) -> str:
    """Return how a size changed: "−84.6%", "+3.0%"; "" where there was nothing before."""
    return f"{after / before - 1:+.1%}".replace("-", "−") if before else ""


def points(before: float, after: float) -> str:
    """Return how a share changed, in percentage points: "−0.28 points"."""
    return f"{100 * (after - before):+.2f} points".replace("-", "−")


def speedup(times: float, low: float | None = None, high: float | None = None) -> str:
    """Return how fast something is, as far as the 95 % interval `low` to `high` bears it out.

    >>> speedup(46.0, 0.9, 80.0), speedup(46.0, 1.5, 80.0), speedup(2.0, 1.9, 2.1), speedup(0.5, 0.4, 0.55)
    ('no difference in latency shown', 'at least 1.50× as fast', '2.00× as fast', '0.50× as fast')
    """
    if low is None or high is None or low == high:
        return f"{times:.2f}× as fast"
    if low <= 1 <= high:
        return "no difference in latency shown"
    if high / low <= WIDE:
        return f"{times:.2f}× as fast"
    return f"at least {low:.2f}× as fast" if low > 1 else f"at most {high:.2f}× as fast"


def duration(seconds: float) -> str:
    """Return a time such as "8 s", "3 min 05 s", "2 h 10 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def printable(text: str) -> str:
    """Return text on one line in which control characters are shown as escapes and do nothing.

    >>> printable("a\\x1b[31m\\n")
    'a\\\\x1b[31m\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class PlainConsole(Console):
    """A console that shows text as it is: markup in it doesn't act, control characters are shown as escapes."""

    def render_str(self, text: str, **kwargs: Any) -> Text:
        shown = "\n".join(map(printable, text.split("\n")))
        return super().render_str(shown, **{**kwargs, "markup": False, "emoji": False})


class FittingTable(Table):
    """A rich table that leaves out columns where it has too little room: those in `drops`, the first one first.

    Cells are shown as they are: names of files and classes hold no markup and no control characters.
    """

    def __init__(self, title: str = "", drops: Sequence[str] = (), **kwargs: Any) -> None:
        style = {"title_justify": "left", "title_style": "bold", "box": box.SIMPLE_HEAD, "padding": (0, 1)}
        super().__init__(title=Text(printable(title)) if title else None, **{**style, "pad_edge": False, **kwargs})
        self.drops = drops

    def add_row(self, *cells: RenderableType | None, **kwargs: Any) -> None:
        """Add a row of texts."""
        super().add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in cells), **kwargs)

    def fitted(self, console: Console, options: ConsoleOptions) -> Table:
        """Return the table with as many columns as fit."""
        table = Table.__new__(Table)
        table.__dict__ = copy.copy(self.__dict__)
        unbounded = options.update(width=10_000)
        for heading in self.drops:
            if Table.__rich_measure__(table, console, unbounded).maximum <= options.max_width:
                break
            left = [column for column in table.columns if column.header != heading]
            table.columns = [replace(column, _index=i) for i, column in enumerate(left)]
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self.fitted(console, options).__rich_console__(console, options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Table.__rich_measure__(self.fitted(console, options), console, options)


class Shown:
    """A result that Python shows in one line, a notebook and `print` with its tables."""

    def headline(self) -> str:
        """Return the result in one line."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.headline()}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return f'<pre style="line-height: 1.2; overflow-x: auto">{html.escape(str(self))}</pre>'


def render(table: RenderableType, width: int = 80) -> str:
    """Return a table as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _scaled(number: float, units: Sequence[str]) -> str:
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    decimals = 0 if power == 0 or number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}{units[power]}"


def threads_in_words(threads: int) -> str:
    """Return such as "2 threads"; "all threads" for 0."""
    return f"{threads or 'all'} thread{'s' * (threads != 1)}"
