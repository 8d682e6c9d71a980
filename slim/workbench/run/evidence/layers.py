"""Every layer of a network before and after pruning: channels, shapes, FLOPs, what it is coupled with, what stayed."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from slim.prune.plan import PruningPlan
from slim.trace.inputs import call
from slim.trace.traced import Trace
from slim.workbench.run.evidence.networks import Networks

SIZES = ("shape", "inputs", "params", "flops")


@dataclass
class NetworkLayer:
    """One convolution or linear layer with the BatchNorm right behind it, or a BatchNorm by itself.

    norm: the BatchNorm that scales its channels
    shape: of its output for one image
    """

    kind: str  # such as "3×3 convolution, stride 2"
    width: int
    inputs: int
    shape: list[int]
    params: int
    flops: int = 0
    norm: str = ""


def layers(networks: Networks) -> list[dict[str, Any]]:
    """Return a row for each layer, in the order of execution.

    `before` and `after` are output channels; `floor` and `frozen` how many stayed because of them, `reason` why they
    are frozen; layers with one number as `tie` are coupled (in some of their channels).
    """
    whole = _layers_of(networks.unpruned, networks.example)
    thin = _layers_of(networks.after, networks.example)
    ties = coupled(networks.trace(networks.unpruned))
    held = _held(networks.plans[-1]) if networks.plans else {}
    rows = []
    for name, before in whole.items():
        after = thin.get(name, before)
        floor, frozen, reason = held.get(before.norm, (0, 0, ""))
        row = {"name": name, "kind": before.kind, "norm": before.norm, "before": before.width, "after": after.width}
        for side, layer in (("before", before), ("after", after)):
            row |= {f"{size}_{side}": getattr(layer, size) for size in SIZES}
        rows.append(row | {"floor": floor, "frozen": frozen, "reason": reason, "tie": ties.get(before.norm)})
    return rows


def coupled(traced: Trace) -> dict[str, int]:
    """Return a number for each BatchNorm that shares channels with another: the same for all that hang together."""
    sets: list[tuple[set[int], list[str]]] = []  # channels that can go, and the BatchNorms that hold them
    for name, labels in traced.norms.items():
        roots = np.unique(traced.classes.roots(labels))
        merged = set(roots[~traced.classes.frozen(roots)].tolist()), [name]
        for other in [each for each in sets if each[0] & merged[0]]:
            sets.remove(other)
            merged = other[0] | merged[0], other[1] + merged[1]
        sets.append(merged)
    order = {name: place for place, name in enumerate(traced.norms)}
    shared = sorted((names for _, names in sets if len(names) > 1), key=lambda names: min(order[n] for n in names))
    return {name: number for number, names in enumerate(shared) for name in names}


def _held(plan: PruningPlan) -> dict[str, tuple[int, int, str]]:
    """Return BatchNorm -> channels held by the floor, frozen, and why."""
    reasons: dict[str, list[str]] = {}
    for reason, where in plan.frozen.items():
        for name in where:
            reasons.setdefault(name, []).append(reason)
    return {layer.name: (layer.floor, layer.frozen, "; ".join(reasons.get(layer.name, []))) for layer in plan.layers}


def _layers_of(model: nn.Module, example: Tensor) -> dict[str, NetworkLayer]:
    """Run a model once and note each layer in the order of execution."""
    rows: dict[str, NetworkLayer] = {}
    made: dict[int, tuple[Tensor, str]] = {}  # id of a layer's output -> it (so that the id stays taken), the layer

    def note(name: str, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        params = sum(p.numel() for p in module.parameters(recurse=False))
        source = made.get(id(inputs[0])) if inputs else None
        if isinstance(module, _BatchNorm) and source and not rows[source[1]].norm:
            rows[source[1]].norm = name
            rows[source[1]].params += params
        elif isinstance(module, _BatchNorm):
            norm, width = name if module.affine else "", module.num_features
            rows.setdefault(name, NetworkLayer("BatchNorm", width, width, list(output.shape[1:]), params, norm=norm))
        else:
            made[id(output)] = output, name
            unit = "features" if isinstance(module, nn.Linear) else "channels"
            width, reads = getattr(module, f"out_{unit}"), getattr(module, f"in_{unit}")
            rows.setdefault(name, NetworkLayer(_kind(module), width, reads, list(output.shape[1:]), params))

    watched = [(n, m) for n, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear, _BatchNorm))]
    hooks = [module.register_forward_hook(partial(note, name)) for name, module in watched]
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            call(model.eval(), example)
    finally:
        for hook in hooks:
            hook.remove()
    for name, counts in counter.get_flop_counts().items():
        layer = rows.get(name.partition(".")[2])
        if layer:
            layer.flops = sum(counts.values())
    return rows


def _kind(module: Any) -> str:
    if not isinstance(module, _ConvNd):
        return "linear"
    name = "×".join(map(str, module.kernel_size))
    if module.groups > 1:
        name += " depthwise" if module.groups == module.in_channels else f" grouped ({module.groups})"
    name += " transposed convolution" if module.transposed else " convolution"
    stride = set(module.stride)
    return name if stride == {1} else f"{name}, stride {'×'.join(map(str, stride))}"
