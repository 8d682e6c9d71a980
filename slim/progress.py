"""A progress bar for what may take long: it shows only where it does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0  # seconds without a bar


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many steps more are done; from 2 s on, a bar on stderr shows them.

    with progress("timing", len(items)) as advance:
        for item in items:
            ...
            advance(1)
    """
    bar = Progress(console=Console(stderr=True), transient=True)
    task = bar.add_task(description, total=total)
    start = time.monotonic()

    def advance(steps: int) -> None:
        bar.update(task, advance=steps)
        if time.monotonic() - start > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
