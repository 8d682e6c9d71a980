"""model_card.md: what somebody needs to know who gets the exported file and nothing else."""

import json
from pathlib import Path
from typing import Any

from slim.files import replacing
from slim.workbench.report.collect import RunRecords, collect, drawn_from
from slim.workbench.report.columns import every_column
from slim.workbench.report.markdown import origin, stages
from slim.workbench.report.rendering import render

NAME = "model_card.md"
FACTS = ("input_shape", "classes", "mean", "std", "plan", "task")


def write(onnx_path: Path) -> Path:
    """Write model_card.md beside a run's exported file, from its metadata and the run's records."""
    path = onnx_path.with_name(NAME)
    run = collect(onnx_path.parent)
    with drawn_from([run]):
        text = card(run, metadata(onnx_path))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def metadata(onnx_path: Path) -> dict[str, Any]:
    """Return what slim wrote into an ONNX file, a value for each of FACTS; None where there is none."""
    import onnx

    found = {entry.key: entry.value for entry in onnx.load(str(onnx_path), load_external_data=False).metadata_props}
    texts = {key: found.get(f"slim.{key}") for key in FACTS}
    return {key: text if text is None or key in ("plan", "task") else json.loads(text) for key, text in texts.items()}


def card(run: RunRecords, facts: dict[str, Any]) -> str:
    """Return the card as Markdown; `facts` as `metadata` gives them."""
    record = run.stages.get("onnx") or run.after
    metric, *_ = every_column(run.metric)
    task = facts.get("task") or "classification"
    texts = {
        "task": task,
        "named": bool(facts.get("classes")),
        "change": metric.change_text(run.before, record),
        "stages": stages(run),
        "origin": origin(run),
    }
    return render("card.md", run=run, record=record, facts=dict.fromkeys(FACTS) | facts, **texts) + "\n"
