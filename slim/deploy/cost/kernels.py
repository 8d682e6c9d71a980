"""How long kernels take: each as a small ONNX graph, many of them in one session, timed by onnxruntime itself.

On the CPU provider, onnxruntime's profiler tells what each kernel takes inside a session: without the reordering of
memory at the ends of a graph, with its own fusions, and with caches as cold as in a network, since the kernels of a
session run one after the other. Other providers queue kernels or fuse whole graphs, so there each gets a session of
its own and a clock, less what an empty session takes.
"""

import json
import math
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from slim.deploy.cost.operators import Kernel
from slim.deploy.cost.settings import Settings
from slim.deploy.onnx.session import CPU, open_session, ready_call

Sized = tuple[Kernel, int, int]  # with the channels that it reads (of each group) and makes
OPSET = 20
SECONDS = 0.25  # spent on one session's runs, as far as RUNS allows
RUNS = (4, 25)
BATCH_OF_KERNELS = 64
BATCH_BYTES = 256 << 20


def time_kernels(sized: Sequence[Sized], runtime: Settings) -> Iterator[list[tuple[Sized, float]]]:
    """Milliseconds of each kernel (the fastest of several runs), in lots, so that a caller can save what it has.

    Raises SlimError where onnxruntime can't run a kernel.
    """
    for lot in _lots(sized):
        if runtime.provider == CPU:
            yield list(zip(lot, _profiled(lot, runtime)))
        else:
            yield [(each, _clocked([each], runtime) - _clocked([], runtime)) for each in lot]


def _lots(sized: Sequence[Sized]) -> Iterator[list[Sized]]:
    """Kernels of one session: of like cost, so that each can run often enough, and not too many bytes."""
    lot: list[Sized] = []
    size = 0
    for each in sorted(sized, key=_work):
        more = 4 * _numbers(each)
        if lot and (len(lot) == BATCH_OF_KERNELS or size + more > BATCH_BYTES):
            yield lot
            lot, size = [], 0
        lot.append(each)
        size += more
    if lot:
        yield lot


