"""The stage that measures what each group of layers is worth."""

import math
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from slim.prune.sensitivity import sensitivity
from slim.tables import FittingTable
from slim.workbench import train
from slim.workbench.report import sensitivity as page
from slim.workbench.run import asked
from slim.workbench.run.folder import Run
from slim.workbench.run.networks import validation_of
from slim.workbench.run.pruning import calibration_images


def sensitivity_stage(run: Run, source: Path, shares: Sequence[float], minutes: float) -> list[Path]:
    """Prune each group of layers of the network in `source` alone, by these shares, and measure the validation images
    (the test images where there are none), right after and with recovery on training images. Returns the files of the
    table and of the page; after `minutes` they are left unfinished, and the same call goes on."""
    with run.lock():
        network = run.open(source)
        dataset, settings = network.dataset, run.settings
        images = calibration_images(dataset, settings.prune, settings.seed) if dataset else None
        split = validation_of(dataset)
        split = dataset.test if dataset and split is None else split
        metric = dataset.task.metric if dataset and split is not None else None

        def evaluate(model: nn.Module) -> float:
            assert dataset is not None and metric is not None and split is not None
            return train.evaluate(model, split, dataset, compute=settings.compute)[metric.name]

        table = run.folder / f"sensitivity-{source.stem}.json"
        found = sensitivity(
            network.model,
            network.example,
            evaluate if metric else None,
            images=images if settings.prune.recover or not metric else None,
            shares=tuple(shares),
            score=asked.score(settings.prune, settings.seed, images, penalised=network.stage == "sparse"),
            larger_is_better=metric is None or metric.direction == "max",
            time_limit=60 * minutes if minutes else math.inf,
            file=table,
        )
        found.save(table)
        written = page.write(found, metric, f"{run.folder.name}, {source.stem}", table.with_suffix(".html"))
    shown: FittingTable = found.table()
    run.console.print(shown)
    if not found.complete:
        run.console.print(f"{minutes:g} minutes are over: the same command goes on")
    return [table, written]
