"""What a run is to reach, "twice as fast, at most one point lost", and whether it did."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from slim import tables
from slim.workbench.config import RunConfig
from slim.workbench.tasks import Metric


def with_budget(settings: RunConfig) -> RunConfig:
    """Return the settings with the budget that a wanted speed-up asks for: a share of the latency."""
    if settings.run.speedup is None:
        return settings
    within: dict[str, Any] = dict.fromkeys(settings.prune.ONE_OF) | {"latency": 1 / settings.run.speedup}
    return replace(settings, prune=replace(settings.prune, **within))


def verdict(settings: RunConfig, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return in a line whether the network of the record `after` reaches what the settings want, against `before`; ""
    where they want nothing. What wasn't measured isn't reached."""
    wanted = settings.run
    metric = Metric.of(after)
    parts = []
    if wanted.speedup is not None:
        found = after.get("speedup")
        told = "not measured" if found is None else tables.speedup(found)
        parts.append((found is not None and found >= wanted.speedup, f"{told} (wanted {wanted.speedup:g}×)"))
    if wanted.max_loss is not None:
        known = metric.name in before and metric.name in after
        lost = metric.loss(before[metric.name], after[metric.name]) if known else None
        told = "not measured" if lost is None else _lost(metric, lost)
        holds = lost is not None and lost <= wanted.max_loss
        parts.append((holds, f"{told} (allowed {_lost(metric, wanted.max_loss)})"))
    reached = [said for holds, said in parts if holds]
    missed = [said for holds, said in parts if not holds]
    if not missed:
        return f"target reached: {', '.join(reached)}" if parts else ""
    why = "both can't be had here" if reached else "not reached"
    told = f"target missed, {why}: {', '.join(missed + reached)}"
    return f"{told}; a longer finetune.epochs, finetune.distill or a smaller speed-up may do"


def _lost(metric: Metric, value: float) -> str:
    amount = f"{100 * abs(value):.2f} points" if metric.share else f"{abs(value):.4g}{metric.unit}"
    return f"{amount} {'lost' if value >= 0 else 'gained'}"
