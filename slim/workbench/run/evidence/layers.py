"""Every layer of a network before and after pruning: channels, shapes, FLOPs, what it is tied to, what held it back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from slim.prune.groups import Groups
from slim.prune.plan import PruningPlan
from slim.trace.tracer import call
from slim.workbench.run.evidence.networks import Networks


@dataclass
class Row:
    """One convolution or linear layer with the BatchNorm right behind it, or a BatchNorm by itself."""

    name: str
    kind: str  # such as "3×3 convolution, stride 2"
    norm: str = ""  # the BatchNorm that scales its channels
    before: int = 0  # output channels
    after: int = 0
    shape_before: list[int] = field(default_factory=list)  # of its output for one image
    shape_after: list[int] = field(default_factory=list)
    inputs_before: int = 0
    inputs_after: int = 0
    params_before: int = 0
    params_after: int = 0
    flops_before: int = 0
    flops_after: int = 0
    floor: int = 0  # channels that stayed because of the floor
    frozen: int = 0
    reason: str = ""  # why they are frozen
    tie: int | None = None  # layers with one number keep or lose (some of) their channels together


def layers(networks: Networks) -> list[dict[str, Any]]:
    """One row for each layer, in the order of execution."""
    whole = _walk(networks.unpruned, networks.example)
    thin = _walk(networks.after, networks.example)
    traced = networks.trace(networks.unpruned)
    ties = tied(Groups(traced, networks.unpruned))
    held = _held(networks.plans)
    rows = []
    for name, row in whole.items():
        small = thin.get(name, row)
        row.after, row.shape_after, row.inputs_after = small.before, small.shape_before, small.inputs_before
        row.params_after, row.flops_after = small.params_before, small.flops_before
        row.floor, row.frozen, row.reason = held.get(row.norm, (0, 0, ""))
        row.tie = ties.get(row.norm)
        rows.append(asdict(row))
    return rows


def tied(groups: Groups) -> dict[str, int]:
    """A number for each BatchNorm that shares a group of channels with another: the same for all that hang together."""
    leader = list(range(len(groups.names)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i]
        return i

    pairs = np.unique(np.stack([groups.pattern[groups.member], groups.layer]), axis=1).T
    for pattern in np.unique(pairs[:, 0]):
        if groups.frozen[groups.pattern == pattern].all():
            continue  # channels that can't go aren't tied in any way that matters
        first, *others = (int(layer) for layer in pairs[pairs[:, 0] == pattern, 1])
        for other in others:
            leader[find(other)] = find(first)
    leaders = [find(i) for i in range(len(leader))]
    shared = [root for root in dict.fromkeys(leaders) if leaders.count(root) > 1]
    return {name: shared.index(root) for name, root in zip(groups.names, leaders) if root in shared}


def _held(plans: Sequence[PruningPlan]) -> dict[str, tuple[int, int, str]]:
    """BatchNorm -> channels held by the floor, frozen, and why: as the last plan says."""
    if not plans:
        return {}
    reasons: dict[str, list[str]] = {}
    for reason, where in plans[-1].frozen.items():
        for name in where:
            reasons.setdefault(name, []).append(reason)
    return {
        layer.name: (layer.floor, layer.frozen, "; ".join(reasons.get(layer.name, []))) for layer in plans[-1].layers
    }


def _walk(model: nn.Module, example: Tensor) -> dict[str, Row]:
    """Run a model once and note each layer in the order of execution."""
    rows: dict[str, Row] = {}
    made: dict[int, tuple[Tensor, str]] = {}  # id of a layer's output -> it (so that the id stays taken), the layer
    counter = FlopCounterMode(display=False)
    started: dict[str, int] = {}

    def before(name: str) -> None:
        started[name] = counter.get_total_flops()

    def after(name: str, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        spent = counter.get_total_flops() - started[name]
        source = made.get(id(inputs[0])) if inputs else None
        params = sum(p.numel() for p in module.parameters(recurse=False))
        if isinstance(module, _BatchNorm):
            if source and not rows[source[1]].norm:
                rows[source[1]].norm = name
                rows[source[1]].params_before += params
                return
            width = int(module.num_features)
            row = rows.setdefault(name, Row(name, "BatchNorm", name if module.affine else "", width))
            row.inputs_before = width
        else:
            made[id(output)] = output, name
            width = module.out_channels if isinstance(module, _ConvNd) else module.out_features
            row = rows.setdefault(name, Row(name, _kind(module), before=width))
            row.inputs_before = module.in_channels if isinstance(module, _ConvNd) else module.in_features
        row.shape_before, row.params_before = list(output.shape[1:]), params
        row.flops_before += spent

    with torch.no_grad(), _hooked(model, before, after), counter:
        call(model.eval(), example)
    return rows


@contextmanager
def _hooked(model: nn.Module, before: Any, after: Any) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear, _BatchNorm)):
            handles.append(module.register_forward_pre_hook(lambda m, i, name=name: before(name)))
            handles.append(module.register_forward_hook(lambda m, i, o, name=name: after(name, m, i, o)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(module: Any) -> str:
    if not isinstance(module, _ConvNd):
        return "linear"
    name = "×".join(map(str, module.kernel_size))
    if module.groups > 1:
        name += " depthwise" if module.groups == module.in_channels else f" grouped ({module.groups})"
    name += " transposed convolution" if module.transposed else " convolution"
    stride = set(module.stride)
    return name if stride == {1} else f"{name}, stride {'×'.join(map(str, stride))}"
