"""Kill slim-run at every moment that matters, and take disk, folder, clock, images and workers away from it.

A tiny network goes through all stages. Each fault hits a run in the middle; `--resume` goes on from there. Counted are
files that differ, bit for bit, from those of an undisturbed run (lost), temporary ones that are still there at the end
(left), commands without an end (hung), and tracebacks.

- killed, asked to end (SIGTERM), disk full: at everything that a run does to a file, each once; killed at random times
- folder deleted or read-only, two runs in one folder, the clock set back and forth
- workers that read images killed and stopped, images that vanish

    python scripts/fault_injection.py

writes scripts/results/fault_injection-DATE.md and .jsonl, and goes on where it was stopped. `--quick` takes the first
moments of each kind in slim-train, in some seconds, and writes nothing.
"""

import ctypes
import hashlib
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import shared
import torch
from PIL import Image

from slim import checkpoint
from slim.errors import SlimError
from slim.files import LEFTOVER, LOCK

SECONDS = 60  # of processor time that a command may take; ten times that by the clock, as machines are busy
RANDOM_KILLS = 60
RUN = Path("checkpoints/x")
TINY = """
from torch import nn

def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes),
    )
"""
DIGITS = {
    "name": "x",
    "model.arch": "tiny.py:net",
    "data.batch_size": "512",
    "train.epochs": "2",
    "finetune.epochs": "2",
    "save_minutes": "0.00001",  # a state after each step
    "prune.round_to": "1",  # by times that are measured, two runs may differ
    "bench.runs": "2",
    "bench.warmup": "0",
    "bench.threads": "[1]",
    "bench.batch_sizes": "[1]",
    "bench.memory": "false",
    "report.sweep_seconds": "0.1",
    "compute.device": "cpu",
    "compute.precision": "32-true",
}
IMAGES = DIGITS | {
    "data.name": "imagefolder",
    "data.root": "images",
    "data.image_size": "8",
    "data.batch_size": "96",
    "data.storage": "stream",
    "data.workers": "1",
    "data.timeout": "3",
    "report.page": "false",
}
FORKED = multiprocessing.get_context("fork")  # from this process, which imports and trains nothing
WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
PATTERNS = {"disk full": "open .*"}  # moments of a kind
SAME = ("*.safetensors", "plan.json", "*.onnx", "metrics.jsonl")  # files that must be the same, whatever happened
FINISHED, OVER = "then finished", "over"
WRONGS = ("lost", "left", "hung", "traceback", "odd end")
TRAINING = ["slim.workbench.run.training", "lightning_fabric", "sklearn.datasets"]  # imported at work
IMPORTED = {"train": TRAINING, "run": [*TRAINING, "slim.workbench.run.whole", "onnxruntime", "onnxscript"]}

Moment = str  # what is about to be done to which file
Row = tuple[str, Moment, str]  # kind of a fault, its moment, and what is wrong afterwards


# -- within the process of a command -----------------------------------------------------------------------------------


def moment_of(event: str, given: tuple[Any, ...], folder: str) -> Moment | None:
    """Return what is about to be done to a file of the run, in words that are the same in each run."""
    if event == "open" and not (isinstance(given[2], int) and given[2] & os.O_CREAT):
        return None
    path = given[1 if event == "os.rename" else 0]
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != "replacing":
        frame = frame.f_back
    path = frame.f_locals.get("path", path)  # the one whose place a temporary file will take
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    text = os.path.abspath(os.fsdecode(path))
    if not text.startswith(folder):
        return None
    name = re.sub(r"\d{9}", "N", re.sub(r"\.slim-\w+|\.tmp\w{6}", "temporary", text.removeprefix(folder).lstrip("/")))
    return f"{event.removeprefix('os.')} {name or 'folder'}"


def act(kind: str) -> None:
    """Do to this process, or to its folder, what it is to suffer."""
    match kind:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "asked to end":
            os.kill(os.getpid(), signal.SIGTERM)
        case "disk full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        case "folder deleted":
            shutil.rmtree(RUN)


