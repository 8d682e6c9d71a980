"""What the page shows was measured right: the evidence against a second way of counting."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from workbench.report.short_run import QUIET, copied, pixels, settings

import slim
from slim import checkpoint
from slim.prune.plan import PruningPlan
from slim.workbench import config, data, models
from slim.workbench import run as stages
from slim.workbench.config import RunConfig
from slim.workbench.report import collect
from slim.workbench.report.collect import RunRecords
from slim.workbench.report.figures import layers
from slim.workbench.run import Run
from slim.workbench.run.evidence.gather import gather
from slim.workbench.run.evidence.latency import _layer_of
from slim.workbench.run.evidence.networks import Networks
from slim.workbench.run.evidence.tradeoff import tradeoff


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
    assert all(isinstance(rules["round_to"], slim.Runtimes) and rules["floor"] == 0.3 for rules in asked)


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
    folder = copied(whole, tmp_path / "again")
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
