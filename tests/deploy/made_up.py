"""A machine whose times are a formula: a second `Target`, of which everything is known."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from slim.deploy.cost.operators import operators
from slim.deploy.target import BatchUnit, FileInput, InputArrays, Kernel, NodeTime, SizedKernel
from slim.trace.traced import trace

WHOLE = np.ones(10**6, bool)  # all labels are kept


def blocks(n: ArrayLike, width: int = 16) -> NDArray[np.int64]:
    """Blocks of `width` channels that hold `n`."""
    return -(-np.asarray(n) // width)


def synthetic(kernel: Kernel, reads: int, makes: int) -> float:
    """Milliseconds on a made-up machine that works in blocks of 16 channels read and 8 made."""
    space = math.prod(kernel.shape) * (math.prod(kernel.window[0]) if kernel.window else 1)
    if kernel.mixes:
        return float(0.002 + 1e-6 * space * blocks(reads) * blocks(makes, 8))
    return float(0.001 + 2e-6 * space * blocks(makes, 8))


@dataclass
class MadeUp:
    """A `Target` that notes what it is asked for. Networks take 1.3 times what their operators do, and 0.2 ms."""

    identity: str = "made up"
    batch_of_kernels: int = 10**9
    stop_after: float = math.inf  # kernels, after which the user has had enough
    asked: list[SizedKernel] = field(default_factory=list)
    networks: list[tuple[nn.Module, Any]] = field(default_factory=list)
    checked: list[nn.Module] = field(default_factory=list)
    ns: int = 0  # the clock
    suffix: ClassVar[str] = ".made_up"
    beside: ClassVar[tuple[str, ...]] = ()

    def time(self, kernels: Sequence[SizedKernel]) -> Iterator[list[tuple[SizedKernel, float]]]:
        for start in range(0, len(kernels), self.batch_of_kernels):
            if start >= self.stop_after:
                raise KeyboardInterrupt
            batch = kernels[start : start + self.batch_of_kernels]
            self.asked += batch
            yield [(each, synthetic(*each)) for each in batch]

    def export(self, model: nn.Module, example_inputs: Any, path: Path) -> None:
        path.write_text(str(len(self.networks)))
        self.networks.append((model, example_inputs))

    def check(self, file: Path, model: nn.Module, example_inputs: Any) -> float:
        assert self.networks[int(file.read_text())][0] is model
        self.checked.append(model)
        return 0.0

    def open(self, file: Path) -> "MadeUpFile":
        return MadeUpFile(self, *self.networks[int(file.read_text())])

    def ms(self, model: nn.Module, example_inputs: Any, batch_size: int = 1) -> float:
        found = operators(trace(model, example_inputs), batch_size)
        return 0.2 + 1.3 * sum(synthetic(each.kernel, *each.counts(WHOLE)) for each in found)

    def __str__(self) -> str:
        return "the made-up machine"


class MadeUpFile:
    """A network on it: an `Executable`."""

    provider, batch, metadata = "made up", BatchUnit(), dict[str, str]()

    def __init__(self, machine: MadeUp, model: nn.Module, example: Tensor) -> None:
        self.machine, self.model, self.example = machine, model, example
        self.inputs = [FileInput("images", ("batch", *example.shape[1:]), "float32")]

    def run(self, feed: InputArrays) -> list[np.ndarray]:
        raise NotImplementedError

    def profile(self, feed: InputArrays, runs: int, warmup: int) -> list[NodeTime]:
        return []

    def timed_call(self, feed: InputArrays) -> Callable[[], None]:
        ms = self.machine.ms(self.model, self.example, len(feed["images"]))

        def call() -> None:
            self.machine.ns += round(1e6 * ms)

        return call
