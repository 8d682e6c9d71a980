"""Where a training runs: device, precision, and the processes that train together."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from slim.errors import SlimError, unknown
from slim.workbench.config import ComputeConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ONEDNN_BLOCK = 16  # channels, with AVX-512; 8 without


def resolve_device(device: str) -> torch.device:
    """Return the device of a name: "auto" is CUDA, else MPS, else the CPU. Raises `SlimError` for one that isn't
    here."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if device not in there:
        raise unknown("device", device, ["auto", *there])
    if not there[device]:
        raise SlimError(f"device {device!r} isn't available: expected auto or {next(n for n in there if there[n])}")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return Lightning's name for a precision on a device.

    "auto" is "bf16-mixed" where bfloat16 is computed in hardware, on CUDA devices and on CPUs with AMX, and
    "32-true" elsewhere. bfloat16 has the range of float32, so it needs no loss scaling and trains as safely.
    On CPUs without AMX it is emulated: a step of ResNet-20 on 128 CIFAR images took 630 ms instead of 300,
    one of a small VGG on 64 digits 22 ms instead of 13 (2 threads, AVX-512 without bf16, torch 2.15). It
    follows from the machine alone, not from a timing, so that runs repeat.
    """
    choices = ["auto", "32-true", "bf16-mixed", "16-mixed"]
    if precision not in choices:
        raise unknown("precision", precision, choices)
    if precision == "16-mixed" and device.type != "cuda":
        raise SlimError(f"precision 16-mixed needs a CUDA device, not {device.type}: expected bf16-mixed or 32-true")
    if precision != "auto":
        return precision
    in_hardware = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": torch.cpu._is_amx_tile_supported,  # public as get_capabilities() only in later versions than 2.8
        "mps": lambda: False,
    }
    return "bf16-mixed" if in_hardware[device.type]() else "32-true"


def fuses(fabric: "Fabric") -> bool:
    """Say whether optimizers take their step in one kernel: on GPUs, but for float16, where Lightning then can't clip.
    On CPUs it saves nothing, and the bits would be others."""
    return fabric.device.type == "cuda" and fabric._precision.precision != "16-mixed"


def layout_of(compute: ComputeConfig) -> torch.memory_format:
    """Return the memory layout of images and weights."""
    return torch.channels_last if compute.channels_last else torch.contiguous_format


def with_sound_layout(compute: ComputeConfig, model: nn.Module, device: torch.device, prunes: bool) -> ComputeConfig:
    """Return the settings, without channels_last where a CPU would compute wrong gradients in it, or crash: of 1×1
    convolutions with strides that read fewer channels than a block of oneDNN's, which then writes past its buffer
    (https://github.com/uxlfoundation/oneDNN/issues/6035). Where training `prunes`, any may come to that."""
    if device.type != "cpu" or not compute.channels_last:
        return compute
    strided = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.kernel_size == (1, 1) != module.stride
    ]
    sound = all(module.in_channels >= ONEDNN_BLOCK and not prunes for module in strided)
    return compute if sound else replace(compute, channels_last=False)


def connect(compute: ComputeConfig) -> "Fabric":
    """Return this process's place in a training on `devices` devices of each of `num_nodes` machines.

    Under torchrun the two numbers are its own. Without it, the first call that asks for several devices starts the
    same program once more for each of them: this process is the first, and all do the same from here on.
    """
    from lightning_fabric import Fabric  # imports for seconds
    from lightning_fabric.strategies import DDPStrategy

    target = resolve_device(compute.device)
    kind: Any = resolve_precision(compute.precision, target)
    devices, num_nodes = _processes(compute)
    limit = {"cuda": torch.cuda.device_count, "mps": lambda: 1, "cpu": lambda: os.cpu_count() or 1}[target.type]()
    if devices > limit:
        raise SlimError(f"devices is {devices}: this machine has {limit} of type {target.type}")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would announce the precision
    alone = devices * num_nodes == 1
    # An auxiliary head may not take part in the loss; looking for such parameters costs little.
    strategy: Any = "auto" if alone else DDPStrategy(find_unused_parameters=True)
    warnings.filterwarnings("ignore", "find_unused_parameters=True was specified")
    settings: dict[str, Any] = {"accelerator": target.type, "devices": devices, "num_nodes": num_nodes}
    try:
        fabric = Fabric(**settings, strategy=strategy, precision=kind)
        fabric.launch()
    except ValueError as error:  # SLURM's number of tasks, say, is another
        raise SlimError(f"devices {devices} on {num_nodes} node{'s' * (num_nodes > 1)}: {error}") from error
    return fabric


def _processes(compute: ComputeConfig) -> tuple[int, int]:
    """Devices on each machine, and machines: under torchrun its own."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return compute.devices, compute.num_nodes
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return devices, int(os.environ["WORLD_SIZE"]) // devices


@contextmanager
def distributed_session(compute: ComputeConfig) -> Iterator[None]:
    """Let all processes of a training go through a part of a program alike; only the first speaks and writes.

    It does nothing where there is but one. Processes that were started for it are ended as soon as this one fails.
    """
    if (compute.devices * compute.num_nodes == 1 and "LOCAL_WORLD_SIZE" not in os.environ) or dist.is_initialized():
        yield
        return
    fabric = connect(compute)
    if not is_rank_zero():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the rest of this process)
    launcher: Any = getattr(fabric.strategy, "_launcher", None)
    try:
        yield
        wait_for_all()
    except BaseException:
        for child in getattr(launcher, "procs", []):  # they would wait for this one for ever
            child.kill()
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_rank_zero() -> bool:
    """Say whether this process is the one of its training that speaks and writes."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def wait_for_all() -> None:
    """Return when all processes of the training are here."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Let the first process go ahead, and the others after it: they find downloaded and decoded what it fetched."""
    if not is_rank_zero():
        wait_for_all()
    yield
    if is_rank_zero():
        wait_for_all()


@contextmanager
def moved_to(model: nn.Module, device: torch.device, layout: torch.memory_format) -> Iterator[None]:
    """Move the model to a device and a memory layout, and back where it was, in torch's usual layout."""
    home = next((p.device for p in model.parameters()), device)  # a network may have none
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.to(device=home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@contextmanager
def cudnn_algorithms(repeat: bool) -> Iterator[None]:
    """Let cuDNN choose algorithms that give the same bits in each run, or else the fastest that it finds by trying."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = repeat, not repeat
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
