"""Commands called in this process."""

import contextlib
import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console

from slim.workbench.cli.command import ParsedCommand

Command = Callable[..., str]


def call(command: str, *argv: str) -> None:
    """Run a command in this process."""
    importlib.import_module(f"slim.workbench.cli.{command}").main(list(argv))


class Shown(NamedTuple):
    """What a command shows on a terminal of 80 columns, and the line that it prints at the end."""

    tables: str
    last: str


def shown_by(command: str, *argv: str) -> Shown:
    """Run a command in this process and return what it shows."""
    console, printed = Console(record=True, width=80, file=io.StringIO()), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(ParsedCommand, "console", console)
        call(command, *argv)
    return Shown(console.export_text(), printed.getvalue().splitlines()[-1])


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder with what is in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
