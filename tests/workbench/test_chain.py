"""The whole chain of commands in an empty folder: the files that it leaves, and what they say."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from workbench.commands import Command, Shown, call, contents

import slim
from slim import checkpoint
from slim.workbench import data
from slim.workbench.config import DataConfig, RunConfig
from slim.workbench.run import exporting
from slim.workbench.run.records import Records


def test_the_chain_leaves_the_files_of_a_run(folder: Path) -> None:
    run = folder / "checkpoints" / "digits-vgg7"
    assert {p.name for p in run.iterdir()} == {
        *("sparse.safetensors", "pruned.safetensors", "finetuned.safetensors"),
        *("plan.json", "model.onnx", "baseline.onnx", "model_card.md"),
        *("metrics.jsonl", "summary.json", "config.yaml"),
    }
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary) == ["sparse", "pruned", "recovered", "finetuned", "onnx"]
    for stage in summary.values():
        assert 0 < stage["accuracy"] <= 1 and stage["file_size"] > 0
    assert summary["onnx"]["latency_ms"] > 0 and summary["onnx"]["speedup"] > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["epoch"]) for line in lines] == [
        *[("sparse", epoch) for epoch in (1, 2, 3)],
        *[("finetuned", epoch) for epoch in (1, 2)],
    ]


def test_what_the_files_say_is_so(folder: Path) -> None:
    run = folder / "checkpoints" / "digits-vgg7"
    summary = json.loads((run / "summary.json").read_text())
    sparse, thin = slim.load(run / "sparse.safetensors"), slim.load(run / "finetuned.safetensors")
    for name, model in (("sparse", sparse), ("finetuned", thin)):
        assert summary[name]["params"] == sum(p.numel() for p in model.parameters())
        widths = [m.num_features for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert summary[name]["channels"] == sum(widths)
    assert summary["pruned"]["channels"] == summary["sparse"]["channels"] // 2
    plan = slim.PruningPlan.load(run / "plan.json")
    assert sum(map(len, plan.removed.values())) == summary["sparse"]["channels"] // 2

    # The accuracy of the ONNX file, by onnxruntime and numpy alone
    import onnxruntime

    session = onnxruntime.InferenceSession(run / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array(json.loads(metadata[f"slim.{key}"]), np.float32) for key in ("mean", "std"))
    test = data.load(DataConfig(), seed=0).test
    images = (test.decoded().numpy().astype(np.float32) / 255 - mean[:, None, None]) / std[:, None, None]
    [logits] = session.run(None, {session.get_inputs()[0].name: images})
    assert summary["onnx"]["accuracy"] == np.mean(logits.argmax(1) == test.labels.numpy())
    assert metadata["slim.plan"] == plan.digest


def test_settings_pass_down_the_chain(folder: Path) -> None:
    run = folder / "checkpoints" / "digits-vgg7"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["data"]["batch_size"] == 32 and settings["sparsity"]["strength"] == 1e-3
    assert settings["train"]["epochs"] == 3 and settings["finetune"]["epochs"] == 2
    about = checkpoint.read_metadata(run / "finetuned.safetensors")
    assert about["config"] == {**settings, "bench": about["config"]["bench"]}
    assert (about["stage"], about["input_shape"], about["classes"][3]) == ("finetuned", [1, 8, 8], "3")


def test_tables_fit_into_80_columns(chained: tuple[Path, dict[str, Shown]]) -> None:
    for name, shown in chained[1].items():
        assert shown.tables.strip(), name
        assert all(len(line) <= 80 and "…" not in line for line in shown.tables.splitlines()), shown.tables


def test_each_command_names_what_it_wrote_and_the_next(chained: tuple[Path, dict[str, Shown]]) -> None:
    run = "checkpoints/digits-vgg7"
    assert {name: shown.last for name, shown in chained[1].items() if name != "train"} == {
        "prune": f"wrote {run}/pruned.safetensors and {run}/plan.json; next: slim-finetune",
        "finetune": f"wrote {run}/finetuned.safetensors; next: slim-export",
        "export": f"wrote {run}/model.onnx, {run}/baseline.onnx and {run}/model_card.md; next: slim-bench",
        "bench": f"wrote {run}/summary.json and {run}/model_card.md; next: slim-predict {run}/model.onnx IMAGE",
    }


def test_predict_agrees_with_the_network(folder: Path, tmp_path: Path, command: Command) -> None:
    test = data.load(DataConfig(), seed=0).test
    for i in range(3):
        Image.fromarray(test.decoded()[i, 0].numpy()).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    lines = command("predict", "checkpoints/digits-vgg7/model.onnx", *paths, "--top", "2").splitlines()
    about = checkpoint.read_metadata(folder / "checkpoints/digits-vgg7/finetuned.safetensors")
    images = (test.decoded()[:3] / 255 - about["mean"][0]) / about["std"][0]
    with torch.no_grad():
        shares, classes = slim.load(folder / "checkpoints/digits-vgg7/finetuned.safetensors")(images).softmax(1).topk(2)
    for i, line in enumerate(lines):
        named = ", ".join(f"{c} ({s:.1%})" for c, s in zip(classes[i].tolist(), shares[i].tolist()))
        assert line == f"{paths[i]}: {named}"


def test_predict_as_json_says_the_same(folder: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "digit.png"
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(path)
    said = json.loads(command("predict", "checkpoints/digits-vgg7/model.onnx", str(path), "--top", "10", "--json"))
    [[expected]] = slim.OnnxModel("checkpoints/digits-vgg7/model.onnx").predict([path], top=1)
    assert said["image"] == str(path) and len(said["classes"]) == 10
    assert said["classes"][0]["label"] == expected[0]
    assert sum(c["probability"] for c in said["classes"]) == pytest.approx(1, abs=1e-5)


def test_answers_go_to_a_file_while_the_bar_is_in_the_terminal(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "digit.png")
    monkeypatch.setattr("slim.progress.PATIENCE", -1.0)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    answers = command("predict", "checkpoints/digits-vgg7/model.onnx", *[str(tmp_path / "digit.png")] * 120)
    assert answers.count("digit.png: ") == 120
    assert "images" in terminal.getvalue() and "digit.png" not in terminal.getvalue()


def test_predict_takes_folders_and_gets_over_broken_files(
    folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    test = data.load(DataConfig(), seed=0).test
    for i in range(3):
        Image.fromarray(test.decoded()[i, 0].numpy()).save(tmp_path / f"{i}.png")
    model = "checkpoints/digits-vgg7/model.onnx"
    lines = command("predict", model, str(tmp_path), "--top", "1").splitlines()
    assert lines == command("predict", model, str(tmp_path / "*.png"), "--top", "1").splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / f"{i}.png") for i in range(3)]
    (tmp_path / "1.png").write_text("broken")
    (tmp_path / "3.png").write_text("broken, too")
    with pytest.raises(SystemExit) as stopped:
        call("predict", "checkpoints/digits-vgg7/model.onnx", str(tmp_path), "--top", "1")
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and printed.out.splitlines() == [lines[0], lines[2]]
    assert printed.err.startswith("slim-predict: error: ") and printed.err.count("\n") == 1
    assert "1.png" in printed.err and "3.png" in printed.err and "more)" not in printed.err
    for i in range(4, 9):
        (tmp_path / f"{i}.png").write_text("broken")
    with pytest.raises(SystemExit):
        call("predict", "checkpoints/digits-vgg7/model.onnx", str(tmp_path), "--threads", "1")
    said = capsys.readouterr().err
    assert [i for i in range(9) if f"{i}.png" in said] == [1, 3, 4, 5, 6] and said.endswith(" (and 2 more)\n")


def test_bench_of_named_files(folder: Path, tmp_path: Path, command: Command, mistake: Command) -> None:
    run = folder / "checkpoints" / "digits-vgg7"
    before = contents(folder)
    files = [str(run / name) for name in ("baseline.onnx", "model.onnx", "finetuned.safetensors")]
    output, plot = str(tmp_path / "new" / "bench.json"), str(tmp_path / "bench.html")
    options = ["--runs", "3", "--batch_sizes", "[2]", "--threads", "1", "--compiled", "false"]
    options += ["--output", output, "--plot", plot]
    text = command("bench", *files, *options, "--profile", "1")
    names = ["baseline.onnx", "model.onnx", "finetuned.safetensors (eager)"]
    written = json.loads(Path(output).read_text())
    assert [row["model"] for row in written["rows"]] == names and all(name in text for name in names)
    assert all(row["memory"] > 0 and row["file_size"] > 0 and len(row["samples_ms"]) == 3 for row in written["rows"])
    assert list(written["profiles"]) == names[:2] and "Plotly.newPlot" in Path(plot).read_text()
    assert contents(folder) == before
    assert "--output a.txt: expected a name that ends in .json" in mistake("bench", *files, "--output", "a.txt")


def test_export_to_another_runtime_writes_its_file_beside_the_others(
    folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file was timed in onnxruntime in place of the unpruned network's, which refused it."""

    def export(model: torch.nn.Module, example: torch.Tensor, path: Path) -> float:  # without that runtime
        model(example)
        path.write_text("<net/>")
        return 0.0

    monkeypatch.setattr(exporting, "export", export)
    run = Path(shutil.copytree(folder / "checkpoints" / "digits-vgg7", tmp_path / "digits-vgg7"))
    told = command("export", str(run / "finetuned.safetensors"), "--to", "openvino")
    assert "model.xml is within 0e+00" in told and (run / "model.xml").read_text() == "<net/>"
    assert len(json.loads((run / "summary.json").read_text())["onnx"]["settings"]) == 4  # timed with baseline.onnx


