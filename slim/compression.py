"""One call from a trained network to a thin one: planned, applied, verified, recovered, fine-tuned."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slim.batches import as_one, as_tensors, inputs_of
from slim.deploy.cost.runtime import Runtime, Runtimes, usual_runtimes
from slim.deploy.guard import Compared, Guarded, against, fastest_planned, in_words
from slim.errors import SlimError
from slim.prune.auto import Auto
from slim.prune.budgets import Budget
from slim.prune.calibration import MOST, part, running
from slim.prune.loss import as_number
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.prune.recovery.recover import Recovery, recover
from slim.prune.verify import verify
from slim.tables import FittingTable, Shown, change, count, duration, render
from slim.trace.copy import clone
from slim.trace.inputs import call
from slim.trace.intercept import evaluating

RATE = 5e-4  # of AdamW, highest
WARMUP = 0.05  # share of the steps


@dataclass(repr=False)
class Compressed(Shown):
    """What `compress` gives: the thin `model`, the `plan` that made it, how it was recovered, what every stage took.

    `metrics`, `seconds`: by stage, "original", "pruned", "recovered", "fine-tuned", as far as they were gone through;
    metrics are empty without `evaluate`. `error`: the relative difference of the thin network from the masked original,
    before it was changed.
    """

    model: nn.Module
    plan: PruningPlan
    error: float
    compared: list[Compared] = field(default_factory=list)  # the thin network with the original, where it will run
    notes: list[str] = field(default_factory=list)
    recovery: Recovery | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def table(self) -> FittingTable:
        """Lay out the stages: parameters, FLOPs, metric and time."""
        table = FittingTable("compressed", drops=["time"])
        table.add_column("stage")
        for name in ("parameters", "FLOPs", *(["metric"] if self.metrics else []), "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for stage in self.seconds:
            sizes = [self.plan.totals[kind] for kind in ("params", "flops")]
            cells = [count(before) if stage == "original" else self._after(before, after) for before, after in sizes]
            metric = [f"{self.metrics[stage]:.4g}"] if stage in self.metrics else []
            table.add_row(stage, *cells, *metric, duration(self.seconds[stage]))
        return table

    @staticmethod
    def _after(before: float, after: float) -> str:
        return f"{count(after)} ({change(before, after)})"

    def headline(self) -> str:
        """Return one line: what went, and the metric before and after."""
        measured = [f"{value:.4g}" for value in self.metrics.values()]
        return self.plan.headline() + (f"; metric {measured[0]} → {measured[-1]}" if measured else "")

    def __str__(self) -> str:
        lines = [render(self.table()), self.plan.ranked_by]
        lines.append(f"equals the original with those channels set to zero, to {self.error:.0e} (relative)")
        lines += [str(self.recovery)] if self.recovery else []
        return "\n".join(filter(None, [*lines, self.plan.shortfall, *self.notes, *in_words(self.compared)]))


Tune = Callable[[nn.Module], Any]
Criterion = Callable[[Any, Any], Tensor]


def compress(
    model: nn.Module,
    example_inputs: Any,
    budget: Budget | None = None,
    train_batches: Iterable[Any] | None = None,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    finetune: Tune | Literal[False] | None = None,
    loss: Criterion | None = None,
    epochs: int = 5,
    score: Any = None,
    round_to: Runtime | Runtimes | int | Literal["auto"] | None = "auto",
) -> Compressed:
    """Prune a trained network to a budget, and win its accuracy back: plan, apply, verify, recover, fine-tune.

        made = slim.compress(model, x, slim.Flops(0.5), loader, evaluate=accuracy)
        print(made)
        slim.save("thin.safetensors", made.model, made.plan)

    `budget`: what is kept, as of `slim.plan` (default: half of the channels).
    `train_batches`: an iterable of (inputs, targets) that can be gone through again, such as a DataLoader. The first
    thousand inputs choose the channels (`slim.Auto`) and recover the network. None: neither happens, nor is it tuned.
    Batches without targets, or images in one tensor, recover it and don't tune it.
    `evaluate(network)`: a metric, for the table of what every stage is worth.
    `finetune(network)`: your own training, which changes the network or returns one, alone or beside others; False:
    none. By default `epochs` (5) over the batches with AdamW and a cosine, on `loss(outputs, targets)`: cross-entropy
    where targets are whole numbers, else the squared error. `score`: see `slim.plan`.
    `round_to`: as of `slim.plan`, or "auto": onnxruntime on one thread and on all, with one image and with 32, if it is
    installed and takes the network. Where the thin network is slower there, one with wider steps takes its place.

    The network is left as it is. Raises SlimError as `slim.plan`, `slim.verify` and `slim.recover` do, and for a loss
    that isn't a finite number.
    """
    _check_functions(evaluate=evaluate, loss=loss, finetune=finetune or None)
    tune = _own_tuning(model, train_batches, loss or default_loss, epochs) if finetune is None else finetune
    clock, made = time.perf_counter, Compressed(model, None, 0.0)  # type: ignore[arg-type]  # the plan follows

    def stage(name: str, started: float, network: nn.Module) -> None:
        made.model, made.seconds[name] = network, clock() - started
        if evaluate is not None:
            made.metrics[name] = as_number(evaluate(network))

    stage("original", clock(), model)
    started = clock()
    images = None if train_batches is None else as_one(train_batches, MOST)
    guarded = _planned(model, example_inputs, budget, Auto(images) if score is None else score, round_to)
    made.plan, made.compared, made.notes = guarded.plan, guarded.compared, guarded.notes
    thin = made.plan.apply(model)
    made.error = float(verify(model, thin, made.plan, example_inputs))
    stage("pruned", started, thin)
    if images is not None:
        started = clock()
        made.recovery = recover(model, thin, made.plan, images)
        stage("recovered", started, made.recovery.model)
    if tune:
        started = clock()
        network = clone(made.model)
        given = [each for each in tree_leaves(tune(network)) if isinstance(each, nn.Module)]  # beside its losses, say
        stage("fine-tuned", started, [*given, network][0])
    return made


def _tunes(batches: Any) -> bool:
    """Say whether batches are (inputs, targets), to tune a network on."""
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | np.ndarray | tuple | Mapping):
        return False  # inputs in one, see `slim.batches`
    if isinstance(batches, Iterator):
        raise SlimError(
            f"train_batches is a {type(batches).__name__}, which ends after it was gone through once: expected a list "
            "or a DataLoader, or finetune=False"
        )
    return any(isinstance(batch, tuple | list) and len(batch) > 1 for batch in islice(batches, 1))


def _planned(model: nn.Module, example_inputs: Any, budget: Budget | None, score: Any, round_to: Any) -> Guarded:
    """Return the plan, revised where it is for a runtime in which its network is slower."""
    wanted = partial(plan, model, example_inputs, budget, score=score)
    if isinstance(budget, Budget) and budget.by_time:
        return Guarded(wanted(), [])
    if round_to == "auto":
        try:
            round_to = usual_runtimes()
        except SlimError as error:  # it isn't installed
            return Guarded(wanted(), [], notes=[f"sizes don't follow from times: {error}"])
    if round_to is None or isinstance(round_to, int):
        return Guarded(wanted(round_to=round_to), [])
    return fastest_planned(lambda step: wanted(round_to=step), round_to, against(model, example_inputs, round_to))


def _check_functions(**given: Any) -> None:
    for name, function in given.items():
        if function is not None and not callable(function):
            raise SlimError(f"{name} {function!r:.60}: expected a function")


def _own_tuning(model: nn.Module, batches: Any, loss: Criterion, epochs: int) -> Tune | None:
    """Return `fit` on these batches, None where they have no targets. Raises SlimError, before any work, where the
    network can't be tuned so."""
    if not _tunes(batches):
        return None
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise SlimError(f"epochs {epochs!r:.60}: expected a whole number of at least 1, or finetune=False")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise SlimError("no parameter takes a gradient: expected model.requires_grad_(), or finetune=False")
    with evaluating(model):
        _loss_of(model, next(iter(batches)), loss, next(model.parameters()).device)
    return partial(fit, batches=batches, loss=loss, epochs=epochs)


