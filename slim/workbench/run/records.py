"""What a run writes down beside its networks: summary.json, metrics.jsonl, config.yaml."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.checkpoint import STAGES
from slim.errors import SlimError
from slim.files import replacing
from slim.workbench import config, train
from slim.workbench.config import RunConfig

if TYPE_CHECKING:
    from slim.deploy.bench.result import BenchReport

ROOT = Path("checkpoints")


def enter(
    folder: Path,
    stage: str,
    record: dict[str, Any],
    settings: RunConfig,
    epochs: Sequence[dict[str, Any]] = (),
    fresh: bool = False,
) -> None:
    """Enter a stage in the run's summary, metrics and settings. What later stages entered goes, as do states that they
    would resume from; everything goes if `fresh`."""
    earlier = [] if fresh else list(STAGES)[: list(STAGES).index(stage)]
    summary, _ = read_records(folder)
    summary = {key: value for key, value in summary.items() if key in earlier}
    enter_epochs(folder, stage, epochs, fresh)
    _write(folder / "summary.json", json.dumps(summary | {stage: record}, indent=2))
    _write(folder / "config.yaml", config.to_yaml(settings))
    for other, (file, _) in STAGES.items():
        if other not in earlier:
            train.Snapshots(states_of(folder / file), {}).clear()


def enter_epochs(folder: Path, stage: str, epochs: Sequence[dict[str, Any]], fresh: bool) -> None:
    """Enter epochs of a stage in the run's metrics, after its earlier ones."""
    earlier = [] if fresh else list(STAGES)[: list(STAGES).index(stage)]
    first = epochs[0]["epoch"] if epochs else 1
    _, entries = read_records(folder)
    kept = [e for e in entries if e["stage"] in earlier or (e["stage"] == stage and e["epoch"] < first)]
    added = [{"stage": stage, **epoch} for epoch in epochs]
    _write(folder / "metrics.jsonl", "\n".join(json.dumps(entry) for entry in [*kept, *added]))


def enter_latency(folder: Path, made: "BenchReport", settings: RunConfig) -> Path:
    """Enter latencies (ms for a batch of the first size) in the summary. The fine-tuned network's is its
    export's, and the recovered one's that of the pruned one."""
    same = {"onnx": ["onnx", "finetuned"], "pruned": ["pruned", "recovered"]}
    summary, _ = read_records(folder)
    batch = settings.bench.batch_sizes[0]
    for row in made.rows:
        if row.batch_size == batch:
            for stage in same.get(row.model, [row.model]):
                if stage in summary:
                    summary[stage] |= {"latency_ms": row.median_ms, "speedup": row.speedup}
                    if row.speedup is None:  # of other images than the first file
                        del summary[stage]["speedup"]
    if "onnx" in summary:
        summary["onnx"]["bench"] = made.to_dict()
    _write(folder / "summary.json", json.dumps(summary, indent=2))
    return folder / "summary.json"


def read_records(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run's summary and the lines of its metrics, empty where there are none yet."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(summary, dict) or not all(isinstance(stage, dict) for stage in summary.values()):
            raise ValueError
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        metrics = [json.loads(line) for line in lines]
        if not all(isinstance(line, dict) and "stage" in line for line in metrics):
            raise ValueError
    except ValueError:
        raise SlimError(f"{str(path)!r} is broken: expected what slim wrote there; move it away to go on") from None
    return summary, metrics


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n" if text else "", encoding="utf-8")


def states_of(path: Path) -> Path:
    return path.with_suffix(".state")


def forget(folder: Path) -> None:
    """Take the stages of an earlier run out of a folder's records, so that no `resume` takes them for done."""
    for name in ("summary.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for file, _ in STAGES.values():
        train.Snapshots(states_of(folder / file), {}).clear()
