"""One training loop, for sparse training and for fine-tuning.

Lightning Fabric brings the device and the precision. Data and augmentation live on the device (see
slim.data), and the loop makes it wait only when it reports.
"""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.config import OptimConfig, SparsityConfig
from slim.data import Dataset, Split, batches, steps_per_epoch
from slim.errors import SlimError, unknown
from slim.sparsity import Sparsity, coupled, parameter_groups, penalty, sparsify

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SECONDS_BETWEEN_REPORTS = 0.1  # each one makes a GPU wait


@dataclass(frozen=True)
class Progress:
    """Where training stands. `loss` and `accuracy` are means over the epoch so far, on augmented training
    images."""

    epoch: int  # from 1
    epochs: int
    step: int  # done so far, in the whole training
    steps: int
    loss: float
    accuracy: float
    near_zero: float | None  # share of penalised γ near zero; None without a penalty
    lr: float


def fit(
    model: nn.Module,
    dataset: Dataset,
    optim: OptimConfig,
    *,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    channels_last: bool = True,
    sparsity: SparsityConfig | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place on `dataset.train`: SGD on cross entropy.

    The weights left in `model` are the last ones: the schedules end low, so nothing is selected, and the test
    set is never looked at. The model comes back on the device where it was, in evaluation mode.

    - `optim`: epochs, learning rate, schedule, weight decay: see `learning_rate` and `parameter_groups`.
    - `seed`: order, augmentation and dropout follow from it (it seeds torch's global generator). On a CPU,
      the same settings with the same number of threads give the same weights, bit for bit.
    - `device`: "auto" is CUDA, else MPS, else the CPU.
    - `precision`: see `resolve_precision` for "auto".
    - `channels_last`: keep images and weights in that memory layout, which is faster on CPUs and on tensor
      cores.
    - `sparsity`: penalise γ, see `slim.sparsify`; its schedule or target counts the steps of this training.
    - `on_step`: called with a `Progress` at most 10 times a second, and at the end of each epoch.
    - `on_epoch`: called with each record.

    Returns one record per epoch: `epoch` (from 1), `train_loss` and `train_accuracy` (means over the epoch's
    steps, without the penalty), `val_loss` and `val_accuracy` (None without validation images), `lr` and
    `strength` (λ) of its last step, `zero` and `near_zero` (shares of penalised γ that are exactly 0, and within
    0.01 of it), `gamma` (the same by layer, and the histogram of |γ|: see `Sparsity.statistics`; all three None
    without `sparsity`), `images_per_second` (of training) and `seconds` (of everything).

    Raises `SlimError` when the network can't run on these images, when the loss is no longer finite, and for
    a device or a precision that isn't there.
    """
    fabric = _fabric(device, precision)
    torch.manual_seed(seed)
    train, val = dataset.train.to(fabric.device), dataset.val.to(fabric.device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    per_epoch = steps_per_epoch(len(train), batch_size)
    steps = optim.epochs * per_epoch
    records = []

    with _placed(model, fabric.device, layout), _deterministic_cudnn():
        _evaluate(model, train[:2], dataset, 2, layout)  # a network that doesn't fit the images says so here
        optimizer = torch.optim.SGD(
            parameter_groups(model, optim.weight_decay, optim.decay_norm),
            lr=optim.lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov and optim.momentum > 0,
        )
        pressure = None if sparsity is None else _pressed(model, optimizer, sparsity, train, steps)
        network, stepper = fabric.setup(model, optimizer)

        step, reported = 0, -math.inf
        for epoch in range(1, optim.epochs + 1):
            started = time.perf_counter()
            network.train()
            running = _Running()
            shuffle_seed = _mixed(seed, epoch)
            for images, labels in batches(
                train, dataset, batch_size, shuffle_seed=shuffle_seed, augment=True, device=fabric.device
            ):
                lr = learning_rate(optim, step, steps)
                for group in optimizer.param_groups:
                    group["lr"] = lr

                logits = _logits(network(images.contiguous(memory_format=layout)))
                loss = F.cross_entropy(logits, labels, label_smoothing=optim.label_smoothing)
                penalised = loss
                if pressure is not None and pressure.method == "loss":
                    penalised = loss + pressure.loss()
                fabric.backward(penalised)
                stepper.step()
                stepper.zero_grad()

                running.add(loss, logits, labels)
                step += 1
                if step % per_epoch == 0 or time.perf_counter() - reported > SECONDS_BETWEEN_REPORTS:
                    mean_loss, accuracy = running.means(step, lr)
                    if on_step is not None:
                        near_zero = None if pressure is None else pressure.near_zero()
                        on_step(Progress(epoch, optim.epochs, step, steps, mean_loss, accuracy, near_zero, lr))
                    reported = time.perf_counter()

            trained = time.perf_counter()
            held_out = _evaluate(network, val, dataset, 4 * batch_size, layout) if len(val) else None
            if held_out is not None and not math.isfinite(held_out["loss"]):
                raise _diverged("validation loss", held_out["loss"], step, lr)
            gamma = None if pressure is None else pressure.statistics()
            record = {
                "epoch": epoch,
                "train_loss": mean_loss,
                "train_accuracy": accuracy,
                "val_loss": held_out and held_out["loss"],
                "val_accuracy": held_out and held_out["accuracy"],
                "lr": lr,
                "strength": 0.0 if pressure is None else pressure.strength,
                "zero": gamma and gamma["zero"],
                "near_zero": gamma and gamma["near_zero"],
                "gamma": gamma and {"layers": gamma["layers"], "histogram": gamma["histogram"]},
                "images_per_second": running.images / (trained - started),
                "seconds": time.perf_counter() - started,
            }
            records.append(record)
            if on_epoch is not None:
                on_epoch(record)
    model.eval()
    return records


def evaluate(
    model: nn.Module,
    split: Split,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    device: str = "auto",
    channels_last: bool = True,
) -> dict[str, float]:
    """Accuracy (0 to 1) and mean cross entropy on all images of `split`, in the model's own precision.

    `dataset` gives normalisation and classes. The model is left as it was: its device, and which parts of it
    were training. Raises `SlimError` when the split is empty or the network can't run on these images.
    """
    target = resolve_device(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with _placed(model, target, layout):
        return _evaluate(model, split.to(target), dataset, batch_size, layout)


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of step 0 … steps − 1.

    In the w = warmup·steps steps of the warm-up, step k has lr·(k + 1)/(w + 1). After it, "constant" stays at
    lr; "step" divides by 10 at half and again at three quarters of all steps, as the paper does; "cosine"
    follows lr·(1 + cos(π·t))/2, where t goes from 0 at step w towards 1 at the end.
    """
    warmup = round(optim.warmup * steps)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    match optim.schedule:
        case "constant":
            return optim.lr
        case "step":
            return optim.lr * 0.1 ** ((step >= steps / 2) + (step >= 3 * steps / 4))
        case "cosine":
            return optim.lr * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
    raise unknown("schedule", optim.schedule, ["constant", "step", "cosine"])


def _pressed(
    model: nn.Module, optimizer: torch.optim.Optimizer, sparsity: SparsityConfig, train: Split, steps: int
) -> Sparsity:
    kwargs = dict(sparsity.penalty_kwargs)
    if sparsity.penalty == "group_lasso":
        kwargs = {"groups": coupled(model, train[:2].decoded().float())} | kwargs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weight decay acts on")  # decay_norm asked for it
        return sparsify(
            model,
            optimizer,
            penalty(sparsity.penalty, sparsity.strength, **kwargs),
            method=sparsity.method,
            targets=sparsity.targets,
            schedule=sparsity.schedule,
            target=sparsity.target,
            floor=sparsity.floor,
            steps=steps,
        )


def resolve_device(device: str) -> torch.device:
    """The device of a name: "auto" is CUDA, else MPS, else the CPU. Raises `SlimError` for one that isn't
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
    """Lightning's name for a precision on a device.

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
        "cpu": lambda: torch.cpu.get_capabilities().get("amx_bf16", False),
        "mps": lambda: False,
    }
    return "bf16-mixed" if in_hardware[device.type]() else "32-true"


def _fabric(device: str, precision: str) -> "Fabric":
    from lightning_fabric import Fabric  # imports for seconds

    target = resolve_device(device)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it would announce the precision
    kind: Any = resolve_precision(precision, target)
    return Fabric(accelerator=target.type, devices=1, precision=kind)


@contextmanager
def _placed(model: nn.Module, device: torch.device, layout: torch.memory_format) -> Iterator[None]:
    """The model on a device and in a memory layout, and back where it was, in torch's usual layout."""
    home = next(model.parameters()).device
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.to(device=home, memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@torch.no_grad()
def _evaluate(
    model: nn.Module, split: Split, dataset: Dataset, batch_size: int, layout: torch.memory_format
) -> dict[str, float]:
    if not len(split):
        raise SlimError(f"no images to evaluate on: expected a split of {dataset.name} with at least one")
    training = [module for module in model.modules() if module.training]
    model.eval()
    losses, correct = [], []
    try:
        for images, labels in batches(split, dataset, batch_size, device=split.labels.device):
            logits = _logits(model(images.contiguous(memory_format=layout)))
            if logits.shape != (len(labels), len(dataset.classes)):
                raise SlimError(
                    f"the network's output has shape {list(logits.shape)} for {len(labels)} images of "
                    f"{dataset.name}: expected one number for each of its {len(dataset.classes)} classes"
                )
            losses.append(F.cross_entropy(logits.float(), labels, reduction="sum"))
            correct.append((logits.argmax(1) == labels).sum())
    except (
        RuntimeError,
        ValueError,
        AssertionError,
    ) as error:  # what layers raise for inputs they can't take
        raise SlimError(
            f"the network can't run on images of shape {list(split.images.shape[1:])} from {dataset.name}: "
            + str(error).strip().partition("\n")[0]
        ) from error
    finally:
        for module in training:
            module.training = True
    return {
        "accuracy": int(torch.stack(correct).sum()) / len(split),
        "loss": float(torch.stack(losses).sum()) / len(split),
    }


class _Running:
    """Means of loss and accuracy over an epoch, read off the device only when asked."""

    def __init__(self) -> None:
        self.images = 0
        self._loss, self._correct = 0.0, 0
        self._steps = 0
        self._recent: list[tuple[Tensor, Tensor]] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self._recent.append((loss.detach(), (logits.detach().argmax(1) == labels).sum()))
        self.images += len(labels)

    def means(self, step: int, lr: float) -> tuple[float, float]:
        """Loss and accuracy so far. Raises `SlimError` if a loss wasn't finite; `step` steps are done by
        now."""
        losses, correct = (torch.stack(values).tolist() for values in zip(*self._recent))
        for number, loss in enumerate(losses, start=step - len(losses) + 1):
            if not math.isfinite(loss):
                raise _diverged("training loss", loss, number, lr)
        self._steps += len(losses)
        self._loss += math.fsum(losses)
        self._correct += sum(correct)
        self._recent.clear()
        return self._loss / self._steps, self._correct / self.images


def _diverged(what: str, loss: float, step: int, lr: float) -> SlimError:
    return SlimError(
        f"the {what} is {loss} at step {step}, with learning rate {lr:.3g}: try a lower lr, a longer warmup, "
        "a lower sparsity strength, or precision 32-true"
    )


def _logits(output: Any) -> Tensor:
    """The class scores: networks with auxiliary heads (GoogLeNet, Inception) return them with others in
    training."""
    return getattr(output, "logits", output)


def _mixed(seed: int, epoch: int) -> int:
    """A seed for one epoch: 32 bits, as torch's CPU generator ignores the rest."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
