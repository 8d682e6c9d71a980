"""Trainings that are killed, stopped or broken off at any moment, against the same training undisturbed."""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from slim.errors import Interrupted, SlimError
from slim.prune.budgets import Ratio
from slim.workbench.config import ComputeConfig, OptimConfig, RunConfig, SparsityConfig, updated
from slim.workbench.data import Dataset
from slim.workbench.run import ROOT, Run, pruning, run_all, whole
from slim.workbench.train import Callbacks, Distillation, Snapshots, fit
from slim.workbench.train.gradual import Pruning
from slim.workbench.train.guard import out_of_memory

# Children come from a server that has torch loaded: forked from here, they couldn't train once autograd has threads.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["torch", "slim.workbench.train.loop"])
ON_CPU = ComputeConfig(device="cpu")


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
    "momentum, schedule of λ, gradual pruning": (
        OptimConfig(epochs=4, mixup=0.2, cutmix=1.0),
        {"sparsity": SparsityConfig(strength=0.01, schedule="ramp", gradual=10), "pruning": Pruning(Ratio(0.5))},
    ),
    "λ controller": (
        OptimConfig(epochs=7),
        {"sparsity": SparsityConfig(strength=1e-3, method="proximal", target=0.5)},
    ),
    "adamw, average, best": (
        OptimConfig(epochs=6, optimizer="adamw", lr=0.003, schedule="onecycle", warmup=0.3, ema=0.9, patience=3),
        {"compute": replace(ON_CPU, accumulate=2)},
    ),
    "distillation, clipping": (OptimConfig(epochs=4, clip_norm=0.5), {"distillation": Distillation(network(9))}),
}


def trained(digits: Dataset, recipe: str, folder: Path, resume: bool) -> None:
    """Trains and leaves weights and records in `folder`."""
    torch.set_num_threads(1)  # two that wait for each other on a busy machine take minutes
    optim, more = RECIPES[recipe]
    model = network()
    snapshots = Snapshots(folder / "state", {}, minutes=0.0005, resume=resume)
    settings: dict[str, Any] = {"compute": ON_CPU, "seed": 3, "snapshots": snapshots}
    data = replace(digits, batch_size=16 if recipe == "λ controller" else 64)
    records = fit(model, data, optim, **settings | more)
    torch.save(model.state_dict(), folder / "weights.part")
    timeless = [{k: v for k, v in record.items() if "second" not in k} for record in records]
    (folder / "records.json").write_text(json.dumps(timeless))
    os.rename(folder / "weights.part", folder / "weights.pt")


def killed_again_and_again(run: Callable[..., None], done: Path, seconds: float, kills: int, seed: int) -> int:
    """Runs it in processes of their own, each killed, or asked to end, at a random moment within `seconds`; the last
    one may finish. Returns how many didn't."""
    draw, killed = random.Random(seed), 0
    for attempt in range(kills + 1):
        process = CHILDREN.Process(target=run, kwargs={"resume": attempt > 0})
        process.start()
        if attempt < kills:
            process.join(draw.uniform(0.05, seconds))
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM if attempt == 1 else signal.SIGKILL)  # type: ignore[arg-type]
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
    process = CHILDREN.Process(target=trained, args=(digits, recipe, whole, False))
    process.start()
    process.join()
    took = time.perf_counter() - started
    killed = killed_again_and_again(
        partial(trained, digits, recipe, broken), broken / "weights.pt", took / 3, 3, seed=len(recipe)
    )
    assert killed >= 1  # on a machine whose load changes, not always 3
    assert json.loads((broken / "records.json").read_text()) == json.loads((whole / "records.json").read_text())
    expected, found = torch.load(whole / "weights.pt"), torch.load(broken / "weights.pt")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not all(torch.equal(expected[name], tensor) for name, tensor in network().state_dict().items())
    assert len(list((broken / "state").iterdir())) == 2  # the last ones are kept, nothing half-written among them


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_signal_between_the_last_step_and_the_end_of_an_epoch_counts(
    digits: Dataset, tmp_path: Path, epoch: int
) -> None:
    """Also in the last one, or the next stage would begin."""

    def train(folder: str, resume: bool, signal_in: int) -> nn.Module:
        def on_epoch(record: dict[str, Any]) -> None:
            if record["epoch"] == signal_in:
                os.kill(os.getpid(), signal.SIGTERM)

        model = network()
        snapshots = Snapshots(tmp_path / folder, {}, resume=resume)
        callbacks = Callbacks(on_epoch=on_epoch)
        fit(model, digits, OptimConfig(epochs=2), compute=ON_CPU, snapshots=snapshots, callbacks=callbacks)
        return model

    with pytest.raises(Interrupted, match=f"stopped after step {8 * epoch} of 16"):
        train("stopped", False, epoch)
    resumed, undisturbed = train("stopped", True, 0), train("undisturbed", False, 0)
    for a, b in zip(resumed.state_dict().values(), undisturbed.state_dict().values()):
        assert torch.equal(a, b)


