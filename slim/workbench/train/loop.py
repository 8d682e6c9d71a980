"""One training loop, for sparse training and for fine-tuning."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from slim.errors import Interrupted, SlimError
from slim.prune.plan import PruningPlan
from slim.sparsity import Sparsity, coupled, penalty, sparsify
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Dataset, Feed, Loaders, feed
from slim.workbench.data.loaders import Batches
from slim.workbench.malloc import keep_freed_memory
from slim.workbench.nested import part
from slim.workbench.train.average import Average
from slim.workbench.train.callbacks import Callbacks, Progress
from slim.workbench.train.devices import connect, cudnn_algorithms, fuses, layout_of, moved_to, with_sound_layout
from slim.workbench.train.evaluation import evaluate_batches
from slim.workbench.train.gradual import Gradual, Pruning
from slim.workbench.train.guard import Stop, check_finite, diverged, stoppable
from slim.workbench.train.norm import alone, synchronised
from slim.workbench.train.recipe import Distillation, Objective, learning_rate, optimizer_of
from slim.workbench.train.snapshots import Snapshots
from slim.workbench.train.state import TrainingState, mixed
from slim.workbench.train.step import Step

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SECONDS_BETWEEN_REPORTS = 0.1  # each one makes a GPU wait


def fit(
    model: nn.Module,
    data: Dataset | Loaders | Batches,
    optim: OptimConfig,
    *,
    compute: ComputeConfig | None = None,
    seed: int = 0,
    sparsity: SparsityConfig | None = None,
    pruning: Pruning | None = None,
    distillation: Distillation | None = None,
    snapshots: Snapshots | None = None,
    callbacks: Callbacks | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place for the task of the data.

    The weights left in `model` are the last ones, or their average with `optim.ema`: the schedules end low, so nothing
    is selected unless `optim.patience` asks for it, and the test set is never looked at. The model comes back on the
    device where it was, in evaluation mode.

    - `data`: a data set of images; or any iterable of batches (inputs, targets), as a DataLoader or a list is: alone
      for a classification without validation, else in `Loaders`.
    - `optim`: epochs, optimizer, learning rate and so on: see `learning_rate`, `optimizer_of`, `Task.mixing`,
      `Average`. `optim.patience` is for trainings without a penalty: the best epochs of the others are their first.
    - `compute`: device, precision and so on: see `ComputeConfig`, `connect`, `resolve_precision`, `synchronised`.
    - `seed`: order, augmentation and dropout follow from it (it seeds torch's global generator). On a CPU,
      the same settings with the same number of threads give the same weights, bit for bit.
    - `sparsity`: penalise γ, see `slim.sparsify`; its schedule or target counts the steps of this training. With
      `sparsity.gradual` the model also loses channels on the way, see `Gradual`; it stays the same object, with other
      modules inside.
    - `pruning`: what `slim.plan` is asked for at the end of that, and for what `sparsity.target` "plan" pushes.
    - `distillation`: learn from the outputs of another network, too. It is moved to the device.
    - `snapshots`: where to save states to resume from. SIGINT and SIGTERM then save one and raise `Interrupted`. The
      weights of a training that was resumed become bit for bit those of one that was never interrupted.
    - `callbacks`: what to call on the way.

    Returns one record per epoch: `epoch` (from 1), `train_loss` and `train_accuracy` (means over the epoch's
    images, without the penalty), `val_loss` and `val_accuracy` (None without validation images, and where the network
    doesn't say; in the place of accuracy the name of the task's metric),
    `lr` and `strength` (λ) of its last step, `channels` (of all BatchNorms at
    its end), `zero` and `near_zero` (shares of penalised γ that are exactly 0, and within 0.01 of it), `gamma` (the
    same by layer, and the histogram of |γ|: see `Sparsity.statistics`; all three None without `sparsity`), `images`
    (trained on), `images_per_second` (of training), `training_seconds` and `waiting_seconds` (see `Meter`), and
    `seconds` (of everything).

    Raises `SlimError` when the network can't run on these images, when the loss is no longer finite, when memory
    doesn't suffice, and for a device or a precision that isn't there.

    >>> batches = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(4)]
    >>> records = fit(model, batches, OptimConfig(epochs=2))  # doctest: +SKIP
    """
    compute = compute or ComputeConfig()
    task = getattr(data, "task", None)
    if compute.precision == "auto" and task is not None and not task.in_bfloat16:
        compute = replace(compute, precision="32-true")
    fabric = connect(compute)
    prunes = sparsity is not None and sparsity.gradual > 0
    compute = with_sound_layout(compute, model, fabric.device, prunes)
    torch.manual_seed(seed)
    if fabric.device.type == "cpu":
        keep_freed_memory()
    source = feed(data, fabric.device)
    _check(optim, source, compute, fabric.world_size)
    with (
        moved_to(model, fabric.device, layout_of(compute)),
        cudnn_algorithms(compute.deterministic),
        stoppable(snapshots is not None) as stop,
    ):
        few = source.few()
        evaluate_batches(
            model, [few], source.task, source.name, layout_of(compute)
        )  # a network that doesn't fit says so here
        pruning, example = pruning or Pruning(), part(few[0], slice(1))
        planned = partial(_planned, fabric, pruning, model, example)
        state = _begin(model, source, optim, compute, fabric, sparsity, planned)
        gradual = None
        if sparsity is not None and sparsity.gradual:
            gradual = Gradual(sparsity, pruning, model, example, optim.epochs * source.steps_per_epoch)
        loop = Loop(state, source, optim, compute, seed, gradual, snapshots, callbacks or Callbacks(), stop)
        loop.resume()
        loop.run(distillation)
    model.eval()
    return state.records


