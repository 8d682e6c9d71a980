"""The page of runs of every kind: whole, short, interrupted, of several passes, beside others."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
from workbench.report.short_run import QUIET, copied

from slim.workbench import run as stages
from slim.workbench.config import RunConfig
from slim.workbench.report import collect, markdown, page
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.figures import gamma, results, training
from slim.workbench.run.evidence.gather import gather


def checked(html: str) -> str:
    """The page's text without its scripts, after checking that every figure is one that plotly takes."""
    drawn = json.loads(re.search(r'id="figures">(.*?)</script>', html, re.S)[1])  # type: ignore[index]
    go.layout.Template(**_plain(drawn["template"]))
    for figure in drawn["figures"].values():
        for trace in figure["traces"]:
            getattr(go, trace["type"].title())(**{k: v for k, v in _plain(trace).items() if k != "type"})
        go.Layout(**_plain(figure["layout"]))
    text = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert (
        "None" not in re.sub(r"<pre>.*?</pre>|None\.|None:", "", text, flags=re.S) and "nan" not in text.lower().split()
    )
    return text


def _plain(value: Any) -> Any:
    """With colours in place of the names that the page looks up."""
    if isinstance(value, str):
        return "#000000" if value.startswith("--") else value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_the_page_of_a_whole_run(run: RunRecords) -> None:
    text = checked(page.html([run]))
    assert 'class="missing"' not in text.replace(
        "<noscript>" + text.partition("<noscript>")[2].partition("</noscript>")[0], ""
    )
    after = run.summary["onnx"]
    assert f"{after['params']:,}" in text and f"{after['accuracy']:.2%}" in text
    for name in ("training", "gamma", "ridges", "layers", "tradeoff", "latency", "operators"):
        assert f'id="plot-{name}"' in text
        assert len(re.search(rf'id="plot-{name}".*?<figcaption>(.*?)</figcaption>', text, re.S)[1]) > 60  # type: ignore[index]


def test_a_run_with_one_epoch(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "one")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines if line["epoch"] == 1))
    html = page.html([collect(folder)])
    checked(html)
    assert "disabled" in re.search(r'<div class="slider".*?</div>', html, re.S)[0]  # type: ignore[index]


def test_an_interrupted_run(whole: Path, tmp_path: Path) -> None:
    late = ("pruned.safetensors", "finetuned.safetensors", "plan.json", "model.onnx", "baseline.onnx", "evidence.json")
    folder = copied(whole, tmp_path / "cut", (*late, "report.html", "model_card.md"))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({key: summary[key] for key in ("baseline", "sparse")}))
    cut = (folder / "metrics.jsonl").read_text().splitlines()[:3]
    (folder / "metrics.jsonl").write_text("\n".join([*cut, '{"stage": "sparse", "epo']))
    gather(stages.Run(folder, RunConfig(), QUIET))
    run = collect(folder)
    assert len(run.epochs) == 3 and run.after == {}
    text = checked(page.html([run]))
    assert "has not been pruned yet" in text and text.count('class="missing"') >= 4
    assert 'id="plot-gamma"' in text and 'id="plot-ridges"' in text
    (folder / "summary.json").unlink()  # killed before its first stage was done
    text = checked(page.html([collect(folder)]))
    assert "No stage is finished yet" in text and 'id="plot-training"' in text
    assert "No stage is finished" in markdown.of([collect(folder)])


def test_a_run_without_onnx(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "plain", ("model.onnx", "baseline.onnx", "evidence.json"))
    summary = json.loads((folder / "summary.json").read_text())
    summary = {key: {k: v for k, v in r.items() if k not in ("latency_ms", "speedup")} for key, r in summary.items()}
    (folder / "summary.json").write_text(json.dumps({key: r for key, r in summary.items() if key != "onnx"}))
    gather(stages.Run(folder, RunConfig(), QUIET))
    text = checked(page.html([collect(folder)]))
    assert "not measured" in text and "the run has no baseline.onnx yet" in text
    assert 'id="plot-tradeoff"' in text and 'id="plot-latency"' not in text


