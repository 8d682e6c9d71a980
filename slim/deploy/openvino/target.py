"""OpenVINO as a target: networks in its own format, on Intel's processors and others.

A file of this format is two: graph (.xml) and weights (.bin) beside it. It is made from slim's ONNX graph.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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
from slim.deploy.timing import machine
from slim.errors import SlimError
from slim.extras import named_if_missing
from slim.tables import threads_in_words

with named_if_missing():
    import openvino

if TYPE_CHECKING:
    from torch import nn

OURS = "slim"  # where a file keeps its metadata, in what OpenVINO calls runtime information
MOVING = ("Reorder", "Parameter", "Input", "Result", "Output")  # at the ends of a graph: not the kernel's own time
RUNS = 8  # of a graph of kernels under the profiler
TOLERANCE = 1e-4


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO, which runs its own files (`.xml`, with `.bin` beside it): a `Target`.

    `device`: CPU (default), GPU, or another that OpenVINO names here. `threads`: CPU threads, 0 for all cores. It
    computes in float32, which OpenVINO by itself lowers to bfloat16 where a CPU is faster so.

    Raises SlimError where OpenVINO isn't installed or doesn't have the device, and for a negative number of threads.

        slim.plan(model, x, slim.Latency("4ms", slim.Runtime(slim.OpenVino(threads=1))))
    """

    device: str = "CPU"
    threads: int = 0
    suffix: ClassVar[str] = ".xml"
    beside: ClassVar[tuple[str, ...]] = (".bin",)

    def __post_init__(self) -> None:
        check_threads(self.threads)
        device = "CPU" if self.device.lower() in ("auto", "cpu") else self.device.upper()
        known = openvino.Core().available_devices
        if device not in known:
            raise SlimError(f"device {self.device!r} isn't one of OpenVINO's here: expected {', '.join(known)}")
        object.__setattr__(self, "device", device)

    @property
    def identity(self) -> str:
        """Return all that a measured time depends on, apart from the operator and its batch: one line."""
        version = openvino.__version__.partition("-")[0]
        return f"openvino {version}, {self.device}, {self.threads or os.cpu_count()} threads, {machine()}"

    def __str__(self) -> str:
        return f"OpenVINO, {self.device}, {threads_in_words(self.threads or os.cpu_count() or 1)}"

    def export(self, model: "nn.Module", example_inputs: Any, path: Path) -> None:
        """Write `model` to `path` and its weights beside it, not checked yet."""
        from slim.deploy.onnx.write import Draft  # imports torch's exporter

        draft = Draft(model, example_inputs)
        try:
            graph = openvino.Core().read_model(draft.content)
            graph.set_rt_info(draft.properties, OURS)
            openvino.save_model(graph, path, compress_to_fp16=False)
        except Exception as error:  # OpenVINO's own are RuntimeErrors of many lines
            raise SlimError(f"OpenVINO can't take the network: {brief(error)}") from error

    def check(self, file: Path, model: "nn.Module", example_inputs: Any) -> float:
        """Return the largest relative difference between `file` and `model`; SlimError if it is above 1e-4."""
        from slim.deploy.onnx.write import Draft

        return Draft(model, example_inputs).check(self.open(file), file.name, TOLERANCE, "OpenVINO")

    def open(self, file: Path) -> "OpenVinoFile":
        """Open a file."""
        return OpenVinoFile(Path(file), self.device, self.threads)

    def time(self, kernels: Sequence[SizedKernel]) -> Iterator[list[tuple[SizedKernel, float]]]:
        """Yield the milliseconds of each kernel, in batches."""
        from slim.deploy.onnx.kernel_times import batches, graph_of  # imports onnx

        for batch in batches(kernels):
            compiled = compile_graph(graph_of(batch), self.device, self.threads, profile=True)
            feed = {each.any_name: np.full(tuple(each.shape), 0.5, np.float32) for each in compiled.inputs}
            totals, origins = [0.0] * len(batch), layers_of(compiled)
            for (node, operator), times in node_runs(compiled, feed, RUNS).items():
                found = re.search(r"\bk(\d+)_", origins.get(node, node))
                if found and operator not in MOVING:
                    totals[int(found[1])] += min(times)
            yield list(zip(batch, totals))