def _channels(sized: Sized) -> tuple[int, int]:
    """Channels of the input and the output."""
    kernel, reads, makes = sized
    if kernel.kind == "depthwise":
        return max(1, makes // kernel.groups), makes
    if not kernel.mixes:
        return makes, makes
    groups = kernel.group_count(reads, makes)
    return reads * (groups if kernel.kind == "conv" else 1), makes * (groups if kernel.kind == "conv_transpose" else 1)


def _numbers(sized: Sized) -> int:
    """About how many numbers its tensors hold."""
    kernel, reads, makes = sized
    taken, made = _channels(sized)
    space = math.prod(kernel.shape)
    return space * (taken + made) + reads * makes * (math.prod(kernel.window[0]) if kernel.window else 1)


def _work(sized: Sized) -> float:
    kernel, reads, _ = sized
    each = (reads if kernel.mixes else 1) * (math.prod(kernel.window[0]) if kernel.window else 1)
    stride = math.prod(kernel.window[1]) if kernel.window else 1
    return math.prod(kernel.shape) * _channels(sized)[1] * max(each, 8) / stride


# -- graphs ------------------------------------------------------------------------------------------------------------


class Graph:
    """An ONNX graph of kernels side by side; every name of kernel 7 starts with "k7_"."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.weights: list[Any] = []
        self.prefix = ""

    def input(self, name: str, shape: Sequence[int]) -> str:
        self.inputs.append(helper.make_tensor_value_info(self.prefix + name, TensorProto.FLOAT, shape))
        return self.prefix + name

    def weight(self, name: str, shape: Sequence[int], value: float = 0.01) -> str:
        self.weights.append(numpy_helper.from_array(np.full(shape, value, np.float32), self.prefix + name))
        return self.prefix + name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def add(self, index: int, sized: Sized) -> None:
        self.prefix = f"k{index}_"
        kernel = sized[0]
        taken, made = _channels(sized)
        batch, *space = kernel.shape
        if kernel.kind == "gemm":
            x = self.input("x", [batch, taken])
            out = self.node("Gemm", [x, self.weight("w", [made, taken]), self.weight("b", [made])], transB=1)
        elif kernel.kind in ("conv", "conv_transpose", "depthwise"):
            out = self._convolution(sized, taken, made)
        elif kernel.kind in ("MaxPool", "AveragePool"):
            size, strides, padding, _ = kernel.window
            x = self.input("x", [batch, made, *space])
            out = self.node(kernel.kind, [x], kernel_shape=size, strides=strides, pads=[*padding, *padding])
        elif kernel.kind == "ReduceMean":
            x = self.input("x", [batch, made, *space])
            self.weights.append(numpy_helper.from_array(np.arange(2, 2 + len(space)), self.prefix + "axes"))
            out = self.node("ReduceMean", [x, self.prefix + "axes"], keepdims=1)
        elif kernel.kind == "Concat":
            half = made // 2
            parts = [self.input(f"x{i}", [batch, n, *space]) for i, n in enumerate((half, made - half)) if n]
            out = self.node("Concat", parts, axis=1)
        else:
            out = self.input("x", [batch, made, *space])
            if not kernel.tail:
                out = self.node("Neg", [out])
        shape = [batch, made, *self._space(kernel)]
        for op, operand in kernel.tail:
            out = self._pointwise(op, operand, out, shape)
        self.outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))

    def _convolution(self, sized: Sized, taken: int, made: int) -> str:
        kernel = sized[0]
        batch, *space = kernel.shape
        size, strides, padding, dilation = kernel.window
        transposed = kernel.kind == "conv_transpose"
        groups = taken if kernel.kind == "depthwise" else kernel.group_count(*sized[1:])
        shape = [taken, made // groups, *size] if transposed else [made, taken // groups, *size]
        return self.node(
            "ConvTranspose" if transposed else "Conv",
            [self.input("x", [batch, taken, *space]), self.weight("w", shape), self.weight("b", [made])],
            kernel_shape=size,
            strides=strides,
            pads=[*padding, *padding],
            dilations=dilation,
            group=groups,
        )

    @staticmethod
    def _space(kernel: Kernel) -> list[int]:
        """The space of what a kernel makes."""
        space = kernel.shape[1:]
        if kernel.kind == "ReduceMean":
            return [1] * len(space)
        if not kernel.window:
            return list(space)
        out = []
        for n, size, stride, pad, dilation in zip(space, *kernel.window):
            reach = dilation * (size - 1) + 1
            out.append(
                (n - 1) * stride - 2 * pad + reach
                if kernel.kind == "conv_transpose"
                else (n + 2 * pad - reach) // stride + 1
            )
        return out

    def _pointwise(self, op: str, operand: str, x: str, shape: list[int]) -> str:
        if op == "Silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if op == "Mish":
            return self.node("Mul", [x, self.node("Tanh", [self.node("Softplus", [x])])])
        if op == "Clip":
            low, high = (self.weight(f"{end}{len(self.nodes)}", [], end * 6.0) for end in (0, 1))
            return self.node("Clip", [x, low, high])
        if op == "BatchNormalization":
            return self.node(op, [x, *(self.weight(f"n{i}{len(self.nodes)}", [shape[1]], 1.0) for i in range(4))])
        if op in ("Add", "Mul"):
            name = f"{op}{len(self.nodes)}"
            if operand == "same":
                return self.node(op, [x, self.input(name, shape)])
            if operand == "channel":
                return self.node(op, [x, self.input(name, [shape[0], shape[1], *[1] * len(shape[2:])])])
            return self.node(op, [x, self.weight(name, [], 0.5)])
        return self.node(op, [x])

    def serialized(self) -> bytes:
        graph = helper.make_graph(self.nodes, "kernels", self.inputs, self.outputs, self.weights)
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        return model.SerializeToString()


# -- clocks ------------------------------------------------------------------------------------------------------------


def _session(graph: Graph, runtime: Settings, profile: Path | None = None) -> onnxruntime.InferenceSession:
    return open_session(graph.serialized(), runtime.provider, runtime.threads, profile=profile)


def _feed(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    return {entry.name: np.full(entry.shape, 0.5, np.float32) for entry in session.get_inputs()}


def _profiled(lot: Sequence[Sized], runtime: Settings) -> list[float]:
    """Milliseconds of each kernel by onnxruntime's profiler: for every node its fastest run, summed by kernel."""
    graph = Graph()
    for index, sized in enumerate(lot):
        graph.add(index, sized)
    with tempfile.TemporaryDirectory() as folder:
        session = _session(graph, runtime, Path(folder, "profile"))
        feed = _feed(session)
        start = time.perf_counter()
        done = 0
        while done < RUNS[0] or (done < RUNS[1] and time.perf_counter() - start < SECONDS):
            session.run(None, feed)
            done += 1
        events = json.loads(Path(session.end_profiling()).read_text())
    fastest: dict[tuple[int, str], float] = {}
    for event in events:
        found = re.search(r"k(\d+)_", event["name"])
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and found:
            key = int(found[1]), event["name"]
            fastest[key] = min(fastest.get(key, math.inf), event["dur"])
    totals = [0.0] * len(lot)
    for (index, _), microseconds in fastest.items():
        totals[index] += microseconds / 1000
    return totals


def _clocked(lot: Sequence[Sized], runtime: Settings, idle: int = 1) -> float:
    """Milliseconds of a session that runs `lot`, or `idle` nodes that do next to nothing: the median of runs."""
    graph = Graph()
    for index, sized in enumerate(lot):
        graph.add(index, sized)
    if not lot:
        x = graph.input("x", [1, 16])
        for i in range(idle):
            x = graph.node("Sin" if i % 2 else "Cos", [x])
        graph.outputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, None))
    session = _session(graph, runtime)
    call = ready_call(session, _feed(session))
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < RUNS[0] or (len(times) < 8 * RUNS[1] and time.perf_counter() - start < SECONDS):
        began = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began) / 1e6)
    return statistics.median(times[1:])
