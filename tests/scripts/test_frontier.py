"""The scripts that compare: what they count, and that they prune to what was asked."""

import dataclasses
import gzip
import json
import signal
import sys
from pathlib import Path
from typing import Any

import frontier
import paper_tables
import pytest
import shared
import torch
import yaml
from PIL import Image

from slim.errors import Interrupted
from slim.trace.size import network_size
from slim.workbench import config, data, models
from slim.workbench.config import DataConfig, RunConfig
from slim.workbench.train import Callbacks, Progress


def bench(cache: Path) -> frontier.Bench:
    loaded = data.load(DataConfig(), 0)
    loaded = dataclasses.replace(loaded, train=loaded.train[:384], test=loaded.test[:100])
    setting = frontier.Setting("digits", "slim:vgg7", 384, 1, 1, 0.1, 64, 1e-3, 1e-4, 1e-4, 64, "cpu")
    return frontier.Bench(setting, loaded, 0, cache)


def test_all_methods_see_as_many_images(tmp_path: Path) -> None:
    pytest.importorskip("torch_pruning")
    made = bench(tmp_path)
    results = {method: next(frontier.results_of(made, method, 0.4, [(0.05, 0.5)])) for method in frontier.METHODS}
    seen = [result["images"] for result in results.values()]
    assert max(seen) - min(seen) < made.setting.batch_size
    assert all(0.25 < result["flops"] <= 0.4 for result in results.values())
    assert results["slim"]["flops"] == results["scratch"]["flops"]
    assert (
        len(list(tmp_path.glob("*.safetensors"))) == 4
    )  # slim and scratch share what was trained, so do direct, l1 and random


def test_a_stopped_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In sparse training and in fine-tuning; the results are those of a run that nobody stopped."""
    [whole] = frontier.results_of(bench(tmp_path / "whole"), "slim", 0.4, [(0.05, 0.5)])
    fit = frontier.train.fit

    def stopped(*args: Any, **more: Any) -> None:
        def on_step(progress: Progress) -> None:
            if progress.step == 2:
                signal.raise_signal(signal.SIGTERM)

        fit(*args, **more, callbacks=Callbacks(on_step=on_step))

    monkeypatch.setattr("slim.workbench.train.loop.SECONDS_BETWEEN_REPORTS", 0)
    monkeypatch.setattr(frontier.train, "fit", stopped)
    for trained in (0, 1):
        with pytest.raises(Interrupted):
            list(frontier.results_of(bench(tmp_path / "parts"), "slim", 0.4, [(0.05, 0.5)]))
        assert len(list(tmp_path.glob("parts/*.safetensors"))) == trained
        assert len(list(tmp_path.glob("parts/*.state"))) == 1
    monkeypatch.setattr(frontier.train, "fit", fit)
    [parts] = frontier.results_of(bench(tmp_path / "parts"), "slim", 0.4, [(0.05, 0.5)])
    same = whole.keys() - {"seconds", "recovery_seconds", "date"}
    assert {key: parts[key] for key in same} == {key: whole[key] for key in same}
    assert not list(tmp_path.glob("*/*.state"))


def test_the_script_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is in the log isn't trained again; a line that a kill cut in half is."""
    for module in (frontier, shared):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(frontier, "METHODS", ("paper", "random"))  # of the table, too
    monkeypatch.setattr(frontier.signal, "signal", lambda *_: None)
    pytest.importorskip("torch_pruning")
    short = "--data digits --arch slim:vgg7 --images 128 --epochs 1 --finetune 1 --keep 0.5 --device cpu"
    more = ["--seeds", "0", "1", "--methods", "paper", "random", "--finetune-lr", "0.1", "0.01"]
    line = [
        "frontier.py",
        *short.split(),
        *more,
        "--calibration",
        "64",
        "--cache",
        str(tmp_path / "cache"),
        "--name",
        "small",
    ]
    monkeypatch.setattr(sys, "argv", line)
    frontier.main()
    log = tmp_path / "small.jsonl"
    whole = log.read_text()
    results = [json.loads(line)["result"] for line in whole.splitlines()]
    tuned = [(r["method"], r["seed"]) for r in results]
    assert tuned == [("paper", 0)] * 2 + [("random", 0)] * 2 + [
        ("paper", 1),
        ("random", 1),
    ]  # one seed chooses the rates
    table = next(tmp_path.glob("small-*.md")).read_text()
    assert table.count("| 50% |") == 2 and " ± " in table and "cross entropy" in table
    assert next(tmp_path.glob("small-*.html")).stat().st_size > 1e6

    lines = whole.splitlines(keepends=True)
    log.write_text("".join(lines[:-1]) + lines[-1][:30])
    trained: list[str] = []
    fit = frontier.Bench.fit

    def counted(*args: Any, **settings: Any) -> int:
        trained.append("once")
        return fit(*args, **settings)

    monkeypatch.setattr(frontier.Bench, "fit", counted)
    frontier.main()
    again = [json.loads(line)["result"] for line in log.read_text().splitlines()]
    assert trained == ["once"]
    assert [{**r, "seconds": 0} for r in again] == [{**r, "seconds": 0} for r in results]

    other = again[-2] | {"digest": "0" * 12}  # of paper's second seed, as if it had kept other channels
    kept = [other if r == again[-2] else r for r in again]
    setting = json.loads(whole.splitlines()[0])["setting"]
    log.write_text("".join(json.dumps({"setting": setting, "result": r}) + "\n" for r in kept))
    trained.clear()
    frontier.main()
    assert not trained and "0000000" in next(tmp_path.glob("small-*.md")).read_text()
    monkeypatch.setattr(sys, "argv", [*line, "--check"])
    frontier.main()
    assert trained == ["once"]
    assert "stale: paper at 0.5, seed 1, keeps other channels now" in capsys.readouterr().out
    last = json.loads(log.read_text().splitlines()[-1])["result"]
    assert {**last, "seconds": 0} == {**again[-2], "seconds": 0}
    assert "0000000" not in next(tmp_path.glob("small-*.md")).read_text()
    monkeypatch.setattr(sys, "argv", [*line, "--tuning-seeds", "0"])
    with pytest.raises(SystemExit):
        frontier.main()
    assert "--tuning-seeds 0: expected at least 1" in capsys.readouterr().err


