"""Markdown, card and terminal say what the files say, and text from the outside stays text."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from workbench.report.short_run import settings

import slim
from slim.prune.plan import PruningPlan
from slim.tables import PlainConsole, render
from slim.workbench import data
from slim.workbench.report import card, markdown, page, rendering
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import stage_name
from slim.workbench.report.figures import gamma
from slim.workbench.report.terminal import stage_table


def test_text_from_the_outside_stays_text() -> None:
    evil = "</script><script>alert(1)</script>"
    run = RunRecords(Path("x"), {"name": evil, "model": {"arch": evil}, "data": {"name": evil}})
    run.epochs.append({"stage": evil, "epoch": 1, "train_loss": 1.0})
    html = page.html([run])
    assert "<script>alert" not in html


EVIL = "a|b\x1b[31m`c`\n# <b>[x](y)</b>\x07"


def test_names_are_escaped_for_markdown() -> None:
    record = {"params": 1, "flops": 1, "accuracy": 0.5}
    run = RunRecords(Path("x"), {"name": EVIL, "model": {"arch": EVIL}, "data": {"name": EVIL}}, {EVIL: record})
    run.evidence["command"] = EVIL
    said = card.card(run, {"classes": [EVIL, "plain"]})
    for text in (markdown.of([run]), markdown.of([run, run]), said):
        assert not {"\x1b", "\x07"} & set(text)
        outside = re.sub(r"(`+).*?\1", "", text.replace("\\`", ""))  # nothing acts within a code span
        assert "<b>" not in outside and "[x](" not in outside and "\n# <" not in text
    assert sum(line.startswith("# ") for line in re.sub(r"(?s)```.*?```", "", said).splitlines()) == 1


def test_names_are_escaped_for_the_terminal() -> None:
    text = render(stage_table({EVIL: {"accuracy": 0.5}}, f"[red]{EVIL}"), 200)
    assert "\\x1b[31m" in text and "\\x07" in text and "[red]" in text and not {"\x1b", "\x07"} & set(text)


def test_a_console_shows_text_as_it_is() -> None:
    out = io.StringIO()
    PlainConsole(file=out, width=200).print(f"{EVIL} [red]x[/y] :smile:")
    assert out.getvalue() == "a|b\\x1b[31m`c`\n# <b>[x](y)</b>\\x07 [red]x[/y] :smile:\n"


def test_underscores_around_a_word_are_shown() -> None:
    assert rendering.markdown("_a_ my_net __b__") == r"\_a\_ my_net \_\_b\_\_"


def test_markdown_and_card_say_what_the_files_say(whole: Path, run: RunRecords) -> None:
    text = markdown.of([run])
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[2:]] == ["| " + stage_name(stage) for stage in run.summary]
    assert rows[4][2] == f"{run.summary['pruned']['params']:,}"
    said = (whole / "model_card.md").read_text()
    assert "N×1×8×8" in said and "pruned by slim" in said
    assert f"{run.summary['onnx']['latency_ms']:.3g}"[:4] in said  # written again once it was measured
    [code] = re.findall(r"```python\n(.*?)```", said, re.S)
    test = data.load(settings().data, 0).test
    scope = {"images": test.decoded()[:50].numpy().astype(np.float32) / 255}
    exec(code.replace('"model.onnx"', repr(str(whole / "model.onnx"))), scope)
    with torch.no_grad():
        [(images, _)] = data.batches(test[:50], data.load(settings().data, 0), 50)
        truth = slim.load(whole / "finetuned.safetensors")(images).argmax(1)
    assert [int(name) for name in scope["classes"]] == truth.tolist()
    assert card.metadata(whole / "model.onnx")["plan"] == PruningPlan.load(whole / "plan.json").digest


@pytest.mark.parametrize(
    ("task", "classes", "uses"),
    [
        ("classification", None, "classes = outputs.argmax(1)"),
        ("multilabel", ["a", "b"], "if score > 0"),
        ("regression", ["value 1", "value 2"], "one number for each of 2 values"),
        ("segmentation", ["a", "b"], "one map for each of 2 classes"),
        ("mine.py:Angle", None, "a network for images"),
    ],
)
def test_a_card_says_how_to_use_what_the_task_gives(task: str, classes: list[str] | None, uses: str) -> None:
    said = card.card(of_detection(0), {"classes": classes, "task": task, "mean": [0.5], "std": [0.5]})
    assert uses in said and ("slim-predict" in said) == (task in ("classification", "multilabel"))
    assert ("image classifier" in said) == (classes is not None and task == "multilabel")


def of_detection(strength: float) -> RunRecords:
    """A run whose metric has capitals of its own, with or without a penalty."""
    metric = {"name": "mAP", "direction": "max", "share": True, "unit": ""}
    size = {"params": 9, "flops": 9, "channels": 9, "metric": metric}
    stages = {"baseline": size | {"mAP": 0.7}, "finetuned": size | {"mAP": 0.71}}
    run = RunRecords(Path("x"), {"name": "x"}, stages)
    for stage in stages:
        run.epochs.append({"stage": stage, "epoch": 1, "train_loss": 1.0, "val_mAP": 0.7, "strength": strength})
    return run


def test_the_page_speaks_of_what_the_run_had() -> None:
    """The metric by its name, and a penalty only where there was one."""
    with_one, without = page.html([of_detection(1e-4)]), page.html([of_detection(0.0)])
    assert [re.findall(r">(map)<", text, re.IGNORECASE)[0] for text in (with_one, without)] == ["mAP"] * 2
    assert "Loss, mAP, λ by epoch" in with_one and "whether the penalty λ pushed" in with_one
    assert "Loss, mAP by epoch" in without and "whether the penalty λ pushed" not in without


def test_the_caption_of_small_scales_is_counted() -> None:
    """Also where the channels that go are not those of the smallest γ."""
    run = RunRecords(Path("x"), {"name": "x"})
    run.evidence["gamma"] = {
        "layers": {"a": {"removed": [0.001, 0.5], "kept": [0.9]}, "b": {"removed": [0.4, 0.6], "kept": [0.002, 1, 1]}}
    }
    shown = gamma.by_layer(run)
    assert shown is not None
    assert "|γ| is below 0.01 in 25% of the removed channels, and in 25% of those that stay" in shown.caption
