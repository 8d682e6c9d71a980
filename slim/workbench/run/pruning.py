"""The stage that prunes, verifies and recovers."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.deploy.guard import against, fastest_planned
from slim.errors import SlimError, SlimWarning
from slim.prune.calibration import fitting
from slim.prune.loss import Loss
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.prune.recovery.recover import Recovery, recover
from slim.prune.verify import verify
from slim.tables import render
from slim.workbench import data, report, train
from slim.workbench.config import PruneConfig, RunConfig
from slim.workbench.data import Data
from slim.workbench.run import asked
from slim.workbench.run.beginning import first_network, with_size_of_weights
from slim.workbench.run.folder import Run
from slim.workbench.run.networks import Trained, validation_of
from slim.workbench.tasks import Task
from slim.workbench.train.gradual import Pruning


def prune_stage(run: Run, source: Path) -> list[Path]:
    """Prune the network in `source`, check what the thin one computes, and recover it. Returns its file and the
    plan's."""
    with run.lock():
        run.records.check()
        before = run.open(source)
        images, made = _planned(run, before)
        thin = made.apply(before.model)
        error = verify(before.model, thin, made, before.example)
        plan_path = run.folder / "plan.json"
        made.save(plan_path)  # before the stage counts as done
        pruned = before.replace(model=thin, plans=[*before.plans, made])
        records = {before.stage: before.metrics, "pruned": run.save("pruned", pruned)}
        board = train.open_tracker(run.settings, run.folder, "pruned")
        if board:
            board.text("plan", f"{render(made.table())}\n{made.summary()}")
            board.close()
        recovered = None
        if run.settings.prune.recover and images is not None:
            assert before.dataset is not None
            recovered = recovered_on(images, before.model, thin, made, before.dataset.task, run.settings)
            records["recovered"] = run.save("recovered", pruned.replace(model=recovered.model))
    run.console.print(report.stage_table(records, "pruning"))
    run.console.print(f"equals the network with those channels set to zero, to {error:.0e} (relative)")
    if recovered:
        run.console.print(str(recovered))
    return [run.path("pruned"), plan_path]


def plan_file(run: Run, source: Path) -> PruningPlan:
    """Print the plan that `prune_stage` would follow, and write nothing."""
    return _planned(run, run.open(source))[1]


def prune_given(run: Run) -> list[Path]:
    """Save the network that the settings name, with its weights, as the baseline of a new run, and prune it; with data,
    evaluate and recover it. Returns the files of both and the plan's."""
    run, network = _given(run)
    with run.lock():
        run.save("baseline", network, fresh=True)
        return [run.path("baseline"), *prune_stage(run, run.path("baseline"))]


def plan_given(run: Run) -> PruningPlan:
    """Print the plan that `prune_given` would follow, and write nothing."""
    run, network = _given(run)
    network.model.eval()
    return _planned(run, network)[1]


def _given(run: Run) -> tuple[Run, Trained]:
    """Return the network that the settings name, with its weights, for the data that the user named."""
    asked.check(run.settings)
    run = with_size_of_weights(run)
    return run, first_network(run, "baseline", run.dataset() if run.own_data else None)


def plan_architecture(run: Run) -> PruningPlan:
    """Print the plan for an untrained network on images of `data.image_size` pixels (224, for slim's own 32). Equal γ
    would have no order, so they are drawn at random."""
    network = first_network(run, "baseline", None)
    for module in network.model.eval().modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.uniform_(module.weight)
    by_gamma = replace(run.settings.prune, score="mean") if run.settings.prune.score == "auto" else run.settings.prune
    drawn = run.replace(settings=replace(run.settings, prune=by_gamma))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlimWarning)  # that γ say little: the last line does
        made = _made(drawn, network.model, network.example)
    _show(made, run.console)
    size = "×".join(map(str, network.images.shape or ()))
    run.console.print(f"{run.settings.model.arch}, untrained, γ drawn at random, {size} pixels; nothing was written")
    return made


