"""One training loop, for sparse training and for fine-tuning."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from slim.errors import Interrupted, SlimError
from slim.prune.plan import PruningPlan
from slim.sparsity import Sparsity, coupled, penalty, sparsify
from slim.workbench.config import OptimConfig, SparsityConfig
from slim.workbench.data import Dataset, Split, batches, steps_per_epoch
from slim.workbench.malloc import keep_freed_memory
from slim.workbench.train.average import Average
from slim.workbench.train.devices import connect, deterministic_cudnn, placed
from slim.workbench.train.evaluation import score
from slim.workbench.train.gradual import Gradual
from slim.workbench.train.guard import check_finite, diverged, stoppable
from slim.workbench.train.norm import synchronised
from slim.workbench.train.recipe import Objective, learning_rate, mixing, optimizer_of
from slim.workbench.train.snapshots import Snapshots
from slim.workbench.train.state import Training, mixed
from slim.workbench.train.step import Step

SECONDS_BETWEEN_REPORTS = 0.1  # each one makes a GPU wait


@dataclass(frozen=True)
class Progress:
    """Where training stands. `loss` and `accuracy` are means over the epoch so far, on augmented training
    images (of the first process, where there are several)."""

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
    compile: bool = False,
    devices: int = 1,
    num_nodes: int = 1,
    sync_batchnorm: bool = True,
    accumulate: int | Literal["auto"] = 1,
    sparsity: SparsityConfig | None = None,
    pruning: Mapping[str, Any] | None = None,
    teacher: nn.Module | None = None,
    distill: float = 0.5,
    temperature: float = 4.0,
    snapshots: Snapshots | None = None,
    resume: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_prune: Callable[[int, PruningPlan], None] | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place on `dataset.train`, by cross entropy.

    The weights left in `model` are the last ones, or their average with `optim.ema`: the schedules end low, so nothing
    is selected unless `optim.patience` asks for it, and the test set is never looked at. The model comes back on the
    device where it was, in evaluation mode.

    - `optim`: epochs, optimizer, learning rate and so on: see `learning_rate`, `optimizer_of`, `mixing`, `Average`.
      `optim.patience` is for trainings without a penalty: the best epochs of the others are their first.
    - `batch_size`: images in a step, on all devices together.
    - `seed`: order, augmentation and dropout follow from it (it seeds torch's global generator). On a CPU,
      the same settings with the same number of threads give the same weights, bit for bit.
    - `device`: "auto" is CUDA, else MPS, else the CPU.
    - `precision`: see `resolve_precision` for "auto".
    - `channels_last`: keep images and weights in that memory layout, which is faster on CPUs and on tensor
      cores.
    - `compile`: run the training's forward and backward passes through torch.compile.
    - `devices`, `num_nodes`, `sync_batchnorm`: train on several: see `connect` and `synchronised`.
    - `accumulate`: cut each batch into so many parts, one after the other; "auto" (on one device) finds how many the
      memory needs.
    - `sparsity`: penalise γ, see `slim.sparsify`; its schedule or target counts the steps of this training. With
      `sparsity.gradual` the model also loses channels on the way, see `Gradual`; it stays the same object, with other
      modules inside.
    - `pruning`: what `slim.plan` is asked for at the end of that, such as {"ratio": 0.6}.
    - `teacher`: learn from the outputs of this network, too, with the weight `distill` and at `temperature`: see
      `Objective`. It is moved to the device.
    - `snapshots`: where to save states to resume from. SIGINT and SIGTERM then save one and raise `Interrupted`.
    - `resume`: go on from the newest of `snapshots`, if there is one. The weights become bit for bit those of a
      training that was never interrupted.
    - `on_step`: called with a `Progress` at most 10 times a second, and at the end of each epoch.
    - `on_epoch`: called with each record.
    - `on_prune`: called whenever the model was pruned, with the steps done by then and the plan; when a training goes
      on, with what was pruned before, too.

    Returns one record per epoch: `epoch` (from 1), `train_loss` and `train_accuracy` (means over the epoch's
    images, without the penalty), `val_loss` and `val_accuracy` (None without validation images), `lr` and
    `strength` (λ) of its last step, `channels` (of all BatchNorms at its end), `zero` and `near_zero` (shares of
    penalised γ that are exactly 0, and within 0.01 of it), `gamma` (the same by layer, and the histogram of |γ|: see
    `Sparsity.statistics`; all three None without `sparsity`), `images` (trained on), `images_per_second` (of
    training), `training_seconds` and `waiting_seconds` (see `Meter`), and `seconds` (of everything).

    Raises `SlimError` when the network can't run on these images, when the loss is no longer finite, when memory
    doesn't suffice, and for a device or a precision that isn't there.
    """
    fabric = connect(device, precision, devices, num_nodes)
    rank, processes = fabric.global_rank, fabric.world_size
    torch.manual_seed(seed)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    dataset = dataset.to(fabric.device)
    train, val = dataset.train, dataset.val
    layout = torch.channels_last if channels_last else torch.contiguous_format
    per_epoch = steps_per_epoch(len(train), batch_size)
    steps = optim.epochs * per_epoch
    batch_size = min(batch_size, len(train))
    _check(optim, val, batch_size, accumulate, processes)

    with (
        placed(model, fabric.device, layout),
        deterministic_cudnn(),
        ExitStack() as norms,
        stoppable(snapshots is not None) as stop,
    ):
        score(model, train[:2], dataset, 2, layout)  # a network that doesn't fit the images says so here
        optimizer = optimizer_of(model, optim)
        now = Training(
            model,
            optimizer,
            fabric,
            sparsity=None if sparsity is None else _pressed(model, optimizer, sparsity, train, steps),
            average=Average(model, optim.ema) if optim.ema else None,
            patience=0 if sparsity is not None else optim.patience,
            per_epoch=per_epoch,
            accumulate=1 if accumulate == "auto" else accumulate,
        )
        gradual = None
        if sparsity is not None and sparsity.gradual:
            gradual = Gradual(sparsity, pruning or {}, model, train[:1].decoded().float(), steps)
        if snapshots is not None and not resume and rank == 0:
            snapshots.clear()  # else a resumption before this one's first state would find those of another
        saved = snapshots.newest() if snapshots is not None and resume else None
        if saved is not None:
            now.load(saved)
            if accumulate != "auto":
                now.accumulate = accumulate
            for made in now.prunes:
                if on_prune is not None:
                    on_prune(*made)
        norms.enter_context(synchronised(model, sync_batchnorm and processes > 1))
        if teacher is not None:
            teacher = teacher.eval().to(device=fabric.device, memory_format=layout)  # type: ignore[call-overload]
        take_step = Step(
            now,
            Objective(optim.label_smoothing, teacher, distill, temperature),
            mixing(optim, len(dataset.classes)),
            seed=seed,
            batch_size=batch_size,
            clip_norm=optim.clip_norm,
            compile=compile,
            find_parts=accumulate == "auto",
            layout=layout,
        )

        def interrupted() -> Interrupted:
            return Interrupted(f"stopped after step {now.step} of {steps}", stop.signal)

        def prune(gradual: Gradual) -> None:
            norms.close()  # planning runs the model's code in one process alone
            plan = gradual.plan_of(now) if rank == 0 else None
            if processes > 1:
                told: dict[str, Any] | None = fabric.broadcast(plan.to_dict() if plan else None)
                plan = PruningPlan.from_dict(told) if told else None
            if plan is not None:
                now.prune(now.step, plan)
                take_step.set_up()
                if on_prune is not None:
                    on_prune(now.step, plan)
            norms.enter_context(synchronised(model, sync_batchnorm and processes > 1))

        def save() -> None:
            if snapshots is not None and rank == 0:
                now.meter.read()
                check_finite(model, now.step, learning_rate(optim, now.step - 1, steps))
                snapshots.save(now.step, now.state())

        reported = -math.inf
        while now.epoch <= optim.epochs and not (now.best and now.best.is_over):
            started = time.perf_counter() - now.meter.elapsed
            model.train()
            for images, labels in now.meter.timed(
                batches(
                    train,
                    dataset,
                    batch_size,
                    shuffle_seed=mixed(seed, now.epoch),
                    augment=True,
                    device=fabric.device,
                    start=now.step_of_epoch,
                    shard=(rank, processes),
                )
            ):
                lr = learning_rate(optim, now.step, steps)
                take_step(images, labels, lr)
                if gradual is not None and now.step in gradual.shares:
                    prune(gradual)
                if time.perf_counter() - reported > SECONDS_BETWEEN_REPORTS and now.step_of_epoch < per_epoch:
                    now.meter.read()
                    if on_step is not None:
                        on_step(_progress(now, optim.epochs, steps, lr))
                    reported = time.perf_counter()
                stopping = stop.after(now.step, processes, fabric.device)
                if stopping or (snapshots is not None and snapshots.due()):
                    now.meter.elapsed = time.perf_counter() - started
                    save()
                if stopping:
                    raise interrupted()

            lr = learning_rate(optim, now.step - 1, steps)
            now.meter.read()
            if processes > 1:
                now.meter.unite(fabric.device)
            if on_step is not None:
                on_step(_progress(now, optim.epochs, steps, lr))
            with now.averaged(), fabric.autocast():
                at_once = max(processes, 4 * batch_size // now.accumulate)
                held_out = score(model, val, dataset, at_once, layout, (rank, processes)) if len(val) else None
                if held_out is not None and not math.isfinite(held_out["loss"]):
                    raise diverged("validation loss", held_out["loss"], now.step, lr)
                if now.best and held_out is not None:
                    now.best.look(held_out["accuracy"])
            now.end_epoch(held_out, lr, time.perf_counter() - started)
            if on_epoch is not None:
                on_epoch(now.records[-1])
            save()
            if stop.is_asked(processes, fabric.device):  # since the last step
                raise interrupted()
        now.finish()
    model.eval()
    return now.records


def _check(optim: OptimConfig, val: Split, batch_size: int, accumulate: int | str, processes: int) -> None:
    if batch_size < processes:
        raise SlimError(f"a batch has {batch_size} images: expected at least one for each of {processes} devices")
    if accumulate == "auto" and processes > 1:
        raise SlimError(f"accumulate 'auto' is for one device, not {processes}: expected a number of parts")
    if optim.patience and not len(val):
        raise SlimError(f"patience is {optim.patience}, but no image is held out: expected data.val_fraction above 0")


def _progress(now: Training, epochs: int, steps: int, lr: float) -> Progress:
    loss, accuracy = now.meter.means()
    near_zero = None if now.sparsity is None else now.sparsity.near_zero()
    return Progress(now.epoch, epochs, now.step, steps, loss, accuracy, near_zero, lr)


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
