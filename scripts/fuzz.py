"""Feed slim with hostile and odd inputs: files, command lines, images, arguments.

Whatever comes in, only a `SlimError` of one readable line may come out, within 5 seconds of the processor's time (a
minute by the clock, as machines are busy) and 1 GB, and nothing may be written outside the folder of the case, no
process or connection be started. Every case follows from its number:

    python scripts/fuzz.py plans --first 4711 --cases 1

shows one again. The inputs are those of a run of digits, which is made first (20 s), changed at random places: bytes,
values of JSON, metadata under a hash that is right. The result goes to scripts/results/fuzz-DATE.md and .jsonl; the
next call goes on to as many `--cases` as it is asked for.
"""

import contextlib
import copy
import io
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import shared
import torch
import yaml
from PIL import Image
from torch import nn

import slim
from slim import checkpoint
from slim.errors import SlimError
from slim.images import read_image
from slim.prune.plan import PruningPlan
from slim.prune.plan_format import hash_of
from slim.workbench import config
from slim.workbench.cli import parser
from slim.workbench.cli.errors import one_line
from slim.workbench.config import DataConfig, RunConfig

SECONDS = 5  # of the processor
BY_THE_CLOCK = 60
ROOT = Path(__file__).resolve().parents[1]
TIMERS = [
    (signal.SIGPROF, signal.ITIMER_PROF, SECONDS),
    (signal.SIGALRM, signal.ITIMER_REAL, BY_THE_CLOCK),
]
KILOBYTES = 1_000_000
LONGEST_LINE = 1_000  # characters of an error
PART = 500  # cases that are entered at once
ROWS = shared.RESULTS / f"fuzz-{date.today()}.jsonl"

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2, 7, -999_999, 10**6, 10**12, 10**30, 10**400, 0.5, -0.5, 1e-308, 1e308, -1e308,
    math.nan, math.inf, -math.inf, "", "x", "auto", "0", "1e3", "nan", "../..", "/dev/zero", "a" * 5000, "\x00",
    "\x1b[31mred", "a\nb", "<script>alert(1)</script>", "os:system", "\ud800", "2020-99-99", "!!int abc", "ß∂γ", [], {},
    [[]], [None], [0], [-1], [1, 2, 3], [1e308], ["a"], {"a": 1}, {"": None}, DEEP,
]  # fmt: skip

Case = Callable[[], object]
Target = Callable[[random.Random, Path, Path], Case]  # from the case's draws, a finished run, and a folder of its own
TARGETS: dict[str, Target] = {}


def target(made: Target) -> Target:
    """Enter what makes cases of one kind under its name."""
    TARGETS[made.__name__] = made
    return made


# -- changes -----------------------------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place within a nested value, as what holds it and its key."""
    pending = [value]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else []
        for key in keys[:200]:
            yield holder, key
            pending.append(holder[key])


def odd(draw: random.Random) -> Any:
    """Return an odd value, new each time: later changes may go on within it."""
    return copy.deepcopy(draw.choice(ODD))


