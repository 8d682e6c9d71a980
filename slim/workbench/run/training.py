"""The stages that train: with the penalty, without it, and after pruning."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.checkpoint import STAGES
from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.workbench import models, report, train
from slim.workbench.config import OptimConfig, RunConfig, SparsityConfig
from slim.workbench.data import Dataset
from slim.workbench.run.networks import facts_of, image_size, load_data, open_network, save_network
from slim.workbench.run.pruning import gradual_pruning
from slim.workbench.run.records import ROOT, enter_epochs, read_records, states_of
from slim.workbench.run.resuming import check_same, is_done, times_pruned


def train_stage(
    settings: RunConfig, *, resume: bool = False, allow_code: str | Collection[str] = (), console: Console | None = None
) -> list[Path]:
    """Train a new network with the penalty on γ. It starts a new run: earlier entries of its folder go.

    With `resume` an interrupted training goes on, and one that is done with these settings isn't done again; so it
    is with the other stages that train."""
    with train.distributed_session(settings.compute):
        return train_new("sparse", settings, settings.sparsity, allow_code, console or Console(), True, resume)


def finetune_stage(
    source: Path,
    settings: RunConfig,
    *,
    teacher: Path | None = None,
    resume: bool = False,
    allow_code: str | Collection[str] = (),
    console: Console | None = None,
) -> list[Path]:
    """Train the network in `source` on, without a penalty. With `finetune.distill` it also learns from `teacher`, by
    default the sparse.safetensors beside it, or where `sparsity.gradual` pruned that one, the baseline."""
    path = source.with_name(STAGES["finetuned"][0])
    if not settings.finetune.distill:
        teacher = None
    elif teacher is None:
        teacher = source.with_name(STAGES["baseline" if settings.sparsity.gradual else "sparse"][0])
        if not teacher.exists():
            raise SlimError(f"finetune.distill is {settings.finetune.distill}, but there is no unpruned {teacher}")
    with train.distributed_session(settings.compute):
        _train_on(source, path, settings, settings.finetune, None, teacher, allow_code, console or Console(), resume)
    return [path]


def train_new(
    stage: str,
    settings: RunConfig,
    sparsity: SparsityConfig | None,
    allow_code: str | Collection[str],
    console: Console,
    fresh: bool,
    resume: bool,
    folder: Path | None = None,
) -> list[Path]:
    path = (folder or ROOT / settings.name) / STAGES[stage][0]
    if resume and is_done(path, settings, console, 0):
        return [path]
    with train.rank_zero_first():
        dataset = load_data(settings, allow_code=allow_code)
    facts = facts_of(dataset)
    facts["arch"] = settings.model.arch
    facts["arch_kwargs"] = {
        "num_classes": len(dataset.classes),
        "in_channels": dataset.channels,
        "gamma": settings.model.gamma,
        **image_size(settings.model.arch, dataset.image_size),
        **settings.model.kwargs,
    }
    torch.manual_seed(settings.seed)
    model = models.build(facts["arch"], allow_code=allow_code, **facts["arch_kwargs"])
    if not any(isinstance(module, _BatchNorm) and module.affine for module in model.modules()):
        raise SlimError(f"{facts['arch']} has no BatchNorm with a scale γ: there is nothing to prune")
    read_records(path.parent)  # before the work, so that a broken file costs none of it
    records, plans = _fit(path, model, dataset, settings, settings.train, console, None, sparsity, fresh, resume)
    _close(path, {}, model, [], plans, facts, settings, dataset, records, console, fresh)
    return [path]


def train_sparse(
    source: Path | None,
    folder: Path,
    settings: RunConfig,
    allow_code: str | Collection[str],
    console: Console,
    resume: bool,
) -> Path:
    """The first stage of a pass: train with the penalty, from the network in `source`, or a new one without."""
    if source is None:
        return train_new("sparse", settings, settings.sparsity, allow_code, console, False, resume, folder)[0]
    path = folder / STAGES["sparse"][0]
    _train_on(source, path, settings, settings.train, settings.sparsity, None, allow_code, console, resume)
    return path


def _train_on(
    source: Path,
    path: Path,
    settings: RunConfig,
    optim: OptimConfig,
    sparsity: SparsityConfig | None,
    teacher: Path | None,
    allow_code: str | Collection[str],
    console: Console,
    resume: bool,
) -> None:
    """Train the network in `source` on, into the stage at `path`; unless that is done, with `resume`."""
    if resume and is_done(path, settings, console, times_pruned(source)):
        return
    read_records(path.parent)
    with train.rank_zero_first():
        before = open_network(source, settings, allow_code)
        dataset = before.dataset or load_data(settings, allow_code=allow_code)
    unpruned = open_network(teacher, settings, allow_code).model if teacher else None
    records, plans = _fit(path, before.model, dataset, settings, optim, console, unpruned, sparsity, resume=resume)
    facts, earlier = before.facts | facts_of(dataset), {before.stage: before.metrics}
    _close(path, earlier, before.model, before.plans, plans, facts, settings, dataset, records, console)


def _close(
    path: Path,
    earlier: dict[str, dict[str, Any]],
    model: nn.Module,
    plans: list[PruningPlan],
    made: list[PruningPlan],
    facts: dict[str, Any],
    settings: RunConfig,
    dataset: Dataset,
    records: list[dict[str, Any]],
    console: Console,
    fresh: bool = False,
) -> None:
    """Save a network that was trained, and pruned within that by the plans `made`; show it below the stages
    `earlier`."""
    record = save_network(path, model, plans, facts, settings, dataset, records, fresh, made=made)
    train.wait_for_all()  # for the file
    title = "fine-tuning" if path.stem == "finetuned" else "training"
    console.print(report.stage_table({**earlier, path.stem: record}, title))
    console.print(report.effort(records))


def _fit(
    path: Path,
    model: nn.Module,
    dataset: Dataset,
    settings: RunConfig,
    optim: OptimConfig,
    console: Console,
    teacher: nn.Module | None = None,
    sparsity: SparsityConfig | None = None,
    fresh: bool = False,
    resume: bool = False,
) -> tuple[list[dict[str, Any]], list[PruningPlan]]:
    """Train the network whose stage will be saved at `path`. Its epochs are entered in the run's metrics as they
    come, and states to resume from are saved in a folder beside it until the stage is. Returns the records of the
    epochs, and the plans by which it was pruned on the way."""
    prunes = sparsity is not None and sparsity.gradual > 0
    plans: list[PruningPlan] = []
    states = train.Snapshots(
        states_of(path), asdict(settings), keep=settings.keep_states, minutes=settings.save_minutes, resume=resume
    )
    if resume:
        check_same(states.folder, settings, prunes, console)
    board = None
    if settings.tensorboard and train.is_rank_zero():
        board = train.TensorBoard(path.parent / "tensorboard" / path.stem)
    title = "fine-tuning" if path.stem == "finetuned" else path.stem
    with report.training(console, title, optim.epochs, dataset.task.metric) as (on_step, show_epoch):

        def on_epoch(record: dict[str, Any]) -> None:
            show_epoch(record)
            if train.is_rank_zero():
                enter_epochs(path.parent, path.stem, [record], fresh)
            if board:
                board.epoch(record, model)

        def on_prune(step: int, plan: PruningPlan) -> None:
            plans.append(plan)
            console.print(report.prune_line(step, plan))

        finetune = settings.finetune
        taught = train.Distillation(teacher, finetune.distill, finetune.temperature) if teacher else None
        records = train.fit(
            model,
            dataset,
            optim,
            compute=settings.compute,
            seed=settings.seed,
            sparsity=sparsity,
            pruning=gradual_pruning(dataset, settings) if prunes else None,
            distillation=taught,
            snapshots=states,
            callbacks=train.Callbacks(on_step, on_epoch, on_prune),
        )
    if board:
        board.close()
    return records, plans
