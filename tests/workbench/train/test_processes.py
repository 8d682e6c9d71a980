"""Several processes that train together, against one alone."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from slim import checkpoint
from slim.errors import SlimError
from slim.workbench.config import ComputeConfig
from slim.workbench.train import connect, is_rank_zero, rank_zero_first
from slim.workbench.train.norm import alone, synchronised

# A program that trains, prunes and fine-tunes, with a network in float64: there rounding errors stay small, however
# training amplifies them, so that both must choose the same channels.
PROGRAM = """
import json, sys
import torch
from torch import nn
from slim.workbench import config, train
from slim.workbench.run import ROOT, Run, finetune_stage, prune_stage, train_stage

class Doubled(nn.Sequential):
    def forward(self, images):
        return super().forward(images.double())

def network(num_classes, in_channels):
    layers = []
    for before, after in ((in_channels, 12), (12, 16)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    return Doubled(*layers, nn.Flatten(), nn.Linear(64, num_classes)).double()

if __name__ == "__main__":
    settings = config.updated(config.RunConfig(), json.loads(sys.argv[1]))
    with train.distributed_session(settings.compute):
        run = Run(ROOT / settings.name, settings, allow_code=("program:network",))
        sparse = train_stage(run)
        if train.is_rank_zero():
            more = config.updated(settings, {"prune": {"ratio": 0.5}})
            prune_stage(run.replace(settings=more), sparse)
        train.wait_for_all()
        print("fine-tuning", flush=True)
        finetune_stage(run, run.path("pruned"), teacher=sparse)
    print("the end")
"""
SETTINGS: dict[str, Any] = {
    "compute": {"device": "cpu", "precision": "32-true"},  # of what isn't float64 by itself
    "model": {"arch": "program:network"},
    "data": {"batch_size": 101},  # of which one process has 51 images, the other 50
    "train": {"epochs": 3, "ema": 0.8, "clip_norm": 1},
    "sparsity": {"strength": 0.002, "method": "proximal", "target": 0.4, "gradual": 2},
    "prune": {"ratio": 0.3},
    "finetune": {"epochs": 2, "distill": 0.5, "lr": 0.02, "optimizer": "adamw", "patience": 2},
}
ROUNDING = {"sparse": 1e-9, "pruned": 1e-9, "finetuned": 1e-6}  # distillation computes in float32
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]


def on(**settings: Any) -> dict[str, Any]:
    """More about where to compute."""
    return SETTINGS["compute"] | settings


def start(folder: Path, launcher: list[str], **settings: Any) -> subprocess.Popen:
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, *launcher, "program.py", json.dumps(SETTINGS | settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def free_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return str(unused.getsockname()[1])


def finished(process: subprocess.Popen) -> str:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return str(out)


def difference(a: Path, b: Path) -> float:
    """The largest difference of two checkpoints, relative to the largest number of each tensor."""
    first, second = load_file(a), load_file(b)
    assert {k: t.shape for k, t in first.items()} == {k: t.shape for k, t in second.items()}
    return max(float((t - second[k]).abs().max() / t.abs().max().clamp(min=1e-9)) for k, t in first.items())


def test_two_processes_train_prune_and_finetune_as_one(tmp_path: Path) -> None:
    alone = start(tmp_path, [], name="one")
    torchrun = start(tmp_path, [*TORCHRUN, "--master-port", free_port()], name="two")
    finished(alone)
    assert finished(torchrun).count("the end") == 1  # only the first speaks
    one, two = tmp_path / "checkpoints/one", tmp_path / "checkpoints/two"
    for stage in ("sparse", "pruned", "finetuned"):
        assert difference(one / f"{stage}.safetensors", two / f"{stage}.safetensors") < ROUNDING[stage]
    ours, theirs = ((run / "metrics.jsonl").read_text().splitlines() for run in (one, two))
    assert len(ours) == len(theirs) == 5
    for expected, found in zip(map(json.loads, ours), map(json.loads, theirs)):
        for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "images"):
            assert found[key] == pytest.approx(expected[key], rel=1e-5)
    assert json.loads((two / "plan.json").read_text()) == json.loads((one / "plan.json").read_text())
    plans, same = (checkpoint.read_metadata(run / "pruned.safetensors")["plans"] for run in (one, two))
    assert plans == same and len(plans) == 3 and all(plan["removed"] for plan in plans)


@pytest.mark.slow
def test_devices_start_processes_that_stop_and_fail_together(tmp_path: Path) -> None:
    alone = start(tmp_path, [], name="one")
    together = start(tmp_path, [], name="two", compute=on(devices=2))
    finished(alone)
    assert finished(together).count("the end") == 1
    for stage in ("sparse", "finetuned"):
        paths = (tmp_path / "checkpoints" / run / f"{stage}.safetensors" for run in ("one", "two"))
        assert difference(*paths) < ROUNDING[stage]

    stopped = start(tmp_path, [], name="three", compute=on(devices=2), train={"epochs": 2000})
    while not list(tmp_path.glob("checkpoints/three/sparse.state/step-*")):
        time.sleep(0.2)
        assert stopped.poll() is None
    stopped.send_signal(signal.SIGTERM)
    _, err = stopped.communicate(timeout=60)
    assert "Interrupted: stopped after step" in err

    diverged = start(tmp_path, [], name="four", compute=on(devices=2), train={"lr": 1e30, "clip_norm": 0})
    _, err = diverged.communicate(timeout=60)
    assert diverged.returncode != 0 and "SlimError: the " in err


@pytest.mark.slow
def test_shares_of_51_and_50_images_are_cut_into_as_many_parts(tmp_path: Path) -> None:
    """Else one process would wait for the other for ever: 30 parts of 2 would be 26 and 25."""
    torchrun = start(
        tmp_path, [*TORCHRUN, "--master-port", free_port()], name="cut", compute=on(accumulate=30), train={"epochs": 1}
    )
    assert finished(torchrun).count("the end") == 1


def goes_ahead(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with rank_zero_first():
        if rank == 0:
            time.sleep(1)
        with (folder / "order").open("a") as file:
            file.write(f"{rank}")


def test_the_first_process_goes_ahead(tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")
    processes = [server.Process(target=goes_ahead, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert (tmp_path / "order").read_text() == "01"


# BatchNorm


def batch(rank: int) -> tuple[Tensor, Tensor]:
    """Images of one process, 3 or 5, and what arrives in the backward pass."""
    generator = torch.Generator().manual_seed(rank)
    images, arriving = (
        torch.randn(3 + 2 * rank, 4, 5, 5, generator=generator, dtype=torch.float64) + rank for _ in "12"
    )
    return images, arriving


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(4, momentum=0.3).double()
    with torch.no_grad():
        made.weight.copy_(torch.tensor([1.0, -0.5, 0.0, 2.0]))
        made.bias.copy_(torch.arange(4.0))
    return made


def one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    layer, (images, incoming) = norm(), batch(rank)
    with synchronised(single := norm(), True):
        with alone(single):
            if rank == 0:  # the other would never come
                torch.testing.assert_close(single(images), norm()(images), rtol=0, atol=0)
        assert "forward" in vars(single)
    images.requires_grad_()
    with synchronised(layer, True):
        output = layer(images)
        output.backward(incoming)
        layer.eval()
        evaluated = layer(images)
    assert "forward" not in vars(layer)
    found = [output, evaluated, images.grad, layer.weight.grad, layer.bias.grad, *layer.buffers()]
    torch.save([t.detach() for t in found], folder / f"{rank}.pt")


def test_batchnorm_over_processes_is_that_of_the_whole_batch(tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")  # forked from here, autograd's threads would be in the way
    processes = [server.Process(target=one_of_two, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]

    layer = norm()
    images, incoming = (torch.cat(pair) for pair in zip(batch(0), batch(1)))
    images.requires_grad_()
    output = layer(images)
    output.backward(incoming)
    layer.eval()
    for number, expected in enumerate([output, layer(images), images.grad]):
        torch.testing.assert_close(torch.cat([part[number] for part in parts]), expected)
    torch.testing.assert_close(parts[0][3] + parts[1][3], layer.weight.grad)  # which DDP brings together
    torch.testing.assert_close(parts[0][4] + parts[1][4], layer.bias.grad)
    for part in parts:
        for found, expected in zip(part[5:], layer.buffers(), strict=True):
            torch.testing.assert_close(found, expected)


def test_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_rank_zero()
    with pytest.raises(SlimError, match=r"devices is 999: this machine has \d+ of type cpu"):
        connect(ComputeConfig("cpu", "32-true", devices=999))
    slurm = {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NODELIST": "here"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SlimError, match=r"devices 2 on 1 node: .*ntasks-per-node"):
        connect(ComputeConfig("cpu", "32-true", devices=2))