def changed(draw: random.Random, value: Any) -> Any:
    """Return a nested value with one to three of its places odd, gone, doubled or exchanged."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        found = list(places(value))
        if not found:
            return odd(draw)
        holder, key = draw.choice(found)
        match draw.randrange(8):
            case 0:
                del holder[key]
            case 1:
                other, from_there = draw.choice(found)
                if from_there in other if isinstance(other, dict) else from_there < len(other):
                    holder[key] = copy.deepcopy(other[from_there])
            case 2 if isinstance(holder, dict):
                holder[str(draw.choice(ODD))[:50]] = holder.pop(key)
            case 3 if isinstance(holder, list):
                holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
            case 4 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                with contextlib.suppress(OverflowError):  # 0.5 more than what has 400 digits
                    holder[key] += draw.choice([1, -1, 1000, 0.5])
            case _:
                holder[key] = odd(draw)
    return value


def bitten(draw: random.Random, content: bytes) -> bytes:
    """Return bytes of which some are others, gone, or too many."""
    some = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(some) or 1)
        match draw.randrange(4):
            case 0:
                del some[at:]
            case 1:
                some[at:at] = draw.randbytes(draw.randrange(1, 20))
            case 2:
                del some[at : at + draw.randrange(1, 20)]
            case _ if some:
                some[at] ^= 1 << draw.randrange(8)
    return bytes(some)


def as_json(value: Any) -> str:
    """Return a value as JSON, whatever it holds: text without a form in UTF-8 is escaped."""
    return json.dumps(value)


# -- what is fed -------------------------------------------------------------------------------------------------------


@target
def checkpoints(draw: random.Random, base: Path, folder: Path) -> Case:
    """A network's file: other bytes, or other metadata and tensors under a hash that is right."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    source, path = base / draw.choice(["sparse", "pruned"]), folder / "x.safetensors"
    source = source.with_suffix(".safetensors")
    if draw.random() < 0.3:
        path.write_bytes(bitten(draw, source.read_bytes()))
    else:
        with safe_open(source, framework="pt") as file:
            about = json.loads(file.metadata()["slim"])
        tensors = load_file(source)
        if draw.random() < 0.3:
            name = draw.choice([name for name in tensors if tensors[name].ndim])
            kept = tensors.pop(name)
            others = [kept.double(), kept.reshape(-1), kept[..., :1].contiguous(), kept.to(torch.int8), kept[:0]]
            tensors[draw.choice([name, "other", ""])] = draw.choice(others)
        else:
            about = changed(draw, about)
        text = as_json(about)
        save_file(tensors, path, metadata={"slim": text, "sha256": checkpoint._digest(text, tensors)})

    def case() -> None:
        checkpoint.read_metadata(path)
        slim.load(path)

    return case


@target
def plans(draw: random.Random, base: Path, folder: Path) -> Case:
    """A plan: other text, or other values under a hash that is right; applied, and the thin network run."""
    source, path = base / "plan.json", folder / "plan.json"
    if draw.random() < 0.2:
        path.write_bytes(bitten(draw, source.read_bytes()))
    else:
        record = changed(draw, json.loads(source.read_text()))
        if isinstance(record, dict):
            with contextlib.suppress(TypeError, ValueError, RecursionError):
                record["hash"] = hash_of(record)
        path.write_text(as_json(record))
    model = slim.load(base / "sparse.safetensors")

    def case() -> None:
        plan = PruningPlan.load(path)
        str(plan), plan.ratio_achieved, plan.digest
        thin = plan.apply(model)
        slim.verify(model, thin, plan, torch.randn(2, 1, 8, 8))
        thin(torch.zeros(1, 1, 8, 8))

    return case


@target
def configs(draw: random.Random, base: Path, folder: Path) -> Case:
    """A file of settings: other values, other YAML."""
    path, text = folder / "config.yaml", (base / "config.yaml").read_text()
    if draw.random() < 0.4:
        path.write_bytes(bitten(draw, text.encode()))
    elif draw.random() < 0.3:
        lines = text.splitlines()
        at = draw.randrange(len(lines))
        tail = draw.choice(
            [": !!int a", ": 2020-99-99", ": [[[[", ": &a [*a]", ": !!python/name:os.system", ": |", "? ", "\t"]
        )
        lines[at] = lines[at].partition(":")[0] + tail
        path.write_text("\n".join(lines))
    else:
        with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError, RecursionError):
            path.write_text(yaml.safe_dump(changed(draw, yaml.safe_load(text))))

    def case() -> None:
        made = config.updated(RunConfig(), config.read(path))
        assert config.updated(RunConfig(), yaml.safe_load(config.to_yaml(made))) == made

    return case


