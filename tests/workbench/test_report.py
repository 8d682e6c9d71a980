"""What a run's page shows is so: the evidence against a second way of counting, the records read with care, and the
page, the Markdown and the card of runs of every kind."""

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image
from rich.console import Console

import slim
from slim import checkpoint
from slim.prune.plan import PruningPlan
from slim.tables import render
from slim.workbench import config, data, models
from slim.workbench import run as stages
from slim.workbench.cli import report as command
from slim.workbench.config import RunConfig
from slim.workbench.report import advice, card, collect, markdown, page
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.columns import stage_name
from slim.workbench.report.figures import gamma, layers, results, training
from slim.workbench.report.terminal import stage_table
from slim.workbench.run import Run
from slim.workbench.run.evidence.gather import gather
from slim.workbench.run.evidence.latency import _layer_of
from slim.workbench.run.evidence.networks import Networks
from slim.workbench.run.evidence.tradeoff import tradeoff
from slim.workbench.run.stages import find_runs

QUIET = Console(quiet=True)

SHORT = {
    "data": {"batch_size": 32},
    "model": {"arch": "slim:vgg7"},
    "train": {"epochs": 2, "lr": 0.05},
    "finetune": {"epochs": 1, "lr": 0.02},
    "prune": {"ratio": 0.4},
    "bench": {"runs": 3, "warmup": 1},
    "report": {"sweep_seconds": 2},
}


def settings(**changes: Any) -> RunConfig:
    return config.updated(config.updated(RunConfig(), SHORT), changes)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run with all its files."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        stages.run_all(stages.Run(stages.ROOT / "whole", settings(name="whole"), QUIET), command="slim-run short.yaml")
    return root / "checkpoints" / "whole"


@pytest.fixture(scope="module")
def run(whole: Path) -> RunRecords:
    return collect(whole)


def copy(whole: Path, to: Path, without: tuple[str, ...] = ()) -> Path:
    """A copy of a run without some of its files."""
    shutil.copytree(whole, to, ignore=lambda _, names: [n for n in names if n in without])
    return to


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


# -- evidence --------------------------------------------------------------------------------------------------------


def test_a_run_leaves_its_page_and_all_its_evidence(whole: Path, run: RunRecords) -> None:
    assert run.evidence["missing"] == {}
    assert run.command == "slim-run short.yaml"
    assert run.made["versions"]["torch"] == torch.__version__.partition("+")[0]
    html = (whole / "report.html").read_text()
    assert len(html) < 8e6 and (whole / "model_card.md").exists()
    assert html.count("<section") == html.count("<h2") == 9


def test_layers_add_up_to_the_whole_network(run: RunRecords) -> None:
    rows = run.evidence["layers"]
    for side, stage in (("before", "sparse"), ("after", "finetuned")):
        for key in ("params", "flops"):
            assert sum(row[f"{key}_{side}"] for row in rows) == run.summary[stage][key]
        assert sum(row[side] for row in rows if row["norm"]) == run.summary[stage]["channels"]
    assert [row["name"] for row in rows] == [*(f"conv{i}" for i in range(1, 7)), "classifier"]
    assert rows[1]["inputs_after"] == rows[0]["after"] and rows[0]["shape_after"] == [rows[0]["after"], 8, 8]


def test_gammas_are_those_of_the_sparse_network_and_the_threshold_parts_them(whole: Path, run: RunRecords) -> None:
    model, plan = slim.load(whole / "sparse.safetensors"), PruningPlan.load(whole / "plan.json")
    found = run.evidence["gamma"]
    for name, values in found["layers"].items():
        truth = model.get_parameter(f"{name}.weight").detach().abs()
        gone = torch.zeros(len(truth), dtype=torch.bool)
        gone[plan.removed.get(name, [])] = True
        assert np.allclose(values["removed"], truth[gone].sort().values, rtol=1e-3)
        assert np.allclose(values["kept"], truth[~gone].sort().values, rtol=1e-3)
        assert all(value <= found["threshold"] * 1.001 for value in values["removed"])
    kept = sum((value > found["threshold"] for v in found["layers"].values() for value in v["kept"]), 0)
    assert kept >= 0.95 * sum(len(v["kept"]) for v in found["layers"].values())


def accuracy(model: torch.nn.Module, split: data.Split, dataset: data.Dataset) -> float:
    with torch.no_grad():
        right = [(model(images).argmax(1) == labels).sum() for images, labels in data.batches(split, dataset, 100)]
    return float(sum(right)) / len(split)


