"""Trainings that are killed, stopped or broken off at any moment, against the same training undisturbed."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from slim.config import DataConfig, OptimConfig, SparsityConfig
from slim.data import Dataset, load
from slim.train import Snapshots, fit

FORK = multiprocessing.get_context("fork")  # torch is loaded already


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    whole = load(DataConfig(), seed=0)
    return replace(whole, train=whole.train[:512])


def network(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(8, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


# Each recipe has something that a snapshot must hold: momentum, Adam's moments, λ and its mask, an average, the best.
RECIPES: dict[str, tuple[OptimConfig, dict[str, Any]]] = {
    "momentum, schedule of λ": (
        OptimConfig(epochs=4, mixup=0.2, cutmix=1.0),
        {"sparsity": SparsityConfig(strength=0.01, schedule="ramp")},
    ),
    "λ controller": (
        OptimConfig(epochs=7),
        {"sparsity": SparsityConfig(strength=1e-3, method="proximal", target=0.5), "batch_size": 16},
    ),
    "adamw, average, best": (
        OptimConfig(epochs=6, optimizer="adamw", lr=0.003, schedule="onecycle", warmup=0.3, ema=0.9, patience=3),
        {"accumulate": 2},
    ),
    "distillation, clipping": (OptimConfig(epochs=4, clip_norm=0.5), {"teacher": network(9)}),
}


def trained(digits: Dataset, recipe: str, folder: Path, resume: bool) -> None:
    """Trains and leaves weights and records in `folder`."""
    optim, more = RECIPES[recipe]
    model = network()
    snapshots = Snapshots(folder / "state", {}, minutes=0.0005)
    records = fit(model, digits, optim, seed=3, device="cpu", snapshots=snapshots, resume=resume, **more)
    torch.save(model.state_dict(), folder / "weights.part")
    timeless = [{k: v for k, v in record.items() if "second" not in k} for record in records]
    (folder / "records.json").write_text(json.dumps(timeless))
    os.rename(folder / "weights.part", folder / "weights.pt")


def killed_again_and_again(run: Callable[[bool], None], done: Path, seconds: float, kills: int, seed: int) -> int:
    """Runs it in processes of their own, each killed at a random moment within `seconds`; the last one may finish.
    Returns how many were killed."""
    draw, killed = random.Random(seed), 0
    for attempt in range(kills + 1):
        process = FORK.Process(target=run, args=(attempt > 0,))
        process.start()
        if attempt < kills:
            process.join(draw.uniform(0.05, seconds))
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
                killed += 1
        process.join()
        if done.exists():
            break
    return killed


@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_and_resumed_is_undisturbed(recipe: str, digits: Dataset, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    started = time.perf_counter()
    process = FORK.Process(target=trained, args=(digits, recipe, whole, False))
    process.start()
    process.join()
    took = time.perf_counter() - started
    killed = killed_again_and_again(
        lambda resume: trained(digits, recipe, broken, resume), broken / "weights.pt", took / 2, 3, seed=len(recipe)
    )
    assert killed >= 2
    assert json.loads((broken / "records.json").read_text()) == json.loads((whole / "records.json").read_text())
    expected, found = torch.load(whole / "weights.pt"), torch.load(broken / "weights.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not all(torch.equal(expected[name], tensor) for name, tensor in network().state_dict().items())
    assert len(list((broken / "state").iterdir())) == 2  # the last ones are kept, nothing half-written among them
