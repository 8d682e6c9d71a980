"""How much memory a process can still take."""

import os


def free_memory() -> float:
    """Return the bytes that a process can still take."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: half of the whole
        names = os.sysconf_names if hasattr(os, "sysconf") else {}
        if "SC_PHYS_PAGES" not in names:
            return 8e9
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
