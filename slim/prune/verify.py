"""The proof: a rebuilt network equals the original with the removed channels' γ and β set to 0.

Two things are checked. Every weight of the thin network must be the original's, bit for bit, less what the plan cuts.
And both networks must compute the same: in float64, on BatchNorm statistics fitted to the data that runs through (with
arbitrary statistics the outputs of many deep networks hardly depend on their input, and faults hide), comparing the
kept channels of what every layer gives, not only the outputs.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from slim.errors import SlimError
from slim.prune.plan import PruningPlan
from slim.prune.rebuild import kept, thin_tensor
from slim.trace.outputs import output_tensors
from slim.trace.tracer import call

NORMS = nn.modules.batchnorm._BatchNorm


def verify(
    model: nn.Module, thin: nn.Module, plan: PruningPlan, example_inputs: Any, *, tolerance: float | None = None
) -> float:
    """The largest relative difference between the masked original and the thin network, over all layers.

    `example_inputs` as for `slim.plan`. They are repeated to a larger batch where the model takes one, and mixed with
    noise, so that the BatchNorm statistics have something to be fitted to. Checked in float64 to a relative error of
    1e-10 (`tolerance` overrides); where a device has no float64, or forward code insists on another dtype, in the
    model's own dtype to 1e-4.
    What changes in the original, too, when its layers round otherwise is left out, such as the order of detections
    with equal scores. Neither network is changed. Raises SlimError with the first layer that differs.
    """
    _same_weights(model, thin, plan)
    device = next(model.parameters()).device
    if device.type != "mps":  # which has no float64
        try:
            return _same_function(
                model, thin, plan, example_inputs, torch.float64, 1e-10 if tolerance is None else tolerance
            )
        except (RuntimeError, TypeError) as error:
            if not any(word in str(error) for word in ("dtype", "scalar type", "Double")):
                raise
    # forward code that insists on its own dtype
    return _same_function(model, thin, plan, example_inputs, None, 1e-4 if tolerance is None else tolerance)


def _same_function(
    model: nn.Module, thin: nn.Module, plan: PruningPlan, example_inputs: Any, dtype: torch.dtype | None, limit: float
) -> float:
    device = next(model.parameters()).device
    masked, thinner = copy.deepcopy(model).to(dtype=dtype).eval(), copy.deepcopy(thin).to(dtype=dtype).eval()
    mask(masked, plan)
    larger = tree_map_only(Tensor, lambda t: t.repeat(3, *[1] * (t.dim() - 1)) if t.dim() > 1 else t, example_inputs)
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for candidate in (larger, example_inputs):
            inputs = tree_map_only(Tensor, lambda t: _lively(t, device, dtype), candidate)
            if _fit_statistics(masked, inputs):
                break
        _copy_statistics(masked, thinner, plan)
        expected = _activations(masked, inputs, plan)
        found = _activations(thinner, inputs, None)
        try:
            return _compare(expected, found, limit)
        except SlimError:
            unsteady = _differing(expected, _activations(masked, inputs, plan, torch.Generator().manual_seed(1)), limit)
            if not unsteady:
                raise
            return _compare(expected, found, limit, unsteady)


def mask(model: nn.Module, plan: PruningPlan) -> None:
    """Set γ and β of the plan's removed channels to 0, in place."""
    modules = dict(model.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for name, gone in plan.removed.items():
            bn = modules[name]
            bn.weight[gone] = 0
            if bn.bias is not None:
                bn.bias[gone] = 0


def _same_weights(model: nn.Module, thin: nn.Module, plan: PruningPlan) -> None:
    theirs = dict(thin.named_parameters(remove_duplicate=False)) | dict(thin.named_buffers(remove_duplicate=False))
    ours = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    aliases: dict[int, str] = {id(ours[name]): name for name in plan.cuts if name in ours}
    for name, tensor in ours.items():
        expected = thin_tensor(tensor, plan.cuts.get(aliases.get(id(tensor), name), {}))
        if name not in theirs:
            raise SlimError(f"the thin network differs from the plan: it has no {name}")
        found = theirs[name]
        if found.shape != expected.shape:
            raise SlimError(
                f"the thin network differs from the plan: {name} has shape {list(found.shape)}, expected "
                f"{list(expected.shape)}"
            )
        if found.dtype != expected.dtype or not torch.equal(found.nan_to_num(), expected.to(found.device).nan_to_num()):
            raise SlimError(f"the thin network differs from the plan: {name} holds other values than the original's")


def _lively(tensor: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """The input with noise, so that no two samples are alike."""
    tensor = tensor.to(device)
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(dtype or tensor.dtype)
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype).to(device)
    spread = tensor.std() if tensor.numel() > 1 and tensor.std() > 0 else torch.ones((), device=device)
    return tensor + 0.5 * spread * noise


def _rounded_otherwise(tensor: Tensor, noise: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    change = torch.randn(tensor.shape, generator=noise, dtype=tensor.dtype).to(tensor.device)
    return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * change)


@contextmanager
def _fitting(model: nn.Module) -> Iterator[None]:
    """BatchNorms take the statistics of the next batch, whatever the rest of the model does."""
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    before = [(m, m.momentum, m.training) for m in norms]

    def widen(m: nn.Module, args: Any, out: Any) -> None:
        # a map of one pixel has no spread: its statistics would blow rounding up
        m.get_buffer("running_var").clamp_(min=1e-3)

    hooks = []
    for m in norms:
        m.momentum = 1.0
        m.training = True
        hooks.append(m.register_forward_hook(widen))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for m, momentum, training in before:
            m.momentum, m.training = momentum, training


def _fit_statistics(model: nn.Module, inputs: Any) -> bool:
    """Give the BatchNorms the statistics of these inputs; whether the model takes such a batch."""
    before = {n: b.clone() for n, b in model.named_buffers()}
    try:
        with _fitting(model):
            call(model, inputs)
        call(model, inputs)
        return True
    except (ValueError, RuntimeError, AssertionError):  # a fixed batch size, or one value per channel
        for n, b in model.named_buffers():
            b.copy_(before[n])
        return False


def _copy_statistics(masked: nn.Module, thinner: nn.Module, plan: PruningPlan) -> None:
    theirs = dict(thinner.named_buffers())
    for name, buffer in masked.named_buffers():
        if name.endswith(("running_mean", "running_var")) and name in theirs:
            theirs[name].copy_(thin_tensor(buffer, plan.cuts.get(name, {})))


def _activations(
    model: nn.Module, inputs: Any, plan: PruningPlan | None, noise: torch.Generator | None = None
) -> list[tuple[str, Tensor]]:
    """What every layer with weights gives, in order, then the outputs; with a plan, its kept channels only. With
    `noise` every layer rounds otherwise."""
    seen: list[tuple[str, Tensor]] = []

    def record(name: str, keep: Tensor | None) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, out: Any) -> Tensor | None:
            if not isinstance(out, Tensor):
                return None
            if noise is not None:
                out = _rounded_otherwise(out, noise)
            dim = out.dim() - 1 if isinstance(module, nn.Linear) else 1
            seen.append((name, out.clone() if keep is None else out.index_select(dim, keep)))
            return out if noise is not None else None

        return hook

    hooks = []
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, NORMS)) or weight is None:
            continue
        keep = None
        if plan is not None:
            dim = 1 if getattr(module, "transposed", False) else 0
            gone = plan.cuts.get(f"{name}.weight", {}).get(dim)
            groups = module.groups if dim else 1
            if gone and groups == 1:
                keep = kept(weight.shape[dim], gone, weight.device)
            elif gone or (dim and 0 in plan.cuts.get(f"{name}.weight", {}) and groups != 1):
                continue  # grouped transposed convolutions interleave their channels; what reads them is compared
        hooks.append(module.register_forward_hook(record(name, keep)))
    try:
        outputs = output_tensors(call(model, inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return seen + list(outputs.items())


def _compare(
    expected: list[tuple[str, Tensor]],
    found: list[tuple[str, Tensor]],
    limit: float,
    unsteady: Collection[int] = (),
) -> float:
    """The largest relative difference, but for the `unsteady` places. Raises at the first one over the limit."""
    worst = 0.0
    there: dict[str, list[Tensor]] = {}
    for name, tensor in found:
        there.setdefault(name, []).append(tensor)
    turns: dict[str, int] = {}
    for place, (name, a) in enumerate(expected):
        turn = turns[name] = turns.get(name, -1) + 1
        b = there[name][turn] if turn < len(there.get(name, [])) else None
        if b is None:
            raise SlimError(f"the thin network differs from the masked original: {name} isn't used")
        if place in unsteady:
            continue
        if a.shape != b.shape:
            raise SlimError(
                f"the thin network differs from the masked original: {name} gives {list(b.shape)}, "
                f"expected {list(a.shape)}"
            )
        error = _difference(a, b)
        if not error <= limit:
            raise SlimError(
                f"the thin network differs from the masked original first in {name}: relative error {error:.1e}, "
                f"expected at most {limit:.0e}"
            )
        worst = max(worst, error)
    return worst


def _differing(expected: list[tuple[str, Tensor]], otherwise: list[tuple[str, Tensor]], limit: float) -> set[int]:
    """Where the original differs from itself when its layers round otherwise: what follows from the order of equal
    numbers, as a detector's choice of boxes may, can't be compared."""
    differing = set(range(len(otherwise), len(expected)))
    for place, ((name, a), (other, b)) in enumerate(zip(expected, otherwise)):
        if name != other or a.shape != b.shape or not _difference(a, b) <= limit:
            differing.add(place)
    return differing


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to the largest value; infinite where integers differ."""
    if not a.numel() or not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    scale = a.abs().max()
    return float((a - b).abs().max() / scale) if scale > 0 else float(b.abs().max())
