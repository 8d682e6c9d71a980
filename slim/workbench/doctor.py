"""Whether this installation can be trusted: what it is made of, and what it does on a small network of its own."""

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import slim
from slim.deploy.cost.model import cache_folder
from slim.deploy.processor import instructions
from slim.deploy.timing import gpu, machine
from slim.extras import EXTRA_OF, named_if_missing
from slim.memory import free_memory
from slim.version import DISTRIBUTION, __version__

PACKAGES = ("torch", "safetensors", "numpy", "pillow", "torchvision", "lightning-fabric", "scikit-learn", "onnx",
    "onnxscript", "onnxruntime", "plotly", "jinja2", "tensorboard", "timm")  # fmt: skip
SHARED = Path("/dev/shm")
STEPS = 120
LEARNED = 0.9  # accuracy of the self-test's network, whose data are easy


class Check(NamedTuple):
    """One part of the self-test."""

    name: str
    seconds: float
    result: str
    failed: bool


def facts() -> dict[str, str]:
    """Return what a bug report needs to know of this installation: a line for each subject."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ}
    more = "".join(f"; {name}={value}" for name, value in threads.items())
    cache, uses = cache_folder(), torch.backends.cpu.get_cpu_capability()
    shared = f", {_size(shutil.disk_usage(SHARED).free)} in {SHARED}" if SHARED.is_dir() else ""
    here = Path.cwd()
    return {
        "slim": f"{DISTRIBUTION} {__version__}, {Path(slim.__file__).parent}",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "machine": machine(),
        "instructions": f"{', '.join(instructions()) or 'unknown'}; torch uses {uses}",
        "threads": f"{torch.get_num_threads()} of {cores} cores{more}",
        "devices": ", ".join(_devices()),
        "providers": ", ".join(_providers()) or "onnxruntime isn't installed",
        "memory": f"{_size(free_memory())} free{shared}",
        "disk": f"{_size(shutil.disk_usage(here).free)} free in {here}",
        "cache": f"{cache}, {_size(sum(file.stat().st_size for file in cache.glob('*') if file.is_file()))}",
    }


def _size(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _devices() -> list[str]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    elif gpu():
        found.append(f"{gpu()}, which this torch can't use")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]


def self_test(tell: Callable[[Check], object] = lambda _: None) -> list[Check]:
    """Train, prune, verify, save, export and compare a small network, and return what came of each. It takes seconds,
    and writes to a temporary folder alone."""
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="slim-doctor-") as folder:
        subject = _Subject(Path(folder))
        for name in ("train", "prune", "verify", "save", "export", "compare"):
            start = time.perf_counter()
            try:
                with named_if_missing():
                    result, failed = getattr(subject, name)(), False
            except Exception as error:  # whatever is wrong here is what is looked for
                kind = "" if isinstance(error, slim.SlimError) else f"{type(error).__name__}: "
                result, failed = f"{kind}{' '.join(str(error).split())}", True
            checks.append(Check(name, time.perf_counter() - start, result, failed))
            tell(checks[-1])
            if failed:
                break  # what follows needs it
    return checks


def verdict(checks: list[Check]) -> str:
    """Return in one line whether this installation can be trusted."""
    *_, last = checks
    if last.failed:
        missing = [package for package in EXTRA_OF if last.result.startswith(f"{package} isn't installed")]
        how = "can be trusted as far as it goes" if missing else "can NOT be trusted"
        return f"this installation {how}: {last.name}: {last.result}"
    seconds = sum(check.seconds for check in checks)
    return f"this installation can be trusted: {len(checks)} checks passed in {seconds:.1f} s"


class _Subject:
    """A network whose task is easy, and what is made of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        draw = torch.Generator().manual_seed(0)
        self.labels = torch.randint(4, (256,), generator=draw)
        self.images = 0.5 * torch.randn(256, 1, 8, 8, generator=draw)
        for image, label in zip(self.images, self.labels.tolist()):
            row, column = divmod(label, 2)
            image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1  # the quarter that is brighter
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model: nn.Module = _network()
        self.thin = self.model
        self.plan: Any = None

    def train(self) -> str:
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9)
        sparsity = slim.sparsify(self.model, optimizer, slim.L1(1e-3))
        self.model.train()
        for step in range(STEPS):
            some = slice(step % 4 * 64, step % 4 * 64 + 64)
            loss = nn.functional.cross_entropy(self.model(self.images[some]), self.labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        sparsity.remove()
        self.model.eval()
        return f"accuracy {self._learned(self.model):.1%}"

    def prune(self) -> str:
        self.plan = slim.plan(self.model, self.images[:2], ratio=0.5, score=slim.Residual(self.images))
        thin = self.plan.apply(self.model)
        self.thin = slim.recover(self.model, thin, self.plan, self.images).model
        before, after = self.plan.totals["params"]
        return f"{before:,} → {after:,} parameters, accuracy {self._learned(self.thin):.1%}"

    def verify(self) -> str:
        return str(slim.verify(self.model, self.plan.apply(self.model), self.plan, self.images[:8]))

    def save(self) -> str:
        path = slim.save(self.folder / "x.safetensors", self.thin, self.plan)
        found, own = slim.load(path, _network()).state_dict(), self.thin.state_dict()
        if not all(torch.equal(found[name], tensor) for name, tensor in own.items()):
            raise slim.SlimError("a network came back from its file with other weights")
        return "came back bit for bit"

    def export(self) -> str:
        report = slim.export_onnx(self.thin, self.images[:2], self.folder / "x.onnx")
        return f"relative difference {report.max_relative_error:.1e}"

    def compare(self) -> str:
        with torch.no_grad():
            expected = self.thin(self.images)
        found = torch.from_numpy(slim.OnnxModel(self.folder / "x.onnx")(self.images))
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error < 1e-4:
            raise slim.SlimError(f"onnxruntime and PyTorch differ by {error:.1e} of the largest output")
        return f"onnxruntime and PyTorch differ by {error:.1e} on {len(expected)} images"

    def _learned(self, model: nn.Module) -> float:
        with torch.no_grad():
            accuracy = float((model(self.images).argmax(1) == self.labels).float().mean())
        if not accuracy > LEARNED:
            raise slim.SlimError(f"accuracy {accuracy:.1%}: expected more than {LEARNED:.0%} on a task so easy")
        return accuracy


def _network() -> nn.Module:
    first = [nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 4))
