"""What is known of a run, read from the files in its folder into one plain object. Nothing is measured here."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from slim import config
from slim.errors import SlimError
from slim.report import words
from slim.report.words import Record

EVIDENCE = "evidence.json"


@dataclass
class Run:
    """A run's records. A part that the run doesn't have is empty."""

    folder: Path
    settings: dict[str, Any]  # config.yaml
    summary: dict[str, Any]  # summary.json
    epochs: list[dict[str, Any]]  # metrics.jsonl
    plan: dict[str, Any]  # plan.json
    evidence: dict[str, Any]  # evidence.json
    sizes: dict[str, int] = field(default_factory=dict)  # ONNX file -> bytes

    @property
    def name(self) -> str:
        return str(self.settings.get("name") or self.folder.resolve().name)

    @cached_property
    def stages(self) -> dict[str, Record]:
        """Stage -> its record, in order; only what has an accuracy or a size."""
        return {key: value for key, value in self.summary.items() if isinstance(value, dict) and "params" in value}

    @property
    def before(self) -> Record:
        """The network before pruning: the baseline, or the sparse network where there is none."""
        return self.stages.get("baseline") or self.stages.get("sparse") or {}

    @property
    def after(self) -> Record:
        """The last pruned network; empty before there is one. An INT8 file is a variant, not the result."""
        found = [r for key, r in self.stages.items() if key not in ("baseline", "sparse", "int8")]
        return found[-1] if found else {}

    @property
    def rows(self) -> list[tuple[str, Record]]:
        """The stages by name, with those of earlier passes before the last one's."""
        rows: list[tuple[str, Record]] = []
        passes = self.summary.get("passes")
        for key, record in self.stages.items():
            if key == "sparse" and isinstance(passes, list):
                for number, stages in enumerate(passes[:-1], 1):
                    each = stages.items() if isinstance(stages, dict) else ()
                    rows += [(f"{words.stage(k)}, pass {number}", r) for k, r in each if isinstance(r, dict)]
            rows.append((words.stage(key), record))
        return rows

    @property
    def parts(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The epochs of each training one after the other: its name, its records."""
        parts: list[tuple[tuple[Any, Any], list[dict[str, Any]]]] = []
        for record in self.epochs:
            key = record.get("stage"), record.get("pass")
            if not parts or parts[-1][0] != key:
                parts.append((key, []))
            parts[-1][1].append(record)
        return [
            (words.stage(str(stage)) + (f", pass {turn}" if turn is not None else ""), records)
            for (stage, turn), records in parts
        ]

    @property
    def made(self) -> dict[str, Any]:
        """Date, machine and versions."""
        return dict(self.evidence.get("made") or {})

    @property
    def command(self) -> str:
        """What made the run, as a command line."""
        return str(self.evidence.get("command") or f"slim-run {self.folder / 'config.yaml'}")

    def missing(self, part: str) -> str:
        """Why a part of the evidence isn't there."""
        return str((self.evidence.get("missing") or {}).get(part) or "it wasn't measured")


def collect(folder: str | Path) -> Run:
    """Read a run. Raises SlimError where the folder isn't one, or its records are broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise SlimError(f"no run {str(folder)!r}: expected a folder that slim-run or slim-train wrote")
    settings = config.read(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    run = Run(
        folder=folder,
        settings=settings,
        summary=_object(folder / "summary.json"),
        epochs=_lines(folder / "metrics.jsonl"),
        plan=_object(folder / "plan.json"),
        evidence=_object(folder / EVIDENCE),
        sizes={path.name: path.stat().st_size for path in sorted(folder.glob("*.onnx"))},
    )
    if not run.summary and not run.epochs:
        raise SlimError(
            f"{str(folder)!r} holds no run: expected summary.json or metrics.jsonl, as slim-run writes them"
        )
    return run


def find(names: list[str], root: Path = Path("checkpoints")) -> list[Path]:
    """The folders of runs given by path or by name; without any, the run that was written to last."""
    if names:
        return [path if (path := Path(name)).is_dir() or not (root / name).is_dir() else root / name for name in names]
    records = [*root.glob("*/summary.json"), *root.glob("*/metrics.jsonl")]
    if not records:
        raise SlimError(f"no run under {str(root)!r}: run slim-run first, or name a run's folder")
    return [max(records, key=lambda path: path.stat().st_mtime_ns).parent]


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise SlimError(f"{str(path)!r} is broken: expected what slim wrote there") from None
    if not isinstance(value, dict):
        raise SlimError(f"{str(path)!r} is broken: expected what slim wrote there")
    return value


def _lines(path: Path) -> list[dict[str, Any]]:
    """A line for each epoch; a training that was cut off in the middle of a line loses that line only."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "epoch" in record:
            records.append(record)
    return records
