"""model_card.md: what somebody needs to know who gets the exported file and nothing else."""

import json
from pathlib import Path
from typing import Any

from slim import tables
from slim.files import replacing
from slim.version import __version__
from slim.workbench.report import markdown, words
from slim.workbench.report.collect import Run, collect

NAME = "model_card.md"


def write(onnx_path: Path) -> Path:
    """Write model_card.md beside a run's exported file, from its metadata and the run's records."""
    run = collect(onnx_path.parent)
    path = onnx_path.with_name(NAME)
    with replacing(path) as temporary:
        temporary.write_text(card(run, metadata(onnx_path)), encoding="utf-8")
    return path


def metadata(onnx_path: Path) -> dict[str, Any]:
    """What slim wrote into an ONNX file: `input_shape`, `classes`, `mean`, `std`, `plan`; each may be missing."""
    import onnx

    found = {entry.key: entry.value for entry in onnx.load(str(onnx_path), load_external_data=False).metadata_props}
    facts = {
        key: json.loads(found[f"slim.{key}"])
        for key in ("input_shape", "classes", "mean", "std")
        if f"slim.{key}" in found
    }
    return facts | ({"plan": found["slim.plan"]} if "slim.plan" in found else {})


def card(run: Run, facts: dict[str, Any]) -> str:
    """The card as Markdown; `facts` as `metadata` gives them."""
    record = run.stages.get("onnx") or run.after
    arch = (run.settings.get("model") or {}).get("arch") or "a network of one's own"
    data = (run.settings.get("data") or {}).get("name")
    parts = [f"# {run.name}", ""]
    pruned = f", pruned by slim {__version__}" if facts.get("plan") else f", exported by slim {__version__}"
    parts.append(f"`model.onnx`: an image classifier, {arch}" + (f" trained on {data}" if data else "") + pruned + ".")
    if run.before and run.after:
        parts += ["", f"Against the network before pruning: {words.headline(run.before, record)}."]
    parts += ["", "## Input and output", "", *_interface(facts)]
    parts += ["", "## Use", "", *_use()]
    parts += ["", "## Results", "", markdown.stages(run) if run.stages else "None recorded."]
    parts += ["", _measured(run)]
    parts += ["", "## Limits", "", *_limits(run, record, data)]
    parts += ["", "## Made by", "", markdown.conditions(run)]
    return "\n".join(parts) + "\n"


def _interface(facts: dict[str, Any]) -> list[str]:
    lines = []
    if facts.get("input_shape"):
        shape = "×".join(str(n) for n in facts["input_shape"])
        lines.append(f"- `images`: float32, N×{shape} (channels, height, width), any N")
    if facts.get("mean") and facts.get("std"):
        mean, std = (", ".join(f"{value:.4f}" for value in facts[key]) for key in ("mean", "std"))
        lines.append(f"- each channel of an image in 0 to 1, less its mean ({mean}), divided by its deviation ({std})")
    if facts.get("classes"):
        classes = [str(name) for name in facts["classes"]]
        listed = ", ".join(classes[:20]) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
        lines.append(f"- `logits`: one number for each of {len(classes)} classes: {listed}")
    lines.append("- the file's metadata holds all of this: `slim.input_shape`, `slim.mean`, `slim.std`, `slim.classes`")
    return lines


def _use() -> list[str]:
    return [
        "`slim-predict model.onnx IMAGE…`, or with onnxruntime and numpy alone:",
        "",
        "```python",
        "import json, numpy as np, onnxruntime",
        "",
        'net = onnxruntime.InferenceSession("model.onnx")',
        "about = net.get_modelmeta().custom_metadata_map",
        'mean, std = (np.array(json.loads(about[key]), np.float32) for key in ("slim.mean", "slim.std"))',
        "images = (images - mean[:, None, None]) / std[:, None, None]  # from float32 in 0 to 1, [N, C, H, W]",
        'logits = net.run(None, {"images": images})[0]',
        'classes = [json.loads(about["slim.classes"])[i] for i in logits.argmax(1)]',
        "```",
    ]


def _measured(run: Run) -> str:
    onnx = run.stages.get("onnx") or {}
    said = "Accuracy is that on the test images, which no stage was trained on or chosen by."
    if onnx.get("max_relative_error") is not None:
        said += f" The file's outputs equal the PyTorch network's to {onnx['max_relative_error']:.0e} (relative)."
    return said


def _limits(run: Run, record: Any, data: str | None) -> list[str]:
    lines = [f"- It knows images like those of {data or 'its training data'}; on others its answers mean little."]
    if run.before.get("accuracy") is not None and record.get("accuracy") is not None:
        by = tables.points(run.before["accuracy"], record["accuracy"])
        lines.append(
            f"- Pruning changed the accuracy by {by} over all classes together; single classes can have changed more. "
            "report.html shows images on which the answers differ."
        )
    if record.get("latency_ms") is not None:
        lines.append(
            "- The latency holds for the machine below. Elsewhere, measure: `slim-bench baseline.onnx model.onnx`."
        )
    lines.append(
        "- Its scores are no calibrated probabilities. It was not tested for bias or against manipulated images."
    )
    return lines