def test_the_sweep_starts_at_the_sparse_network_and_passes_through_the_pruned_one(whole: Path, run: RunRecords) -> None:
    sweep, dataset = run.evidence["tradeoff"], data.load(settings().data, 0)
    assert sweep["split"] == "validation" and sweep["images"] == len(dataset.val)
    first, own = sweep["points"][0], next(p for p in sweep["points"] if p["ratio"] == sweep["chosen"])
    assert first["ratio"] == 0 and first["flops"] == 1
    assert first["accuracy"] == accuracy(slim.load(whole / "sparse.safetensors"), dataset.val, dataset)
    thin = PruningPlan.load(whole / "plan.json").apply(slim.load(whole / "sparse.safetensors"))
    assert own["accuracy"] == accuracy(thin, dataset.val, dataset)
    assert own["recovered"] == accuracy(slim.load(whole / "pruned.safetensors"), dataset.val, dataset)
    assert sweep["result"] == accuracy(slim.load(whole / "finetuned.safetensors"), dataset.val, dataset)
    assert own["flops"] == run.summary["pruned"]["flops"] / run.summary["sparse"]["flops"]


@pytest.mark.parametrize("kind", ["flops", "params"])
def test_the_sweep_takes_the_runs_own_kind_of_budget(whole: Path, kind: str) -> None:
    networks = Networks(Run(whole, settings()))
    networks.settings = config.updated(networks.settings, {"prune": {kind: 0.6, "recover": False}})
    points = [point for point in tradeoff(networks, 100)["points"] if point["asked"] is not None]
    assert len(points) >= 8
    for point in points:
        assert 1 - point["asked"] - 0.1 < point[kind] <= 1 - point["asked"] + 1e-9 or point["asked"] >= 0.8  # the floor


