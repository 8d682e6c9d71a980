"""What else the machine does while something is timed."""

import os
import time
from pathlib import Path
from types import TracebackType

STAT = Path("/proc/stat")
TICKS = 100.0  # of /proc/stat in a second, on every Linux that Python runs on


class OtherWork:
    """Watch, as a context manager, what other processes take of the machine's cores.

    share: 0 to 1 once it has ended; None where the system doesn't tell (all but Linux)

    >>> with OtherWork() as others:
    ...     work = sum(range(100_000))
    >>> others.share is None or 0 <= others.share <= 1
    True
    """

    share: float | None = None

    def __enter__(self) -> "OtherWork":
        self._before = _seconds()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        before, after = self._before, _seconds()
        if before and after and after[0] > before[0]:
            wall, busy, own = (b - a for a, b in zip(before, after))
            self.share = min(1.0, max(0.0, (busy - own) / wall))


def _seconds() -> tuple[float, float, float] | None:
    """Return seconds of all cores since the start: in all, not idle, and those of this process and its children."""
    try:
        lines = STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    user, nice, system, _, _, *rest = (int(number) / TICKS for number in lines[0].split()[1:9])
    cores = sum(line.startswith("cpu") for line in lines) - 1
    spent = os.times()
    own = spent.user + spent.system + spent.children_user + spent.children_system
    return time.monotonic() * cores, user + nice + system + sum(rest), own
