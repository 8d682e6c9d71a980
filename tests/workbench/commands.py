"""Commands called in this process."""

import importlib
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., str]


def call(command: str, *argv: str) -> None:
    """Run a command in this process."""
    importlib.import_module(f"slim.workbench.cli.{command}").main(list(argv))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder with what is in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