def test_every_method_has_the_rate_that_is_best_for_it() -> None:
    tried = [("slim", 0, 0.1, 0.5), ("slim", 0, 0.03, 0.4), ("slim", 1, 0.1, 0.5), ("slim", 1, 0.03, 0.7)]
    tried += [("l1", 0, 0.1, 0.6), ("l1", 0, 0.03, 0.7), ("l1", 1, 0.03, 0.0)]
    keys = ("method", "seed", "lr", "validation_loss")
    results = [dict(zip(keys, values)) | {"keep": 0.5, "distill": 0.0} for values in tried]
    assert frontier.best_ways(results, [0]) == {("slim", 0.5): (0.03, 0.0), ("l1", 0.5): (0.1, 0.0)}
    assert frontier.best_ways(results, [0, 1])["slim", 0.5] == (0.1, 0.0)


@pytest.mark.parametrize("kind", ["tp", "l1", "random"])
def test_torch_pruning_meets_the_budget(kind: str) -> None:
    pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model, example = models.build("slim:vgg7", num_classes=10, gamma=None), torch.zeros(1, 3, 16, 16)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight)
    before = network_size(model, example).flops
    for keep in (0.6, 0.2):
        thin = frontier.by_torch_pruning(model, example, keep, kind, seed=0)
        assert keep - 0.12 < network_size(thin, example).flops / before <= keep
    assert network_size(model, example).flops == before


