"""Which channels that a plan removes are constant where they are read: found by running the masked network."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.prune.groups import Bools, Floats
from slim.prune.plan import PruningPlan
from slim.prune.proof.inputs import candidates
from slim.prune.verify import converted, mask
from slim.trace.check import Misfit
from slim.trace.copy import unwrapped
from slim.trace.hooks import hooked
from slim.trace.inputs import call
from slim.trace.readers import weight_of
from slim.trace.traced import Trace

SPREAD = 1e3  # roundings by which a constant may differ from place to place, of the largest number there


def take_up(plan: PruningPlan, traced: Trace, kept: Bools, model: nn.Module, example_inputs: Any) -> Misfit | None:
    """Note in `plan.constants` what removed channels leave behind for the layers that read them; return the channels of
    a layer for which that isn't one number each, whatever the network is given."""
    folds = [(each, each.constant & ~kept[each.codes.labels]) for each in traced.folds]
    folds = [(each, gone) for each, gone in folds if gone.any()]
    if not folds:
        return None
    found = read_by({each.layer for each, _ in folds}, plan, model, example_inputs)
    for each, gone in folds:
        numbers = found.get(each.layer, np.full(0, np.nan))
        if len(numbers) != len(gone) or not np.isfinite(numbers[gone]).all():
            return Misfit(each.codes.labels[each.constant], each.why, 0, {})
        known = np.array(plan.constants.get(each.layer, np.zeros(len(gone))))
        plan.constants[each.layer] = np.where(gone, numbers, known).tolist()
    _count_new_biases(plan, traced)
    return None


def _count_new_biases(plan: PruningPlan, traced: Trace) -> None:
    """Add the biases of layers that have none to the parameters that the thin network has."""
    for name, layer in traced.readers.items():
        if name in plan.constants and layer.bias is None:
            gone = plan.cuts.get(f"{name}.{weight_of(layer)}", {}).get(0, [])
            before, after = plan.totals["params"]
            plan.totals["params"] = before, after + len(layer.weight) - len(gone)


@torch.no_grad()
def read_by(layers: Collection[str], plan: PruningPlan, model: nn.Module, example_inputs: Any) -> dict[str, Floats]:
    """Return for each of these layers what it reads of every channel in the masked network: a number where that is one
    in all samples and places, else NaN. None of a layer that doesn't run."""
    model = unwrapped(model)
    device = next(model.parameters()).device
    for dtype in (torch.float64, None):
        try:
            masked = converted(model, dtype).eval()
            mask(masked, plan)
            given = candidates(model, example_inputs, device, dtype)
        except Exception:  # a device without float64, a model without data
            continue
        for inputs in given:
            seen: dict[str, list[Tensor]] = {}
            watched = [_watch(masked.get_submodule(name), seen.setdefault(name, [])) for name in layers]
            try:
                with hooked(watched), torch.random.fork_rng(devices=[]):
                    call(masked, inputs)
                return {name: _constants(torch.cat(parts, 1)) for name, parts in seen.items() if parts}
            except Exception:  # another number of samples, or another dtype than forward code takes
                continue
    return {}


def _watch(layer: nn.Module, seen: list[Tensor]) -> Any:
    """Let a layer note what it reads: [channels, samples and places]."""

    def note(layer: Any, args: Any) -> None:
        x: Tensor = args[0]
        places = len(layer.kernel_size) if hasattr(layer, "kernel_size") else 0
        seen.append(x.movedim(x.dim() - 1 - places, 0).flatten(1))

    return layer.register_forward_pre_hook(note)


def _constants(rows: Tensor) -> Floats:
    low, high = rows.amin(1), rows.amax(1)
    allowed = SPREAD * torch.finfo(rows.dtype).eps * rows.abs().nan_to_num(0, 0, 0).max()
    numbers: Floats = torch.where(high - low <= allowed, (low + high) / 2, torch.nan).double().cpu().numpy()
    return numbers
