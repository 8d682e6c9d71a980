"""Times of single runs in onnxruntime of the original and the pruned network, and what their operators take."""

import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime

from slim.bench import SESSION_SETTINGS
from slim.errors import SlimError
from slim.export.session import find_provider, open_session
from slim.report.evidence.networks import Networks

RUNS = 100  # at most, for each file, batch size and number of threads
SECONDS = 4.0  # at most, for each batch size and number of threads
PROFILED = 30
LAYERS = {"Conv", "Gemm", "MatMul", "ConvTranspose"}


def latency(networks: Networks) -> dict[str, Any]:
    """`times`: for each batch size and number of threads the milliseconds of single runs of each file, taken in turn.
    `operators`: file -> kind of operator -> median milliseconds in a run of a batch of 1; `layers`: file -> layer ->
    share of the time of all operators."""
    files = {"before": networks.folder / "baseline.onnx", "after": networks.folder / "model.onnx"}
    for path in files.values():
        if not path.is_file():
            raise SlimError(f"the run has no {path.name} yet")
    bench = networks.settings.bench
    cores = os.cpu_count() or 1
    threads = [1, cores] if bench.threads == 0 and cores > 1 else [bench.threads]
    times = [
        {"batch_size": batch, "threads": n or cores, "ms": _times(files, batch, n, bench.provider)}
        for batch in bench.batch_sizes
        for n in threads
    ]
    profiles = {name: _profile(path, bench.provider) for name, path in files.items()}
    return {
        "times": times,
        "operators": {name: profile["operators"] for name, profile in profiles.items()},
        "layers": {name: profile["layers"] for name, profile in profiles.items()},
        "provider": find_provider(bench.provider),
    }


def _feed(session: onnxruntime.InferenceSession, batch: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    types = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(float16)": np.float16}
    return {
        entry.name: random.uniform(0, 1 if "float" in entry.type else 255, (batch, *entry.shape[1:])).astype(
            types[entry.type]
        )
        for entry in session.get_inputs()
    }


def _times(files: dict[str, Path], batch: int, threads: int, provider: str) -> dict[str, list[float]]:
    sessions = {name: open_session(path, provider, threads, SESSION_SETTINGS) for name, path in files.items()}
    feeds = {name: _feed(session, batch) for name, session in sessions.items()}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(5):
        for name, session in sessions.items():
            session.run(None, feeds[name])
    began = time.perf_counter()
    for _ in range(RUNS):
        for name, session in sessions.items():
            start = time.perf_counter_ns()
            session.run(None, feeds[name])
            found[name].append(round((time.perf_counter_ns() - start) / 1e6, 5))
        if time.perf_counter() - began > SECONDS:
            break
    return found


def _profile(path: Path, provider: str) -> dict[str, dict[str, float]]:
    """Median milliseconds by kind of operator, and the share of each layer, by onnxruntime's own profiler."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.intra_op_num_threads = 1  # so that times add up
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        wanted = list(dict.fromkeys([find_provider(provider), "CPUExecutionProvider"]))
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        feed = _feed(session, 1)
        for _ in range(PROFILED):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time")
            found.setdefault(node, (event["args"]["op_name"], []))[1].append(event["dur"] / 1000)
    spent = {node: (kind, float(np.median(each))) for node, (kind, each) in found.items()}
    operators: dict[str, float] = {}
    for kind, ms in spent.values():
        operators[kind] = operators.get(kind, 0.0) + ms
    total = sum(operators.values()) or 1.0
    layer_of = _layer_of(path)
    layers: dict[str, float] = {}
    for node, (_, ms) in spent.items():
        layer = layer_of.get(node.removesuffix("_nchwc"))
        if layer is not None:
            layers[layer] = layers.get(layer, 0.0) + ms / total
    return {"operators": operators, "layers": layers}


def _layer_of(path: Path) -> dict[str, str]:
    """Names that onnxruntime may give to the node of a layer -> the layer.

    It fuses what follows into the layer's node, and renames that after the last output; so a layer also goes by the
    outputs of the elementwise operators that follow it one after the other.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights = {tensor.name for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        weight = next((name for name in node.input if name in weights and name.endswith("weight")), None)
        if node.op_type not in LAYERS or weight is None:
            continue
        layer = weight.removesuffix(".weight")
        found[node.name] = layer
        output = node.output[0]
        while True:
            found[output] = layer
            after = readers.get(output, [])
            if len(after) != 1 or after[0].op_type in LAYERS or len(after[0].output) != 1:
                break
            output = after[0].output[0]
    return found
