"""What a runtime has to offer: the door for another one.

A runtime is a class with these members in a file of its own, and a line in `slim.deploy.targets`. There are
`slim.deploy.onnx.target.OnnxRuntime` and `slim.deploy.openvino.target.OpenVino`; benchmarks and the cost model know no
more of them than what stands here.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from slim.errors import SlimError

if TYPE_CHECKING:
    from torch import nn

LARGEST_BATCH = 2**20
InputArrays = Mapping[str, np.ndarray]  # an array for each input of a file
TimedCall = Callable[[], object]  # one run, without arguments


def check_threads(threads: Any) -> None:
    """Raise SlimError unless this is a number of threads, 0 for all cores."""
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 0:
        raise SlimError(f"threads {threads!r}: expected a whole number, 0 (all cores) or more")


def sizes_in_words(feed: InputArrays) -> str:
    """Return such as "images [4, 3, 8, 8]", for errors."""
    return ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())


@dataclass(frozen=True)
class BatchUnit:
    """How many images a file takes: `unit` of them, or any multiple of that."""

    unit: int = 1
    multiples: bool = True

    @classmethod
    def of(cls, setting: int | str) -> "BatchUnit":
        """Read "any", a number of images (8), or a unit of which any multiple may come ("8n").

        Raises SlimError for anything else.
        """
        found = re.fullmatch(r"([1-9][0-9]{0,6})(n?)", str(setting))
        if setting == "any":
            return cls()
        if found is None or int(found[1]) > LARGEST_BATCH:
            raise SlimError(
                f"batch {setting!r}: expected any, a number of images such as 8, or multiples of it as in 8n"
            )
        return cls(int(found[1]), bool(found[2]))

    @classmethod
    def of_dimension(cls, size: int | str | None) -> "BatchUnit":
        """Read the first dimension of a file's input: a number, or a name such as "batch" or "8*batch"."""
        if isinstance(size, int):
            if size < 1:
                raise SlimError(f"a file for {size} images at a time: expected at least one, or a size that is open")
            return cls(size, multiples=False)
        found = re.match(r"(\d+)\*", size or "")
        return cls(int(found[1]) if found else 1)

    @property
    def example(self) -> int:
        """Return a size to export with: torch.export takes a dimension of size 1 for a constant."""
        return 2 * self.unit if self.multiples else self.unit

    def sizes(self, factors: tuple[int, ...]) -> list[int]:
        """Return the sizes to check a file on: these multiples, where it takes them."""
        return [factor * self.unit for factor in factors] if self.multiples else [self.unit]

    def holds(self, size: int) -> bool:
        """Return whether a file takes a batch of this size."""
        return size % self.unit == 0 if self.multiples else size == self.unit

    def __str__(self) -> str:
        return "any" if self == BatchUnit() else f"{self.unit}n" if self.multiples else str(self.unit)


@dataclass(frozen=True)
class FileInput:
    """An input of an exported file."""

    name: str
    shape: tuple[int | str | None, ...]  # a name or None where a size is open; () where not even their number is known
    dtype: str  # numpy's name where there is one, else the runtime's


@dataclass(frozen=True)
class NodeTime:
    """A node of a graph as the runtime runs it, after its fusions."""

    node: str
    operator: str
    ms: float  # of one run, median
    share: float  # of the time of all nodes, 0 to 1


@dataclass(frozen=True)
class Kernel:
    """One operator with all that its time depends on but the numbers of its channels.

    `kind`: conv, conv_transpose, depthwise, gemm, or an operator that works channel by channel: MaxPool, AveragePool,
    ReduceMean, Concat, Resize-nearest (-linear, -cubic), or Copy, one pass over memory, which stands for all others.
    `shape`: batch and space of the input (rows, for gemm; elements of each channel, for Copy). `window`: kernel,
    strides, padding, dilation; of a Resize, how many times as large it makes height and width. `tail`: the pointwise
    ONNX operators that follow, each with its second operand: none, "same" (a tensor as large) or "channel" (a number
    for each channel).
    """

    kind: str
    shape: tuple[int, ...]
    window: tuple[tuple[int, ...], ...] = ()
    groups: int = 1  # of conv and conv_transpose; the multiplier, for depthwise
    tail: tuple[tuple[str, str], ...] = ()
    whole: int = 0  # where whole groups go: channels of one, of those that are counted over all groups; else 0

    @property
    def mixes(self) -> bool:
        """Say whether it reads one set of channels and makes another."""
        return self.kind in ("conv", "conv_transpose", "gemm")

    def group_count(self, reads: int, makes: int) -> int:
        """Return the number of its groups. What it reads is counted by group, or, transposed, what it makes."""
        if not self.whole:
            return self.groups
        return (reads if self.kind == "conv_transpose" else makes) // self.whole

    def flops(self, reads: ArrayLike, makes: ArrayLike) -> NDArray[np.float64]:
        """Return the multiply-adds × 2, as torch.utils.flop_counter counts them."""
        each = 2.0 * math.prod(self.shape)
        if self.kind in ("conv", "depthwise"):
            batch, *space = self.shape
            out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(space, *self.window)]
            each = 2.0 * batch * math.prod(out)
        if self.kind != "gemm":
            each *= math.prod(self.window[0]) if self.kind in ("conv", "conv_transpose", "depthwise") else 0
        return each * np.multiply(reads if self.mixes else 1, makes)


SizedKernel = tuple[Kernel, int, int]  # with the channels that it reads (of each group) and makes


class Executable(Protocol):
    """An exported file, opened in a runtime. Everything raises SlimError where the network can't run on the feed."""

    @property
    def provider(self) -> str:
        """Return what it runs on, by the runtime's name."""

    @property
    def inputs(self) -> Sequence[FileInput]:
        """Return the inputs, in the order of `forward`."""

    @property
    def batch(self) -> BatchUnit:
        """Return the batch sizes that it takes."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Return what the file says of itself."""

    def run(self, feed: InputArrays) -> list[np.ndarray]:
        """Return the outputs."""

    def timed_call(self, feed: InputArrays) -> TimedCall:
        """Return one run on `feed`, from memory where the inputs lie ready to memory where the outputs stay."""

    def profile(self, feed: InputArrays, runs: int, warmup: int) -> list[NodeTime]:
        """Return what each node takes, the slowest first."""


class Target(Protocol):
    """A runtime, as set up: it compares equal to one with the same settings, and pickles.

    It may also have `cut(file, plan, thin, path)`: write what the original's `file` becomes by a plan, so that plans
    can be timed without an export of each; it returns False where it can't.
    """

    suffix: ClassVar[str]  # of its files
    beside: ClassVar[tuple[str, ...]]  # suffixes of files of the same name that belong to one

    @property
    def identity(self) -> str:
        """Return all that a measured time depends on, apart from what runs: one line."""

    def export(self, model: "nn.Module", example_inputs: Any, path: Path) -> None:
        """Write `model` to `path` for any batch size, not checked yet. Raises SlimError where it can't be exported."""

    def check(self, file: Path, model: "nn.Module", example_inputs: Any) -> float:
        """Return the largest relative difference between what `file` and `model` compute; SlimError if it is large."""

    def open(self, file: Path) -> Executable:
        """Open an exported file. Raises SlimError where it is missing or can't run here."""

    def time(self, kernels: Sequence[SizedKernel]) -> Iterable[Iterable[tuple[SizedKernel, float]]]:
        """Yield the milliseconds of each kernel inside a network, in batches, so that a caller can save what it has.

        Raises SlimError where the runtime can't run one of them."""
