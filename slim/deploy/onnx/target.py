"""onnxruntime as a target."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnxruntime

from slim.deploy.onnx.file import OnnxFile
from slim.deploy.onnx.session import start_provider
from slim.deploy.target import SizedKernel, check_threads
from slim.deploy.timing import gpu, machine
from slim.prune.plan import PruningPlan
from slim.tables import threads_in_words

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime, which runs ONNX files: a `Target`.

    `provider`: auto (CUDA where onnxruntime has it and it starts, else CPU), cpu, cuda, or an onnxruntime provider's
    name; the attribute is the full name of the one that started. `threads`: CPU threads that one operator may use, 0
    for all cores.

    Raises SlimError for a provider that this onnxruntime doesn't have or that doesn't start here, and for a negative
    number of threads.

        slim.Runtime(slim.OnnxRuntime("cpu", threads=1), batch_size=1)
    """

    provider: str = "auto"
    threads: int = 0
    suffix: ClassVar[str] = ".onnx"
    beside: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_threads(self.threads)
        # started now, so that no time of the CPU passes for one of a GPU that doesn't start
        object.__setattr__(self, "provider", start_provider(self.provider))

    @property
    def identity(self) -> str:
        """Return all that a measured time depends on, apart from the operator and its batch: one line."""
        threads = self.threads or os.cpu_count()
        on = [machine()] if self.provider == "CPUExecutionProvider" else [machine(), gpu()]
        return ", ".join(
            [f"onnxruntime {onnxruntime.__version__}, {self.provider}, {threads} threads", *filter(None, on)]
        )

    def __str__(self) -> str:
        provider = self.provider.removesuffix("ExecutionProvider")
        return f"onnxruntime, {provider}, {threads_in_words(self.threads or os.cpu_count() or 1)}"

    def export(self, model: "nn.Module", example_inputs: Any, path: Path) -> None:
        """Write `model` as an ONNX file, not checked yet."""
        from slim.deploy.onnx.write import Draft  # imports torch's exporter

        path.write_bytes(Draft(model, example_inputs).content)

    def check(self, file: Path, model: "nn.Module", example_inputs: Any) -> float:
        """Return the largest relative difference between `file` and `model`; SlimError if it is above 1e-4."""
        from slim.deploy.onnx.write import Draft

        return Draft(model, example_inputs).check(OnnxFile(file, "cpu", 0), file.name)

    def cut(self, file: Path, plan: PruningPlan, thin: "nn.Module", path: Path) -> bool:
        """Write to `path` what the original's `file` becomes by a plan, without an export; False where that can't be
        told from the plan."""
        from slim.deploy.onnx.cut import cut  # imports onnx

        made = cut(file.read_bytes(), plan, thin)
        if made is not None:
            path.write_bytes(made)
        return made is not None

    def time(self, kernels: Sequence[SizedKernel]) -> Iterator[list[tuple[SizedKernel, float]]]:
        """Yield the milliseconds of each kernel, in batches."""
        from slim.deploy.onnx.kernel_times import time_kernels  # imports onnx

        return time_kernels(kernels, self.provider, self.threads)

    def open(self, file: Path) -> OnnxFile:
        """Open an ONNX file."""
        return OnnxFile(file, self.provider, self.threads)
