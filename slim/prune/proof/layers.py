"""What the layers of a network give on the way, with BatchNorm statistics that are fitted to what runs through."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slim.prune.plan import PruningPlan
from slim.prune.rebuild import kept, thin_tensor
from slim.trace.attention import layer_by_layer
from slim.trace.copy import all_tensors, dotted, named_tensors
from slim.trace.inputs import call
from slim.trace.intercept import Intercept, LayerCall
from slim.trace.outputs import output_tensors
from slim.trace.state import restored

NORMS = nn.modules.batchnorm._BatchNorm
STATISTICS = ("running_mean", "running_var")
_COMPUTED = "parametrizations.weight.original"
WEIGHTS = ("weight", _COMPUTED, f"{_COMPUTED}1", "weight_v", "weight_orig")  # where a layer keeps it, or what makes it


def fitting(model: nn.Module) -> Intercept:
    """Let BatchNorms take the statistics of what they are first given, and normalise that with them; those that go by
    other names stay as they are."""
    fitted: set[str] = set()

    def fit(layer: LayerCall) -> Tensor:
        if layer.kind == "norm" and layer.name.endswith(STATISTICS) and layer.name not in fitted:
            fitted.add(layer.name)
            x, mean, var = (layer.arguments[key] for key in ("input", "running_mean", "running_var"))
            if x.numel() == x.shape[1]:
                raise ValueError("one value for each channel has no spread")
            spread, center = torch.var_mean(x.detach(), [d for d in range(x.dim()) if d != 1])
            mean.copy_(center)
            var.copy_(spread.clamp(min=1e-3))  # a map of one pixel has none: it would blow rounding up
        return layer.run()

    return Intercept(model, fit)


def statistics_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the statistics of all BatchNorms, copied."""
    return {n: b.clone() for n, b in named_tensors(model) if n.endswith(STATISTICS)}


def set_statistics(model: nn.Module, statistics: dict[str, Tensor]) -> None:
    """Put statistics back that `statistics_of` gave."""
    own = dict(named_tensors(model))
    for name, value in statistics.items():
        own[name].copy_(value)


def copy_statistics(masked: nn.Module, thinner: nn.Module, plan: PruningPlan) -> None:
    """Give the thin network what it keeps of the masked original's statistics."""
    theirs = dict(named_tensors(thinner))
    cuts = _cuts_by_tensor(masked, plan)
    for name, buffer in named_tensors(masked):
        if name.endswith(STATISTICS) and name in theirs:
            theirs[name].copy_(thin_tensor(buffer, cuts.get(id(buffer), {})))


def _cuts_by_tensor(model: nn.Module, plan: PruningPlan) -> dict[int, Mapping[int, list[int]]]:
    """Return what the plan cuts of each tensor, which may have several names, by its id."""
    return {id(tensor): plan.cuts[name] for name, tensor in all_tensors(model) if name in plan.cuts}


def activations(
    model: nn.Module,
    inputs: Any,
    plan: PruningPlan | None,
    noise: torch.Generator | None = None,
    *,
    keep_statistics: bool = False,
) -> list[tuple[str, Tensor]]:
    """Return what every layer with weights gives, in order, then the outputs; with a plan, its kept channels only. With
    `noise` every layer rounds otherwise. The model's state is put back, but for `keep_statistics` of its BatchNorms."""
    seen: list[tuple[str, Tensor]] = []

    def record(name: str, keep: Tensor | None) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, out: Any) -> Tensor | None:
            if not isinstance(out, Tensor):
                return None
            if noise is not None:
                out = _perturb_rounding(out, noise)
            kept_of_it = out.clone() if keep is None else out.index_select(_channel_dim(module, out), keep)
            seen.append((name, kept_of_it))
            return out if noise is not None else None

        return hook

    with restored(model), layer_by_layer():
        hooks = [module.register_forward_hook(record(name, keep)) for name, module, keep in _watched(model, plan)]
        try:
            outputs = output_tensors(call(model, inputs), numbers=True)
        finally:
            for hook in hooks:
                hook.remove()
        statistics = statistics_of(model) if keep_statistics else {}
    set_statistics(model, statistics)
    return seen + [(name, _as_reals(tensor)) for name, tensor in outputs.items()]


def _as_reals(tensor: Tensor) -> Tensor:
    """Return what a tensor holds, whatever its layout, as real numbers or integers."""
    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    return torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense


def _watched(model: nn.Module, plan: PruningPlan | None) -> Iterator[tuple[str, nn.Module, Tensor | None]]:
    """Yield the layers with weights whose results can be compared, by name, with the indices of the channels that the
    plan keeps (None: all).

    Grouped transposed convolutions interleave their channels, so what reads them is compared in their place; and what
    a block that goes was added to, in place of its layers.
    """
    cuts = {} if plan is None else _cuts_by_tensor(model, plan)
    named = dict(named_tensors(model))
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, NORMS)) or weight is None:
            continue
        dim = 1 if getattr(module, "transposed", False) else 0
        sources = [named[source] for suffix in WEIGHTS if (source := dotted(name, suffix)) in named]
        cut = next((cuts.get(id(tensor), {}) for tensor in sources if tensor.shape == weight.shape), {})
        interleaved = dim == 1 and module.groups != 1 and bool(cut)
        gone = not weight.numel() or any(len(cut[d]) == weight.shape[d] for d in cut)
        if not interleaved and not gone:
            yield name, module, kept(weight.shape[dim], cut[dim], weight.device) if cut.get(dim) else None


def _channel_dim(layer: nn.Module, out: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return out.dim() - 1
    # 0 for one sample without a batch
    return out.dim() - 1 - len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else 1


def _perturb_rounding(tensor: Tensor, noise: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    change = torch.randn(tensor.shape, generator=noise, dtype=tensor.dtype).to(tensor.device)
    return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * change)
