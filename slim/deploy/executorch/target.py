"""ExecuTorch as a target: one file for phones and small boards, which XNNPACK computes on their processors."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from slim.deploy.executorch import engine
from slim.deploy.target import (
    BatchUnit,
    FileInput,
    InputArrays,
    NodeTime,
    SizedKernel,
    TimedCall,
    check_threads,
    sizes_in_words,
)
from slim.deploy.timing import Rounds, machine, time_in_turn
from slim.errors import SlimError
from slim.extras import named_if_missing
from slim.tables import threads_in_words

if TYPE_CHECKING:
    from torch import nn

MOST = 32  # images in one call: memory for all activations of as many is set aside when the file is loaded
NOTES = "slim"  # the method that gives what a file says of itself, as JSON
BACKENDS = ("auto", "cpu", "xnnpack")  # one and the same
TOLERANCE = 1e-4
CLOCKED = Rounds(4, 200, seconds=0.1)  # runs of one kernel


@dataclass(frozen=True)
class ExecuTorch:
    """ExecuTorch with XNNPACK, which runs `.pte` files: a `Target`.

    `threads`: CPU threads, 0 for all cores; ExecuTorch has one pool of them for a whole process. `backend`: XNNPACK
    alone. A file takes up to 32 images in a call.

    Raises SlimError where ExecuTorch isn't installed, for another backend, and for a negative number of threads.

        slim.export(thin, x, "thin.pte")
    """

    backend: str = "xnnpack"
    threads: int = 0
    suffix: ClassVar[str] = ".pte"
    beside: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.backend.lower() not in BACKENDS:
            raise SlimError(f"backend {self.backend!r}: expected xnnpack")
        object.__setattr__(self, "backend", "xnnpack")
        with named_if_missing():
            engine.check_installed()

    @property
    def identity(self) -> str:
        """Return all that a measured time depends on, apart from the operator and its batch: one line."""
        return f"executorch {version('executorch')}, XNNPACK, {self.threads or os.cpu_count()} threads, {machine()}"

    def __str__(self) -> str:
        return f"ExecuTorch, XNNPACK, {threads_in_words(self.threads or os.cpu_count() or 1)}"

    def export(self, model: "nn.Module", example_inputs: Any, path: Path) -> None:
        """Write `model` to `path`, not checked yet."""
        from slim.deploy.onnx.write import Draft  # imports torch's exporter

        draft = Draft(model, example_inputs)
        names = draft.graph.inputs or [f"input_{i}" for i in range(len(draft.graph.arguments.tensors))]
        inputs = [
            {"name": name, "shape": list(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch.")}
            for name, tensor in zip(names, draft.graph.arguments.tensors)
        ]
        notes = json.dumps({"inputs": inputs, "metadata": draft.properties})
        path.write_bytes(engine.lowered({"forward": draft.graph.exported(MOST)}, {NOTES: notes}))

    def check(self, file: Path, model: "nn.Module", example_inputs: Any) -> float:
        """Return the largest relative difference between `file` and `model`; SlimError if it is above 1e-4."""
        from slim.deploy.onnx.write import Draft

        return Draft(model, example_inputs).check(self.open(file), file.name, TOLERANCE, "ExecuTorch")

    def open(self, file: Path) -> "ExecuTorchFile":
        """Open a file."""
        return ExecuTorchFile(Path(file), self.threads)

    def time(self, kernels: Sequence[SizedKernel]) -> Iterator[list[tuple[SizedKernel, float]]]:
        """Yield the milliseconds of each kernel, in batches: each is a method of its own, less what an idle one takes.

        Inputs and outputs are brought into XNNPACK's order of memory in each, so that times are rather too long.
        """
        from slim.deploy.onnx.kernel_times import batches, graph_of  # imports onnx

        for batch in batches(kernels):
            methods = [_method(graph_of([])), *(_method(graph_of([each])) for each in batch)]
            content = engine.lowered({f"k{i}": program for i, (program, _) in enumerate(methods)}, {})
            calls = engine.loaded(content, self.threads)
            times = [_clocked(calls[f"k{i}"], inputs) for i, (_, inputs) in enumerate(methods)]
            yield [(each, max(ms - times[0], 1e-4)) for each, ms in zip(batch, times[1:])]


def _method(graph: bytes) -> tuple[torch.export.ExportedProgram, Sequence[torch.Tensor]]:
    """Return an ONNX graph of fixed sizes as a program of torch's, and inputs."""
    from slim.deploy.onnx.reader.read import read_onnx

    with TemporaryDirectory() as folder:
        file = Path(folder, "kernel.onnx")
        file.write_bytes(graph)
        net = read_onnx(file)
    inputs = tuple(torch.full(shape, 0.5) for shape in engine.shapes_of(graph))
    return torch.export.export(net, inputs), inputs


def _clocked(call: engine.Call, inputs: Sequence[torch.Tensor]) -> float:
    [times] = time_in_turn({"kernel": lambda: call(inputs)}, CLOCKED).values()
    return float(np.min(times))


class ExecuTorchFile:
    """A `.pte` file that slim wrote, loaded: an `Executable`. It has no profile: XNNPACK fuses whole networks."""

    provider = "ExecuTorch XNNPACK"

    def __init__(self, path: Path, threads: int) -> None:
        if not path.is_file():
            raise SlimError(f"no file {str(path)!r}: expected a network of ExecuTorch's, .pte")
        self._path = path
        try:
            calls = engine.loaded(path.read_bytes(), threads)
        except Exception as error:  # ExecuTorch's own are RuntimeErrors
            raise SlimError(f"ExecuTorch can't run {str(path)!r}: {engine.brief(error)}") from error
        if not {"forward", NOTES} <= calls.keys():
            raise SlimError(f"{str(path)!r} doesn't say what it takes: expected a file that slim.export wrote")
        self._call = calls["forward"]
        noted = json.loads(calls[NOTES](())[0])
        self.metadata: Mapping[str, str] = noted["metadata"]
        self.inputs = [FileInput(each["name"], (None, *each["shape"]), each["dtype"]) for each in noted["inputs"]]
        self.batch = BatchUnit()

    def run(self, feed: InputArrays) -> list[np.ndarray]:
        return [output.numpy().copy() for output in self._call(self._taken(feed))]

    def timed_call(self, feed: InputArrays) -> TimedCall:
        taken = self._taken(feed)

        def call() -> None:
            try:
                self._call(taken)
            except Exception as error:
                raise SlimError(
                    f"{self._path.name!r} doesn't run on {sizes_in_words(feed)}: "
                    f"expected images that fit it, at most {MOST} ({engine.brief(error)})"
                ) from error

        return call

    def profile(self, feed: InputArrays, runs: int, warmup: int) -> list[NodeTime]:
        return []

    def _taken(self, feed: InputArrays) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(feed[entry.name])) for entry in self.inputs]
