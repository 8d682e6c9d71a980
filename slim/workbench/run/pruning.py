"""The stage that prunes, verifies and recovers."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.checkpoint import STAGES
from slim.prune.calibration import fitting
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.prune.recovery.recover import Recovery, recover
from slim.prune.verify import verify
from slim.tables import render
from slim.workbench import data, models, report, train
from slim.workbench.config import RunConfig
from slim.workbench.data import Dataset
from slim.workbench.run import asked
from slim.workbench.run.networks import Trained, example_images, image_size, open_network, save_network
from slim.workbench.run.records import read_records
from slim.workbench.train.gradual import Pruning


def prune_stage(
    source: Path,
    settings: RunConfig,
    *,
    allow_code: str | Collection[str] = (),
    console: Console | None = None,
) -> list[Path]:
    """Prune the network in `source`, and check what the thin one computes."""
    console = console or Console()
    read_records(source.parent)
    before, images, made = _planned(source, settings, allow_code, console)
    thin = made.apply(before.model)
    error = verify(before.model, thin, made, before.example)
    path, plan_path = source.with_name(STAGES["pruned"][0]), source.with_name("plan.json")
    plans = [*before.plans, made]
    records = {before.stage: before.metrics}
    made.save(plan_path)  # before the stage counts as done
    records["pruned"] = save_network(path, thin, plans, before.facts, settings, before.dataset)
    if settings.tensorboard:
        board = train.TensorBoard(path.parent / "tensorboard")
        board.text("plan", f"{render(made.table())}\n{made.summary()}")
        board.close()
    recovered = None
    if settings.prune.recover and images is not None:
        recovered = _recover(before.model, thin, made, images, settings)
        records["recovered"] = save_network(
            path, recovered.model, plans, before.facts, settings, before.dataset, stage="recovered"
        )
    console.print(report.stage_table(records, "pruning"))
    console.print(f"equals the network with those channels set to zero, to {error:.0e} (relative)")
    if recovered:
        console.print(str(recovered))
    return [path, plan_path]


def plan_file(
    source: Path, settings: RunConfig, *, allow_code: str | Collection[str] = (), console: Console | None = None
) -> PruningPlan:
    """What `prune_stage` would do: print the plan, and write nothing."""
    return _planned(source, settings, allow_code, console or Console())[2]


def plan_architecture(
    arch: str, settings: RunConfig, *, allow_code: str | Collection[str] = (), console: Console | None = None
) -> PruningPlan:
    """Print the plan for an untrained network on images of 3 channels and `data.image_size` pixels (224, for
    slim's own 32). Equal γ would have no order, so they are drawn at random."""
    console = console or Console()
    pixels = settings.data.image_size or (32 if arch.startswith("slim:") else 224)
    arguments = {"num_classes": 1000, **image_size(arch, pixels), **settings.model.kwargs}
    torch.manual_seed(settings.seed)
    model = models.build(arch, allow_code=allow_code, **arguments).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.uniform_(module.weight)
    made = _made(model, example_images([3, pixels, pixels]), settings, console)
    _tell(made, console)
    console.print(f"{arch}, untrained, γ drawn at random, 3×{pixels}×{pixels} pixels; nothing was written")
    return made


def _planned(
    source: Path, settings: RunConfig, allow_code: str | Collection[str], console: Console
) -> tuple[Trained, Tensor | None, PruningPlan]:
    """The network in `source`, images to calibrate on, and the plan for it."""
    before = open_network(source, settings, allow_code)
    images = _calibration_images(before.dataset, settings) if before.dataset else None
    within = before.metrics.get("prunes", 0)  # of its own training, which count towards the same budget
    after = before.plans[len(before.plans) - within :]
    made = _made(before.model, before.example, settings, console, images=images, after=after)
    if after and not made.removed:
        console.print(f"the {within} prunes within the training left nothing to remove")
    else:
        _tell(made, console)
    return before, images, made


def gradual_pruning(dataset: Dataset, settings: RunConfig) -> Pruning:
    """What `slim.plan` is asked for by a training that prunes."""
    needed = settings.prune.score == "residual"
    return asked.pruning(settings, _calibration_images(dataset, settings) if needed else None)


def _made(
    model: nn.Module,
    example: Tensor,
    settings: RunConfig,
    console: Console,
    *,
    images: Tensor | None = None,
    after: Sequence[PruningPlan] = (),
) -> PruningPlan:
    """The plan by the rules of the settings. Where times are measured for it, it says so while that lasts."""
    pruning = asked.pruning(settings, images)
    wanted = partial(plan, model, example, pruning.budget, **pruning.rules, after=after)
    whole = settings.prune.latency is not None
    if not whole and settings.prune.round_to != "auto":
        return wanted()
    what = "operators, then whole networks" if whole else "operators"
    console.print(f"timing {what} in {asked.runtime(settings)}: new operators take up to a minute")
    with console.status("timing"):
        return wanted()


def _calibration_images(dataset: Dataset, settings: RunConfig) -> Tensor:
    """Training images without augmentation, as many as the settings and memory allow."""
    count = fitting(settings.prune.calibration_images, dataset.image_size)
    images, _ = next(data.batches(dataset.train, dataset, count, shuffle_seed=settings.seed))
    return images


def _recover(model: nn.Module, thin: nn.Module, made: PruningPlan, images: Tensor, settings: RunConfig) -> Recovery:
    """The thin network, recovered on the device that trains."""
    device = train.resolve_device(settings.compute.device)
    try:
        recovered = recover(model.to(device), thin.to(device), made, images)
    finally:
        model.cpu()
        thin.cpu()
    recovered.model.cpu()
    return recovered


def _tell(made: PruningPlan, console: Console) -> None:
    console.print(made.table())
    console.print(made.summary())
    if made.shortfall:
        console.print(made.shortfall)
