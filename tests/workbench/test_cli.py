"""The commands, as a newcomer uses them: the whole chain in an empty folder, and every kind of mistake."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

import slim
from slim import checkpoint, tables
from slim.workbench import config, data, report
from slim.workbench import run as pipeline
from slim.workbench.cli.command import Given
from slim.workbench.config import DataConfig, RunConfig
from slim.workbench.run import records

COMMANDS = ["train", "prune", "finetune", "export", "bench", "predict", "report", "run"]
Command = Callable[..., str]


def call(command: str, *argv: str) -> None:
    importlib.import_module(f"slim.workbench.cli.{command}").main(list(argv))


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process and returns what it printed."""

    def run(name: str, *argv: str) -> str:
        capsys.readouterr()
        call(name, *argv)
        return capsys.readouterr().out

    return run


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that must fail, and returns the one line that it printed."""

    def run(name: str, *argv: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            call(name, *argv)
        printed = capsys.readouterr().err
        assert stopped.value.code == 2
        assert printed.startswith(f"slim-{name}: error: ") and printed.count("\n") == 1, printed
        return printed

    return run


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder in which the chain has run, shortly, and what each command printed."""
    folder = tmp_path_factory.mktemp("chain")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, argv in [
            ("train", ["--epochs", "3", "--sparsity.strength", "1e-3", "--data.batch_size", "32"]),
            ("prune", ["--ratio", "0.5"]),
            ("finetune", ["--epochs", "2"]),
            ("export", []),
            ("bench", ["--runs", "3", "--warmup", "1"]),
        ]:
            console = Console(record=True, width=80, file=open(os.devnull, "w"))  # noqa: SIM115
            patch.setattr(Given, "console", console)
            call(name, *argv)
            printed[name] = console.export_text()
    return folder, printed


