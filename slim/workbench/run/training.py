"""The stages that train: with the penalty, without it, and after pruning."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.workbench import report, train
from slim.workbench.config import OptimConfig, SparsityConfig
from slim.workbench.run.beginning import first_network, with_size_of_weights
from slim.workbench.run.finetuning import decided, training
from slim.workbench.run.folder import Run
from slim.workbench.run.keeping import Keeper
from slim.workbench.run.networks import Trained, teacher_beside, times_pruned
from slim.workbench.run.pruning import pruning_within
from slim.workbench.run.records import effort
from slim.workbench.run.resuming import check_same, is_done
from slim.workbench.run.stages import STAGES


def train_stage(run: Run) -> Path:
    """Train a new network with the penalty on γ, and return its file. It begins the run anew: earlier entries of its
    folder go."""
    run = with_size_of_weights(run)
    with train.distributed_session(run.settings.compute), run.lock():
        return train_new(run, "sparse", run.settings.sparsity, fresh=True)


def finetune_stage(run: Run, source: Path, *, teacher: Path | None = None) -> Path:
    """Train the network in `source` on, without a penalty, and return its file. Where validation images show
    that it was better before, it is kept as it was.

    With `finetune.distill` it also learns from `teacher`, by default the best of the networks beside it that were never
    pruned: see `teacher_beside`.
    """
    settings = run.settings
    teacher = (teacher or teacher_beside(source)) if settings.finetune.distill else None
    if settings.finetune.distill and teacher is None:
        files = " or ".join(STAGES[stage].file for stage in ("baseline", "sparse"))
        raise SlimError(
            f"finetune.distill is {settings.finetune.distill}, but no unpruned {files} lies beside {source}"
        )
    with train.distributed_session(settings.compute), run.lock():
        return _train_on(run, "finetuned", source, decided(settings), teacher=teacher)


def train_new(
    run: Run, stage: str, sparsity: SparsityConfig | None, *, network: Trained | None = None, fresh: bool = False
) -> Path:
    """Train a new network as a stage, unless a run that resumes has that already. `network`: where it is built."""
    if not (run.resume and is_done(run, stage, prunes=0)):
        _fit_and_save(run, stage, network or first(run, stage), training(run.settings), sparsity, fresh=fresh)
    return run.path(stage)


def evaluate_given(run: Run, network: Trained) -> Path:
    """Save the network with the weights that it came with as the baseline of a new run, unless a run that resumes has
    it already. With a new last layer it can't be judged as it came, so it is trained first; not for images without
    labels, which can't."""
    path = run.path("baseline")
    if run.resume and is_done(run, "baseline", prunes=0):
        return path
    if network.new and network.dataset is not None and network.dataset.task.labelled:
        run.console.print(f"{', '.join(network.new)} knows nothing yet: trained before anything is pruned")
        _fit_and_save(run, "baseline", network, training(run.settings, new_layer=True), None, fresh=True)
        return path
    record = run.save("baseline", network, fresh=True)
    train.wait_for_all()  # for the file
    run.console.print(report.stage_table({"baseline": record}, "as it came"))
    return path


def first(run: Run, stage: str) -> Trained:
    """Return the network that a run begins with, and its data."""
    with train.rank_zero_first():
        dataset = run.dataset()
    network = first_network(run, stage, dataset)
    run.records.check()  # before the work, so that a broken file costs none of it
    return network


def train_sparse(run: Run, source: Path | None) -> Path:
    """Train with the penalty, as the first stage of a pass: the network in `source`, or a new one without."""
    if source is None:
        return train_new(run, "sparse", run.settings.sparsity)
    return _train_on(run, "sparse", source, training(run.settings), run.settings.sparsity)


def _train_on(
    run: Run,
    stage: str,
    source: Path,
    optim: OptimConfig,
    sparsity: SparsityConfig | None = None,
    *,
    teacher: Path | None = None,
) -> Path:
    """Train the network in `source` on, as a stage, unless a run that resumes has that already."""
    if run.resume and is_done(run, stage, prunes=times_pruned(source)):
        return run.path(stage)
    run.records.check()
    with train.rank_zero_first():
        before = run.open(source)
        dataset = before.dataset or run.dataset()
    unpruned = run.open(teacher).model if teacher else None
    network = before.replace(images=dataset.spec, dataset=dataset)
    _fit_and_save(run, stage, network, optim, sparsity, teacher=unpruned)
    return run.path(stage)


def _fit_and_save(
    run: Run,
    stage: str,
    network: Trained,
    optim: OptimConfig,
    sparsity: SparsityConfig | None,
    *,
    teacher: nn.Module | None = None,
    fresh: bool = False,
) -> None:
    """Train a network, save it as a stage, and show it below the one that it was."""
    keeper = Keeper(run, network) if stage == "finetuned" else None
    epochs, made = _fit(run, stage, network, optim, sparsity, teacher=teacher, fresh=fresh)
    kept = network.stage if keeper and keeper.restore_if_worse() else None
    record = run.save(stage, network, epochs=epochs, made=made, fresh=fresh, kept=kept)
    train.wait_for_all()  # for the file
    earlier = {network.stage: network.metrics} if network.metrics else {}
    title = "fine-tuning" if stage == "finetuned" else "training"
    run.console.print(report.stage_table({**earlier, stage: record}, title))
    run.console.print(effort(epochs))


def _fit(
    run: Run,
    stage: str,
    network: Trained,
    optim: OptimConfig,
    sparsity: SparsityConfig | None,
    *,
    teacher: nn.Module | None,
    fresh: bool,
) -> tuple[list[dict[str, Any]], list[PruningPlan]]:
    """Train a network. Its epochs are entered in the run's metrics as they come, and states to resume from are saved
    until the stage is. Returns the records of the epochs, and the plans by which it was pruned on the way."""
    settings, dataset = run.settings, network.dataset
    assert dataset is not None
    plans = sparsity is not None and sparsity.plans
    states = train.Snapshots(
        run.records.states(stage),
        asdict(settings),
        keep=settings.keep_states,
        minutes=settings.save_minutes,
        resume=run.resume,
    )
    if run.resume:
        check_same(run, stage, plans=plans)
    board = train.open_tracker(settings, run.folder, stage) if train.is_rank_zero() else None
    made: list[PruningPlan] = []
    title = "fine-tuning" if stage == "finetuned" else stage
    with report.training(run.console, title, optim.epochs, dataset.task.metric) as (on_step, show_epoch):

        def on_epoch(record: dict[str, Any]) -> None:
            show_epoch(record)
            if train.is_rank_zero():
                run.records.enter_epochs(stage, [record], fresh=fresh)
            if board:
                board.epoch(record, network.model)

        def on_prune(step: int, plan: PruningPlan) -> None:
            made.append(plan)
            before, after = plan.totals["channels"]
            run.console.print(f"pruned after step {step:,}: {before:,} → {after:,} channels")

        finetune = settings.finetune
        epochs = train.fit(
            network.model,
            dataset,
            optim,
            compute=settings.compute,
            seed=settings.seed,
            sparsity=sparsity,
            pruning=pruning_within(dataset, settings) if plans else None,
            distillation=train.Distillation(teacher, finetune.distill, finetune.temperature) if teacher else None,
            snapshots=states,
            callbacks=train.Callbacks(on_step, on_epoch, on_prune),
        )
    if board:
        board.close()
    return epochs, made
