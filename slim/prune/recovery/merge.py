"""A start without any image: what reads a removed channel reads the kept channel that is most like it, instead.

Channels are alike where what makes them is: filters, scaled as the BatchNorm behind them scales them, and biases. Of
positively homogeneous activations, such as ReLU, a channel whose filter is a times another's is a times that other; so
its column in whatever reads it goes, times a, to the other's (Srinivas and Babu, Data-free Parameter Pruning, BMVC
2015, with scales). Where filters are less alike than that, it is an approximation, the better the more alike.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.prune.plan import PruningPlan
from slim.prune.rebuild import thin_tensor
from slim.trace.classes import Ints
from slim.trace.copy import clone, named_tensors
from slim.trace.traced import Trace, trace


def merge(model: nn.Module, thin: nn.Module, plan: PruningPlan, example_inputs: Any) -> nn.Module:
    """Return `thin`, made by `plan.apply(model)`, with each removed channel merged into its nearest, without images.

        thin = slim.merge(model, plan.apply(model), plan, example_inputs)

    `example_inputs`: as of `slim.plan`; only their shapes count. For networks of which no image is at hand: with some
    hundred `slim.recover` does better. Neither network is changed.
    """
    traced = trace(model, example_inputs)
    tensors = {name: tensor.detach().double() for name, tensor in named_tensors(model) if tensor.is_floating_point()}
    reads, makes = ({n: d for n, d in found.items() if n in tensors} for found in _places(model, traced))
    nearest = _nearest(traced, tensors, makes, _removed(traced, plan))
    merged = clone(thin)
    into = dict(named_tensors(merged))
    roots = traced.classes.roots(np.arange(len(traced.classes)))
    with torch.no_grad():
        for name, dim in reads.items():
            left_behind = np.array(plan.constants.get(name.rpartition(".")[0], np.zeros(tensors[name].shape[dim])))
            whole, changed = tensors[name].movedim(dim, 0).clone(), False
            along = roots[traced.labels[name][dim]]
            places = {root: np.flatnonzero(along == root) for root in np.unique(along).tolist()}
            for root, mine in places.items():
                other, scale = nearest.get(root, (root, 0.0))
                if left_behind[mine].any():  # a constant, which isn't a multiple of the other's channel
                    continue
                if other in places and other != root and len(places[other]) == len(mine):
                    whole[places[other]] += scale * whole[mine]
                    changed = True
            if changed and name in into:
                into[name].copy_(thin_tensor(whole.movedim(0, dim), plan.cuts.get(name, {})))
    return merged


def _places(model: nn.Module, traced: Trace) -> tuple[dict[str, int], dict[str, int]]:
    """Return the dimension along which weights read channels, and that along which they make them, by name."""
    modules = dict(model.named_modules())
    reads, makes = {}, {}
    for name, dims in traced.labels.items():
        if len(traced.shapes[name]) < 2:
            continue
        transposed = bool(getattr(modules.get(name.rpartition(".")[0]), "transposed", False))
        if (1 - transposed) in dims:
            reads[name] = 1 - transposed
        if int(transposed) in dims:
            makes[name] = int(transposed)
    return reads, makes


def _removed(traced: Trace, plan: PruningPlan) -> set[int]:
    """Return the classes of the channels that the plan removes."""
    gone: set[int] = set()
    for name, cuts in plan.cuts.items():
        for dim, indices in cuts.items():
            if dim in traced.labels.get(name, {}):
                gone |= set(traced.classes.roots(traced.labels[name][dim][indices]).tolist())
    return gone


Nearest = dict[int, tuple[int, float]]  # class -> the kept class that is most like it, and how many times that it is


def _nearest(traced: Trace, tensors: Mapping[str, Tensor], makes: Mapping[str, int], gone: set[int]) -> Nearest:
    """Return for each class that goes the one that stays and is most like it, among those that the same layers make."""
    rows: dict[int, list[Tensor]] = {}
    made_by: dict[int, list[str]] = {}
    for name, dim in makes.items():
        labels = traced.labels[name][dim]
        values = _effective(traced, tensors, name, dim, labels)
        for place, root in enumerate(traced.classes.roots(labels).tolist()):
            rows.setdefault(root, []).append(values[place])
            made_by.setdefault(root, []).append(name)
    kinds: dict[tuple[str, ...], list[int]] = {}
    for root, names in made_by.items():
        kinds.setdefault(tuple(names), []).append(root)
    found: Nearest = {}
    for roots in kinds.values():
        stay, go = ([r for r in roots if (r in gone) == wanted] for wanted in (False, True))
        if not stay or not go:
            continue
        kept, lost = (torch.stack([torch.cat(rows[root]) for root in some]) for some in (stay, go))
        alike = nn.functional.normalize(lost) @ nn.functional.normalize(kept).T
        best = alike.argmax(1)
        scale = (lost * kept[best]).sum(1) / kept[best].square().sum(1).clamp(min=1e-30)
        for root, other, times in zip(go, best.tolist(), scale.tolist()):
            if times > 0:
                found[root] = stay[other], times
    return found


def _effective(traced: Trace, tensors: Mapping[str, Tensor], name: str, dim: int, labels: Ints) -> Tensor:
    """Return what makes each channel, [channels, values]: the filters and the bias, as the BatchNorm behind scales."""
    weight = tensors[name].movedim(dim, 0).reshape(len(labels), -1)
    bias = tensors.get(f"{name.removesuffix('weight')}bias", weight.new_zeros(len(labels)))
    for norm in (n for n, known in traced.norms.items() if np.array_equal(known, labels)):
        gamma, beta, mean, var = (tensors[f"{norm}.{key}"] for key in ("weight", "bias", "running_mean", "running_var"))
        scale = gamma / (var + 1e-5).sqrt()
        weight, bias = weight * scale[:, None], beta + (bias - mean) * scale
        break
    return torch.cat([weight, bias[:, None]], 1)