def test_the_sweep_plans_for_the_runs_own_runtime(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def planned(*_: Any, **rules: Any) -> PruningPlan:
        asked.append(rules)
        raise slim.SlimError("nothing")

    monkeypatch.setattr("slim.workbench.run.evidence.tradeoff.plan", planned)
    networks = Networks(Run(whole, settings()))
    networks.settings = config.updated(networks.settings, {"prune": {"round_to": "auto", "floor": 0.3}})
    found = tradeoff(networks, 100)
    assert len(asked) == 10 == len(found["skipped"]) and len(found["points"]) == 1  # the run's own plan
    assert all(isinstance(rules["round_to"], slim.Runtime) and rules["floor"] == 0.3 for rules in asked)


def test_examples_are_all_the_disagreements(whole: Path, run: RunRecords) -> None:
    dataset = data.load(settings().data, 0)
    found = run.evidence["examples"]
    [(images, labels)] = data.batches(dataset.test, dataset, 1000)
    with torch.no_grad():
        before, after = (
            slim.load(whole / f"{stage}.safetensors")(images).argmax(1) == labels for stage in ("baseline", "finetuned")
        )
    assert found["images"] == len(labels) and found["both"] == (before & after).sum()
    assert found["lost_count"] == (before & ~after).sum() and found["won_count"] == (after & ~before).sum()
    assert len(found["lost"]) == min(12, found["lost_count"]) and found["lost_count"] + found["won_count"] > 0
    originals = {image.numpy().tobytes() for image in dataset.test.decoded()[before & ~after, 0]}
    for sample in found["lost"]:
        assert pixels(sample["image"]).tobytes() in originals
        assert sample["before"]["says"] == sample["truth"] != sample["after"]["says"]


def test_kernels_show_what_was_removed_in_grey(whole: Path, run: RunRecords) -> None:
    plan = PruningPlan.load(whole / "plan.json")
    first, *others = run.evidence["weights"]
    assert first["filters"] and first["layer"] == "conv1"
    model = slim.load(whole / "baseline.safetensors")
    for pair in others:
        seen = pixels(pair["before"])
        out, inputs = (np.asarray(plan.cuts[f"{pair['layer']}.weight"].get(d, [])) for d in (0, 1))
        grey = seen[..., 3] < 255
        assert grey[out].all() and grey[:, inputs].all()
        kept = np.ix_(*(np.setdiff1d(np.arange(n), gone) for n, gone in zip(grey.shape, (out, inputs))))
        assert not grey[kept].any()
        norms = model.get_parameter(f"{pair['layer']}.weight").detach().flatten(2).norm(dim=2).numpy()[kept]
        brightness = seen[..., 1][kept].astype(float)  # green rises all along the scale
        assert np.corrcoef(norms.ravel(), brightness.ravel())[0, 1] > 0.95
        assert pixels(pair["after"]).shape[:2] == tuple(pair["shape_after"][:2])


def test_latency_has_every_run_and_every_layer(whole: Path, run: RunRecords) -> None:
    found = run.evidence["latency"]
    assert [case["batch_size"] for case in found["times"]][::2] == [1, 32]
    for case in found["times"]:
        assert len(case["ms"]["before"]) == len(case["ms"]["after"]) > 5
        assert min(case["ms"]["before"]) > 0
    for side in ("before", "after"):
        assert set(found["layers"][side]) == {row["name"] for row in run.evidence["layers"]}
        assert 0.3 < sum(found["layers"][side].values()) <= 1
    names = _layer_of(whole / "model.onnx")
    assert names["logits"] == "classifier" and names["relu"] == "conv1"


def test_evidence_is_measured_once(whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path / "again")
    said = io.StringIO()
    run = stages.Run(folder, RunConfig(), Console(file=said))
    gather(run)
    assert said.getvalue() == ""
    gather(run)
    before = json.loads((folder / "evidence.json").read_text())
    (folder / "model.onnx").touch()  # what was measured on the old file doesn't count for a new one
    (folder / "baseline.onnx").unlink()
    after = json.loads(gather(run, seconds=0).read_text())
    assert said.getvalue().count("measuring for the report") == 6 and "latency" in before
    assert after["missing"]["latency"] == "the run has no baseline.onnx yet" and "latency" not in after
    assert "sweep_seconds is 0" in after["missing"]["tradeoff"]
    assert after["layers"] == before["layers"]


def test_residual_networks_show_their_ties(tmp_path: Path) -> None:
    torch.manual_seed(0)
    facts: dict[str, Any] = {"arch": "slim:resnet20", "arch_kwargs": {"num_classes": 10, "in_channels": 1}}
    model = models.build(facts["arch"], **facts["arch_kwargs"])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
    plan = slim.plan(model, torch.randn(1, 1, 16, 16), ratio=0.3)
    about = {**facts, "images": slim.ImageSpec((1, 16, 16), tuple("0123456789"))}
    checkpoint.save(tmp_path / "sparse.safetensors", model, stage="sparse", **about)
    checkpoint.save(tmp_path / "pruned.safetensors", plan.apply(model), plan, stage="pruned", **about)
    found = json.loads(gather(stages.Run(tmp_path, RunConfig(), QUIET)).read_text())
    ties: dict[int, list[str]] = {}
    for row in found["layers"]:
        if row["tie"] is not None:
            ties.setdefault(row["tie"], []).append(row["norm"])
    together = [
        line.partition(": ")[2].split(", ") for line in slim.explain(model, torch.randn(1, 1, 16, 16)).split("\n")
    ]
    assert sorted(map(sorted, ties.values())) == sorted(sorted(names) for names in together if len(names) > 1)
    assert found["missing"].keys() == {"tradeoff", "latency", "examples"}
    assert "wasn't trained by slim" in found["missing"]["examples"]
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"stage": "sparse", "epoch": 1}')
    figure = layers.layers(collect(tmp_path))
    assert figure is not None
    lanes = [trace for trace in figure.traces if trace.get("yaxis") == "y2"]
    assert len(lanes) == len(ties) == 3 and all(len(trace["x"]) >= 4 for trace in lanes)


# -- runs of every kind ----------------------------------------------------------------------------------------------


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
    folder = copy(whole, tmp_path / "one")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines if line["epoch"] == 1))
    html = page.html([collect(folder)])
    checked(html)
    assert "disabled" in re.search(r'<div class="slider".*?</div>', html, re.S)[0]  # type: ignore[index]


def test_an_interrupted_run(whole: Path, tmp_path: Path) -> None:
    late = ("pruned.safetensors", "finetuned.safetensors", "plan.json", "model.onnx", "baseline.onnx", "evidence.json")
    folder = copy(whole, tmp_path / "cut", (*late, "report.html", "model_card.md"))
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
    folder = copy(whole, tmp_path / "plain", ("model.onnx", "baseline.onnx", "evidence.json"))
    summary = json.loads((folder / "summary.json").read_text())
    summary = {key: {k: v for k, v in r.items() if k not in ("latency_ms", "speedup")} for key, r in summary.items()}
    (folder / "summary.json").write_text(json.dumps({key: r for key, r in summary.items() if key != "onnx"}))
    gather(stages.Run(folder, RunConfig(), QUIET))
    text = checked(page.html([collect(folder)]))
    assert "not measured" in text and "the run has no baseline.onnx yet" in text
    assert 'id="plot-tradeoff"' in text and 'id="plot-latency"' not in text