def test_a_kill_between_the_last_step_of_an_epoch_and_its_record(digits: Dataset, tmp_path: Path) -> None:
    """The state has all steps, the last one's time among them."""

    class Killed(BaseException):
        pass

    def killed(_: dict[str, Any]) -> None:
        raise Killed

    def train(resume: bool, on_epoch: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
        snapshots = Snapshots(tmp_path, {}, minutes=0, resume=resume)
        data = replace(digits, batch_size=512)  # one step in an epoch
        callbacks = Callbacks(on_epoch=on_epoch)
        return fit(network(), data, OptimConfig(epochs=1), compute=ON_CPU, snapshots=snapshots, callbacks=callbacks)

    with pytest.raises(Killed):
        train(resume=False, on_epoch=killed)
    (record,) = train(resume=True, on_epoch=lambda _: None)
    assert record["images"] == 512 and 0 < record["training_seconds"] <= record["seconds"]


STREAM = """
import os, subprocess, sys, time
from pathlib import Path
import torch
from torch import nn
from slim.workbench.config import ComputeConfig, DataConfig, OptimConfig
from slim.workbench.data import load
from slim.workbench.train import Snapshots, fit

folder, number, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"
send = f"import os; os.killpg({os.getpgid(0)}, {number})"

class Net(nn.Sequential):
    steps = 0

    def forward(self, images):
        self.steps += self.training
        if self.training and self.steps == 7 and not resume:
            for _ in range(2 if number == 15 else 1):
                subprocess.run([sys.executable, "-c", send], start_new_session=True)  # from outside, as it would come
                time.sleep(0.5)  # for the workers to feel it
        return super().forward(images)

torch.set_num_threads(1)
data = load(DataConfig(name="imagefolder", root=str(folder), storage="stream", workers=2, val_fraction=0,
                       batch_size=32), seed=0)
net = Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
states = Snapshots(folder.with_name("states"), {}, resume=resume)
fit(net, data, OptimConfig(epochs=1), compute=ComputeConfig(device="cpu"), snapshots=states)
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="elsewhere a worker can't tell who sent a signal")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["sigterm twice", "sigint"]
)
def test_a_signal_to_the_whole_group_leaves_the_workers(number: int, tmp_path: Path) -> None:
    """As torchrun, SLURM and terminals send it, to the processes that decode images, too."""
    folder = tmp_path / "images"
    for label in range(2):
        (folder / f"{label}").mkdir(parents=True)
        Image.new("RGB", (8, 8), (200 * label, 90, 40)).save(folder / f"{label}/0.png")
        for copy in range(1, 600):
            (folder / f"{label}/{copy}.png").hardlink_to(folder / f"{label}/0.png")

    def run(how: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", STREAM, str(folder), str(int(number)), how]
        return subprocess.run(command, start_new_session=True, capture_output=True, text=True, timeout=240)

    stopped = run("begin")
    assert "Interrupted: stopped after step 7 of 30" in stopped.stderr
    resumed = run("resume")
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_a_signal_saves_and_names_the_line_that_resumes(tmp_path: Path) -> None:
    """The command itself: SIGTERM, then SIGINT, then to the end; against a run without either."""
    options = ["--epochs", "16", "--device", "cpu"]

    def start(*more: str) -> subprocess.Popen:
        program = "from slim.workbench.cli.train import main; main()"
        command = [sys.executable, "-c", program, *options, *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    undisturbed = start("--name", "whole")
    for number, more in ((signal.SIGTERM, []), (signal.SIGINT, ["--resume"])):
        process = start(*more)
        known = snapshots_in(tmp_path)
        while snapshots_in(tmp_path) == known and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number, err
        assert err.strip().endswith(f"go on with: slim-train {' '.join(options)} --resume")
    process = start("--resume")
    process.communicate(timeout=200)
    undisturbed.communicate(timeout=200)
    runs = tmp_path / "checkpoints"
    whole, broken = (load_file(runs / name / "sparse.safetensors") for name in ("whole", "digits-vgg7"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    lines = (runs / "digits-vgg7/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 17))
    assert not (runs / "digits-vgg7/sparse.state").exists()


def test_a_run_that_ends_between_pruning_and_recovery_does_both_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = updated(
        RunConfig(),
        {"compute": {"device": "cpu"}, "train": {"epochs": 1}, "finetune": {"epochs": 1}, "report": {"page": False}},
    )
    quiet = Console(quiet=True)
    monkeypatch.setattr(whole, "_export_and_measure", lambda *_: [])

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as during, pytest.raises(Killed):
        during.setattr(pruning, "recovered_on", killed)
        run_all(Run(ROOT / "digits", settings, quiet))
    assert "pruned" in json.loads(Path("checkpoints/digits/summary.json").read_text())
    run_all(Run(ROOT / "digits", settings, quiet, resume=True))
    run_all(Run(ROOT / "whole", settings, quiet))
    for stage in ("sparse", "pruned", "finetuned"):
        found, expected = (load_file(f"checkpoints/{run}/{stage}.safetensors") for run in ("digits", "whole"))
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    trained = Path("checkpoints/whole/finetuned.safetensors").stat().st_mtime_ns
    run_all(Run(ROOT / "whole", settings, quiet, resume=True))  # nothing is left to do
    assert Path("checkpoints/whole/finetuned.safetensors").stat().st_mtime_ns == trained


def snapshots_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("checkpoints/digits-vgg7/sparse.state/step-*")}


# Snapshots


def test_snapshots_hold_what_was_put_in_and_survive_damage(tmp_path: Path) -> None:
    kept = Snapshots(tmp_path / "s", {"name": "γ"}, keep=2)
    assert kept.newest() is None
    tree: dict[str, Any] = {
        "a": torch.arange(6).view(2, 3).t(),
        "b": [1, 2.5, None, "text", True, {3: torch.tensor(0.1)}],
    }
    for step in (10, 9_000_000, 200_000_000):
        kept.save(step, tree | {"step": step})
    assert len(list((tmp_path / "s").iterdir())) == 2
    found = Snapshots(tmp_path / "s", {}).newest()
    assert found is not None and found["step"] == 200_000_000 and found["b"][:5] == tree["b"][:5]
    assert torch.equal(found["a"], tree["a"]) and torch.equal(found["b"][5][3], tree["b"][5][3])
    newest = max((tmp_path / "s").iterdir())
    newest.write_bytes(newest.read_bytes()[:50])
    found = Snapshots(tmp_path / "s", {}).newest()
    assert found is not None and found["step"] == 9_000_000
    Snapshots(tmp_path / "s", {}).save(1, tree)  # a new training takes the place of what was there
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["step-000000001.safetensors"]
    with pytest.raises(SlimError, match="'/a' is a set"):
        kept.save(2, {"a": {1}})


def test_half_a_state_that_a_kill_left_goes_and_nothing_else(tmp_path: Path) -> None:
    left, other = tmp_path / "s" / ".slim-a1b2c3.safetensors", tmp_path / "s" / "notes.txt"
    left.parent.mkdir()
    kept = Snapshots(left.parent, {})
    for act in (lambda: kept.save(1, {"step": 1}), kept.clear):
        left.touch()
        other.touch()
        act()
        assert other.exists() and not left.exists()
    other.unlink()
    left.touch()
    kept.clear()
    assert not left.parent.exists()


def test_other_settings_are_refused(digits: Dataset, tmp_path: Path) -> None:
    def run(optim: OptimConfig, batch_size: int = 64, **more: Any) -> None:
        data, snapshots = replace(digits, batch_size=batch_size), Snapshots(tmp_path, {}, resume=True)
        fit(network(), data, optim, compute=ON_CPU, snapshots=snapshots, **more)

    run(OptimConfig(epochs=1))
    for optim, more, name in (
        (OptimConfig(epochs=2, ema=0.9), {}, "average"),
        (OptimConfig(epochs=2), {"batch_size": 32}, "16 steps in an epoch, not 8"),
        (OptimConfig(epochs=2), {"sparsity": SparsityConfig()}, "sparsity"),
    ):
        with pytest.raises(SlimError, match=name):
            run(optim, **more)
    run(OptimConfig(epochs=2, lr=0.01))  # the rest may change


# What stops a training


class Greedy(nn.Module):
    """Needs more memory than there is for more than `most` images, as it finds when BatchNorm has seen them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.net, self.most = network(), most

    def forward(self, images: Tensor) -> Tensor:
        scores = self.net(images)
        if self.training and len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return scores


def test_out_of_memory(digits: Dataset) -> None:
    with pytest.raises(SlimError, match=r"out of memory on batches of 64 .*accumulate 2, or auto.*batch_size 32"):
        fit(Greedy(20), digits, OptimConfig(epochs=1), compute=ON_CPU)
    found, told = Greedy(20), Greedy(20)
    fit(found, digits, OptimConfig(epochs=2), compute=replace(ON_CPU, accumulate="auto"))
    fit(told, digits, OptimConfig(epochs=2), compute=replace(ON_CPU, accumulate=4))
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), told.state_dict().values()))
    with pytest.raises(SlimError, match=r"64 images in 64 parts: try data.batch_size 32$"):
        fit(Greedy(0), digits, OptimConfig(epochs=1), compute=replace(ON_CPU, accumulate="auto"))
    with pytest.raises(SlimError, match=r"out of memory on 143 images at a time, without training: expected a smaller"):
        fit(nn.Sequential(network(), Hungry()), digits, OptimConfig(epochs=1), compute=ON_CPU)


