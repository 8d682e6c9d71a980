"""The thinner network: a copy of a model without the channels that a plan removes.

Every parameter and buffer is copied once, without its removed channels; the modules around them are copied as they
are, and the sizes that they store follow. The original is not touched.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.prune.folds import Constants, fold
from slim.trace.attention import run_headwise
from slim.trace.attributes import fields_of, size_in, with_size
from slim.trace.codes import NUMBERED
from slim.trace.copy import COMPILED, all_tensors, attribute_tensors, clone, detached, dotted, named_modules, unwrapped
from slim.trace.emptied import empty
from slim.trace.lengths import PARAMETRIZED, owner_of, weight_norms
from slim.trace.on_the_fly import OnTheFly
from slim.trace.spectral import Normed, singular_value, spectral_norms
from slim.trace.traced import PER_CHANNEL

Cuts = Mapping[str, Mapping[int, list[int]]]  # tensor name -> dimension -> removed indices


class Select(OnTheFly):
    """A BatchNorm that first chooses its channels of a shared stream (the paper's channel selection layer).

    The index is the buffer `select`, shape [channels kept], int64. Source: Network Slimming (Liu et al., ICCV 2017),
    section 4.2, for networks with BatchNorm before the convolution.
    """

    select: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.index_select(1, self.select))  # type: ignore[misc]


def kept(size: int, removed: list[int], device: torch.device | None = None) -> Tensor:
    """Return the indices of `size` channels that stay when `removed` go."""
    stays = np.ones(size, bool)
    stays[removed] = False
    return torch.from_numpy(np.flatnonzero(stays)).to(device)


def thin_tensor(
    tensor: Tensor, cuts: Mapping[int, list[int]], known: dict[tuple[int, int, torch.device], Tensor] | None = None
) -> Tensor:
    """Return a copy of `tensor` without the removed indices along each dimension; memory format kept. An index is
    numbered anew where channels that it reads are removed (`NUMBERED` in place of a dimension).

    Many tensors lose the same channels: `known` remembers the indices that stay, by the list of those that go.
    """
    if not _fits(cuts, tensor):  # a state that forward hasn't made yet
        cuts = {}
    if NUMBERED in cuts:
        thinner = thin_tensor(tensor, {dim: removed for dim, removed in cuts.items() if dim != NUMBERED}, known)
        return thinner - torch.searchsorted(torch.tensor(cuts[NUMBERED], device=thinner.device), thinner)
    if tensor.is_meta:
        sizes = list(tensor.shape)
        for dim, removed in cuts.items():
            sizes[dim] -= len(removed)
        return torch.empty(sizes, dtype=tensor.dtype, device=tensor.device)
    known = {} if known is None else known
    out = tensor.detach()
    for dim, removed in sorted(cuts.items(), key=lambda c: -len(c[1]) / tensor.shape[c[0]]):  # the largest cut first
        key = (id(removed), tensor.shape[dim], tensor.device)
        if key not in known:
            known[key] = kept(tensor.shape[dim], removed, tensor.device)
        out = out.index_select(dim, known[key])
    if out.is_contiguous() and tensor.is_contiguous():
        return out
    for fmt in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if fmt is torch.channels_last else 5
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=fmt):
            out = out.contiguous(memory_format=fmt)
    return out


@dataclass(frozen=True)
class Change:
    """What a plan changes in a model, spelled out.

    `cuts` names what each tensor loses along each dimension; `sizes` are new values of attributes
    ("module.attribute") that modules keep; `selects` gives for BatchNorms that read a shared stream the channels
    of it that they choose; what is `optional` among the cuts is left out where the model has no such tensor. `masks`
    names what is zero in the masked original. `emptied` modules compute nothing any more: module -> dimension and
    number of the channels that they give (see `Emptied`). `constants` go into the biases of layers (see `folds`).
    """

    cuts: Cuts
    sizes: Mapping[str, Any] = field(default_factory=dict)
    selects: Mapping[str, list[int]] = field(default_factory=dict)
    optional: Set[str] = frozenset()
    masks: Cuts = field(default_factory=dict)
    emptied: Mapping[str, Sequence[int]] = field(default_factory=dict)
    constants: Constants = field(default_factory=dict)


def rebuild(model: nn.Module, change: Change) -> nn.Module:
    """Return a thinner copy of `model`.

    Mode, device, dtype, memory format and `requires_grad` stay as they are. Raises SlimError where a name or a shape
    doesn't fit the model.
    """
    named = dict(all_tensors(model))
    by_tensor: dict[int, Mapping[int, list[int]]] = {}
    for name, cut in change.cuts.items():
        tensor = named.get(name)
        if name in change.optional and (tensor is None or not _fits(cut, tensor)):
            continue
        if tensor is None:
            raise SlimError(f"the plan doesn't fit this model: it has no parameter or buffer {name!r}")
        if not _fits(cut, tensor):
            raise SlimError(f"the plan doesn't fit this model: {name!r} has shape {tuple(tensor.shape)}")
        by_tensor[id(tensor)] = cut
    known: dict[tuple[int, int, torch.device], Tensor] = {}

    def thinner(tensor: Tensor) -> Tensor:
        cut = by_tensor.get(id(tensor))
        if not cut:
            return detached(tensor)
        data = thin_tensor(tensor, cut, known)
        trained = tensor.requires_grad and data.numel() > 0  # of a block that is gone there is nothing to train
        return nn.Parameter(data, requires_grad=trained) if isinstance(tensor, nn.Parameter) else data

    thin = clone(model, thinner, thinner)
    modules = dict(named_modules(thin))
    _adjust(modules, change)
    _check_whole(modules, change.cuts)
    _forget(thin)
    state_anew(dict(named_modules(model)), modules, change)
    return thin


def _forget(thin: nn.Module) -> None:
    """Let modules that keep tensors for inference drop them, as they do for training: they have the old widths."""
    for prefix, module in named_modules(thin):
        if type(module).train is nn.Module.train or not attribute_tensors(prefix, vars(module)):
            continue
        modes = [(each, each.training) for each in module.modules()]
        module.train()
        module.train(modes[0][1])
        for each, training in modes:
            each.training = training


def _fits(cut: Mapping[int, list[int]], tensor: Tensor) -> bool:
    """Return whether a tensor has all that a cut, in rising order, takes of it."""
    return all(
        d == NUMBERED or (d < tensor.dim() and (not gone or gone[-1] < tensor.shape[d])) for d, gone in cut.items()
    )


def take_over(model: nn.Module, thin: nn.Module) -> None:
    """Make `model`, the object that others hold, the network `thin`. Its modules are those of `thin` from then on.
    Where it is compiled, in a wrapper or in place, it still is."""
    model, thin = unwrapped(model), unwrapped(thin)
    compiled = {key: value for key, value in vars(model).items() if key == COMPILED}
    model.__class__ = type(thin)
    object.__setattr__(model, "__dict__", thin.__dict__ | compiled)


@contextmanager
def thinned(modules: Mapping[str, nn.Module], named: Mapping[str, Tensor], change: Change) -> Iterator[None]:
    """Make a network itself thinner for as long as the context lasts: one without data, of which a copy costs more than
    the change. Its tensors are put back after it; what its modules hold is for the caller to put back."""
    cuts = {id(named[name]): (named[name], cut) for name, cut in change.cuts.items() if name in named}
    whole = [(tensor, tensor.data) for tensor, _ in cuts.values()]
    try:
        for tensor, cut in cuts.values():
            tensor.data = thin_tensor(tensor, cut)
        _adjust(modules, change)
        yield
    finally:
        for tensor, data in whole:
            tensor.data = data


def set_sizes(modules: Mapping[str, nn.Module], sizes: Mapping[str, Any]) -> None:
    """Set sizes that modules keep, in attributes or within what these hold."""
    for name, value in sizes.items():
        holder, (attribute, *path) = _holder_of(modules, name)
        held = before = getattr(holder, attribute, None)
        for key in path:
            before = fields_of(before).get(key)
        if before is None:  # what was set after it was built may be missing in one that is built anew
            continue
        if type(size_in(before)) not in ((list, tuple) if isinstance(value, list | tuple) else (int,)):
            raise SlimError(f"the plan doesn't fit this model: {name} isn't a size such as {value}")
        setattr(holder, attribute, with_size(held, path, value))


def _holder_of(modules: Mapping[str, nn.Module], name: str) -> tuple[nn.Module, list[str]]:
    """Return the module that keeps a size of this name, and the rest: an attribute, and what lies within it."""
    parts = name.split(".")
    for count in range(len(parts) - 1, -1, -1):
        holder, rest = modules.get("".join(f"{part}." for part in parts[:count])), parts[count:]
        if holder is not None and (len(rest) == 1 or rest[0] in vars(holder)):
            return holder, rest
    raise SlimError(f"the plan doesn't fit this model: it has no module {name.rpartition('.')[0]!r}")


def _adjust(modules: Mapping[str, nn.Module], change: Change) -> None:
    """Let the modules around thinner tensors agree with them."""
    set_sizes(modules, change.sizes)  # first, because the number of groups tells how many channels they take
    for owner in {owner_of(name) for name in change.cuts}:
        if (module := modules.get(owner and owner + ".")) is not None:
            resize(module, groups_are_set=dotted(owner, "groups") in change.sizes)
            run_headwise(module)  # a nn.MultiheadAttention
    for name, index in change.selects.items():
        bn = modules[name + "."]
        bn.__class__ = Select.of(type(bn))
        device = next(bn.parameters()).device
        bn.register_buffer("select", torch.tensor(index, dtype=torch.int64, device=device))
    for name, (dim, channels) in change.emptied.items():
        if (module := modules.get(f"{name}.")) is None:
            raise SlimError(f"the plan doesn't fit this model: it has no module {name!r}")
        empty(module, dim, channels)


@torch.no_grad()
def state_anew(whole: Mapping[str, nn.Module], thin: Mapping[str, nn.Module], change: Change) -> None:
    """Let biases take up what removed channels leave behind, and weights that torch.nn.utils computes stay what they
    were, where their norms ran over channels that are gone: for those that are left, a weight of the same values has
    another length."""
    cuts, masks = change.cuts, change.masks
    fold(whole, thin, change.constants, cuts)
    for normed in spectral_norms(list(whole.items())):
        if cuts.keys() & {normed.u, normed.v}:
            _keep_singular_value(normed, whole, thin, masks.get(normed.weight, {}))
    for prefix, module, norm in weight_norms(list(whole.items())):
        cut = cuts.get(f"{prefix}{norm.name}_v", {})
        if cut.keys() - {norm.dim}:
            parts = (f"{norm.name}_{part}" for part in "vg")
            v, g = (_masked(module.get_parameter(part), masks.get(prefix + part, {})) for part in parts)
            expected = thin_tensor(torch._weight_norm(v, g, norm.dim), cut)
            thin[prefix].get_parameter(f"{norm.name}_v").copy_(expected)
            thin[prefix].get_parameter(f"{norm.name}_g").copy_(torch.norm_except_dim(expected, 2, norm.dim))
    for tensor, cut in cuts.items():
        owner, parametrized, rest = f".{tensor}".rpartition(PARAMETRIZED)
        holder, key = owner[1:] and owner[1:] + ".", rest.partition(".")[0]
        if not parametrized or holder not in whole:
            continue
        original, module = whole[holder], thin[holder]
        chain: Any = module.get_submodule(f"parametrizations.{key}")
        if any(True for _ in chain.buffers()):  # such as spectral norm's, which keeps its channels
            continue
        before = _computed(original, key, masks, tensor.removesuffix(rest))
        if before.is_meta or before.shape != original.get_parameter(f"parametrizations.{rest}").shape:
            continue
        expected = thin_tensor(before, cut)
        if torch.allclose(getattr(module, key), expected, rtol=1e-15, atol=0):
            continue
        if all(hasattr(each, "right_inverse") for each in chain):
            setattr(module, key, expected)
        else:  # what has been shortened already isn't shortened further
            module.get_parameter(f"parametrizations.{rest}").copy_(expected)
        if not torch.allclose(getattr(module, key), expected, rtol=1e-5, atol=1e-8):
            name = owner[1:]
            raise SlimError(f"{name}.{key} is computed in a way that fewer channels change: expected keep={name!r}")


def _computed(module: nn.Module, key: str, masks: Mapping[str, Mapping[int, list[int]]], prefix: str) -> Tensor:
    """Return a weight that a parametrization computes, of what it is computed of as that is masked."""
    chain = module.get_submodule(f"parametrizations.{key}")
    masked: dict[str, Tensor] = {}
    for name, own in chain.named_parameters():
        if mask := masks.get(f"{prefix}{key}.{name}"):
            masked[name] = _masked(own, mask)
    found: Tensor = torch.func.functional_call(chain, masked, ()) if masked else getattr(module, key)
    return found


def _masked(tensor: Tensor, mask: Mapping[int, list[int]]) -> Tensor:
    for dim, indices in mask.items():
        tensor = tensor.index_fill(dim, torch.tensor(indices, dtype=torch.int64, device=tensor.device), 0)
    return tensor


def _keep_singular_value(
    normed: Normed, whole: Mapping[str, nn.Module], thin: Mapping[str, nn.Module], masked: Mapping[int, list[int]]
) -> None:
    """Let the thin network divide a weight by what the masked original does: its v is as much longer, until the next
    step of training makes that as long as one again."""
    weight = _held(whole, normed.weight).detach()
    if weight.is_meta:
        return
    weight = _masked(weight, masked)
    wanted = singular_value(weight, _held(whole, normed.u), _held(whole, normed.v), normed.dim)
    v = _held(thin, normed.v)
    found = singular_value(_held(thin, normed.weight), _held(thin, normed.u), v, normed.dim)
    if not (wanted / found).isfinite():
        name = owner_of(normed.weight)
        raise SlimError(f"the spectral norm of {name} is {found:g} with fewer channels: expected keep={name!r}")
    v.mul_(wanted / found)


def _held(modules: Mapping[str, nn.Module], name: str) -> Tensor:
    prefix, _, key = name.rpartition(".")
    held: Tensor = getattr(modules[f"{prefix}." if prefix else ""], key)
    return held


def _check_whole(modules: Mapping[str, nn.Module], cuts: Cuts) -> None:
    """Raise SlimError where what a layer has for each of its channels isn't as long as its weight."""
    for name in {owner_of(name) for name in cuts}:
        module = modules.get(name and f"{name}.")
        if not isinstance(module, PER_CHANNEL):
            continue
        sizes = ("out_channels", "out_features", "num_features", "num_channels")
        made = next(getattr(module, size) for size in sizes if hasattr(module, size))
        for key in ("bias", "running_mean", "running_var"):
            tensor = getattr(module, key, None)
            if isinstance(tensor, Tensor) and tensor.ndim == 1 and isinstance(made, int) and len(tensor) != made:
                raise SlimError(
                    f"the plan contradicts itself: it leaves {len(tensor)} of {name}.{key} for {made} channels"
                )


def resize(module: nn.Module, *, groups_are_set: bool = False) -> None:
    """Make the sizes that a module of torch.nn stores agree with its thinner weights. The groups of a depthwise
    convolution are the channels that it reads, but where their number is among the sizes that a plan sets."""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        reading = module.get_parameter("weight_ih_l0" if isinstance(module, nn.RNNBase) else "weight_ih")
        module.input_size = reading.shape[1]
        return
    weight: Any = getattr(module, "weight", None)
    if weight is None and isinstance(module, nn.modules.batchnorm._NormBase):
        weight = module.running_mean  # as long as the γ that it lacks
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == module.in_channels > 1 and not groups_are_set:  # depthwise
            was = module.in_channels if module.transposed else module.out_channels
            module.groups = weight.shape[0] * module.groups // was
        made, taken = (1, 0) if module.transposed else (0, 1)
        # an attribute set in the usual way costs more than thinning the weight
        vars(module)["out_channels"] = weight.shape[made] * (module.groups if module.transposed else 1)
        vars(module)["in_channels"] = weight.shape[taken] * (1 if module.transposed else module.groups)
    elif isinstance(module, nn.Linear):
        vars(module)["out_features"], vars(module)["in_features"] = weight.shape
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        vars(module)["num_features"] = weight.shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