@pytest.mark.parametrize("path", sorted(paper_tables.CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_paper_configs_are_whole(path: Path) -> None:
    """They are valid, fine-tune as they train, and their runs go where the table looks."""
    settings = config.updated(RunConfig(), config.read(path))
    assert settings.name == f"paper-{path.stem}"
    assert not settings.prune.recover
    assert all(getattr(settings.finetune, key) == value for key, value in vars(settings.train).items())
    assert path.stem in paper_tables.PAPER or settings.passes == len(paper_tables.PASSES)


CIFAR = {"epochs": 160, "batch": 64, "milestones": [0.5, 0.75]}
MNIST = {"epochs": 30, "batch": 256, "milestones": [0.333333, 0.666666]}


@pytest.mark.parametrize(
    ("name", "schedule", "strength", "pruned"),
    [
        ("vgg19-70", CIFAR, 1e-4, {"ratio": 0.7, "mode": "couple"}),
        ("vgg19-passes", CIFAR, 1e-4, {"ratio": 0.5, "floor": 0.5}),
        ("densenet40-40", CIFAR, 1e-5, {"ratio": 0.4, "mode": "select"}),
        ("densenet40-70", CIFAR, 1e-5, {"ratio": 0.7, "mode": "select"}),
        ("resnet164-40", CIFAR, 1e-5, {"ratio": 0.4, "mode": "select"}),
        ("resnet164-60", CIFAR, 1e-5, {"ratio": 0.6, "mode": "select"}),
        ("mlp-mnist", MNIST, 1e-4, {"ratio": 0.8, "scope": "layer"}),
    ],
)
def test_paper_configs_say_what_the_paper_says(
    name: str, schedule: dict[str, Any], strength: float, pruned: dict[str, Any]
) -> None:
    """Section 4.3, training, and the authors' code: Nesterov, decay of everything, γ from 0.5, the subgradient."""
    made = config.updated(RunConfig(), config.read(paper_tables.CONFIGS / f"{name}.yaml"))
    train = made.train
    assert {"epochs": train.epochs, "batch": made.data.batch_size, "milestones": train.milestones} == schedule
    assert (train.optimizer, train.lr, train.momentum, train.nesterov) == ("sgd", 0.1, 0.9, True)
    assert (train.weight_decay, train.decay_norm, train.schedule, train.warmup) == (1e-4, True, "step", 0)
    assert (made.sparsity.penalty, made.sparsity.method, made.sparsity.strength) == ("l1", "subgradient", strength)
    assert made.model.gamma == 0.5 and made.prune.score == "mean"
    assert {"floor": 0, **pruned} == {key: getattr(made.prune, key) for key in ("floor", *pruned)}


@pytest.mark.parametrize(
    "changed",
    [
        "train.epochs 6",
        "sparsity.method proximal",
        "train.weight_decay 0.0005",
        "prune.scope layer",
        "data.augment none",
    ],
)
def test_a_shortened_or_changed_run_says_so(tmp_path: Path, changed: str) -> None:
    settings = config.read(paper_tables.CONFIGS / "vgg19-70.yaml")
    settings["data"]["root"] = "elsewhere"
    (tmp_path / "config.yaml").write_text(config.to_yaml(config.updated(RunConfig(), settings)))
    assert paper_tables.how("vgg19-70", tmp_path) == "the paper's schedule"
    key, value = changed.split()
    section, name = key.split(".")
    settings[section][name] = yaml.safe_load(value)
    (tmp_path / "config.yaml").write_text(config.to_yaml(config.updated(RunConfig(), settings)))
    assert f"{changed} instead of" in paper_tables.how("vgg19-70", tmp_path)


def finished(folder: Path, name: str, **stages: tuple[float, int, int]) -> None:
    """A run's records: accuracy, parameters and FLOPs of each stage."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config.read(paper_tables.CONFIGS / f"{name}.yaml")
    (folder / "config.yaml").write_text(config.to_yaml(config.updated(RunConfig(), settings | {"seed": 3})))
    records = {stage: dict(zip(("accuracy", "params", "flops"), values)) for stage, values in stages.items()}
    (folder / "summary.json").write_text(json.dumps(records))


def test_the_table_of_the_papers_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["paper_tables.py", "--checkpoints", str(tmp_path)])
    with pytest.raises(SystemExit, match="no finished run"):
        paper_tables.main()
    whole, thin = (0.9, 1000, 2000), (0.89, 200, 1000)
    finished(tmp_path / "paper-vgg19-70", "vgg19-70", baseline=whole, sparse=(0.88, 1000, 2000), finetuned=thin)
    finished(tmp_path / "paper-resnet164-60", "resnet164-60", sparse=(0.88, 1000, 2000), finetuned=thin)
    finished(tmp_path / "paper-resnet164-40", "resnet164-40", baseline=whole)  # still at it
    passes = tmp_path / "paper-vgg19-passes"
    finished(passes, "vgg19-passes", baseline=whole)
    finished(passes / "pass-1", "vgg19-passes", sparse=(0.87, 1000, 2000), finetuned=thin)
    finished(passes / "pass-2", "vgg19-passes", sparse=(0.86, 200, 1000), finetuned=(0.85, 100, 500))
    paper_tables.main()
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[2:] == [
        ["resnet164-60", "5.42", "not trained", "5.27", "11.00", "35.2", "80.0", "44.9", "50.0", "0.0002 M", "1e+03"],
        ["vgg19-70", "6.34", "10.00", "6.20", "11.00", "88.5", "80.0", "51.0", "50.0", "0.0002 M", "1e+03"],
        [*("vgg19-passes, pass 1", "6.38", "13.00", "6.51", "11.00"), *table[4][5:]],
        [*("vgg19-passes, pass 2", "6.23", "14.00", "6.11", "15.00", "84.7", "90.0", "52.7", "75.0"), *table[5][9:]],
    ]
    assert next(tmp_path.glob("paper_tables-*.md")).read_text().count("the paper's schedule") == 3


def test_small_cifar_is_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_tables.tempfile, "gettempdir", lambda: str(tmp_path / "made"))
    for part in ("train", "test"):
        for name in "abcdefghij":
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in range(5):
                Image.new("RGB", (32, 32), (number * 50, 0, 0)).save(folder / f"{number}.png")
    made = paper_tables.small_cifar(tmp_path, 30)
    loaded = data.load(DataConfig(name="imagefolder", root=str(made), val_fraction=0.0), 0)
    assert (len(loaded.train), len(loaded.test), len(loaded.classes)) == (30, 50, 10)
    settings = config.read(paper_tables.CONFIGS / "vgg19-70.yaml")
    settings["data"] |= {"name": "imagefolder", "root": str(made)}
    (tmp_path / "config.yaml").write_text(config.to_yaml(config.updated(RunConfig(), settings)))
    assert "30 training images instead of 50,000, as JPEG" in paper_tables.how("vgg19-70", tmp_path)


@pytest.mark.parametrize("count", ["0", "-10", "5", "5005"])
def test_small_cifar_has_as_many_images_of_each_class(
    count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["paper_tables.py", "--run", "vgg19-70", "--cifar10-jpeg", count])
    with pytest.raises(SystemExit) as stopped:
        paper_tables.main()
    assert stopped.value.code == 2
    assert f"--cifar10-jpeg {count}: expected 10, 20" in capsys.readouterr().err


def test_small_mnist_is_what_torchvision_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_tables.tempfile, "gettempdir", lambda: str(tmp_path))
    labels = torch.arange(10).repeat(1000).to(torch.uint8)
    images = torch.zeros(10_000, 28, 28, dtype=torch.uint8)
    images[:, 0, 0] = labels
    count = (10_000).to_bytes(4, "big")
    head = bytes([0, 0, 8, 3]) + count + (28).to_bytes(4, "big") * 2
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.numpy().tobytes(), 1))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(
        gzip.compress(bytes([0, 0, 8, 1]) + count + labels.numpy().tobytes())
    )
    loaded = data.load(DataConfig(name="mnist", root=str(paper_tables.small_mnist(tmp_path)), val_fraction=0.0), 0)
    assert (len(loaded.train), len(loaded.test)) == (8000, 2000)
    for split in (loaded.train, loaded.test):
        assert isinstance(split.images, torch.Tensor)
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)