def beyond(s: config.Setting, draw: random.Random) -> tuple[str, bool | None]:
    """Return a text for a setting, and whether it is sound; None where that isn't known."""
    kinds = {s.type, *get_args(s.type), *(each for kind in get_args(s.type) for each in get_args(kind))}
    if s.within and kinds & {int, float} and draw.random() < 0.6:
        low, high = (float(end) for end in s.within[1:-1].split(","))
        step = 1 if float not in kinds else 1e-3
        inside = {low: s.within[0] == "[", low + step: True, low - step: False}
        if high < math.inf:
            inside |= {high: s.within[-1] == "]", high + step: False, high - step: True}
        value = draw.choice([each for each in inside if float in kinds or each == int(each)] or [low])
        return repr(value if float in kinds else int(value)), inside[value]
    if get_origin(s.type) is Literal and s.key != "compute.device" and draw.random() < 0.5:  # not each is everywhere
        return str(draw.choice(get_args(s.type))), True
    return str(draw.choice(ODD)), None


@target
def command_lines(draw: random.Random, base: Path, folder: Path) -> Case:
    """Every setting of every command at, below and above its bounds, and with odd values: taken or refused."""
    s = draw.choice(list(config.settings().values()))
    text, sound = beyond(s, draw)
    name = draw.choice(["train", "prune", "finetune", "export", "bench", "run"])
    words = [f"--{s.key}={text}"] if draw.random() < 0.8 else [f"--{s.key}", text]
    if draw.random() < 0.1:
        words.insert(0, str(draw.choice(ODD))[:50])

    def case() -> None:
        made = parser.SettingsParser(f"slim-{name}", "", "train")
        try:
            given = made.read(words)
        except SlimError:
            assert not sound or len(words) > 1, f"{words} is within {s.within}, and refused"
            raise
        assert sound is not False, f"{words} is outside {s.within}, and taken"
        config.to_yaml(config.updated(RunConfig(), given.as_options)).encode()

    return case


@target
def onnx_metadata(draw: random.Random, base: Path, folder: Path) -> Case:
    """An exported network: other bytes, or other metadata; opened and run on an image."""
    import onnx

    path, image = folder / "model.onnx", np.zeros((9, 9), np.uint8)
    if draw.random() < 0.2:
        path.write_bytes(bitten(draw, (base / "model.onnx").read_bytes()))
    else:
        model = onnx.load(base / "model.onnx")
        entry = draw.choice(model.metadata_props)
        value = changed(draw, json.loads(entry.value)) if entry.value[:1] in "[{" else draw.choice(ODD)
        text = draw.choice([as_json(value), str(value), entry.value[:-1]])
        with contextlib.suppress(UnicodeEncodeError):
            entry.value = text
        onnx.save(model, path)

    def case() -> None:
        found = slim.OnnxModel(path, threads=1)
        for label, share in found.predict(image)[0]:
            assert isinstance(label, str) and 0 <= share <= 1.001

    return case


@target
def onnx_graphs(draw: random.Random, base: Path, folder: Path) -> Case:
    """An ONNX file to be pruned: other bytes, or a graph with other nodes, attributes and shapes; read and planned."""
    path, source = folder / "model.onnx", base / "model.onnx"
    path.write_bytes(bitten(draw, source.read_bytes()) if draw.random() < 0.1 else altered_graph(draw, source))

    def case() -> None:
        slim.plan(slim.read_onnx(path), torch.zeros(2, 1, 8, 8), ratio=0.5)

    return case


def altered_graph(draw: random.Random, source: Path) -> bytes:
    """Return an ONNX file of which one to three values are others, or some operators."""
    import onnx
    from google.protobuf import json_format

    from slim.deploy.onnx.reader.node import READERS

    model = json_format.MessageToDict(onnx.load(source))
    while True:  # to what protobuf takes
        graph = copy.deepcopy(model["graph"])
        part = draw.choice(["node", "node", "node", "initializer", "input", "output"])
        graph[part] = changed(draw, graph[part])
        with contextlib.suppress(Exception):
            for node in graph["node"]:
                if draw.random() < 0.02:
                    node["opType"] = draw.choice(sorted(READERS))
            made = json_format.ParseDict(model | {"graph": graph}, onnx.ModelProto())
            return bytes(made.SerializeToString())