def pruning_within(dataset: Data, settings: RunConfig) -> Pruning:
    """Return what `slim.plan` is asked for by a training that plans: a penalty is at work where it prunes in steps,
    and not yet where the plan is its target."""
    prune, penalised = settings.prune, settings.sparsity.gradual > 0 and settings.sparsity.penalises
    if prune.max_loss is not None:
        raise SlimError("prune.max_loss can't be planned for in training: expected ratio, flops or params")
    by_images = ("residual", "taylor") if penalised else ("residual", "taylor", "auto")
    images = calibration_images(dataset, prune, settings.seed) if prune.score in by_images else None
    return asked.pruning(settings, images, penalised=penalised)


def calibration_images(dataset: Data, prune: PruneConfig, seed: int) -> Any:
    """Return training images without augmentation, as many as the settings and memory allow."""
    count, shape = prune.calibration_images, dataset.spec.shape
    return data.sample_inputs(dataset, count if shape is None else fitting(count, shape[1:]), seed)


def _planned(run: Run, before: Trained) -> tuple[Any, PruningPlan]:
    """Return images to calibrate on, and the plan for a network, and show that."""
    settings = run.settings
    images = calibration_images(before.dataset, settings.prune, settings.seed) if before.dataset else None
    within = before.metrics.get("prunes", 0)  # of its own training, which count towards the same budget
    after = before.plans[len(before.plans) - within :]
    made = _made(
        run,
        before.model,
        before.example,
        images=images,
        dataset=before.dataset,
        penalised=before.stage == "sparse" and settings.sparsity.penalises,
        after=after,
    )
    if after and not made.removed:
        run.console.print(f"the {within} prunes within the training left nothing to remove")
    else:
        _show(made, run.console)
    return images, made


def _made(
    run: Run,
    model: nn.Module,
    example: Tensor,
    *,
    images: Any = None,
    dataset: Data | None = None,
    penalised: bool = False,
    after: Sequence[PruningPlan] = (),
) -> PruningPlan:
    """Return the plan by the rules of the settings, and say where times are measured for it, while that lasts."""
    pruning, prune = asked.pruning(run.settings, images, penalised=penalised), run.settings.prune
    budget = pruning.budget if prune.max_loss is None else _what_may_be_lost(run, dataset, images)
    wanted = partial(plan, model, example, budget, **pruning.rules, after=after)
    if prune.latency is None and prune.round_to != "auto":
        return wanted()
    what = "operators" if prune.latency is None else "operators, then whole networks"
    runtime = asked.runtime(run.settings) if prune.latency is None else asked.latency_runtime(run.settings)
    run.console.print(f"timing {what} in {runtime}: new operators take up to 20 s")
    if prune.latency is not None:
        return wanted()
    guarded = fastest_planned(lambda step: wanted(round_to=step), runtime, against(model, example, runtime))
    for note in guarded.notes:
        run.console.print(note)
    return guarded.plan


def _what_may_be_lost(run: Run, dataset: Data | None, images: Any) -> Loss:
    """Return the budget of the metric on validation images; the test images stay out of it, as it chooses by them."""
    settings, val = run.settings, validation_of(dataset)
    if dataset is None or val is None:
        raise SlimError("prune.max_loss needs validation images: expected data with labels, data.val_fraction above 0")
    metric = dataset.task.metric

    def evaluate(network: nn.Module) -> float:
        return train.evaluate(network, val, dataset, compute=settings.compute)[metric.name]

    assert settings.prune.max_loss is not None
    by_images = images if settings.prune.recover else None
    return Loss(settings.prune.max_loss, evaluate, by_images, larger_is_better=metric.direction == "max")


def recovered_on(
    images: Any, model: nn.Module, thin: nn.Module, made: PruningPlan, task: Task, settings: RunConfig
) -> Recovery:
    """Recover the thin network for a task, on the device that trains."""
    device = train.resolve_device(settings.compute.device)
    try:
        with task.dense(model):
            recovered = recover(model.to(device), thin.to(device), made, images)
    finally:
        model.cpu()
        thin.cpu()
    recovered.model.cpu()
    return recovered


def _show(made: PruningPlan, console: Console) -> None:
    console.print(made.table())
    for line in filter(None, (made.summary(), made.ranked_by, made.shortfall)):
        console.print(line)
