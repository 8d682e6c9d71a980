"""Times of single runs in onnxruntime of the original and the pruned network, and what their operators take."""

import os
from pathlib import Path
from typing import Any

import onnx

from slim.deploy.bench.runners import FileRunner
from slim.deploy.targets import target_of
from slim.deploy.timing import Rounds, samples, time_in_turn
from slim.errors import SlimError
from slim.workbench.run.evidence.networks import Networks

ROUNDS = Rounds(10, 100, seconds=4)  # for each batch size and number of threads
WARMUP = 5
LAYERS = {"Conv", "Gemm", "MatMul", "ConvTranspose"}


def latency(networks: Networks) -> dict[str, Any]:
    """Return `times`: for each batch size and number of threads the milliseconds of single runs of each file, taken in
    turn. `operators`: file -> kind of operator -> milliseconds of a run of a batch of 1 on one thread; `layers`: file
    -> layer -> share of the time of all operators. Files are "before", "after" and, where there is one, "int8"."""
    files = {"before": networks.run.folder / "baseline.onnx", "after": networks.run.path("onnx")}
    for path in files.values():
        if not path.is_file():
            raise SlimError(f"the run has no {path.name} yet")
    files |= {"int8": networks.run.path("int8")} if networks.run.path("int8").is_file() else {}
    bench = networks.settings.bench
    cores = os.cpu_count() or 1
    threads = sorted({number or cores for number in bench.threads})
    times = [
        {"batch_size": batch, "threads": n, "ms": _times(files, batch, n, bench.provider)}
        for batch in bench.batch_sizes
        for n in threads
    ]
    operators: dict[str, dict[str, float]] = {}
    layers: dict[str, dict[str, float]] = {}
    for name, path in files.items():
        runner = FileRunner(name, path, target_of(path, bench.provider, 1))  # one thread, so that times add up
        operators[name], layers[name] = {}, {}
        layer_of = _layer_of(path)
        for node in runner.profile(batch_size=1):
            operators[name][node.operator] = operators[name].get(node.operator, 0.0) + node.ms
            layer = layer_of.get(node.node.removesuffix("_nchwc"))
            if layer is not None:
                layers[name][layer] = layers[name].get(layer, 0.0) + node.share
    return {"times": times, "operators": operators, "layers": layers, "provider": runner.provider}


def _times(files: dict[str, Path], batch: int, threads: int, provider: str) -> dict[str, list[float]]:
    runners = {name: FileRunner(name, path, target_of(path, provider, threads)) for name, path in files.items()}
    calls = {name: runner.prepare(batch) for name, runner in runners.items()}
    return {name: samples(each) for name, each in time_in_turn(calls, ROUNDS, WARMUP).items()}


def _layer_of(path: Path) -> dict[str, str]:
    """Return names that onnxruntime may give to the node of a layer -> the layer.

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
        followed = [node]
        while len(followed) == 1 and len(followed[0].output) == 1:
            found[followed[0].output[0]] = layer
            followed = readers.get(followed[0].output[0], [])
            followed = [] if any(reader.op_type in LAYERS for reader in followed) else followed
    return found