def test_export_for_multiples_of_a_number_is_judged_on_every_test_image(
    folder: Path, tmp_path: Path, command: Command
) -> None:
    """359 of them, and 7 to a clip: neither the test images nor those of calibration fill the last one."""
    run = Path(shutil.copytree(folder / "checkpoints" / "digits-vgg7", tmp_path / "digits-vgg7"))
    command("export", str(run / "finetuned.safetensors"), "--batch", "7n", "--int8", "--export.max_loss", "1")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["onnx"]["accuracy"] == pytest.approx(summary["finetuned"]["accuracy"], abs=1 / 359)
    assert summary["int8"]["accuracy"] > 0.1


def test_run_does_it_all(whole_run: tuple[Path, Shown]) -> None:
    folder, shown = whole_run
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary) == ["baseline", "sparse", "pruned", "recovered", "finetuned", "onnx"]
    needed = {"accuracy", "params", "flops", "channels", "file_size", "latency_ms", "speedup"}
    assert all(needed <= set(stage) for stage in summary.values())
    assert summary["baseline"]["speedup"] == 1
    assert summary["baseline"]["flops"] > summary["onnx"]["flops"]
    closing_table = shown.tables[shown.tables.rindex("whole, seed 0") :]
    for label in ("baseline", "sparse", "pruned", "recovered", "fine-tuned", "ONNX", "latency"):
        assert label in closing_table
    settings = summary["onnx"]["settings"]
    assert [each["setting"].rpartition(", ")[2] for each in settings] == ["batch 1", "batch 32"] * 2
    assert all(each["low"] <= each["speedup"] <= each["high"] for each in settings)
    assert "the unpruned network" in " ".join(closing_table.split())  # faster or not, it says so at the end
    assert shown.last.endswith("slim-predict checkpoints/whole/model.onnx IMAGE")
    strengths = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        strengths[record["stage"]] = record["strength"]
    assert strengths == {"baseline": 0, "sparse": RunConfig().sparsity.strength, "finetuned": 0}


def test_a_stage_done_again_takes_back_what_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, settings = tmp_path / "run", RunConfig()
    for stage in ("baseline", "sparse", "pruned", "onnx"):
        Records(folder).enter(stage, {"accuracy": 1}, settings, [{"epoch": 1}])
    Records(folder).enter("sparse", {"accuracy": 2}, settings, [{"epoch": 1}])
    assert json.loads((folder / "summary.json").read_text()) == {"baseline": {"accuracy": 1}, "sparse": {"accuracy": 2}}
    stages = [json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["baseline", "sparse"]


@pytest.mark.slow
def test_the_chain_without_arguments_from_a_shell(tmp_path: Path) -> None:
    for line in ("slim-train", "slim-prune --ratio 0.5", "slim-finetune", "slim-export", "slim-bench"):
        program, *argv = line.split()
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *argv], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    summary = json.loads((tmp_path / "checkpoints/digits-vgg7/summary.json").read_text())
    assert summary["onnx"]["accuracy"] > 0.96
