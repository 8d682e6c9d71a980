"""A progress bar for what may take long: it shows only where it does."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0  # seconds without a bar
PAUSE = 0.1  # seconds between two pictures of it
_at_work: list[str] = []


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many steps more are done; from 2 s on, a bar shows them where stderr is
    a terminal, or in a notebook. What is part of work that has a bar gets none of its own.

    with progress("timing", len(items)) as advance:
        for item in items:
            ...
            advance(1)
    """
    console = Console(file=sys.stderr)  # today's: an exporter is silenced by another
    shown = console.is_terminal or console.is_jupyter
    bar = Progress(
        console=console,
        transient=True,
        disable=not shown or bool(_at_work),
        auto_refresh=False,  # nothing moves but by steps, and what is timed is left alone
        # What is printed goes where it was to go, a file perhaps; and a bar that started while an exporter was silenced
        # would put the silence back when it stops.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task(description, total=total)
    start = drawn = time.monotonic()
    long_step = Timer(PATIENCE, bar.start)  # a step that takes long shows as well
    long_step.daemon = True
    long_step.start()

    def advance(steps: int) -> None:
        nonlocal drawn
        bar.update(task, advance=steps)
        now = time.monotonic()
        if now - start > PATIENCE and now - drawn > PAUSE:
            bar.start()
            bar.refresh()
            drawn = now

    _at_work.append(description)
    try:
        yield advance
    finally:
        _at_work.pop()
        long_step.cancel()
        long_step.join()  # or it could start the bar after its end
        bar.stop()