def suffer_once(kind: str, met: frozenset[Moment], only: str, tells: Connection) -> None:
    """Suffer at the first moment that isn't among those `met`, and is one of `only` (a pattern), and tell which."""
    place, over = str(RUN.absolute()), False

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal over
        if over or event not in WATCHED:
            return
        moment = moment_of(event, given, place)
        if moment is None or moment in met or not re.fullmatch(only or PATTERNS.get(kind, ".*"), moment):
            return
        over = True  # also for what is done here
        tells.send(moment)
        act(kind)

    sys.addaudithook(hook)


def without_powers() -> None:
    """Let permissions hold for root, too (capset(2), with nothing permitted)."""
    version, nothing = 0x20080522, (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(version, 0), nothing)


def keep_exports(folder: Path) -> None:
    """Take what torch's exporter made of the same network before: it isn't tried here, and takes most of the time."""
    from slim.deploy.onnx.write import Draft

    export = Draft.__dict__["content"].func

    def content(draft: Draft) -> bytes:
        net = draft.graph.net
        weights = b"".join(tensor.numpy().tobytes() for tensor in net.state_dict().values())
        kept = folder / hashlib.sha256(f"{net} {draft.properties}".encode() + weights).hexdigest()
        if not kept.exists():
            folder.mkdir(exist_ok=True)
            made: bytes = export(draft)
            kept.with_suffix(".part").write_bytes(made)
            kept.with_suffix(".part").rename(kept)
        return kept.read_bytes()

    Draft.content = property(content)  # type: ignore[assignment]