class Hungry(nn.Module):
    """Needs more memory than there is for many images that it isn't trained on."""

    def forward(self, scores: Tensor) -> Tensor:
        if not self.training and len(scores) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return scores


def test_out_of_memory_on_several_devices_asks_for_what_they_can_do() -> None:
    assert "try accumulate 4; or data.batch_size 32" in str(out_of_memory(64, 2, processes=4, finds_parts=False))
    assert "try data.batch_size 32" in str(out_of_memory(64, 16, processes=4, finds_parts=False))
    assert "expected a smaller network" in str(out_of_memory(4, 1, processes=4, finds_parts=False))


def test_what_was_out_of_memory_goes_on_with_more_parts(digits: Dataset, tmp_path: Path) -> None:
    def run(most: int, epochs: int, accumulate: int) -> None:
        compute, snapshots = replace(ON_CPU, accumulate=accumulate), Snapshots(tmp_path, {}, resume=True)
        fit(Greedy(most), digits, OptimConfig(epochs=epochs), compute=compute, snapshots=snapshots)

    run(64, 1, 1)
    with pytest.raises(SlimError, match="out of memory"):
        run(20, 2, 1)
    run(20, 2, 4)


def test_a_new_training_forgets_what_another_left(digits: Dataset, tmp_path: Path) -> None:
    fit(network(), digits, OptimConfig(epochs=1), compute=ON_CPU, snapshots=Snapshots(tmp_path, {}))
    assert Snapshots(tmp_path, {}).newest() is not None
    with pytest.raises(SlimError, match="out of memory"):  # before its first state
        fit(Greedy(0), digits, OptimConfig(epochs=1), compute=ON_CPU, snapshots=Snapshots(tmp_path, {}))
    assert Snapshots(tmp_path, {}).newest() is None


def test_the_last_good_state_outlives_a_divergence(digits: Dataset, tmp_path: Path) -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.steps = network(), 0

        def forward(self, images: Tensor) -> Tensor:
            self.steps += self.training
            return self.net(images) * (float("nan") if self.steps > 19 else 1)

    snapshots = Snapshots(tmp_path, {}, minutes=1e-6)  # after each step
    with pytest.raises(SlimError, match="the training loss is nan at step 20,"):
        fit(Breaks(), digits, OptimConfig(epochs=4), compute=ON_CPU, snapshots=snapshots)
    state = snapshots.newest()
    assert state is not None and state["step"] == 19
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
