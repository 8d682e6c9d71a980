"""|γ| of every channel of the network that was pruned, which of them were removed, and the threshold between."""

from typing import Any

import numpy as np

from slim.prune.groups import Groups
from slim.prune.scores import Gamma, scored
from slim.trace.copy import named_tensors
from slim.workbench.run.evidence.networks import Networks

CLEAN = 0.95  # the share of channels that lie on the right side of what may be called a threshold


def gamma(networks: Networks) -> dict[str, Any]:
    """Return `layers`: BatchNorm -> |γ| of the kept and of the removed channels; `threshold`: the score above
    which a group of channels stayed, None where the plan followed more than |γ|."""
    model, plan = networks.decided_on, networks.plans[-1] if networks.plans else None
    named = dict(named_tensors(model))
    traced = networks.trace(model)
    sizes = {name: named[f"{name}.weight"].detach().abs().double().cpu().numpy() for name in traced.norms}
    gone = {name: np.zeros(len(size), bool) for name, size in sizes.items()}
    removed = plan.removed if plan else {}
    for name in gone.keys() & removed.keys():  # other layers have no γ
        gone[name][removed[name]] = True
    layers = {
        name: {"kept": _rounded(size[~gone[name]]), "removed": _rounded(size[gone[name]])}
        for name, size in sizes.items()
    }
    threshold = None
    if plan is not None and networks.score in ("mean", "max", "sum"):
        groups = Groups(traced, model)
        groups.rank_by(scored(Gamma(networks.score), groups))  # type: ignore[arg-type]  # one of those three
        threshold = _threshold(groups, gone)
    return {"layers": layers, "threshold": threshold}


def _threshold(groups: Groups, gone: dict[str, Any]) -> float | None:
    out = np.zeros(len(groups.roots), bool)
    out[groups.member[np.concatenate([gone[name] for name in groups.names])]] = True
    free = ~groups.frozen
    if not out.any() or not (free & ~out).any():
        return None
    highest = float(groups.score[out].max())
    clean = float(((groups.score > highest) != out)[free].mean())  # floors keep some below it
    return highest if clean >= CLEAN else None


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in np.sort(values)]
