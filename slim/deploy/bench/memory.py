"""Peak memory of a network at work, from a process of its own: what others left behind doesn't count."""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from slim.deploy.bench.runners import Runner, is_checkpoint, open_runners
from slim.errors import SlimError

CHILD = "import json, sys; from slim.deploy.bench import memory; memory.measure(*json.loads(sys.argv[1]))"
RUNS = 3  # the first allocates; the rest show that it stays


def peak_memory(
    runner: Runner, batch_sizes: Sequence[int], image_size: int | None = None, allow_code: str | Collection[str] = ()
) -> dict[int, int]:
    """For each batch size the bytes of resident memory that a process takes at most, loading included, above what it
    takes with its libraries loaded. On a GPU that is the host's memory alone.

    Empty where the system doesn't say (it is Linux that does), and for a compiled network, whose compiler would count.
    """
    if runner.mode == "compiled" or not Path("/proc/self/status").exists():
        return {}
    about = [str(runner.path), runner.provider, runner.threads, sorted(batch_sizes), image_size, list(allow_code)]
    done = subprocess.run([sys.executable, "-c", CHILD, json.dumps(about)], capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SlimError(f"can't measure the memory of {str(runner.path)!r}: {reason}; expected --memory false")
    return {int(size): peak for size, peak in json.loads(done.stdout.splitlines()[-1]).items()}


def measure(
    path: str, provider: str, threads: int, batch_sizes: list[int], image_size: int | None, code: list[str]
) -> None:
    """What the child does: print the peaks."""
    import onnxruntime  # noqa: F401  (both before the first look at memory)

    if is_checkpoint(path):
        import slim.checkpoint  # noqa: F401
    before = _status("VmRSS")
    [runner] = open_runners(path, path, provider, threads, image_size, compiled=False, allow_code=code).values()
    peaks = {}
    for size in batch_sizes:
        call = runner.prepare(size)
        for _ in range(RUNS):
            call()
        peaks[size] = _status("VmHWM") - before
    print(json.dumps(peaks))


def _status(key: str) -> int:
    """Bytes. Not getrusage: its peak is inherited from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