@pytest.fixture
def folder(chained: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(chained[0])
    return chained[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- the chain -----------------------------------------------------------------------------------------


def test_the_chain_leaves_the_files_of_a_run(folder: Path) -> None:
    run = folder / "checkpoints" / "digits"
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
    run = folder / "checkpoints" / "digits"
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
    images = (test.images.numpy().astype(np.float32) / 255 - mean[:, None, None]) / std[:, None, None]
    [logits] = session.run(None, {session.get_inputs()[0].name: images})
    assert summary["onnx"]["accuracy"] == np.mean(logits.argmax(1) == test.labels.numpy())
    assert metadata["slim.plan"] == plan.digest


def test_settings_pass_down_the_chain(folder: Path) -> None:
    run = folder / "checkpoints" / "digits"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["data"]["batch_size"] == 32 and settings["sparsity"]["strength"] == 1e-3
    assert settings["train"]["epochs"] == 3 and settings["finetune"]["epochs"] == 2
    about = checkpoint.read_metadata(run / "finetuned.safetensors")
    assert about["config"] == {**settings, "bench": about["config"]["bench"]}
    assert (about["stage"], about["input_shape"], about["classes"][3]) == ("finetuned", [1, 8, 8], "3")


def test_tables_fit_into_80_columns(chained: tuple[Path, dict[str, str]]) -> None:
    for name, text in chained[1].items():
        assert text.strip(), name
        assert all(len(line) <= 80 and "…" not in line for line in text.splitlines()), text


def test_each_command_names_what_it_wrote_and_the_next(folder: Path, command: Command) -> None:
    run = "checkpoints/digits"
    last = command("prune", "--ratio", "0.5").splitlines()[-1]
    assert last == f"wrote {run}/pruned.safetensors and {run}/plan.json; next: slim-finetune"
    last = command("finetune", "--epochs", "2").splitlines()[-1]
    assert last == f"wrote {run}/finetuned.safetensors; next: slim-export"
    last = command("export").splitlines()[-1]
    assert last == f"wrote {run}/model.onnx, {run}/baseline.onnx and {run}/model_card.md; next: slim-bench"
    last = command("bench", "--runs", "3").splitlines()[-1]
    assert last == f"wrote {run}/summary.json and {run}/model_card.md; next: slim-predict {run}/model.onnx IMAGE"


def test_predict_agrees_with_the_network(folder: Path, tmp_path: Path, command: Command) -> None:
    test = data.load(DataConfig(), seed=0).test
    for i in range(3):
        Image.fromarray(test.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    lines = command("predict", "checkpoints/digits/model.onnx", *paths, "--top", "2").splitlines()
    about = checkpoint.read_metadata(folder / "checkpoints/digits/finetuned.safetensors")
    images = (test.images[:3] / 255 - about["mean"][0]) / about["std"][0]
    with torch.no_grad():
        shares, classes = slim.load(folder / "checkpoints/digits/finetuned.safetensors")(images).softmax(1).topk(2)
    for i, line in enumerate(lines):
        named = ", ".join(f"{c} ({s:.1%})" for c, s in zip(classes[i].tolist(), shares[i].tolist()))
        assert line == f"{paths[i]}: {named}"


def test_predict_as_json_says_the_same(folder: Path, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "digit.png"
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(path)
    said = json.loads(command("predict", "checkpoints/digits/model.onnx", str(path), "--top", "10", "--json"))
    [[expected]] = slim.OnnxModel("checkpoints/digits/model.onnx").predict([path], top=1)
    assert said["image"] == str(path) and len(said["classes"]) == 10
    assert said["classes"][0]["label"] == expected[0]
    assert sum(c["probability"] for c in said["classes"]) == pytest.approx(1, abs=1e-5)


def test_predict_takes_folders_and_gets_over_broken_files(
    folder: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    test = data.load(DataConfig(), seed=0).test
    for i in range(3):
        Image.fromarray(test.images[i, 0].numpy()).save(tmp_path / f"{i}.png")
    lines = command("predict", "checkpoints/digits/model.onnx", str(tmp_path), "--top", "1").splitlines()
    assert (
        lines == command("predict", "checkpoints/digits/model.onnx", str(tmp_path / "*.png"), "--top", "1").splitlines()
    )
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / f"{i}.png") for i in range(3)]
    (tmp_path / "1.png").write_text("broken")
    (tmp_path / "3.png").write_text("broken, too")
    with pytest.raises(SystemExit) as stopped:
        call("predict", "checkpoints/digits/model.onnx", str(tmp_path), "--top", "1")
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and printed.out.splitlines() == [lines[0], lines[2]]
    assert printed.err.startswith("slim-predict: error: ") and printed.err.count("\n") == 1
    assert "1.png" in printed.err and "3.png" in printed.err and "more)" not in printed.err
    for i in range(4, 9):
        (tmp_path / f"{i}.png").write_text("broken")
    with pytest.raises(SystemExit):
        call("predict", "checkpoints/digits/model.onnx", str(tmp_path), "--threads", "1")
    said = capsys.readouterr().err
    assert [i for i in range(9) if f"{i}.png" in said] == [1, 3, 4, 5, 6] and said.endswith(" (and 2 more)\n")


def test_bench_of_named_files(folder: Path, tmp_path: Path, command: Command, mistake: Command) -> None:
    run = folder / "checkpoints" / "digits"
    before = contents(folder)
    files = [str(run / name) for name in ("baseline.onnx", "model.onnx", "finetuned.safetensors")]
    output, plot = str(tmp_path / "new" / "bench.json"), str(tmp_path / "bench.html")
    options = ["--runs", "3", "--batch_sizes", "[2]", "--compiled", "false", "--output", output, "--plot", plot]
    text = command("bench", *files, *options, "--profile", "1")
    names = ["baseline.onnx", "model.onnx", "finetuned.safetensors (eager)"]
    written = json.loads(Path(output).read_text())
    assert [row["model"] for row in written["rows"]] == names and all(name in text for name in names)
    assert all(row["memory"] > 0 and row["file_size"] > 0 and len(row["samples_ms"]) == 3 for row in written["rows"])
    assert list(written["profiles"]) == names[:2] and "Plotly.newPlot" in Path(plot).read_text()
    assert contents(folder) == before
    assert "--output a.txt: expected a name that ends in .json" in mistake("bench", *files, "--output", "a.txt")


def test_run_does_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    short = {"name": "short", "train": {"epochs": 3}, "finetune": {"epochs": 2}, "bench": {"runs": 3, "warmup": 1}}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short))
    text = command("run", "short.yaml", "--prune.ratio", "0.4")
    summary = json.loads((tmp_path / "checkpoints/short/summary.json").read_text())
    assert list(summary) == ["baseline", "sparse", "pruned", "recovered", "finetuned", "onnx"]
    needed = {"accuracy", "params", "flops", "channels", "file_size", "latency_ms", "speedup"}
    assert all(needed <= set(stage) for stage in summary.values())
    assert summary["baseline"]["speedup"] == 1
    assert summary["baseline"]["flops"] > summary["onnx"]["flops"]
    closing_table = text[text.rindex("short, seed 0") :]
    for label in ("baseline", "sparse", "pruned", "recovered", "fine-tuned", "ONNX", "latency"):
        assert label in closing_table
    assert text.splitlines()[-1].endswith("slim-predict checkpoints/short/model.onnx IMAGE")
    strengths = {}
    for line in (tmp_path / "checkpoints/short/metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        strengths[record["stage"]] = record["strength"]
    assert strengths == {"baseline": 0, "sparse": RunConfig().sparsity.strength, "finetuned": 0}


def test_a_stage_done_again_takes_back_what_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder, settings = tmp_path / "run", RunConfig()
    for stage in ("baseline", "sparse", "pruned", "onnx"):
        records.enter(folder, stage, {"accuracy": 1}, settings, [{"epoch": 1}])
    records.enter(folder, "sparse", {"accuracy": 2}, settings, [{"epoch": 1}])
    assert json.loads((folder / "summary.json").read_text()) == {"baseline": {"accuracy": 1}, "sparse": {"accuracy": 2}}
    stages = [json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert stages == ["baseline", "sparse"]


# -- help, version, settings ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_comes_at_once(name: str) -> None:
    program = Path(sys.executable).with_name(f"slim-{name}")
    seconds = []
    for _ in range(3):
        before = os.times()
        shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 0.7
    assert "reads" in shown and "writes" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_help_names_the_settings_of_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        call("prune", "--help")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--ratio" in shown and "share of all BatchNorm channels" in shown
    assert "--train.lr" not in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("train", "--version")
    assert capsys.readouterr().out == f"slim-train {slim.__version__}\n"


def test_print_config_shows_the_resolved_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 3\ntrain: {lr: 0.2, epochs: 7}\n")
    for name in ("train", "prune", "run"):
        with pytest.raises(SystemExit) as stopped:
            call(name, "--config", "mine.yaml", "--train.lr", "0.05", "--print-config")
        assert stopped.value.code == 0
        shown = yaml.safe_load(capsys.readouterr().out)
        assert (shown["seed"], shown["train"]["lr"], shown["train"]["epochs"]) == (3, 0.05, 7)
        assert shown["finetune"]["lr"] == RunConfig().finetune.lr
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.yaml"]


def test_print_config_after_a_stage_shows_that_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("prune", "--print-config")
    assert yaml.safe_load(capsys.readouterr().out)["data"]["batch_size"] == 32


# -- plans without writing -----------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(folder: Path, command: Command) -> None:
    before = contents(folder)
    text = command("prune", "--ratio", "0.3", "--dry-run")
    assert "bn1" in text and "bn6" in text
    assert contents(folder) == before


def test_a_dry_run_needs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["--arch", "torchvision:resnet18", "--ratio", "0.5", "--dry-run", "--data.image_size", "64"]
    text = command("prune", *argv)
    assert "layer4.1.bn2" in text and "untrained" in text
    assert not (tmp_path / "checkpoints").exists()


def test_a_dry_run_as_json_is_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    call("prune", "--arch", "torchvision:resnet18", "--flops", "0.5", "--dry-run", "--json", "--data.image_size", "64")
    made = slim.PruningPlan.from_dict(json.loads(capsys.readouterr().out)["plan"])
    assert made.requested == {"flops": 0.5} and 0.49 < made.achieved["flops"] <= 0.5


# -- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["train", "--train.lrr", "1"], ["'--train.lrr'", "--train.lr"]),
        (["prune", "--ratoi", "0.5"], ["'--ratoi'", "did you mean --ratio"]),
        (["prune", "--lr", "1"], ["--train.lr or --finetune.lr"]),
        (["prune", "--ratio", "1.5"], ["prune.ratio", "1.5", "[0, 1)"]),
        (["prune", "--ratio", "half"], ["prune.ratio", "'half'", "a number"]),
        (["prune", "--ratio"], ["--ratio", "argument"]),
        (["train", "--schedule", "cosin"], ["'cosin'", "cosine"]),
        (["train", "extra"], ["'extra'"]),
        (["train", "--config", "none.yaml"], ["none.yaml", "No such file"]),
        (["train", "--data.name", "digit"], ["'digit'", "digits"]),
        (["train", "--data.name", "imagefolder", "--data.root", "nowhere"], ["nowhere"]),
        (["train", "--data.name", "cifar10", "--data.root", "nowhere"], ["nowhere", "download"]),
        (["train", "--model.arch", "slim:vgg8"], ["'vgg8'", "vgg7"]),
        (["train", "--model.arch", "nosuch:net"], ["nosuch"]),
        (["train", "--model.kwargs", "{depth: 3}"], ["'depth'"]),
        (["train", "--sparsity.targets", "none*"], ["none*"]),
        (["prune"], ["sparse.safetensors", "slim-train"]),
        (["finetune"], ["pruned.safetensors", "slim-prune"]),
        (["export"], ["finetuned.safetensors", "slim-finetune"]),
        (["bench"], ["model.onnx", "slim-export"]),
        (["prune", "none.safetensors"], ["none.safetensors", "No such file"]),
        (["prune", "text.txt"], ["text.txt", "safetensors"]),
        (["bench", "none.onnx"], ["none.onnx"]),
        (["predict", "none.onnx", "x.png"], ["none.onnx"]),
        (["predict", "none.onnx"], ["IMAGE"]),
        (["predict", "none.onnx", "x.png", "--threads", "two"], ["--threads", "'two'"]),
        (["predict", "none.onnx", "x.png", "--tpo", "1"], ["'--tpo'", "--top"]),
        (["prune", "--arch", "torchvision:resnet18"], ["--dry-run"]),
        (["prune", "--arch", "torchvision:resnet81", "--dry-run"], ["resnet81", "resnet"]),
        (["prune", "--arch", "torchvision:alexnet", "--dry-run"], ["BatchNorm"]),
        (["run", "none.yaml"], ["none.yaml"]),
    ],
    ids=" ".join,
)
def test_a_mistake_gets_one_line(
    argv: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("no checkpoint")
    line = mistake(*argv)
    assert all(part in line for part in parts), line
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["train", "--epochs", "1", "--lr", "1e9"], "lr"),
        (["prune", "--ratio", "1e-9"], "nothing"),
        (["prune", "--seed", "1"], "seed"),
        (["finetune", "--model.arch", "slim:resnet20"], "slim:vgg7"),
        (["finetune", "--data.name", "cifar10", "--data.root", "nowhere"], "nowhere"),
        (["export", "--opset", "5"], "[18, 25]"),
        (["export", "BROKEN"], "truncated"),
        (["predict", "checkpoints/digits/model.onnx", "checkpoints/digits/plan.json"], "plan.json"),
        (["bench", "--provider", "tpu"], "tpu"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_a_mistake_leaves_earlier_files_untouched(
    argv: list[str], part: str, folder: Path, tmp_path: Path, mistake: Command
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((folder / "checkpoints/digits/sparse.safetensors").read_bytes()[:1000])
    before = contents(folder)
    assert part in mistake(*[str(broken) if word == "BROKEN" else word for word in argv])
    assert contents(folder) == before


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_stage", interrupted)
    with pytest.raises(SystemExit) as stopped:
        call("train")
    assert stopped.value.code == 130
    assert capsys.readouterr().err.strip().startswith("slim-train: interrupted")


def test_code_runs_only_where_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, mistake: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes, in_channels):\n"
        "    layers = [nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(8 * 36, num_classes))\n"
    )
    command("train", "--model.arch", "my_nets:small", "--epochs", "1")
    assert "allow_code" in mistake("prune")
    assert "next: slim-finetune" in command("prune", "--allow-code", "my_nets:small")


# -- numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (999_499, "999 k"), (999_500, "1.00 M"), (12_345_678, "12.3 M")],
)
def test_counts_are_short(number: int, text: str) -> None:
    assert tables.count(number) == text