def test_a_comparison_of_four_runs(whole: Path, tmp_path: Path) -> None:
    folders = [copy(whole, tmp_path / name) for name in ("a", "b", "c", "d")]
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
    folder = copy(whole, tmp_path / "passes")
    copy(whole, folder / "pass-1", ("report.html", "model.onnx", "baseline.onnx", "evidence.json"))
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


# -- what next --------------------------------------------------------------------------------------------------------


def sweep(*values: float, chosen: float = 0.5, images: int = 1000) -> RunRecords:
    """A run whose accuracy on validation images is `values` after removing 0, 25, 50 and 75 % of the channels."""
    points = [{"ratio": 0.25 * i, "accuracy": value, "flops": 1, "params": 1} for i, value in enumerate(values)]
    known = {"points": points, "chosen": chosen, "images": images, "split": "validation"}
    return RunRecords(Path("x"), evidence={"tradeoff": known})


@pytest.mark.parametrize(
    ("values", "said", "command"),
    [  # of 1,000 images, 95.0 % and 94.0 % are the same, 95 % and 90 % aren't
        ((0.95, 0.95, 0.95, 0.94), "a cut of 75%", "slim-prune --ratio 0.75"),
        ((0.95, 0.95, 0.94, 0.90), "a cut of 50%", ""),
        ((0.95, 0.94, 0.90, 0.60), "rests on its fine-tuning", ""),
        ((0.95, 0.90, 0.80, 0.60), "no cut holds", ""),
        ((0.95,), "", ""),
    ],
)
def test_the_next_cut_is_the_largest_that_holds(values: tuple[float, ...], said: str, command: str) -> None:
    found = advice.how_far(sweep(*values))
    assert said in found[0] and found[1] == command


@pytest.mark.parametrize(
    ("intervals", "file"),
    [
        ({"onnx": (1.5, 1.7)}, "model.onnx"),
        ({"onnx": (0.9, 1.2)}, "model.onnx"),
        ({"onnx": (0.5, 0.7)}, "baseline.onnx"),
        ({"onnx": (1.5, 1.7), "int8": (2.0, 2.2)}, "model.int8.onnx"),
        ({"onnx": (1.5, 2.1), "int8": (2.0, 2.2)}, "model.onnx"),
        ({}, "model.onnx"),
    ],
)
def test_the_file_to_deploy_follows_from_the_benchmark(intervals: dict[str, tuple[float, float]], file: str) -> None:
    rows = [
        {"model": name, "batch_size": 1, "speedup": (low + high) / 2, "speedup_low": low, "speedup_high": high}
        for name, (low, high) in intervals.items()
    ]
    run = RunRecords(Path("x"), summary={"onnx": {"params": 1, "flops": 1, "bench": {"rows": rows}}})
    found = advice.deployment(run)
    assert found is not None and found.file == file
    assert advice.deployment(RunRecords(Path("x"))) is None


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


# -- text ------------------------------------------------------------------------------------------------------------


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


def test_histograms_keep_their_mass_in_other_bins() -> None:
    counts = [10.0, 0, 5, 1]
    edges = np.linspace(0, 3, 31)
    out = gamma.rebinned(counts, 2.0, edges)
    assert out.sum() == pytest.approx(16) and out[:5].sum() == pytest.approx(10) and out[20:].sum() == 0
    assert gamma.rebinned([7.0, 0], 0.0, edges)[0] == 7


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


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_finds_the_newest_run_and_makes_the_page(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("old", "new"):
        copy(whole, tmp_path / "checkpoints" / name, ("report.html",))
    (tmp_path / "checkpoints/new/summary.json").touch()
    monkeypatch.chdir(tmp_path)
    command.main([])
    assert "wrote checkpoints/new/report.html" in capsys.readouterr().out
    command.main(["old", "checkpoints/new", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["wrote"][0] == "checkpoints/comparison.html"
    command.main(["old", "--out", "page.html", "--no-measure", "--quiet"])
    assert (tmp_path / "page.html").stat().st_size > 1e6 and not (tmp_path / "checkpoints/old/report.html").exists()
    command.main(["--markdown"])
    assert capsys.readouterr().out.startswith("### whole\n\n| stage | accuracy |")


@pytest.mark.parametrize(
    ("argv", "part"),
    [([], "slim-run"), (["none"], "'none'"), (["empty"], "holds no run"), (["--sweep-seconds", "-1"], "0 or more")],
)
def test_mistakes(
    argv: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    assert stopped.value.code == 2 and part in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]


def test_runs_are_found_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("checkpoints/a", "b", "a"):  # the last holds something else
        Path(name).mkdir(parents=True)
        (Path(name) / ("summary.json" if name != "a" else "image.png")).touch()
    assert find_runs(["a", "b"]) == [Path("checkpoints/a"), Path("b")]
