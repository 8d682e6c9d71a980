"""The metric against the size: a sweep of plans for the network that was pruned, without any training."""

import time
from dataclasses import replace
from typing import Any

from torch import nn

from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.workbench import train
from slim.workbench.config import PruneConfig, RunConfig
from slim.workbench.run import asked
from slim.workbench.run.evidence.examples import drawn
from slim.workbench.run.evidence.networks import Networks
from slim.workbench.run.pruning import calibration_images, recovered_on

# Shares to remove, of the run's own kind of budget; the coarse picture first, in case the time runs out
SHARES = (0.0, 0.5, 0.7, 0.3, 0.9, 0.1, 0.6, 0.4, 0.8, 0.2)
NEAR = 0.02  # ratios that are closer than this are one point
IMAGES = 2000  # at most, held out


def tradeoff(networks: Networks, seconds: float | None) -> dict[str, Any]:
    """Plan by the run's own rules, with its own kind of budget at several sizes, and measure what each leaves.

    `points`: for each size the ratio of channels removed, what stays of FLOPs and parameters (shares), the metric right
    after pruning, and `recovered` that after recovery. `chosen`, `result`: the ratio of the run's last plan, the metric
    of its last network. All on the same `images` of `split`; no new size is begun after `seconds`, `skipped` names
    those.
    """
    settings, dataset, model = networks.settings, networks.dataset, networks.decided_on
    seconds = settings.report.sweep_seconds if seconds is None else seconds
    if not seconds:
        raise SlimError("it was left out on request (report.sweep_seconds is 0)")
    name = "validation" if len(dataset.val) else "test"
    split = drawn(dataset.val if len(dataset.val) else dataset.test, IMAGES)
    images = calibration_images(dataset, settings.prune, settings.seed)
    rules = asked.rules(settings, images, penalised=networks.penalised)

    def measured(network: nn.Module) -> float:
        return train.evaluate(network, split, dataset, compute=settings.compute)[dataset.task.metric.name]

    def point(share: float | None, made: PruningPlan) -> dict[str, Any]:
        thin = made.apply(model)
        found = {"asked": share, "ratio": made.ratio_achieved, dataset.task.metric.name: measured(thin)}
        if settings.prune.recover:  # where nothing is removed there is nothing to recover
            again = recovered_on(images, model, thin, made, dataset.task, settings).model if made.removed else thin
            found["recovered"] = measured(again)
        return found | {
            kind: left / whole for kind, (whole, left) in made.totals.items() if kind in ("flops", "params")
        }

    own = networks.plans[-1] if networks.plans else None
    points, skipped, started = [point(None, own)] if own else [], [], time.perf_counter()
    for share in SHARES:
        if time.perf_counter() - started > seconds:
            skipped.append(share)
            continue
        try:
            made = plan(model, networks.example, asked.budget(_sized(settings, share)), **rules)
        except SlimError:  # nothing can go, or too much
            skipped.append(share)
            continue
        if all(abs(made.ratio_achieved - other["ratio"]) > NEAR for other in points):
            points.append(point(share, made))
    if not points:
        raise SlimError("no ratio could be planned: see slim-prune --dry-run")
    return {
        **{"points": sorted(points, key=lambda each: each["ratio"]), "skipped": sorted(skipped)},
        **{"split": name, "images": len(split)},
        "chosen": own.ratio_achieved if own else None,
        "result": measured(networks.after) if own else None,
    }


def _sized(settings: RunConfig, share: float) -> RunConfig:
    """Return the settings with a budget of their own kind that removes `share`."""
    kind = next((name for name in PruneConfig.ONE_OF if getattr(settings.prune, name) is not None), "ratio")
    kind = "flops" if kind == "max_loss" else kind  # which is what it bisects
    changed: dict[str, Any] = dict.fromkeys(PruneConfig.ONE_OF) | {kind: share if kind == "ratio" else 1 - share}
    return replace(settings, prune=replace(settings.prune, **changed))