def test_the_headline_compares() -> None:
    before = {"accuracy": 0.98, "params": 1000, "flops": 200}
    after = {"accuracy": 0.975, "params": 100, "flops": 50, "speedup": 2.5}
    assert report.headline(before, after) == "accuracy -0.50 points, -90% parameters, -75% FLOPs, 2.50× as fast"


@pytest.mark.slow
def test_the_chain_without_arguments_from_a_shell(tmp_path: Path) -> None:
    for line in ("slim-train", "slim-prune --ratio 0.5", "slim-finetune", "slim-export", "slim-bench"):
        program, *argv = line.split()
        done = subprocess.run(
            [Path(sys.executable).with_name(program), *argv], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    summary = json.loads((tmp_path / "checkpoints/digits/summary.json").read_text())
    assert summary["onnx"]["accuracy"] > 0.96


@pytest.mark.parametrize(
    "name, text", [("summary.json", "{"), ("summary.json", "[]"), ("metrics.jsonl", "3"), ("metrics.jsonl", "{}")]
)
def test_broken_records_are_one_line_before_any_work(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(slim.SlimError, match="is broken"):
        records.read_records(tmp_path)
    for stage in (pipeline.prune_stage, pipeline.finetune_stage, pipeline.export_stage):
        with pytest.raises(slim.SlimError, match="is broken"):
            stage(tmp_path / "sparse.safetensors", RunConfig())
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_network_without_batchnorm_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bare.py").write_text("import torch\ndef net(): return torch.nn.Flatten()\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = config.updated(RunConfig(), {"model": {"arch": "bare:net"}})
    with pytest.raises(slim.SlimError, match="no BatchNorm"):
        pipeline.run(settings, allow_code="bare:net")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("name", ["..", ".", "a/b", ""])
def test_a_run_stays_in_its_folder(name):
    with pytest.raises(slim.SlimError, match="plain folder name"):
        config.updated(RunConfig(), {"name": name})