def _check(optim: OptimConfig, source: Feed, compute: ComputeConfig, processes: int) -> None:
    if source.batch_size < processes:
        raise SlimError(
            f"a batch has {source.batch_size} images: expected at least one for each of {processes} devices"
        )
    if compute.accumulate == "auto" and processes > 1:
        raise SlimError(f"accumulate 'auto' is for one device, not {processes}: expected a number of parts")
    if optim.patience and source.held_out(1, (0, 1)) is None:
        raise SlimError(f"patience is {optim.patience}, but no image is held out: expected data.val_fraction above 0")


def _begin(
    model: nn.Module,
    source: Feed,
    optim: OptimConfig,
    compute: ComputeConfig,
    fabric: "Fabric",
    sparsity: SparsityConfig | None,
    planned: Callable[[], PruningPlan],
) -> TrainingState:
    """Return a training before its first step."""
    optimizer = optimizer_of(model, optim, fuses(fabric))
    return TrainingState(
        model,
        optimizer,
        fabric,
        source.task,
        sparsity=None
        if sparsity is None
        else _attach_penalty(model, optimizer, sparsity, source, optim.epochs, planned),
        average=Average(model, optim.ema) if optim.ema else None,
        patience=0 if sparsity is not None else optim.patience,
        per_epoch=source.steps_per_epoch,
        accumulate=1 if compute.accumulate == "auto" else compute.accumulate,
    )


def _planned(fabric: "Fabric", pruning: Pruning, model: nn.Module, example: Any) -> PruningPlan:
    """Return the plan for a model in training, which one process makes for all."""
    with alone(model):
        made = _told(fabric, pruning.plan(model, example) if fabric.global_rank == 0 else None)
    assert made is not None  # it raises where there is none
    return made


def _told(fabric: "Fabric", plan: PruningPlan | None) -> PruningPlan | None:
    """Return the plan of the first process."""
    if fabric.world_size == 1:
        return plan
    told: dict[str, Any] | None = fabric.broadcast(plan.to_dict() if plan else None)
    return PruningPlan.from_dict(told) if told else None


def _attach_penalty(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sparsity: SparsityConfig,
    source: Feed,
    epochs: int,
    planned: Callable[[], PruningPlan],
) -> Sparsity:
    kwargs = dict(sparsity.penalty_kwargs)
    if sparsity.penalty == "group_lasso":
        kwargs = {"groups": coupled(model, source.few()[0])} | kwargs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "weight decay acts on")  # decay_norm asked for it
        return sparsify(
            model,
            optimizer,
            penalty(sparsity.penalty, sparsity.strength, **kwargs),
            method=sparsity.method,
            targets=sparsity.targets,
            schedule=sparsity.schedule,
            target=planned if sparsity.target == "plan" else sparsity.target,
            floor=sparsity.floor,
            steps=epochs * source.steps_per_epoch,
        )


