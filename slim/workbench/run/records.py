"""What a run writes down beside its networks: summary.json, metrics.jsonl, config.yaml."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.errors import SlimError
from slim.files import read_text, replacing
from slim.tables import duration, percent
from slim.workbench import config, train
from slim.workbench.config import RunConfig
from slim.workbench.report.columns import is_record
from slim.workbench.run.stages import STAGES

if TYPE_CHECKING:
    from slim.deploy.bench.result import BenchReport

# What else has the latency of a network that was measured.
SAME_LATENCY = {"onnx": ["onnx", "finetuned"], "pruned": ["pruned", "recovered"]}


@dataclass(frozen=True)
class Records:
    """The records in a run's folder: an object for each stage, a line for each epoch, the settings as last used."""

    folder: Path

    def summary(self) -> dict[str, Any]:
        """Return stage -> its record; empty where there is none yet. SlimError where the file is broken."""
        path = self.folder / "summary.json"
        if not path.exists():
            return {}
        summary = _parsed(read_text("record", path), path)
        if not isinstance(summary, dict) or not all(map(is_record, summary.values())):
            raise _broken(path)
        return summary

    def epochs(self) -> list[dict[str, Any]]:
        """Return the epochs of all trainings in order. SlimError where the file is broken."""
        path = self.folder / "metrics.jsonl"
        lines = read_text("record", path).splitlines() if path.exists() else []
        epochs = [_parsed(line, path) for line in lines]
        if not all(isinstance(e, dict) and isinstance(e.get("stage"), str) and _is_epoch(e) for e in epochs):
            raise _broken(path)
        return epochs

    def check(self) -> None:
        """Raise SlimError where a file is broken: before the work, so that it costs none of it."""
        self.summary(), self.epochs()

    def enter(
        self,
        stage: str,
        record: dict[str, Any],
        settings: RunConfig,
        epochs: Sequence[dict[str, Any]] = (),
        *,
        fresh: bool = False,
    ) -> None:
        """Enter a stage in summary, metrics and settings. What later stages entered goes, as do states that they would
        resume from; everything goes if `fresh`."""
        earlier = _before(stage, fresh)
        summary = {key: value for key, value in self.summary().items() if key in earlier}
        self.enter_epochs(stage, epochs, fresh=fresh)
        self._write("summary.json", json.dumps(summary | {stage: record}, indent=2))
        self._write("config.yaml", config.to_yaml(settings))
        self._clear_states(other for other in STAGES if other not in earlier)

    def enter_epochs(self, stage: str, epochs: Sequence[dict[str, Any]], *, fresh: bool = False) -> None:
        """Enter epochs of a stage in the metrics, after its earlier ones."""
        earlier = _before(stage, fresh)
        first = epochs[0]["epoch"] if epochs else 1
        kept = [e for e in self.epochs() if e["stage"] in earlier or (e["stage"] == stage and e["epoch"] < first)]
        added = [{"stage": stage, **epoch} for epoch in epochs]
        self._write("metrics.jsonl", "\n".join(json.dumps(entry) for entry in [*kept, *added]))

    def enter_latency(self, made: "BenchReport", settings: RunConfig) -> Path:
        """Enter latencies (ms for a batch of the first size on the first threads) in the summary. The fine-tuned
        network's is its export's, and the recovered one's that of the pruned one."""
        summary = self.summary()
        for row in made.rows:
            if (row.batch_size, row.threads) != (settings.bench.batch_sizes[0], settings.bench.threads[0]):
                continue
            for stage in SAME_LATENCY.get(row.model, [row.model]):
                if stage in summary:
                    for stale in ("speedup", "differs"):
                        summary[stage].pop(stale, None)
                    summary[stage] |= {"latency_ms": row.median_ms}
                    if row.speedup is not None:  # else of other images than the first file
                        summary[stage] |= {"speedup": row.speedup, "differs": row.differs}
        measured = [row.model for row in made.rows if row.model in summary]
        if "onnx" in summary or measured:  # with the result; that is no ONNX file where no exporter takes the network
            summary["onnx" if "onnx" in summary else measured[-1]]["bench"] = made.to_dict()
        return self._write("summary.json", json.dumps(summary, indent=2))

    def forget(self) -> None:
        """Take the stages of an earlier run out of the records, so that no `resume` takes them for done."""
        for name in ("summary.json", "metrics.jsonl"):
            (self.folder / name).unlink(missing_ok=True)
        self._clear_states(STAGES)

    def states(self, stage: str) -> Path:
        """Return the folder of the states that the training of a stage resumes from."""
        return (self.folder / STAGES[stage].file).with_suffix(".state")

    def clear_stale_states(self) -> None:
        """Remove states of trainings that are done: a kill between the two leaves them beside the stage's file."""
        done = self.summary()
        for stage in STAGES:
            file, states = self.folder / STAGES[stage].file, list(self.states(stage).glob("step-*"))
            if stage in done and file.exists():
                newest = max((path.stat().st_mtime_ns for path in states), default=0)
                if newest <= file.stat().st_mtime_ns:
                    self._clear_states([stage])

    def _clear_states(self, stages: Iterable[str]) -> None:
        for stage in stages:
            train.Snapshots(self.states(stage), {}).clear()

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        with replacing(path) as temporary:
            temporary.write_text(text + "\n" if text else "", encoding="utf-8")
        return path


def totals(epochs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return what a training took, from its records: `seconds` in all, images per second of its steps, and the share
    of the steps' time in which they waited for images."""
    sums = {key: sum(e[key] for e in epochs) for key in ("seconds", "images", "training_seconds", "waiting_seconds")}
    return {
        "seconds": sums["seconds"],
        "images_per_second": sums["images"] / sums["training_seconds"],
        "waiting": sums["waiting_seconds"] / sums["training_seconds"],
    }


def effort(epochs: Sequence[dict[str, Any]]) -> str:
    """Return what a training took in one line."""
    took = totals(epochs)
    speed, waiting = f"{took['images_per_second']:,.0f} images/s", percent(took["waiting"])
    trained = f"{len(epochs)} epoch{'s' * (len(epochs) > 1)} in {duration(took['seconds'])}"
    return f"{trained}; steps at {speed}, {waiting} of it waiting for images"


def _before(stage: str, fresh: bool) -> list[str]:
    return [] if fresh else list(STAGES)[: list(STAGES).index(stage)]


def _is_epoch(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("epoch"), int) and not isinstance(entry["epoch"], bool)


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _broken(path) from None


def _broken(path: Path) -> SlimError:
    return SlimError(f"{str(path)!r} is broken: expected what slim wrote there; move it away to go on")
