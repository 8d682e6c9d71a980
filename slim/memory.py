"""How much memory a process can still take."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> float:
    """Return the bytes that a process can still take: of the machine's, and of what its container may have."""
    return min(_free_here(), _free_in_container())


def _free_here() -> float:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(1024.0 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: half of the whole
        names = os.sysconf_names if hasattr(os, "sysconf") else {}
        if "SC_PHYS_PAGES" not in names:
            return 8e9
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def _free_in_container() -> float:
    """Return what the limits of this process's control groups leave (cgroups v2, then v1); pages of files count as
    free, as they are given up first."""
    for limit, used, inactive in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, taken = (int((CGROUPS / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (CGROUPS / limit).with_name("memory.stat").read_text().splitlines())
            return max(0.0, float(most - taken + int(stat.get(inactive, 0))))
        except (OSError, ValueError):  # there is none, or it says "max"
            continue
    return float("inf")
