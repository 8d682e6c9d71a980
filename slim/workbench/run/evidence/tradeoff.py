"""Accuracy against ratio: a sweep of plans for the network that was pruned, without any training."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.prune.calibration import fitting
from slim.prune.planner import plan
from slim.prune.recovery.recover import recover
from slim.workbench import data, train
from slim.workbench.data import Split
from slim.workbench.run import asked
from slim.workbench.run.evidence.networks import Networks

RATIOS = (0.5, 0.7, 0.3, 0.9, 0.1, 0.6, 0.4, 0.8, 0.2)  # the coarse picture first, in case the time runs out
IMAGES = 2000  # at most, held out


def tradeoff(networks: Networks, seconds: float | None) -> dict[str, Any]:
    """`points`: for each ratio what stays of FLOPs and parameters (shares), the accuracy right after pruning, and that
    after recovery without training. `chosen`, `result`: the ratio of the run's last plan, the accuracy of its last
    network. All on the same `images` of `split`; no new ratio is begun after `seconds`, `skipped` names those."""
    settings, dataset = networks.settings, networks.dataset
    seconds = settings.report.sweep_seconds if seconds is None else seconds
    if not seconds:
        raise SlimError("it was left out on request (report.sweep_seconds is 0)")
    name = "validation" if len(dataset.val) else "test"
    split = dataset.val if len(dataset.val) else dataset.test
    if len(split) > IMAGES:
        split = split[torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:IMAGES]]
    chosen = networks.plans[-1].ratio_achieved if networks.plans else None
    own = [chosen] if chosen else []
    images = _calibration_images(networks)
    rules = asked.rules(settings, images)
    points: list[dict[str, Any]] = []
    skipped: list[float] = []
    started = time.perf_counter()
    for ratio in [0.0, *own, *(r for r in RATIOS if all(abs(r - c) > 0.02 for c in own))]:
        if time.perf_counter() - started > seconds:
            skipped.append(ratio)
            continue
        try:
            made = plan(networks.decided_on, networks.example, ratio=ratio, **rules)
        except SlimError:  # nothing can go, or too much
            skipped.append(ratio)
            continue
        thin = made.apply(networks.decided_on)
        point: dict[str, Any] = {
            "asked": ratio,
            "ratio": made.ratio_achieved,
            "accuracy": _accuracy(thin, split, networks),
        }
        if settings.prune.recover:  # where nothing is removed there is nothing to recover
            recovered = recover(networks.decided_on, thin, made, images).model if made.removed else thin
            point["recovered"] = _accuracy(recovered, split, networks)
        for kind in ("flops", "params"):
            whole, left = made.totals[kind]
            point[kind] = left / whole
        points.append(point)
    return {
        "points": sorted(points, key=lambda point: point["ratio"]),
        "skipped": sorted(skipped),
        "chosen": chosen,
        "result": _accuracy(networks.after, split, networks) if networks.plans else None,
        "split": name,
        "images": len(split),
    }


def _calibration_images(networks: Networks) -> Tensor:
    """The training images that slim-prune looks at."""
    settings, dataset = networks.settings, networks.dataset
    count = fitting(settings.prune.calibration_images, dataset.image_size)
    images, _ = next(data.batches(dataset.train, dataset, count, shuffle_seed=settings.seed))
    return images


def _accuracy(model: nn.Module, split: Split, networks: Networks) -> float:
    dataset = networks.dataset
    return train.evaluate(model, split, dataset, compute=networks.settings.compute)[dataset.task.metric.name]
