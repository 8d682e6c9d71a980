"""What each node of a session takes, by onnxruntime's own profiler: the only reader of its files."""

import json
from collections import defaultdict
from pathlib import Path
from statistics import median

import onnxruntime

from slim.deploy.target import NodeTime

KERNEL_TIME = "_kernel_time"  # ends the names of the events that hold a node's time


def node_runs(session: onnxruntime.InferenceSession) -> dict[tuple[str, str], list[float]]:
    """Return the milliseconds of each run of each node, by (name of the node, operator), and end the profiling.

    The session was opened by `open_session(profile=…)`; nodes are those that onnxruntime runs, after its fusions.
    """
    runs: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL_TIME):
            node = event["name"].removesuffix(KERNEL_TIME)
            runs[node, event["args"]["op_name"]].append(event["dur"] / 1000)
    return runs


def node_times(session: onnxruntime.InferenceSession, warmup: int) -> list[NodeTime]:
    """Return the median of each node's runs after the first `warmup`, the slowest node first."""
    medians = {key: median(times[warmup:]) for key, times in node_runs(session).items()}
    total = sum(medians.values()) or 1.0
    slowest = sorted(medians.items(), key=lambda item: -item[1])
    return [NodeTime(node, operator, ms, ms / total) for (node, operator), ms in slowest]
