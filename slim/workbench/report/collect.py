"""What is known of a run, read from the files in its folder into one plain object. Nothing is measured here."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slim.errors import SlimError
from slim.files import read_text
from slim.workbench import config
from slim.workbench.causes import told
from slim.workbench.report.columns import Record, is_record, stage_name
from slim.workbench.tasks.metric import Metric

EVIDENCE = "evidence.json"


@dataclass
class RunRecords:
    """A run's records. A part that the run doesn't have is empty."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)  # config.yaml
    summary: dict[str, Any] = field(default_factory=dict)  # summary.json
    epochs: list[dict[str, Any]] = field(default_factory=list)  # metrics.jsonl
    evidence: dict[str, Any] = field(default_factory=dict)  # evidence.json
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each ONNX file
    passes: list["RunRecords"] = field(default_factory=list)  # all but the last, in multi-pass slimming

    @property
    def name(self) -> str:
        said = str(self.settings.get("name") or config.AUTO)
        return self.folder.resolve().name if said == config.AUTO else said

    @property
    def arch(self) -> str | None:
        return (self.settings.get("model") or {}).get("arch")

    @property
    def data(self) -> str | None:
        return (self.settings.get("data") or {}).get("name")

    @cached_property
    def stages(self) -> dict[str, Record]:
        """Return stage -> its record, in order; only what has a size."""
        return {key: value for key, value in self.summary.items() if isinstance(value, dict) and "params" in value}

    @property
    def metric(self) -> Metric:
        """Return the metric of the run's task."""
        return Metric.of(next(reversed(self.stages.values()), {}))

    @property
    def before(self) -> Record:
        """Return the network before pruning: the baseline, or the sparse network where there is none."""
        return self.stages.get("baseline") or self.stages.get("sparse") or {}

    @property
    def after(self) -> Record:
        """Return the last pruned network; empty before there is one. An INT8 file is a variant, not the result."""
        found = (key for key in reversed(self.stages) if key not in ("baseline", "sparse", "int8"))
        return self.stages.get(next(found, ""), {})

    @property
    def bench(self) -> dict[str, Any]:
        """Return the run's benchmark, as BenchReport.to_dict() gives it."""
        return (self.stages.get("onnx") or {}).get("bench") or {}

    @property
    def rows(self) -> list[tuple[str, Record]]:
        """Return the stages by name; those of earlier passes come between the baseline and those of the last."""
        every = enumerate([*self.passes, self], 1)
        rows = {self._label(key, n): record for n, each in every for key, record in each.stages.items()}
        return sorted(rows.items(), key=lambda item: item[0] != "baseline")

    @property
    def parts(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Return the epochs of each training, one after the other: its name, its records."""
        parts: dict[str, list[dict[str, Any]]] = {}
        for n, each in enumerate([*self.passes, self], 1):
            for record in each.epochs:
                parts.setdefault(self._label(str(record.get("stage")), n), []).append(record)
        return sorted(parts.items(), key=lambda item: item[0] != "baseline")

    def _label(self, stage: str, number: int) -> str:
        """Return the name of a stage, with its pass where a run has several."""
        single = not self.passes or stage in ("baseline", "onnx", "int8")
        return stage_name(stage) + ("" if single else f", pass {number}")

    @property
    def course(self) -> list[dict[str, Any]]:
        """Return all epochs of all trainings, in order."""
        return [record for _, records in self.parts for record in records]

    @property
    def made(self) -> dict[str, Any]:
        """Return date, machine and versions."""
        return dict(self.evidence.get("made") or {})

    @property
    def command(self) -> str:
        """Return what made the run, as a command line."""
        return str(self.evidence.get("command") or f"slim-run {self.folder / 'config.yaml'}")

    def missing(self, part: str) -> str:
        """Return why a part of the evidence isn't there."""
        return str((self.evidence.get("missing") or {}).get(part) or "it wasn't measured")


def collect(folder: str | Path) -> RunRecords:
    """Read a run. Raises SlimError where the folder isn't one, or its records are broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SlimError(f"no run {str(folder)!r}: expected a folder that slim-run or slim-train wrote")
    run = _read(folder)
    earlier = sorted(folder.glob("pass-*"), key=lambda path: (len(path.name), path.name))
    run.passes = [_read(path) for path in earlier if path.is_dir()]
    if not run.summary and not run.course:
        raise SlimError(f"{str(folder)!r} holds no run: expected summary.json or metrics.jsonl from slim-run")
    return run


@contextmanager
def drawn_from(runs: Sequence[RunRecords]) -> Iterator[None]:
    """Turn what goes wrong while records are drawn into a SlimError that names their files: they hold many values of
    many kinds, and may have been edited."""
    try:
        yield
    except SlimError:
        raise
    except Exception as error:
        reason = told(error, 100)
        raise SlimError(
            f"the records in {', '.join(str(run.folder) for run in runs)} can't be drawn ({reason}): expected "
            f"summary.json, metrics.jsonl and {EVIDENCE} as slim wrote them"
        ) from error


def _read(folder: Path) -> RunRecords:
    return RunRecords(
        folder=folder,
        settings=config.read(folder / "config.yaml") if (folder / "config.yaml").is_file() else {},
        summary=_summary(folder / "summary.json"),
        epochs=_lines(folder / "metrics.jsonl"),
        evidence=_object(folder / EVIDENCE),
        sizes={path.name: path.stat().st_size for path in sorted(folder.glob("[!.]*.onnx"))},
    )


def _summary(path: Path) -> dict[str, Any]:
    summary = _object(path)
    for stage, record in summary.items():
        if isinstance(record, dict) and not is_record(record):
            raise SlimError(f"{str(path)!r} is broken: expected numbers in its {stage!r:.40}")
    return summary


def _object(path: Path) -> dict[str, Any]:
    value = _json(read_text("record", path)) if path.is_file() else {}
    if not isinstance(value, dict):
        raise SlimError(f"{str(path)!r} is broken: expected what slim wrote there")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return a line for each epoch; a training that was cut off in the middle of a line loses that line only."""
    lines = read_text("record", path).splitlines() if path.is_file() else []
    return [record for record in map(_json, lines) if isinstance(record, dict) and "epoch" in record]


def _json(text: str) -> Any:
    """Return a value in which NaN and infinity are missing; None for text that is no JSON."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
