"""What settings ask `slim.plan` for: the only place where their words become budgets, scores and runtimes."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from slim.deploy.cost.latency import Latency
from slim.deploy.cost.runtime import Runtime, Runtimes, usual_runtimes
from slim.deploy.target import BatchUnit
from slim.errors import SlimError
from slim.prune.auto import Auto
from slim.prune.budgets import Budget, Flops, Params, Ratio
from slim.prune.residual import Residual
from slim.prune.scores import Gamma, Magnitude, Random, Score
from slim.prune.taylor import Taylor
from slim.workbench.config import PruneConfig, RunConfig
from slim.workbench.train.gradual import Pruning


def pruning(settings: RunConfig, images: Tensor | None = None, *, penalised: bool = True) -> Pruning:
    """Return what the settings ask for; `images` are what the scores "residual" and "taylor" look at, `penalised`
    says whether the network was trained with a penalty on γ.

    Raises SlimError for a latency or a runtime that can't be, and where images are needed and there are none.
    """
    return Pruning(budget(settings), rules(settings, images, penalised=penalised))


def check(settings: RunConfig) -> None:
    """Raise SlimError for a latency, a runtime or a batch that can't be, before any work."""
    budget(settings)
    BatchUnit.of(settings.export.batch)
    if settings.prune.round_to == "auto":
        runtime(settings)


def budget(settings: RunConfig) -> Budget:
    """Return the budget that the settings name."""
    prune = settings.prune
    if prune.latency is not None:
        return Latency(prune.latency, latency_runtime(settings))
    if prune.flops is not None:
        return Flops(prune.flops)
    if prune.params is not None:
        return Params(prune.params)
    return Ratio(0.5 if prune.ratio is None else prune.ratio)


def rules(settings: RunConfig, images: Tensor | None = None, *, penalised: bool = True) -> dict[str, Any]:
    """Return the keywords of `slim.plan` apart from the budget."""
    prune = settings.prune
    round_to: int | Runtime | Runtimes = 1 if prune.round_to == "auto" else prune.round_to
    if prune.round_to == "auto" and prune.latency is None:
        round_to = runtime(settings)
    return {
        "score": score(prune, settings.seed, images, penalised=penalised),
        "floor": prune.floor,
        "scope": prune.scope,
        "mode": prune.mode,
        "grouped": prune.grouped,
        "round_to": round_to,
        "keep": prune.keep or (),
        "layer_ratios": prune.layer_ratios,
        "blocks": prune.blocks,
    }


def score(prune: PruneConfig, seed: int = 0, images: Tensor | None = None, *, penalised: bool = True) -> Score | Auto:
    """Return the score that the settings name."""
    match prune.score:
        case "auto":
            return Auto(images, penalised)
        case "residual" | "taylor":
            if images is None:
                raise SlimError(f"prune.score {prune.score} needs training images: there are none here, expected mean")
            return Residual(images) if prune.score == "residual" else Taylor(images)
        case "magnitude":
            return Magnitude()
        case "random":
            return Random(seed)
        case reduce:
            return Gamma(reduce)


def latency_runtime(settings: RunConfig) -> Runtime | Runtimes:
    """Return where a budget of latency holds."""
    every, holds = runtime(settings), settings.prune.latency_of
    return every.each[0] if holds == "first" else replace(every, holds=holds)


def runtime(settings: RunConfig) -> Runtimes:
    """Return where the benchmark measures: for each number of threads, each batch size."""
    bench = settings.bench
    count = len(bench.threads) * len(bench.batch_sizes)
    if bench.weights is not None and len(bench.weights) != count:
        raise SlimError(
            f"bench.weights has {len(bench.weights)} numbers: expected {count}, for each of bench.threads each of "
            "bench.batch_sizes"
        )
    return usual_runtimes(bench.provider, bench.threads, bench.batch_sizes, bench.weights)
