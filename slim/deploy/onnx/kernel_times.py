"""How long kernels take: each as a small ONNX graph, many of them in one session, timed by onnxruntime itself.

On the CPU provider, onnxruntime's profiler tells what each kernel takes inside a session: without the reordering of
memory at the ends of a graph, with its own fusions, and with caches as cold as in a network, since the kernels of a
session run one after the other. Other providers queue kernels or fuse whole graphs, so there each gets a session of
its own and a clock, less what an empty session takes.
"""

import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from slim.deploy.onnx.kernel_graph import KernelGraph, channels_of
from slim.deploy.onnx.profile import node_runs
from slim.deploy.onnx.session import CPU, open_session, ready_call
from slim.deploy.target import SizedKernel
from slim.deploy.timing import Rounds, time_in_turn

SECONDS = 0.25  # spent on one session's runs, as far as RUNS allows
RUNS = (4, 25)  # of a session under the profiler
CLOCKED = Rounds(RUNS[0], 8 * RUNS[1], seconds=SECONDS)
BATCH_OF_KERNELS = 64
BATCH_BYTES = 256 << 20


def time_kernels(
    kernels: Sequence[SizedKernel], provider: str, threads: int
) -> Iterator[list[tuple[SizedKernel, float]]]:
    """Yield the milliseconds of each kernel (the fastest of several runs), batch by batch.

    Raises SlimError where onnxruntime can't run a kernel.
    """
    for batch in batches(kernels):
        if provider == CPU:
            yield list(zip(batch, _profiled(batch, provider, threads)))
        else:
            idle = clocked([], provider, threads)
            yield [(each, clocked([each], provider, threads) - idle) for each in batch]


def batches(kernels: Sequence[SizedKernel]) -> Iterator[list[SizedKernel]]:
    """Return kernels of one session: of like cost, so that each can run often enough, and not too many bytes."""
    batch: list[SizedKernel] = []
    size = 0
    for each in sorted(kernels, key=_work):
        more = 4 * _numbers(each)
        if batch and (len(batch) == BATCH_OF_KERNELS or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += more
    if batch:
        yield batch


def _numbers(sized: SizedKernel) -> int:
    """Return about how many numbers its tensors hold."""
    kernel, reads, makes = sized
    taken, made = channels_of(sized)
    space = math.prod(kernel.shape)
    return space * (taken + made) + reads * makes * (math.prod(kernel.window[0]) if kernel.window else 1)


def _work(sized: SizedKernel) -> float:
    kernel, reads, _ = sized
    each = (reads if kernel.mixes else 1) * (math.prod(kernel.window[0]) if kernel.window else 1)
    stride = math.prod(kernel.window[1]) if len(kernel.window) > 1 else 1
    return math.prod(kernel.shape) * channels_of(sized)[1] * max(each, 8) / stride


def _profiled(batch: Sequence[SizedKernel], provider: str, threads: int) -> list[float]:
    """Return milliseconds of each kernel by onnxruntime's profiler: for every node its fastest run, summed by
    kernel."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(graph_of(batch), provider, threads, profile=Path(folder, "profile"))
        feed = _feed(session)
        start = time.perf_counter()
        done = 0
        while done < RUNS[0] or (done < RUNS[1] and time.perf_counter() - start < SECONDS):
            session.run(None, feed)
            done += 1
        runs = node_runs(session)
    totals = [0.0] * len(batch)
    for (node, _), times in runs.items():
        if found := re.search(r"k(\d+)_", node):
            totals[int(found[1])] += min(times)
    return totals


def clocked(batch: Sequence[SizedKernel], provider: str, threads: int, idle: int = 1) -> float:
    """Return the milliseconds of a session that runs `batch`, or `idle` nodes that do next to nothing: the median."""
    session = open_session(graph_of(batch, idle), provider, threads)
    [times] = time_in_turn({"session": ready_call(session, _feed(session))}, CLOCKED).values()
    return float(np.median(times))


def graph_of(batch: Sequence[SizedKernel], idle: int = 1) -> bytes:
    graph = KernelGraph()
    for index, sized in enumerate(batch):
        graph.add(index, sized)
    if not batch:
        graph.idle(idle)
    return graph.serialized()


def _feed(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    return {entry.name: np.full(entry.shape, 0.5, np.float32) for entry in session.get_inputs()}
