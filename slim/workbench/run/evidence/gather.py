"""Gather a run's evidence: measure what isn't known yet, keep what is, say why something is missing."""

import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from slim.deploy.timing import machine
from slim.errors import SlimError
from slim.files import read_text, replacing
from slim.version import __version__
from slim.workbench.report.collect import EVIDENCE
from slim.workbench.run.evidence.examples import examples
from slim.workbench.run.evidence.gamma import gamma
from slim.workbench.run.evidence.latency import latency
from slim.workbench.run.evidence.layers import layers
from slim.workbench.run.evidence.networks import Networks
from slim.workbench.run.evidence.tradeoff import tradeoff
from slim.workbench.run.evidence.weights import weights
from slim.workbench.run.folder import Run

PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "numpy", "lightning-fabric")


def gather(run: Run, *, command: str | None = None, seconds: float | None = None) -> Path:
    """Measure what the page of a run shows beside the run's own records, and write evidence.json in its folder.

    What was measured before and still follows from the same files is kept. A part that can't be measured (the run
    hasn't come that far, its data aren't here) is left out, and `missing` says why: a page comes out all the same.

    `command`: the command line that made the run. `seconds`: limit of the trade-off sweep, by default that of the run.
    Raises SlimError where there is no such folder.
    """
    folder = run.folder
    if not folder.is_dir():
        raise SlimError(f"no run {str(folder)!r}: expected a folder that slim-run or slim-train wrote")
    path = folder / EVIDENCE
    old = _read(path)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.onnx")])
    made_from = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}
    networks = Networks(run)
    sweep = partial(tradeoff, seconds=seconds)
    parts: list[tuple[str, Callable[[Networks], Any]]] = [("layers", layers), ("gamma", gamma), ("tradeoff", sweep)]
    parts += [("latency", latency), ("weights", weights), ("examples", examples)]
    same = old.get("made_from") == made_from and old.get("slim") == __version__
    record: dict[str, Any] = {
        "slim": __version__,
        "made_from": made_from,
        "made": old["made"] if same and "made" in old else _made(),
        "command": command or old.get("command"),
        "missing": {},
    }
    for name, measure in parts:
        if same and name in old:
            record[name] = old[name]
            continue
        run.console.print(f"measuring for the report: {name}")
        try:
            record[name] = measure(networks)
        except SlimError as error:
            record["missing"][name] = str(error)
        except Exception as error:  # a page without one figure is better than none
            why, _, _ = str(error).partition("\n")
            record["missing"][name] = f"it couldn't be measured ({type(error).__name__}: {why})"
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        old = json.loads(read_text("record", path))
    except (SlimError, ValueError, RecursionError):
        return {}
    return old if isinstance(old, dict) else {}


def _made() -> dict[str, Any]:
    """Return when, where and with which versions."""
    versions = {"slim": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), "versions": versions}