def command(place: Path, name: str, argv: Sequence[str], says: int, prepare: Callable[[], None]) -> None:
    """Run slim-NAME in a folder. What it says goes to a pipe."""
    main = import_module(f"slim.workbench.cli.{name}").main

    for stream in (1, 2):
        os.dup2(says, stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    os.chdir(place)
    os.environ["SLIM_CACHE"] = str(place / "cache")
    keep_exports(place / "exports")
    torch.set_num_threads(1)  # several wait for each other longer than they work, on a network this small
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    prepare()
    main(argv)


# -- around it ---------------------------------------------------------------------------------------------------------


class Started:
    """A command that runs in a process of its own."""

    def __init__(self, place: Path, name: str, argv: Sequence[str], prepare: Callable[[], None]) -> None:
        self.hears, says = os.pipe()
        self.process = FORKED.Process(target=command, args=(place, name, argv, says, prepare))
        self.process.start()
        os.close(says)
        self.text = ""

    def ended(self) -> "Started":
        """Wait for the end; what hangs is killed, with the status None."""
        self.process.join(10 * SECONDS)
        self.status = self.process.exitcode
        if self.status is None or self.status == -signal.SIGXCPU:
            self.status = None
            self.process.kill()
            self.process.join()
        os.set_blocking(self.hears, False)
        with suppress(BlockingIOError):
            while some := os.read(self.hears, 1 << 16):
                self.text += some.decode(errors="replace")
        os.close(self.hears)
        return self

    @property
    def in_one_line(self) -> bool:
        lines = [line for line in self.text.splitlines() if line and "warning:" not in line]
        return self.status == 2 and len(lines) == 1 and lines[0].startswith("slim-") and ": error: " in lines[0]


def fingerprints(run: Path) -> dict[str, str]:
    """Return for each file that must be the same a hash of what is in it, times apart."""
    return {path.name: fingerprint(path) for files in SAME for path in run.glob(files)}


def fingerprint(path: Path) -> str:
    """Return a hash of what is in a file, times apart."""
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        parts = [str({k: v for k, v in line.items() if "second" not in k}).encode() for line in lines]
    elif path.suffix == ".safetensors":
        about, tensors = checkpoint._read(path)
        parts = [str([about["plans"], about["metrics"].get("accuracy")]).encode()]
        parts += [f"{name} {t.dtype}".encode() + t.numpy().tobytes() for name, t in sorted(tensors.items())]
    else:
        parts = [path.read_bytes()]
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


@dataclass(frozen=True)
class Trial:
    """A folder in which a run is broken, with what it reads, and what an undisturbed one leaves."""

    place: Path
    name: str  # of the command
    settings: Mapping[str, str]
    whole: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # that an undisturbed run takes

    @property
    def run(self) -> Path:
        return self.place / RUN

    def start(self, *more: str, prepare: Callable[[], None] = lambda: None) -> Started:
        argv = [*(f"--{key}={value}" for key, value in self.settings.items()), "--quiet", *more]
        return Started(self.place, self.name, argv, prepare)

    def suffer(self, kind: str, met: frozenset[Moment], only: str = "") -> tuple[Moment | None, str]:
        """Start or resume a run that suffers at a moment of its own; return that, and what is wrong afterwards."""
        told, tells = FORKED.Pipe(duplex=False)
        done = self.start("--resume", prepare=lambda: suffer_once(kind, met, only, tells)).ended()
        tells.close()
        try:
            moment = told.recv()
        except EOFError:  # it met none
            return None, wrong_with(done, done.status == 0) or self.difference()
        return moment, wrong_with(done, ENDS[kind](done)) or self.damage()

    def clear(self) -> None:
        """Take away what earlier runs left."""
        shutil.rmtree(self.run, ignore_errors=True)

    def broken(self, moment: Moment) -> None:
        """Kill a new run at a moment."""
        self.clear()
        self.suffer("killed", frozenset(), re.escape(moment))

    def finish(self) -> str:
        """Go on to the end; return what is wrong then."""
        done = self.start("--resume").ended()
        return wrong_with(done, done.status == 0) or self.difference()

    def difference(self) -> str:
        """Return what a run that ended well has that an undisturbed one hasn't, or the other way round."""
        found, inside = fingerprints(self.run), list(self.run.rglob("*"))
        lost = told_as("lost", (n for n in found.keys() | self.whole.keys() if found.get(n) != self.whole.get(n)))
        return lost or told_as("left", (path.name for path in inside if path.name == LOCK or is_temporary(path)))

    def damage(self) -> str:
        """Return which files of a broken run aren't whole."""
        return told_as("lost", (path.name for path in self.run.glob("[!.]*.safetensors") if not is_whole(path)))


def told_as(wrong: str, names: Iterable[str]) -> str:
    text = ", ".join(sorted(names))
    return text and f"{wrong}: {text}"


def is_temporary(path: Path) -> bool:
    return bool(LEFTOVER.fullmatch(path.name)) or path.suffix == ".state"


def is_whole(path: Path) -> bool:
    """Say whether a checkpoint can be read and has the hash that it says."""
    try:
        return bool(checkpoint._read(path))
    except SlimError:
        return False


def wrong_with(done: Started, expected: bool) -> str:
    """Return what is wrong with how a command ended; nothing where that is as `expected`."""
    last = done.text.strip().rpartition("\n")[2][:300]
    if done.status is None:
        return "hung"
    if "Traceback" in done.text:
        return f"traceback: {last}"
    return "" if expected else f"odd end: status {done.status}: {last}"


# How a command ends that suffers: in one line, unless it is killed. Without its folder it may begin anew.
ENDS: dict[str, Callable[[Started], bool]] = {
    "killed": lambda done: done.status == -signal.SIGKILL,
    "asked to end": lambda done: done.status == 128 + signal.SIGTERM and "go on with: slim-" in done.text,
    "disk full": lambda done: done.in_one_line,
    "folder deleted": lambda done: done.in_one_line or done.status == 0,
}


# -- what is done to runs ----------------------------------------------------------------------------------------------


def make(place: Path, name: str, settings: Mapping[str, str]) -> Trial:
    """Return a folder to break runs in, made by a run that nothing disturbs."""
    place.mkdir()
    (place / "tiny.py").write_text(TINY)
    if "images" in settings.values():
        draw = random.Random(0)
        for label in "ab":
            (place / "images" / label).mkdir(parents=True)
            for number in range(400):  # fewer are read without workers
                noise = bytes(draw.randrange(128) + 127 * (label == "b") for _ in range(64))
                Image.frombytes("L", (8, 8), noise).save(place / "images" / label / f"{number}.png")
    started = time.monotonic()
    done = Trial(place, name, settings).start().ended()
    if done.status != 0:
        raise SystemExit(f"a run that nothing disturbs ended with {done.status}: {done.text}")
    return Trial(place, name, settings, fingerprints(place / RUN), time.monotonic() - started)


def each_once(trial: Trial, kind: str, most: int, only: str = "") -> Iterator[Row]:
    """Let a run suffer at one moment after the other, until none is left or there were `most`; then finish it."""
    trial.clear()
    met: set[Moment] = set()
    while len(met) < most:
        moment, wrong = trial.suffer(kind, frozenset(met), only)
        if moment is None:
            yield kind, FINISHED, wrong
            return
        met.add(moment)
        yield kind, moment, wrong
    yield kind, FINISHED, trial.finish()


def at_random(trial: Trial, most: int) -> Iterator[Row]:
    """Kill runs at random times, each one until it is done."""
    draw, killed, seconds = random.Random(0), 0, trial.seconds / 2
    trial.clear()
    while killed < most:
        running, after, started = trial.start("--resume"), draw.uniform(0, seconds), time.monotonic()
        running.process.join(after)
        running.process.kill()
        done = running.ended()
        if done.status == -signal.SIGKILL:
            killed += 1
            yield "killed at a random time", f"after {after:.1f} s", trial.damage()
        else:
            seconds = min(seconds, time.monotonic() - started)  # where a whole run takes less, few are killed
            yield "killed at random times", FINISHED, wrong_with(done, done.status == 0) or trial.difference()
            trial.clear()
    yield "killed at random times", FINISHED, trial.finish()


def read_only(trial: Trial) -> Iterator[Row]:
    """Take the right to write from a run in the middle."""
    trial.broken("rename sparse.safetensors")
    trial.run.chmod(0o555)
    done = trial.start("--resume", prepare=without_powers).ended()
    trial.run.chmod(0o755)
    yield "folder read-only", "sparse", wrong_with(done, done.in_one_line) or trial.finish()


def two_runs(trial: Trial) -> Iterator[Row]:
    """Start a run where another one is."""
    trial.clear()
    first = trial.start()
    while not (trial.run / ".lock").exists():
        time.sleep(0.01)
    assert first.process.pid is not None
    os.kill(first.process.pid, signal.SIGSTOP)  # it may take less time than the second needs to begin
    second = trial.start().ended()
    os.kill(first.process.pid, signal.SIGCONT)
    wrong = wrong_with(second, second.in_one_line and "is in use by" in second.text)
    done = first.ended()
    yield "two runs in one folder", "start", wrong or wrong_with(done, done.status == 0) or trial.difference()


def clock(trial: Trial) -> Iterator[Row]:
    """Set the clock back, or forth, while a run is interrupted."""
    for hours in (-100_000, 100_000):
        trial.broken("rename sparse.state/step-N")
        for path in (trial.run, *trial.run.rglob("*")):
            then = path.stat().st_mtime - 3600 * hours
            os.utime(path, (then, then))
        yield f"clock set {'back' if hours < 0 else 'forth'}", "sparse", trial.finish()


def workers(trial: Trial, number: signal.Signals, kind: str) -> Iterator[Row]:
    """Kill or stop a process that reads images."""
    trial.clear()
    running = trial.start()
    found = wait_for(running, lambda: list(trial.run.glob("*.state/step-*")) and readers_of(running.process.pid))
    for reader in found[:1]:
        with suppress(ProcessLookupError):  # between two epochs
            os.kill(reader, number)
    done = running.ended()
    wrong = wrong_with(done, done.in_one_line) if found else "odd end: no process read images while it trained"
    yield kind, "baseline", wrong or trial.finish()


def vanishing(trial: Trial) -> Iterator[Row]:
    """Take images away from a run that reads them."""
    trial.clear()
    images, elsewhere = trial.place / "images" / "a", trial.place / "elsewhere"
    running = trial.start()
    wait_for(running, lambda: list(trial.run.glob("*.state/step-*")))
    images.rename(elsewhere)
    done = running.ended()
    elsewhere.rename(images)
    yield "images that vanish", "baseline", wrong_with(done, done.in_one_line) or trial.finish()


def wait_for(running: Started, ready: Callable[[], list[Any]]) -> list[Any]:
    """Return what `ready` gives as soon as it isn't empty; an empty list where the run ends before."""
    while not (found := ready()) and running.process.is_alive():
        time.sleep(0.01)
    return found


def readers_of(process: int | None) -> list[int]:
    """Return the processes that a process has forked (Linux): those that read images, not helpers of Python's own."""
    with suppress(OSError):
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        own = Path(f"/proc/{process}/cmdline").read_bytes()
        return [int(child) for child in children if Path(f"/proc/{child}/cmdline").read_bytes() == own]
    return []


def cases(quick: bool) -> dict[str, Callable[[Trial, Trial], Iterator[Row]]]:
    """Return what is done, by name: generators of what happened, from a run of the digits and one that reads files."""
    most = 3 if quick else 1000
    stages = r"rename (sparse|pruned|finetuned)\.safetensors|rename model\.onnx"
    made: dict[str, Callable[[Trial, Trial], Iterator[Row]]] = {
        "two runs": lambda digits, _: two_runs(digits),
        "killed": lambda digits, _: each_once(digits, "killed", most),
        "disk full": lambda digits, _: each_once(digits, "disk full", most),
        "asked to end": lambda digits, _: each_once(digits, "asked to end", most),
    }
    if not quick:
        made |= {
            "read-only": lambda digits, _: read_only(digits),
            "clock": lambda digits, _: clock(digits),
            "folder deleted": lambda digits, _: each_once(digits, "folder deleted", most, stages),
            "worker killed": lambda _, images: workers(images, signal.SIGKILL, "worker killed"),
            "worker stopped": lambda _, images: workers(images, signal.SIGSTOP, "worker stopped"),
            "images vanish": lambda _, images: vanishing(images),
            "killed at random": lambda digits, _: at_random(digits, RANDOM_KILLS),
        }
    return made


def main() -> None:
    options = shared.parser_of(__doc__)
    options.add_argument("cases", nargs="*", help=f"of {', '.join(cases(quick=False))} (all)")
    options.add_argument("--quick", action="store_true")
    given = options.parse_args()
    file = shared.RESULTS / f"fault_injection-{date.today()}.jsonl"
    rows = [] if given.quick else shared.read_rows(file)
    done = {row["case"] for row in rows if row["moment"] == OVER}
    rows = [row for row in rows if row["case"] in done]
    chosen = "train" if given.quick else "run"
    for module in (f"slim.workbench.cli.{chosen}", *IMPORTED[chosen]):  # once, as forked processes share it
        import_module(module)
    with tempfile.TemporaryDirectory() as folder:
        digits = make(Path(folder, "digits"), chosen, DIGITS)
        images = digits if given.quick else make(Path(folder, "images"), chosen, IMAGES)
        for name, case in cases(given.quick).items():
            if name in done or (given.cases and name not in given.cases):
                continue
            for kind, moment, wrong in chain(case(digits, images), [("", OVER, "")]):
                rows.append({"case": name, "kind": kind, "moment": moment, "wrong": wrong})
                if moment != OVER:
                    print(kind, moment, wrong or "well", sep=": ", flush=True)
                if not given.quick:
                    shared.add_row(file, rows[-1])
    if not given.quick:
        print(shared.write("fault_injection", page_of(rows)))
    sys.exit(1 if any(row["wrong"] for row in rows) else 0)


def page_of(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of what was tried and came of it."""
    counts = {}
    for kind in dict.fromkeys(row["kind"] for row in rows if row["kind"]):
        own = [row for row in rows if row["kind"] == kind]
        times = sum(row["moment"] != FINISHED for row in own)
        counts[kind] = [times, *(sum(row["wrong"].startswith(word) for row in own) for word in WRONGS)]
    head = ["fault", "times", *WRONGS]
    lines = [[kind, *numbers] for kind, numbers in counts.items()]
    total = ["all", *map(sum, zip(*counts.values()))]
    wrong = "\n".join(f"- {row['kind']}, {row['moment']}: {row['wrong']}" for row in rows if row["wrong"])
    return f"# Faults, put into slim-run\n\n{shared.ran_on()}\n\n{shared.table(head, [*lines, total])}\n\n{wrong}\n"


if __name__ == "__main__":
    main()
