"""How a command ends that doesn't end well: one line, and a status."""

import io
import os
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from slim.errors import Interrupted, SlimError, SlimWarning
from slim.extras import named_if_missing
from slim.workbench.causes import explain

LONGEST = 900  # characters of an error


@contextmanager
def report_user_errors(program: str, argv: Sequence[str] | None = None, resumes: bool = False) -> Iterator[list[str]]:
    """Turn a user's mistake, a file that can't be read or written, and signals into one line and a status.

    Yields the words of the command line that goes on after a signal, `--resume` apart, which is added where the command
    `resumes`; what isn't clear from them may be put in.
    """
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--resume"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without γ gets a question mark
    try:
        with _sigterm_raises(), named_if_missing(), _warnings_of_one_line(program):
            yield words
    except (SlimError, OSError) as e:
        if isinstance(e, BrokenPipeError) and _nobody_reads():
            sys.exit(141)  # as shells call SIGPIPE
        _say(f"{program}: error: {one_line(e)}")
        sys.exit(2)
    except (MemoryError, RuntimeError) as e:
        if (told := explain(e)) is None:
            raise
        _say(f"{program}: error: {one_line(told)}")
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as e:
        if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":  # of several processes, the first
            launcher = "torchrun … " if "TORCHELASTIC_RUN_ID" in os.environ else ""
            line = f"{launcher}{shlex.join([program, *words, *(['--resume'] if resumes else [])])}"
            what = str(e) or "interrupted; the files of earlier stages are as they were"
            _say(f"\n{program}: {what}; go on with: {line}")
        sys.exit(128 + (e.signal if isinstance(e, Interrupted) else signal.SIGINT))


def one_line(error: BaseException | str) -> str:
    """Return an error's text as one line, its control characters as escapes: names in it may come from files, and be of
    any length."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return "".join(c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def _warnings_of_one_line(program: str) -> Iterator[None]:
    """Show our own warnings as errors are shown; others as they always are."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, SlimWarning):
                _say(f"{program}: warning: {one_line(str(message))}")
            else:
                others(message, category, *where, **more)

        warnings.showwarning = show
        yield


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, through every `finally`. A training takes it over while it lasts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        raise Interrupted("stopped; the files of earlier stages are as they were", number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _nobody_reads() -> bool:
    """Say whether whoever read stdout, such as `| head`, has seen enough; then the rest of it goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return True
    return False


def _say(line: str) -> None:
    print(line, file=sys.stderr)