@target
def images(draw: random.Random, base: Path, folder: Path) -> Case:
    """A file that says it is an image."""
    kind = draw.choice(["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
    size, mode = draw.choice([(1, 1), (8, 8), (40, 3)]), draw.choice(["L", "RGB", "P", "1", "CMYK", "I;16", "RGBA"])
    content = io.BytesIO()
    with contextlib.suppress(OSError, KeyError, ValueError):  # not every format holds every mode
        Image.new(mode, size).save(content, kind)
    path = folder / f"x.{kind.lower()}"
    path.write_bytes(bitten(draw, content.getvalue()))
    wanted, channels = draw.choice([None, (8, 8)]), draw.choice([1, 3])

    def case() -> None:
        found = read_image(path, wanted, channels)
        assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == channels

    return case


@target
def data_sets(draw: random.Random, base: Path, folder: Path) -> Case:
    """A folder of images, with links, pipes, odd names and a cache that may be another's."""
    from slim.workbench.data import batches, load

    root = folder / "data"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (6, 6), number).save(root / name / f"{number}.png")
    settings = DataConfig(name="imagefolder", root=str(root), storage=draw.choice(["auto", "stream"]), batch_size=4)
    if draw.random() < 0.3:
        load(settings, seed=0)
    file = root / draw.choice("ab") / draw.choice(["0.png", "new.png", "\udcff.png", "\x1b[31m.jpg"])
    file.unlink(missing_ok=True)
    match draw.randrange(7):
        case 0:
            os.mkfifo(file)
        case 1:
            file.symlink_to(file)
        case 2:
            file.symlink_to(root)
        case 3:
            shutil.rmtree(root / "a")
        case 4:
            file.write_bytes(draw.randbytes(50))
        case 5:
            for cache in root.glob(".slim-*"):
                cache.write_bytes(bitten(draw, cache.read_bytes()))
        case _:
            Image.new("RGB", draw.choice([(1, 1), (700, 1)])).save(file.with_suffix(".png"))

    def case() -> None:
        data = load(settings, seed=0)
        for split in (data.train, data.val, data.test):
            list(batches(split, data, 4))

    return case


@target
def records(draw: random.Random, base: Path, folder: Path) -> Case:
    """The records of a run; shown as a page, in Markdown and as a table."""
    from rich.console import Console

    from slim.workbench.report import collect, markdown, page, terminal

    run = folder / "run"
    run.mkdir()
    names = ["summary.json", "metrics.jsonl", "config.yaml", "evidence.json"]
    for name in names:
        if (base / name).exists():
            shutil.copy(base / name, run / name)
    path = run / draw.choice([name for name in names if (run / name).exists()])
    if draw.random() < 0.2:
        path.write_bytes(bitten(draw, path.read_bytes()))
    elif path.suffix == ".json":
        path.write_text(as_json(changed(draw, json.loads(path.read_text()))))
    elif path.suffix == ".jsonl":
        lines = changed(draw, [json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("\n".join(map(as_json, lines if isinstance(lines, list) else [lines])))
    else:
        with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError, RecursionError):
            path.write_text(yaml.safe_dump(changed(draw, yaml.safe_load(path.read_text()))))

    def case() -> None:
        found = collect(run)
        markdown.of([found]).encode()
        page.write([found], run / "report.html")
        Console(file=io.StringIO()).print(terminal.stage_table(found.stages, "x"))

    return case


@target
def arguments(draw: random.Random, base: Path, folder: Path) -> Case:
    """A public function with one argument odd."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x, odd = torch.randn(2, 1, 8, 8), draw.choice([*ODD, torch.zeros(0, 1, 8, 8), torch.zeros(3), nn.ReLU(), object()])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    plan = slim.plan(model, x, ratio=0.5)
    thin = plan.apply(model)
    calls: list[Case] = [
        lambda: slim.plan(odd, x, ratio=0.5),
        lambda: slim.plan(model, odd, ratio=0.5),
        lambda: slim.plan(model, x, odd),
        lambda: slim.plan(x, model, ratio=0.5),  # type: ignore[arg-type]
        *(
            lambda name=name: slim.plan(model, x, **{"ratio": 0.5, name: odd})
            for name in ("ratio", "score", "floor", "round_to", "keep", "scope", "mode", "grouped", "layer_ratios")
        ),
        lambda: slim.plan(model, x, slim.Flops(odd)),
        lambda: slim.plan(model, x, slim.Params(odd)),
        lambda: slim.plan(model, x, slim.Channels(odd)),
        lambda: plan.apply(odd),
        lambda: slim.verify(odd, thin, plan, x),
        lambda: slim.verify(model, odd, plan, x),
        lambda: slim.verify(model, thin, odd, x),
        lambda: slim.verify(model, thin, plan, odd),
        lambda: slim.sparsify(odd, optimizer, slim.L1(1e-4)),
        lambda: slim.sparsify(model, odd, slim.L1(1e-4)),
        lambda: slim.sparsify(model, optimizer, odd),
        lambda: slim.sparsify(model, optimizer, slim.L1(odd)),
        *(
            lambda name=name: slim.sparsify(model, optimizer, slim.L1(1e-4), **{name: odd})
            for name in ("method", "targets", "schedule", "target", "floor", "steps")
        ),
        lambda: plan.prune_optimizer(odd, model, thin),
        lambda: plan.prune_optimizer(optimizer, odd, thin),
        lambda: slim.recover(model, thin, plan, odd),
        lambda: slim.recover(model, thin, odd, x),
        lambda: slim.save(folder / "x.safetensors", odd, plan),
        lambda: slim.save(folder / "x.safetensors", thin, odd),
        lambda: slim.save(folder / "x.safetensors", thin, plan, metrics={"a": odd}),
        lambda: slim.load(base / "sparse.safetensors", odd),
        lambda: PruningPlan.from_dict(odd),
    ]
    return draw.choice(calls)


# -- one case ----------------------------------------------------------------------------------------------------------


class Hang(Exception):
    """A case that takes too long."""


@dataclass
class Findings:
    """What the cases of a target came to."""

    cases: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)  # kind -> the first number, and all of it
    slowest: float = 0.0  # s of the processor
    seconds: float = 0.0  # of all


_own: Path | None = None  # the folder that a case may write to, while one runs
_strayed: list[str] = []
WRITES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree"}
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class"}


def _look(event: str, given: tuple[Any, ...]) -> None:
    """Note what a case writes elsewhere, and what it starts. An audit hook stays for the rest of the process."""
    if _own is None:
        return
    if event in STARTS:
        _strayed.append(f"{event} {given!r:.100}")
    writes = event in WRITES or (event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and isinstance(given[0], str | bytes | os.PathLike):
        path = os.path.abspath(os.fsdecode(given[0]))
        if not path.startswith((str(_own), "/dev/", "/proc/")):
            _strayed.append(f"{event} {path!r:.100}")


def _too_long(*_: Any) -> None:
    raise Hang(f"more than {SECONDS} s of the processor, or {BY_THE_CLOCK} s by the clock")


def outcome(case: Case) -> str:
    """Run a case and return what came of it: "taken" or "refused". Anything else is an exception."""
    for kind, timer, seconds in TIMERS:
        signal.signal(kind, _too_long)
        signal.setitimer(timer, seconds)
    try:
        case()
    except SlimError as error:
        text = one_line(error)
        assert "\n" not in text and 0 < len(text) <= LONGEST_LINE, f"an error of {len(text)} characters: {text!r:.300}"
        return "refused"
    finally:
        for _, timer, _ in TIMERS:
            signal.setitimer(timer, 0)
    return "taken"


def fuzz(name: str, base: Path, numbers: range, show: bool = False) -> Findings:
    """Run cases of a target."""
    global _own
    found = Findings()
    here = Path.cwd()
    for number in numbers:
        draw = random.Random(f"{name} {number}")
        with tempfile.TemporaryDirectory(prefix="fuzz-") as place, warnings.catch_warnings(action="ignore"):
            case = TARGETS[name](draw, base, Path(place))
            _own, before = Path(place), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            _strayed.clear()
            os.chdir(place)
            start = time.process_time()
            try:
                came = outcome(case)
                grew = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
                assert grew < KILOBYTES, f"{grew / 1e6:.1f} GB"
                assert not _strayed, f"it strayed: {_strayed[0]}"
                found.outcomes[came] += 1
            except Exception as error:
                text = traceback.format_exc()
                where = re.findall(r'File ".*?/(slim/\S+)", line (\d+)', text)
                kind = f"{type(error).__name__} at {':'.join(where[-1]) if where else '?'}"
                found.outcomes["failed"] += 1
                found.failures.setdefault(kind, (number, text.replace(f"{ROOT}{os.sep}", "")))
                if show:
                    print(text)
            finally:
                _own = None
                os.chdir(here)
            took = time.process_time() - start
            found.slowest, found.seconds = max(found.slowest, took), found.seconds + took
        found.cases += 1
    return found


def make_base(folder: Path) -> Path:
    """Make a run to start from, and return its folder."""
    from slim.workbench.cli import run

    here = Path.cwd()
    os.chdir(folder)
    try:
        quick = ["--train.epochs", "1", "--finetune.epochs", "1", "--bench.runs", "2", "--bench.warmup", "0"]
        run.main([*quick, "--name", "x", "--bench.memory", "false", "--report.sweep_seconds", "1", "--quiet"])
    finally:
        os.chdir(here)
    return folder / "checkpoints" / "x"


def main() -> None:
    options = shared.parser_of(__doc__)
    options.add_argument("targets", nargs="*", default=list(TARGETS), help=f"of {', '.join(TARGETS)} (all)")
    options.add_argument("--cases", type=int, default=1000, help="of each target")
    options.add_argument("--first", type=int, help="number of the first one, of cases to be shown and not counted")
    options.add_argument("--base", type=Path, help="folder of a finished run of digits (one is made)")
    given = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        base = (given.base or make_base(Path(made))).resolve()
        sys.addaudithook(_look)
        for name in given.targets:
            warm_up(name, base)
            if given.first is not None:
                tell(name, fuzz(name, base, range(given.first, given.first + given.cases), show=given.cases == 1))
                continue
            while (first := sum(row["cases"] for row in shared.read_rows(ROWS) if row["input"] == name)) < given.cases:
                found = fuzz(name, base, range(first, min(first + PART, given.cases)))
                tell(name, found)
                shared.add_row(ROWS, {"input": name, **vars(found)})
    if given.first is None:
        print(shared.write("fuzz", page_of(shared.read_rows(ROWS))))


def warm_up(name: str, base: Path) -> None:
    """Import what cases of a target need: the first one would count it as its own time, memory and files."""
    import_module("torch._inductor.utils")  # as some operators do, which takes seconds and makes a folder
    with (
        tempfile.TemporaryDirectory() as place,
        warnings.catch_warnings(action="ignore"),
        contextlib.suppress(Exception),
    ):
        TARGETS[name](random.Random(0), base, Path(place))()


def tell(name: str, found: Findings) -> None:
    """Print what cases came to."""
    print(name, found.cases, dict(found.outcomes), f"{found.seconds:.0f} s", sep="  ", flush=True)
    for kind, (number, text) in found.failures.items():
        print(f"  {name} {number}: {kind}: {text.strip().splitlines()[-1][:200]}", flush=True)


def page_of(rows: list[dict[str, Any]]) -> str:
    """Return the table of what was tried and came of it."""
    lines = []
    for name in dict.fromkeys(row["input"] for row in rows):
        own = [row for row in rows if row["input"] == name]
        counts = [sum(row["outcomes"].get(key, 0) for row in own) for key in ("taken", "refused", "failed")]
        seconds, slowest = sum(row["seconds"] for row in own), max(row["slowest"] for row in own)
        cases = f"{sum(row['cases'] for row in own):,}"
        lines.append([name, cases, *(f"{n:,}" for n in counts), f"{seconds:.0f} s", f"{slowest:.2f} s"])
    head = ["input", "cases", "taken", "refused in one line", "failed", "took", "slowest case"]
    return f"# Hostile and odd inputs\n\n{shared.ran_on()}\n\n{shared.table(head, lines)}\n"


if __name__ == "__main__":
    main()
