"""What the experiments share: the line that says on what they ran, tables, and pictures."""

import argparse
import dataclasses
import json
import multiprocessing as mp
import os
import platform
import queue
import resource
import shlex
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pages import page
from torch import nn

from slim.version import __version__

if TYPE_CHECKING:
    from slim.workbench.data import Dataset

NORMS = nn.modules.batchnorm._BatchNorm
Device = Literal["auto", "cpu", "cuda", "mps"]
RESULTS = Path(__file__).parent / "results"


def ran_on(*packages: str) -> str:
    """One line: date, the command that runs, machine, versions; those of `packages` beside the usual."""
    name = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    versions = ", ".join(
        [f"slim {__version__}", *(f"{package} {version(package)}" for package in ("torch", "numpy", *packages))]
    )
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    machine = f"{gpu}{name or platform.processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    return f"{date.today()}, `{command()}`, on {machine}; python {platform.python_version()}, {versions}."


def command() -> str:
    """The command line that runs, from the project's folder."""
    script = Path(sys.argv[0]).resolve()
    root = Path(__file__).resolve().parent.parent
    name = script.relative_to(root) if script.is_relative_to(root) else script
    return shlex.join(["python", name.as_posix(), *sys.argv[1:]])


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's docstring, line by line."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file. A last line that a kill cut in half goes out of it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def add_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a JSON-lines file, so that a run that is stopped can go on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers are written as they should be read, so format them first."""
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean ± standard deviation (of a sample); a single value as it is."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    spread = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def write(name: str, text: str, *, quick: bool = False) -> Path:
    """Write a dated Markdown file of results. A quick run has a name of its own, and never takes the place of a full
    one."""
    path = RESULTS / f"{name}{'_quick' if quick else ''}-{date.today()}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.rstrip() + "\n", encoding="utf-8")
    return path


def listed(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: "a, b and c"; "none" where there are none."""
    *others, last = words or ["none"]
    return f"{', '.join(others)} and {last}" if others else last


def bullets(sentences: Sequence[str]) -> str:
    """Return sentences as a list in Markdown."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def save(name: str, *figures: Any, title: str = "", text: str = "", quick: bool = False) -> Path:
    """Write a dated page of Plotly figures that needs no network: plotly.js is in it (so it is 5 MB and not in git). A
    quick run has a name of its own, as in `write`."""
    path = RESULTS / f"{name}{'_quick' if quick else ''}-{date.today()}.html"
    path.parent.mkdir(exist_ok=True)
    path.write_text(page(title or name, text, figures), encoding="utf-8")
    return path


def real_data(name: str) -> Path | None:
    """A file or folder under the folder $SLIM_DATA; None where it isn't there."""
    path = Path(os.environ.get("SLIM_DATA", "/nowhere")) / name
    return path if path.exists() else None


def cifar10_jpeg() -> Path | None:
    """CIFAR-10 re-encoded as JPEG: $SLIM_DATA/cifar10-jpeg with train/CLASS and test/CLASS, or the archive of it."""
    folder = real_data("cifar10-jpeg")
    archive = real_data("cifar10-jpeg.tar.gz")
    if folder is None and archive is not None:
        folder = Path(tempfile.gettempdir()) / "slim-data" / "cifar10-jpeg"
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=folder.parent) as partial:
                tar.extractall(partial, filter="data")
                Path(partial, folder.name).rename(folder)  # whole, or not there
    return folder


def photos() -> Path:
    """scikit-learn's digits as RGB files of 32 × 32 pixels, split/class/image: what a user's own folder looks like."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    folder = Path(tempfile.gettempdir()) / "slim-data" / "photos"
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target)):
        path = folder / ("test" if number % 5 == 0 else "train") / str(label) / f"{number}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15.9).astype("uint8")).resize((32, 32)).convert("RGB").save(path)
    return folder


def dataset(
    name: str, images: int = 0, *, val_fraction: float = 0.1, seed: int = 0, pixels: int | None = None
) -> "Dataset":
    """Digits (split by the seed), or CIFAR-10 (JPEG) or the demonstration's photos, scaled to `pixels`; `images` of the
    training images, 0: all."""
    from slim.workbench import data
    from slim.workbench.config import DataConfig

    if name == "digits":
        loaded = data.load(DataConfig(), seed)
    else:
        folder = photos() if name == "photos" else cifar10_jpeg()
        if folder is None:
            raise SystemExit("CIFAR-10 (JPEG) isn't at hand: set SLIM_DATA to the folder that holds cifar10-jpeg")
        loaded = data.load(
            DataConfig(name="imagefolder", root=str(folder), val_fraction=val_fraction, image_size=pixels), 0
        )
    if not images or images >= len(loaded.train):
        return loaded
    chosen = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(0))[:images]
    return dataclasses.replace(loaded, train=loaded.train[chosen])


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Give BatchNorms random γ, β and statistics, and noise to what starts as a constant: zeros would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (m for m in model.modules() if isinstance(m, NORMS)):
        if norm.affine:
            norm.weight.uniform_(0.01, 1, generator=generator)
            norm.bias.normal_(0, 0.1, generator=generator)
        if norm.track_running_stats:
            norm.get_buffer("running_mean").normal_(0, 0.3, generator=generator)
            norm.get_buffer("running_var").uniform_(0.5, 2, generator=generator)
    for parameter in model.parameters():
        if (
            parameter.numel() > 1
            and parameter.is_floating_point()
            and bool((parameter == parameter.flatten()[0]).all())
        ):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def rows_of(examine: Callable[..., None], *arguments: Any, seconds: int) -> Iterator[dict[str, Any]]:
    """What `examine(*arguments, put)` puts, as it comes, from a process of its own, whose crash takes no other down.

    It ends after `seconds` of processor time, or ten times as long by the clock.
    """
    context = mp.get_context("fork")
    rows: mp.Queue[dict[str, Any] | None] = context.Queue()
    process = context.Process(target=_put_rows, args=(examine, arguments, rows, seconds))
    process.start()
    end = time.monotonic() + 10 * seconds
    try:
        while time.monotonic() < end:
            try:
                row = rows.get(timeout=1)
            except queue.Empty:
                if not process.is_alive() and rows.empty():
                    return
                continue
            if row is None:
                return
            yield row
    finally:
        process.kill()
        process.join()


def _put_rows(examine: Callable[..., None], arguments: tuple[Any, ...], rows: Any, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    examine(*arguments, rows.put)
    rows.put(None)
