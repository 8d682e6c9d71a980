"""A few of the faults of scripts/fault_injection.py, which puts one at every moment that matters."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fault_injection.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs fork and /proc")
def test_nothing_is_lost_and_all_is_told_in_one_line() -> None:
    """In a process of its own: what is forked from here couldn't train any more."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--quick"], capture_output=True, text=True, timeout=500)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines) == 13 and all(line.endswith(": well") for line in lines)  # 3 moments of 3 kinds, each resumed
    assert {line.partition(": ")[0] for line in lines} == {
        "killed", "asked to end", "disk full", "two runs in one folder",
    }  # fmt: skip