class Loop:
    """All steps of a training, from where its state stands, with what is told and saved on the way."""

    def __init__(
        self,
        state: TrainingState,
        source: Feed,
        optim: OptimConfig,
        compute: ComputeConfig,
        seed: int,
        gradual: Gradual | None,
        snapshots: Snapshots | None,
        callbacks: Callbacks,
        stop: Stop,
    ) -> None:
        self.state, self.source, self.optim, self.compute, self.seed = state, source, optim, compute, seed
        self.gradual, self.snapshots, self.callbacks, self.stop = gradual, snapshots, callbacks, stop
        self.fabric = state.fabric
        self.rank, self.processes = self.fabric.global_rank, self.fabric.world_size
        self.steps = optim.epochs * source.steps_per_epoch
        self.norms = ExitStack()  # BatchNorms that work together, while they do
        self.reported = -math.inf

    @property
    def device(self) -> torch.device:
        return self.fabric.device

    def lr(self, step: int) -> float:
        return learning_rate(self.optim, step, self.steps)

    def resume(self) -> None:
        """Go on from the newest snapshot, where that is wanted and there is one; else forget those of another."""
        state, snapshots = self.state, self.snapshots
        if snapshots is None:
            return
        if not snapshots.resume:
            if self.rank == 0:
                snapshots.clear()  # else a resumption before this one's first state would find those
            return
        saved = snapshots.newest()
        if saved is None:
            return
        try:
            state.load_state_dict(saved)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise SlimError(
                f"the state in {snapshots.folder} is broken ({type(error).__name__}): expected what slim wrote there; "
                "without --resume the training starts anew"
            ) from error
        if self.compute.accumulate != "auto":
            state.accumulate = self.compute.accumulate
        for step, plan in state.prunes:
            self.callbacks.on_prune(step, plan)

    def run(self, distillation: Distillation | None) -> None:
        """Train to the end. Raises Interrupted where a signal asks for it."""
        state, optim = self.state, self.optim
        if distillation is not None:
            teacher: Any = distillation.teacher.eval()
            teacher.to(device=self.device, memory_format=layout_of(self.compute))
        with self.norms:
            self._synchronise_norms()
            objective = Objective(self.source.task.trained_with(optim), distillation)
            take_step = Step(state, objective, optim, self.compute, seed=self.seed, batch_size=self.source.batch_size)
            while state.epoch <= optim.epochs and not (state.best and state.best.is_over):
                started = time.perf_counter() - state.meter.elapsed
                self._train_epoch(take_step, started)
                self._end_epoch(started)
            state.finish()

    def _train_epoch(self, take_step: Step, started: float) -> None:
        """Take all steps of an epoch that weren't done yet."""
        state = self.state
        state.model.train()
        batches = self.source.epoch(mixed(self.seed, state.epoch), state.step_of_epoch, (self.rank, self.processes))
        for batch in state.meter.timed(batches):
            lr = self.lr(state.step)
            take_step(batch, lr)
            if self.gradual is not None and state.step in self.gradual.shares:
                self._prune(self.gradual, take_step)
            if time.perf_counter() - self.reported > SECONDS_BETWEEN_REPORTS and state.step_of_epoch < state.per_epoch:
                self._report(lr)
                self.reported = time.perf_counter()
            stopping = self.stop.after(state.step, self.processes, self.device)
            if stopping or (self.snapshots is not None and self.snapshots.due()):
                state.meter.elapsed = time.perf_counter() - started
                self._save()
            if stopping:
                raise self._interrupted()

    def _end_epoch(self, started: float) -> None:
        """Close an epoch: validate, enter the epoch's record, save."""
        state, lr = self.state, self.lr(self.state.step - 1)
        state.meter.close()
        if self.processes > 1:
            state.meter.unite(self.device)
        self._report(lr)
        with state.averaged(), self.fabric.autocast():
            held_out = self._validate(lr)
            if state.best and held_out is not None:
                state.best.look(held_out[state.task.metric.name])
        state.end_epoch(held_out, lr, time.perf_counter() - started)
        self.callbacks.on_epoch(state.records[-1])
        self._save()
        if self.stop.is_asked(self.processes, self.device):  # since the last step
            raise self._interrupted()

    def _validate(self, lr: float) -> dict[str, float] | None:
        state, source = self.state, self.source
        at_once = max(self.processes, 4 * source.batch_size // state.accumulate)
        batches = source.held_out(at_once, (self.rank, self.processes))
        if batches is None:
            return None
        found = evaluate_batches(
            state.model, batches, source.task, source.name, layout_of(self.compute), self.processes
        )
        if not math.isfinite(found.get("loss", 0.0)):
            raise diverged("validation loss", found["loss"], state.step, lr)
        return found

    def _prune(self, gradual: Gradual, take_step: Step) -> None:
        state = self.state
        self.norms.close()  # planning runs the model's code in one process alone
        plan = _told(self.fabric, gradual.plan_of(state) if self.rank == 0 else None)
        if plan is not None:
            state.prune(state.step, plan)
            take_step.set_up()
            self.callbacks.on_prune(state.step, plan)
        self._synchronise_norms()

    def _synchronise_norms(self) -> None:
        wanted = self.compute.sync_batchnorm and self.processes > 1
        self.norms.enter_context(synchronised(self.state.model, wanted))

    def _save(self) -> None:
        state = self.state
        if self.snapshots is not None and self.rank == 0:
            state.meter.read()
            check_finite(state.model, state.step, self.lr(state.step - 1))
            self.snapshots.save(state.step, state.state_dict())

    def _report(self, lr: float) -> None:
        state = self.state
        loss, value = state.meter.means()
        near_zero = None if state.sparsity is None else state.sparsity.near_zero()
        self.callbacks.on_step(
            Progress(state.epoch, self.optim.epochs, state.step, self.steps, loss, value, near_zero, lr)
        )

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"stopped after step {self.state.step} of {self.steps}", self.stop.signal)