def default_loss(outputs: Any, targets: Any) -> Tensor:
    """Return the cross-entropy where targets are whole numbers, else the squared error."""
    for name, value in (("outputs", outputs), ("targets", targets)):
        if not isinstance(value, Tensor):
            raise SlimError(f"{name} of type {type(value).__name__} have no loss by default: expected loss=…")
    floats = targets.is_floating_point()
    return F.mse_loss(outputs, targets) if floats else F.cross_entropy(outputs, targets.long())


def _loss_of(network: nn.Module, batch: Any, loss: Criterion, device: torch.device) -> Tensor:
    inputs, targets = part(inputs_of(batch), ..., device), part(as_tensors(batch[1]), ..., device)
    with running("the network"):
        outputs = call(network, inputs)
    try:
        value = loss(outputs, targets)
    except SlimError:
        raise
    except Exception as error:
        sizes = [list(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in (outputs, targets)]
        raise SlimError(
            f"outputs {sizes[0]} and targets {sizes[1]} have no such loss ({type(error).__name__}: {error}): expected "
            "loss=…, a function of both"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise SlimError(f"the loss is {found}: expected a tensor of one number")
    return value


@torch.enable_grad()
def fit(network: nn.Module, batches: Any, loss: Criterion, epochs: int) -> None:
    """Train the network in place: AdamW without decay on vectors, a short warm-up, then a cosine over all steps."""
    device = next(network.parameters()).device
    vectors = [parameter for parameter in network.parameters() if parameter.dim() < 2]
    others = [parameter for parameter in network.parameters() if parameter.dim() > 1]
    groups = [{"params": others, "weight_decay": 1e-2}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], RATE)
    modes = [(module, module.training) for module in network.modules()]
    steps = epochs * sum(1 for _ in batches)
    network.train()
    done = 0
    for _ in range(epochs):
        for batch in batches:
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(
                    (done + 1) / max(1, WARMUP * steps), (1 + math.cos(math.pi * done / steps)) / 2
                )
            optimizer.zero_grad()
            value = _loss_of(network, batch, loss, device)
            if not value.isfinite():
                raise SlimError(
                    f"the loss is {value.item()} after {done} steps of fine-tuning: expected a number, or finetune=… "
                    "of your own"
                )
            value.backward()
            optimizer.step()
            done += 1
    for module, training in modes:
        module.training = training
