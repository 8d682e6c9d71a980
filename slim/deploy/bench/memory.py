"""Peak memory of a network at work, from a process of its own: what others left behind doesn't count."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from slim.deploy.bench.runners import Runner
from slim.errors import SlimError

RUNS = 3  # the first allocates; the rest show that it stays
# -P keeps the working folder, where anybody's json.py may lie, off the path; slim and what its networks are made of are
# then found where this process finds them
CHILD = "import sys; sys.path += sys.argv[1:]; from slim.deploy.bench import memory; memory.report(sys.stdin.buffer)"


def peak_memory(runner: Runner, batch_sizes: Sequence[int]) -> dict[int, int]:
    """Return for each batch size the bytes of resident memory that a process takes at most, loading included, above
    what it takes with its libraries loaded. On a GPU that is the host's memory alone.

    Empty where the system doesn't say (it is Linux that does), for what can't be handed to another process (a network
    with a lambda in it, say), and for a compiled network, whose compiler would count.
    """
    if not runner.measures_memory or not Path("/proc/self/status").exists():
        return {}
    try:
        task = pickle.dumps((type(runner).__module__, sorted(batch_sizes))) + pickle.dumps(runner)
    except Exception:  # pickle, and whatever it finds in the network, raise errors of many kinds
        return {}
    command = [sys.executable, "-P", "-c", CHILD, *_search_path()]
    done = subprocess.run(command, input=task, capture_output=True)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SlimError(f"can't measure the memory of a network: {reason}; expected memory false")
    return {int(size): peak for size, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def _search_path() -> list[str]:
    """Return where this process finds modules, the working folder last."""
    here = os.getcwd()
    return sorted((os.path.abspath(entry) for entry in sys.path), key=lambda entry: entry == here)


def report(task: BinaryIO) -> None:
    """Print the peaks of the runner in `task`, as JSON; what the child does."""
    module, batch_sizes = pickle.load(task)
    __import__(module)  # with its libraries, before the first look at memory
    before = _status("VmRSS")
    try:
        runner: Runner = pickle.load(task)
    except (ImportError, AttributeError):  # made of classes that only the other process has
        print("{}")
        return
    peaks = {}
    for size in batch_sizes:
        call = runner.prepare(size)
        for _ in range(RUNS):
            call()
        peaks[size] = _status("VmHWM") - before
    print(json.dumps(peaks))


def _status(key: str) -> int:
    """Return bytes. Not getrusage: its peak is inherited from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