class OpenVinoFile:
    """A file of OpenVINO's format, compiled for a device: an `Executable`."""

    def __init__(self, path: Path, device: str, threads: int) -> None:
        if not path.is_file() or not path.with_suffix(".bin").is_file():
            missing = path if not path.is_file() else path.with_suffix(".bin")
            raise SlimError(f"no file {str(missing)!r}: expected a network of OpenVINO's, .xml and .bin")
        self._path, self._device, self._threads = path, device, threads
        self.provider = f"OpenVINO {device}"
        self._compiled = compile_graph(path, device, threads)
        graph = openvino.Core().read_model(path)
        notes = graph.get_rt_info(OURS).value if graph.has_rt_info(OURS) else {}
        self.metadata = {str(name): str(getattr(value, "value", value)) for name, value in notes.items()}
        self.inputs = [_input(entry) for entry in self._compiled.inputs]
        self.batch = next((BatchUnit.of_dimension(entry.shape[0]) for entry in self.inputs if entry.shape), BatchUnit())

    def run(self, feed: InputArrays) -> list[np.ndarray]:
        return [output.copy() for output in self._compiled(dict(feed)).values()]

    def timed_call(self, feed: InputArrays) -> TimedCall:
        request = self._compiled.create_infer_request()
        for name, array in feed.items():
            request.set_tensor(name, openvino.Tensor(np.ascontiguousarray(array)))

        def call() -> None:
            try:
                request.start_async()
                request.wait()
            except Exception as error:
                raise SlimError(
                    f"{self._path.name!r} doesn't run on {sizes_in_words(feed)}: "
                    f"expected a batch and an image size that fit it ({brief(error)})"
                ) from error

        return call

    def profile(self, feed: InputArrays, runs: int, warmup: int) -> list[NodeTime]:
        compiled = compile_graph(self._path, self._device, self._threads, profile=True)
        found = node_runs(compiled, feed, warmup + runs)
        medians = {key: median(times[warmup:]) for key, times in found.items()}
        total = sum(medians.values()) or 1.0
        slowest = sorted(medians.items(), key=lambda item: -item[1])
        return [NodeTime(node, operator, ms, ms / total) for (node, operator), ms in slowest if ms]


def compile_graph(source: Path | bytes, device: str, threads: int, *, profile: bool = False) -> Any:
    """Return a file, or the content of an ONNX file, compiled for a device to run one call at a time."""
    core = openvino.Core()
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": profile}
    if device == "CPU" and threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        return core.compile_model(core.read_model(source), device, settings)
    except Exception as error:
        name = "this graph" if isinstance(source, bytes) else repr(str(source))
        raise SlimError(f"OpenVINO can't run {name}: {brief(error)}") from error


def node_runs(compiled: Any, feed: InputArrays, runs: int) -> dict[tuple[str, str], list[float]]:
    """Return the milliseconds of each run of each node of a graph compiled for that, by (name, operator)."""
    request = compiled.create_infer_request()
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(runs):
        request.infer(dict(feed))
        for node in request.profiling_info:
            key = node.node_name, node.node_type
            found.setdefault(key, []).append(node.real_time.total_seconds() * 1000)
    return found


def layers_of(compiled: Any) -> dict[str, str]:
    """Return for each node the names of all that was fused into it: its own may be one that OpenVINO made up."""
    key = "originalLayersNames"
    nodes = compiled.get_runtime_model().get_ops()
    return {node.friendly_name: str(node.rt_info[key].value) for node in nodes if key in node.rt_info}


def brief(error: Exception) -> str:
    """Return OpenVINO's message on one line, without the places in its own code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not re.match(r"(Exception from|Check '.*' failed at|\S+:\d+)", line)]
    return " ".join(said or lines)[:200]


def _input(entry: Any) -> FileInput:
    shape = tuple(size.get_length() if size.is_static else None for size in entry.partial_shape)
    return FileInput(entry.any_name, shape, entry.element_type.to_dtype().name)
