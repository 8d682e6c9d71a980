"""A few hundred steps on unlabelled images: every layer of the thin network is drawn to what the original's gives."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slim.prune.calibration import part
from slim.prune.plan import PruningPlan
from slim.prune.rebuild import kept
from slim.trace.copy import named_tensors
from slim.trace.inputs import call
from slim.trace.intercept import TRANSPOSED, Intercept, LayerCall
from slim.trace.outputs import output_tensors

BATCH = 32
RATE = 1e-3  # of Adam, highest; falls to 0 as a cosine


def refine(model: nn.Module, thin: nn.Module, plan: PruningPlan, images: Any, steps: int) -> None:
    """Train `thin`, in place, for `steps` steps of Adam on what the layers of `model` give for the same images.

    The loss is the squared error of every convolution's and linear layer's output, in the channels that are kept,
    relative to its variance, averaged over layers, and as much for the outputs. BatchNorms keep their statistics, as in
    inference; which images a step sees is random, the same each time.
    """
    parameters = [p for p in thin.parameters() if p.is_floating_point()]
    trained = [p.requires_grad for p in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    count = next(t.shape[0] for t in tree_leaves(images) if isinstance(t, Tensor) and t.dim())
    draw = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in range(steps):
            batch = part(images, torch.randperm(count, generator=draw)[:BATCH])
            optimizer.zero_grad()
            loss = _Layers(model, plan).error(model, thin, batch)
            if (
                loss.isfinite()
            ):  # else it is as close as numbers allow, or lost: the distance on held-out images decides
                loss.backward()
                optimizer.step()
            schedule.step()
    for parameter, before in zip(parameters, trained):
        parameter.grad = None
        parameter.requires_grad_(before)


class _Layers:
    """What the layers of the original give for a batch, by the name of their weight, and how far off others are."""

    def __init__(self, model: nn.Module, plan: PruningPlan) -> None:
        self.plan, self.sizes = plan, {name: tensor.shape for name, tensor in named_tensors(model)}
        self.wanted: dict[str, list[Tensor]] = {}
        self.errors: list[Tensor] = []

    def error(self, model: nn.Module, thin: nn.Module, batch: Any) -> Tensor:
        """Return the mean over layers of the relative squared error, plus that of the outputs."""
        with torch.no_grad(), Intercept(model, self._each(self._note)):
            expected = [t for t in output_tensors(call(model, batch)).values() if t.is_floating_point()]
        with Intercept(thin, self._each(self._compare)):
            found = [t for t in output_tensors(call(thin, batch)).values() if t.is_floating_point()]
        ends = [_relative(a, b) for a, b in zip(expected, found) if a.shape == b.shape]
        return torch.stack(self.errors or ends).mean() + torch.stack(ends).mean()

    def _each(self, visit: Callable[[LayerCall, Tensor], None]) -> Callable[[LayerCall], Tensor]:
        def run(layer: LayerCall) -> Tensor:
            out = layer.run()
            if layer.kind == "product":
                visit(layer, out)
            return out

        return run

    def _note(self, layer: LayerCall, out: Tensor) -> None:
        dim = 1 if layer.func in TRANSPOSED else 0
        gone = self.plan.cuts.get(layer.name, {}).get(dim, [])
        if gone and (layer.func not in TRANSPOSED or layer.arguments.get("groups", 1) == 1):
            index = kept(self.sizes[layer.name][dim], gone, out.device)
            out = out.index_select(out.dim() - 1 if layer.func is F.linear else 1, index)
        self.wanted.setdefault(layer.name, []).append(out)

    def _compare(self, layer: LayerCall, out: Tensor) -> None:
        wanted = self.wanted.get(layer.name)
        if wanted and wanted[0].shape == out.shape:
            self.errors.append(_relative(wanted.pop(0), out))


def _relative(expected: Tensor, found: Tensor) -> Tensor:
    spread = (expected - expected.mean()).square().mean()
    return (found - expected).square().mean() / spread.clamp(min=1e-12)
