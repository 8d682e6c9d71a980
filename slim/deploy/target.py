"""What a runtime has to offer: the door for another one.

A runtime is a class with these members in a file of its own, and a line in `slim.deploy.targets`. The first is
`slim.deploy.onnx.target.OnnxRuntime`; benchmarks and the cost model know no more of it than what stands here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import nn

Feed = Mapping[str, np.ndarray]  # an array for each input of a file
TimedCall = Callable[[], object]  # one run, without arguments


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


class Executable(Protocol):
    """An exported file, opened in a runtime. Everything raises SlimError where the network can't run on the feed."""

    @property
    def provider(self) -> str:
        """What it runs on, by the runtime's name."""

    @property
    def inputs(self) -> Sequence[FileInput]:
        """The inputs, in the order of `forward`."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""

    def run(self, feed: Feed) -> list[np.ndarray]:
        """Return the outputs."""

    def timed_call(self, feed: Feed) -> TimedCall:
        """Return one run on `feed`, from memory where the inputs lie ready to memory where the outputs stay."""

    def profile(self, feed: Feed, runs: int, warmup: int) -> list[NodeTime]:
        """Return what each node takes, the slowest first."""


class Target(Protocol):
    """A runtime, as set up: it compares equal to one with the same settings, and pickles."""

    suffix: ClassVar[str]  # of its files

    @property
    def identity(self) -> str:
        """All that a measured time depends on, apart from what runs: one line."""

    def export(self, model: "nn.Module", example_inputs: Any, path: Path) -> None:
        """Write `model` to `path` for any batch size, not checked yet. Raises SlimError where it can't be exported."""

    def check(self, file: Path, model: "nn.Module", example_inputs: Any) -> float:
        """Return the largest relative difference between what `file` and `model` compute; SlimError if it is large."""

    def open(self, file: Path) -> Executable:
        """Open an exported file. Raises SlimError where it is missing or can't run here."""
