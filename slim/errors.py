"""What goes wrong because of what the user gave us.

Every error that a user can cause is a `SlimError` whose text is one line: the value, what was expected and, where
there is one, the nearest valid choice. The commands print that line and exit with status 2; Python users catch it.
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

LONGEST = 1000  # characters of a message: a value may print as pages


class SlimError(Exception):
    """A mistake in what the user gave: a setting, a file, a model, a data set. Its message is one line."""

    def __init__(self, message: str = "") -> None:
        line = re.sub(r"\s*[\r\n]+\s*", " ", message)
        rest = LONGEST // 4  # of the end, which says what was expected
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST - rest - 3]} … {line[-rest:]}")


class NothingToPrune(SlimError):
    """A plan that was asked for would remove nothing."""


class SlimWarning(UserWarning):
    """Something that works as it was asked for, and hardly as it was meant. The commands show it as one line."""


def check_type(name: str, value: object, expected: str, *kinds: type) -> None:
    """Raise SlimError, which calls `value` by its `name`, where it is of none of these kinds."""
    if not isinstance(value, kinds):
        raise SlimError(f"{name} is of type {type(value).__name__}: expected {expected}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise SlimError, which calls `value` by its `name`, where it is none of these words."""
    if not isinstance(value, str) or value not in choices:
        raise SlimError(f"unknown {name} {value!r}: expected one of {', '.join(choices)}")


def unknown(kind: str, value: str, choices: Iterable[str]) -> SlimError:
    """Return the error for a name that isn't one of `choices`, with the nearest valid one."""
    choices = sorted(choices)
    near = get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else "expected one of " + ", ".join(choices)
    return SlimError(f"unknown {kind} {value!r:.100}: {hint}")


class Interrupted(BaseException):
    """Work that a signal ended, after it was saved so that it can go on.

    No Exception: who handles those of others' code would take it for a failure of that.
    """

    def __init__(self, message: str, signal: int | None) -> None:
        super().__init__(message)
        self.signal = signal or 2
