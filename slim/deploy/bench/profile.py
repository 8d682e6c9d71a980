"""Which nodes of an ONNX file take the time, by onnxruntime's own profiler."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from slim.deploy.bench.runners import OnnxRunner
from slim.deploy.onnx.session import SESSION_SETTINGS, open_session, ready_call

RUNS = 10
WARMUP = 3


@dataclass(frozen=True)
class NodeTime:
    """A node of the graph as onnxruntime runs it, after its fusions."""

    node: str
    operator: str
    ms: float  # of one run, median
    share: float  # of the time of all nodes, 0 to 1


def operator_profile(runner: OnnxRunner, batch_size: int) -> list[NodeTime]:
    """All nodes of a file, the slowest first. A session of its own runs them, because the profiler costs time."""
    with TemporaryDirectory() as folder:
        session = open_session(
            runner.path, runner.provider, runner.threads, SESSION_SETTINGS, profile=Path(folder, "profile")
        )
        call = ready_call(session, runner.feed(batch_size), repr(runner.name))
        for _ in range(WARMUP + RUNS):
            call()
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time")
            runs[node, event["args"]["op_name"]].append(event["dur"] / 1000)
    medians = {key: median(times[WARMUP:]) for key, times in runs.items()}
    total = sum(medians.values()) or 1.0
    slowest = sorted(medians.items(), key=lambda item: -item[1])
    return [NodeTime(node, operator, ms, ms / total) for (node, operator), ms in slowest]
