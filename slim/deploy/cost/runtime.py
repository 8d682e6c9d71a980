"""Where a network is to run: onnxruntime's provider, its threads, the size of a batch."""

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from slim.deploy.cost.model import LatencyModel, latency_model
from slim.errors import SlimError
from slim.trace.tracer import Trace


@dataclass(frozen=True)
class Runtime:
    """The runtime that a plan is made for.

    `provider`: auto (CUDA where onnxruntime has it and it starts, else CPU), cpu, cuda, or an onnxruntime provider's
    name; the attribute is the full name of the one that started. `threads`: CPU threads that one operator may use, 0
    for all cores. `batch_size`: images in one call. Raises SlimError for a provider that this onnxruntime doesn't have
    or that doesn't start here, and for numbers out of range.
    """

    provider: str = "auto"
    threads: int = 0
    batch_size: int = 1

    def __post_init__(self) -> None:
        from slim.deploy.onnx.session import start_provider  # imports onnxruntime

        for name, value, least in (("threads", self.threads, 0), ("batch_size", self.batch_size, 1)):
            if not isinstance(value, int) or value < least:
                raise SlimError(f"{name} {value!r}: expected a whole number, {least} or more")
        # so that no time of the CPU passes for one of a GPU that doesn't start
        object.__setattr__(self, "provider", start_provider(self.provider))

    def cost_model(self, traced: Trace) -> LatencyModel:
        """Return what a traced network costs here, measured where it isn't known from an earlier time."""
        return latency_model(traced, self)

    @property
    def identity(self) -> str:
        """All that a measured time depends on, apart from the operator and its batch: one line."""
        import onnxruntime

        threads = self.threads or os.cpu_count()
        return f"onnxruntime {onnxruntime.__version__}, {self.provider}, {threads} threads, {machine()}"

    def __str__(self) -> str:
        provider = self.provider.removesuffix("ExecutionProvider")
        threads = self.threads or os.cpu_count()
        return f"onnxruntime, {provider}, {threads} thread{'s' * (threads != 1)}, batch {self.batch_size}"


def machine() -> str:
    """Processor, its number of cores, and system, such as "AMD EPYC 7763, 2 cores, Linux x86_64"."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        named = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.MULTILINE)
        processor = named[1] if named else processor
    return f"{processor}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
