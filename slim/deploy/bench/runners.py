"""What a benchmark times: the door for others. `FileRunner` runs an exported file in its runtime.

A runner makes, for a batch size, a call without arguments: one batch of random input through the network, from
memory where it lies ready to memory where it stays (the GPU's, for a provider on the GPU).
"""

import contextlib
import json
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from slim.deploy.target import BatchUnit, FileInput, NodeTime, Target, TimedCall
from slim.errors import SlimError

DTYPES = ("float32", "float16", "float64", "uint8")
Shape = tuple[int, ...]


class Runner(Protocol):
    """A network, ready to be timed. It pickles, where its peak memory is to be measured."""

    @property
    def provider(self) -> str:
        """Return what it runs on: onnxruntime by its provider's name, others such as "PyTorch CPU"."""

    @property
    def batch(self) -> BatchUnit:
        """Return the batch sizes that it takes."""

    @property
    def file_size(self) -> int | None:
        """Return bytes, where the network has a file."""

    @property
    def measures_memory(self) -> bool:
        """Say whether what it takes in a process of its own says what the network takes."""

    @property
    def shapes(self) -> list[Shape]:
        """Of one image at each input: channels, height, width, however they lie in memory."""

    def prepare(self, batch_size: int) -> TimedCall:
        """Return a call that runs one batch. Raises SlimError where the network can't run on it."""


def shapes_in_words(shapes: list[Shape]) -> str:
    """Return such as "3×32×32"; with several inputs "3×32×32 and 10"."""
    return " and ".join("×".join(map(str, shape)) for shape in shapes)


class FileRunner:
    """A file of a target. `image_size`: pixels, where the file leaves height and width open."""

    measures_memory = True

    def __init__(self, name: str, path: str | Path, target: Target, image_size: int | None = None) -> None:
        self.name, self.path, self.target, self.image_size = name, Path(path), target, image_size
        self.opened = target.open(self.path)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileRunner, (self.name, self.path, self.target, self.image_size)

    @property
    def provider(self) -> str:
        return self.opened.provider

    @property
    def batch(self) -> BatchUnit:
        return self.opened.batch

    @property
    def file_size(self) -> int | None:
        return sum(file.stat().st_size for file in (self.path, *map(self.path.with_suffix, self.target.beside)))

    @property
    def shapes(self) -> list[Shape]:
        found = []
        for entry in self.opened.inputs:
            sizes = self._sizes(entry)
            if entry.dtype == "uint8" and len(sizes) == 3:
                sizes = [sizes[2], *sizes[:2]]
            found.append(tuple(sizes))
        return found

    def prepare(self, batch_size: int) -> TimedCall:
        return self.opened.timed_call(self.feed(batch_size))

    def profile(self, batch_size: int, runs: int = 10, warmup: int = 3) -> list[NodeTime]:
        """Return what each node takes, the slowest first."""
        return self.opened.profile(self.feed(batch_size), runs, warmup)

    def check_batch(self, batch_size: int) -> None:
        """Raise SlimError for a batch size that the file can't take."""
        if not self.batch.holds(batch_size):
            how = (
                f"takes multiples of {self.batch.unit}"
                if self.batch.multiples
                else f"has the fixed batch size {self.batch}"
            )
            raise SlimError(f"batch size {batch_size}: {self.name!r} {how}: expected batch_sizes [{self.batch.unit}]")

    def feed(self, batch_size: int) -> dict[str, np.ndarray]:
        """Return random inputs: standard normal, or any pixel where the file takes bytes."""
        self.check_batch(batch_size)
        random = np.random.default_rng(0)
        feed = {}
        for entry in self.opened.inputs:
            if entry.dtype not in DTYPES:
                raise SlimError(
                    f"input {entry.name!r} of {self.name!r} is {entry.dtype}: expected one of {', '.join(DTYPES)}"
                )
            if not entry.shape:
                raise SlimError(
                    f"input {entry.name!r} of {self.name!r} is a scalar, or its number of dimensions is open: expected "
                    "the batch as its first dimension"
                )
            shape = (batch_size, *self._sizes(entry))
            if entry.dtype == "uint8":
                feed[entry.name] = random.integers(0, 256, shape, dtype=np.uint8)
            else:
                feed[entry.name] = random.standard_normal(shape).astype(entry.dtype)
        return feed

    def _sizes(self, entry: FileInput) -> list[int]:
        """Return the shape of an input after the batch; what it leaves open is the image size asked for, or the one
        that slim.export_onnx noted."""
        sizes = list(entry.shape[1:])
        noted: list[int] = []
        with contextlib.suppress(ValueError, KeyError):
            noted = json.loads(self.opened.metadata["slim.input_shape"])[-2:]
        image = [self.image_size] * 2 if self.image_size else noted
        first = 0 if entry.dtype == "uint8" else len(sizes) - 2  # [N, H, W, C] or [N, C, …, H, W]
        if len(image) == 2 and len(sizes) >= 2:
            sizes[first : first + 2] = [
                size if isinstance(size, int) else wanted for size, wanted in zip(sizes[first : first + 2], image)
            ]
        known = [size for size in sizes if isinstance(size, int)]
        if len(known) < len(sizes):
            raise SlimError(
                f"input {entry.name!r} of {self.name!r} has shape {list(entry.shape)}: expected only the batch open, "
                "or an image size (image_size) for height and width"
            )
        return known
