"""Accuracy against ratio: a sweep of plans for the network that was pruned, without any training."""

import time
from typing import Any

import torch

from slim import train
from slim.data import Split
from slim.errors import SlimError
from slim.planning import plan
from slim.report.evidence.networks import Networks

RATIOS = (0.5, 0.7, 0.3, 0.9, 0.1, 0.6, 0.4, 0.8, 0.2)  # the coarse picture first, in case the time runs out
IMAGES = 2000  # at most, held out


def tradeoff(networks: Networks, seconds: float | None) -> dict[str, Any]:
    """`points`: for each ratio what stays of FLOPs and parameters (shares), and the accuracy right after pruning.
    `unpruned`, `result`: accuracy of the network before and of the run's last one, on the same `images` of `split`.
    """
    seconds = networks.settings.report.sweep_seconds if seconds is None else seconds
    if not seconds:
        raise SlimError("it was left out on request (report.sweep_seconds is 0)")
    settings, dataset = networks.settings, networks.dataset
    name = "validation" if len(dataset.val) else "test"
    split = dataset.val if len(dataset.val) else dataset.test
    if len(split) > IMAGES:
        split = split[torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:IMAGES]]
    rules = {key: getattr(settings.prune, key) for key in ("floor", "score", "mode", "round_to")}
    chosen = networks.plans[-1].ratio_achieved if networks.plans else None
    points: list[dict[str, Any]] = []
    skipped: list[float] = []
    started = time.perf_counter()
    own = [] if chosen is None else [chosen]
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
        point = {"asked": ratio, "ratio": made.ratio_achieved, "accuracy": _accuracy(thin, split, networks)}
        for kind in ("flops", "params"):
            whole, left = made.totals[kind]
            point[kind] = left / whole
        points.append(point)
    result = _accuracy(networks.after, split, networks) if networks.plans else None
    return {
        "points": sorted(points, key=lambda point: point["ratio"]),
        "skipped": sorted(skipped),
        "chosen": chosen,
        "result": result,
        "split": name,
        "images": len(split),
    }


def _accuracy(model: Any, split: Split, networks: Networks) -> float:
    settings = networks.settings
    found = train.evaluate(model, split, networks.dataset, device=settings.device, channels_last=settings.channels_last)
    return float(found["accuracy"])