def test_a_comparison_of_four_runs(whole: Path, tmp_path: Path) -> None:
    folders = [copied(whole, tmp_path / name) for name in ("a", "b", "c", "d")]
    for i, folder in enumerate(folders):
        summary = json.loads((folder / "summary.json").read_text())
        summary["onnx"] |= {"accuracy": 0.9 + i / 100, "flops": (1 + i * 7 % 4) * 1000}
        (folder / "summary.json").write_text(json.dumps(summary))
        text = (folder / "config.yaml").read_text().replace("name: whole", f"name: {folder.name}")
        (folder / "config.yaml").write_text(text.replace("ratio: 0.4", f"ratio: 0.{i + 2}"))
    runs = [collect(folder) for folder in folders]
    text = checked(page.html(runs))
    assert "d has the best accuracy: 93.00%" in text
    assert text.count("<code>prune.ratio</code>") == 1 and "<code>seed</code>" not in text
    frontier = results.frontier(runs, "flops")
    assert frontier is not None  # a: (1000, .90), b: (4000, .91), c: (3000, .92), d: (2000, .93)
    assert frontier.traces[0]["x"] == [1000, 2000] and frontier.traces[0]["y"] == [0.90, 0.93]
    table = markdown.of(runs)
    assert table.splitlines()[0].startswith("| run | accuracy |") and table.count("\n| ") == 5


def test_several_passes_are_one_course(whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "passes")
    copied(whole, folder / "pass-1", ("report.html", "model.onnx", "baseline.onnx", "evidence.json"))
    early = json.loads((folder / "summary.json").read_text())
    (folder / "pass-1/summary.json").write_text(json.dumps({key: early[key] for key in ("sparse", "finetuned")}))
    lines = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if "baseline" not in line]
    (folder / "pass-1/metrics.jsonl").write_text("\n".join(lines))
    run = collect(folder)
    assert [label for label, _ in run.rows] == [
        *("baseline", "sparse, pass 1", "fine-tuned, pass 1"),
        *("sparse, pass 2", "pruned, pass 2", "recovered, pass 2", "fine-tuned, pass 2", "ONNX"),
    ]
    assert [(name, len(records)) for name, records in run.parts] == [
        *(("baseline", 2), ("sparse, pass 1", 2), ("fine-tuned, pass 1", 1)),
        *(("sparse, pass 2", 2), ("fine-tuned, pass 2", 1)),
    ]
    figure = training.training(run)
    assert max(max(trace["x"]) for trace in figure.traces) == 8
    text = checked(page.html([run]))
    assert "sparse, pass 1" in text


def test_channels_that_fall_within_a_training_are_drawn(run: RunRecords) -> None:
    assert "channels" not in {trace["name"] for trace in training.training(run).traces}
    counts = iter([100, 60, 40])
    epochs = [{"stage": "sparse", "epoch": n, "train_loss": 1.0, "channels": next(counts)} for n in (1, 2, 3)]
    figure = training.training(RunRecords(Path("x"), epochs=epochs))
    assert [trace["y"] for trace in figure.traces if trace["name"] == "channels"] == [[100, 60, 40]]
    assert "pruned on its way" in figure.caption and "channels" in figure.title


def test_no_page_claims_a_speedup_that_its_interval_contradicts(run: RunRecords) -> None:
    row = {"model": "onnx", "batch_size": 1, "median_ms": 1.0, "p10_ms": 1.0, "p90_ms": 1.0, "throughput": 1.0}
    row |= {"speedup": 46.0, "speedup_low": 0.8, "speedup_high": 90.0, "differs": False}
    bench = {"rows": [row], "runs": 3, "warmup": 1, "cautions": ["busy machine: other processes took 63% of its cores"]}
    onnx = run.summary["onnx"] | {"speedup": 46.0, "differs": False, "bench": bench}
    busy = RunRecords(run.folder, run.settings, run.summary | {"onnx": onnx}, run.epochs)
    text = checked(page.html([busy]))
    assert text.count("no difference in latency shown") >= 3  # description, first sentence, card
    assert "46.00× as fast" not in text and "≈46.00×" in text and "Busy machine: other processes took 63%" in text
    assert "no difference in latency shown" in markdown.of([busy]) and "46.00× as fast" not in markdown.of([busy])


def test_histograms_keep_their_mass_in_other_bins() -> None:
    counts = [10.0, 0, 5, 1]
    edges = np.linspace(0, 3, 31)
    out = gamma.rebinned(counts, 2.0, edges)
    assert out.sum() == pytest.approx(16) and out[:5].sum() == pytest.approx(10) and out[20:].sum() == 0
    assert gamma.rebinned([7.0, 0], 0.0, edges)[0] == 7
