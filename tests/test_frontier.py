"""The scripts that compare: what they count, and that they prune to what was asked."""

import dataclasses
import gzip
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from slim import config, data, models
from slim.config import DataConfig, RunConfig
from slim.errors import Interrupted
from slim.size import measure
from slim.train import Progress

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import frontier
import paper_tables


def bench(cache: Path) -> frontier.Bench:
    loaded = data.load(DataConfig(), 0)
    loaded = dataclasses.replace(loaded, train=loaded.train[:384], test=loaded.test[:100])
    setting = frontier.Setting("digits", "slim:vgg7", 384, 1, 1, 0.1, 64, 1e-3, 1e-4, 1e-4, 64, "cpu")
    return frontier.Bench(setting, loaded, 0, cache)


def test_all_methods_see_as_many_images(tmp_path: Path) -> None:
    made = bench(tmp_path)
    results = {
        method: next(frontier.results_of(made, method, 0.4, [(0.05, 0.5)])) for method in ("slim", "paper", "scratch")
    }
    seen = [result["images"] for result in results.values()]
    assert max(seen) - min(seen) < made.setting.batch_size
    assert all(0.3 < result["flops"] <= 0.4 for result in results.values())
    assert results["slim"]["flops"] == results["scratch"]["flops"]
    assert len(list(tmp_path.glob("*.safetensors"))) == 2  # slim and scratch share what was trained


def test_a_stopped_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In sparse training and in fine-tuning; the results are those of a run that nobody stopped."""
    [whole] = frontier.results_of(bench(tmp_path / "whole"), "slim", 0.4, [(0.05, 0.5)])
    fit = frontier.train.fit

    def stopped(*args: Any, **more: Any) -> None:
        def on_step(progress: Progress) -> None:
            if progress.step == 2:
                signal.raise_signal(signal.SIGTERM)

        fit(*args, **more, on_step=on_step)

    monkeypatch.setattr("slim.train.loop.SECONDS_BETWEEN_REPORTS", 0)
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
    before = measure(model, example).flops
    for keep in (0.6, 0.2):
        thin = frontier.by_torch_pruning(model, example, keep, kind, seed=0)
        assert keep - 0.12 < measure(thin, example).flops / before <= keep
    assert measure(model, example).flops == before


@pytest.mark.parametrize("path", sorted(paper_tables.CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_paper_configs_are_whole(path: Path) -> None:
    """They are valid, fine-tune as they train, and their runs go where the table looks."""
    settings = config.updated(RunConfig(), config.read(path))
    assert settings.name == f"paper-{path.stem}"
    assert not settings.prune.recover
    assert all(getattr(settings.finetune, key) == value for key, value in vars(settings.train).items())
    assert path.stem in paper_tables.PAPER or settings.passes == len(paper_tables.PASSES)


def test_a_shortened_run_says_so(tmp_path: Path) -> None:
    settings = config.updated(RunConfig(), config.read(paper_tables.CONFIGS / "vgg19-70.yaml"))
    (tmp_path / "config.yaml").write_text(config.to_yaml(settings))
    assert paper_tables.how("vgg19-70", tmp_path) == "the paper's schedule"
    short = yaml.safe_load(config.to_yaml(settings))
    short["train"]["epochs"] = 6
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(short))
    assert "train.epochs 6 instead of 160" in paper_tables.how("vgg19-70", tmp_path)


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
        assert torch.equal(split.images[:, 0, 0, 0].long(), split.labels)
