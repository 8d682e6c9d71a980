"""The thinner network: a copy of a model without the channels that a plan removes.

Every parameter and buffer is copied once, without its removed channels; the modules around them are copied as they
are, and the sizes that they store follow. The original is not touched.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.trace.clone import clone, named_modules, named_tensors

Cuts = Mapping[str, Mapping[int, list[int]]]  # tensor name -> dimension -> removed indices


class Select:
    """A BatchNorm that first chooses its channels of a shared stream (the paper's channel selection layer).

    The index is the buffer `select`, shape [channels kept], int64. Source: Network Slimming (Liu et al., ICCV 2017),
    section 4.2, for networks with BatchNorm before the convolution.
    """

    select: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.index_select(1, self.select))  # type: ignore[misc]

    def __reduce__(self) -> tuple[Any, ...]:  # the class is made on the fly, so pickle by what it was made from
        return _revive, (type(self).__mro__[2],), self.__dict__


_selecting: dict[type, type] = {}


def selecting(kind: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a BatchNorm class that selects its channels."""
    if issubclass(kind, Select):
        return kind
    if kind not in _selecting:
        _selecting[kind] = type(f"Select{kind.__name__}", (Select, kind), {"__module__": kind.__module__})
    return _selecting[kind]


def _revive(kind: type[nn.Module]) -> nn.Module:
    made = selecting(kind)
    return made.__new__(made)


def kept(size: int, removed: list[int], device: torch.device | None = None) -> Tensor:
    """The indices of `size` channels that stay when `removed` go."""
    stays = np.ones(size, bool)
    stays[removed] = False
    return torch.from_numpy(np.flatnonzero(stays)).to(device)


def thin_tensor(tensor: Tensor, cuts: Mapping[int, list[int]]) -> Tensor:
    """A copy of `tensor` without the removed indices along each dimension; memory format kept."""
    if tensor.is_meta:
        return tensor.new_empty([n - len(cuts.get(d, ())) for d, n in enumerate(tensor.shape)])
    out = tensor.detach()
    for dim, removed in sorted(cuts.items(), key=lambda c: -len(c[1]) / tensor.shape[c[0]]):  # the largest cut first
        out = out.index_select(dim, kept(tensor.shape[dim], removed, tensor.device))
    if out.is_contiguous() and tensor.is_contiguous():
        return out
    for fmt in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if fmt is torch.channels_last else 5
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=fmt):
            out = out.contiguous(memory_format=fmt)
    return out


def rebuild(
    model: nn.Module,
    cuts: Cuts,
    sizes: Mapping[str, Any] | None = None,
    selects: Mapping[str, list[int]] | None = None,
) -> nn.Module:
    """A thinner copy of `model`.

    `cuts` names what each tensor loses along each dimension; `sizes` are new values of attributes
    ("module.attribute") that forward code reads; `selects` gives for BatchNorms that read a shared stream the channels
    of it that they choose. Mode, device, dtype, memory format and `requires_grad` stay as they are. Raises SlimError
    where a name or a shape doesn't fit the model.
    """
    named = dict(named_tensors(model))
    by_tensor: dict[int, Mapping[int, list[int]]] = {}
    for name, cut in cuts.items():
        tensor = named.get(name)
        if tensor is None:
            raise SlimError(f"the plan doesn't fit this model: it has no parameter or buffer {name!r}")
        for dim, removed in cut.items():
            if dim >= tensor.dim() or (removed and max(removed) >= tensor.shape[dim]):
                raise SlimError(f"the plan doesn't fit this model: {name!r} has shape {tuple(tensor.shape)}")
        by_tensor[id(tensor)] = cut

    def thinner(tensor: Tensor) -> Tensor:
        cut = by_tensor.get(id(tensor))
        data = thin_tensor(tensor, cut) if cut else tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(data, requires_grad=tensor.requires_grad)
        return data

    thin = clone(model, thinner)
    old, new = dict(named_modules(model)), dict(named_modules(thin))
    for owner in {name.rpartition(".")[0] + "." for name in cuts}:
        if owner in new:
            resize(old[owner], new[owner])
    for name, index in (selects or {}).items():
        bn = new[name + "."]
        bn.__class__ = selecting(type(bn))
        device = next(bn.parameters()).device
        bn.register_buffer("select", torch.tensor(index, dtype=torch.int64, device=device))
    for name, value in (sizes or {}).items():
        owner, _, attribute = name.rpartition(".")
        module = new.get(owner + "." if owner else "")
        if not hasattr(module, attribute):
            raise SlimError(f"the plan doesn't fit this model: it has no attribute {name!r}")
        kind = type(getattr(module, attribute))
        setattr(module, attribute, kind(value))
    return thin


def resize(old: nn.Module, new: nn.Module) -> None:
    """Make the sizes that a module stores agree with its thinner weights."""
    weight, was = getattr(new, "weight", None), getattr(old, "weight", None)
    if not isinstance(weight, Tensor) or not isinstance(was, Tensor):
        return
    if isinstance(old, nn.modules.conv._ConvNd) and isinstance(new, nn.modules.conv._ConvNd):
        if old.groups > 1 and old.groups == old.in_channels:  # depthwise
            new.groups = weight.shape[0] * old.groups // was.shape[0]
        made, taken = (1, 0) if old.transposed else (0, 1)
        new.out_channels, new.in_channels = weight.shape[made], weight.shape[taken]
        if old.transposed:
            new.out_channels *= new.groups
        else:
            new.in_channels *= new.groups
    elif isinstance(new, nn.Linear):
        new.out_features, new.in_features = weight.shape
    elif isinstance(new, nn.modules.batchnorm._NormBase):
        new.num_features = weight.shape[0]
    elif isinstance(new, nn.PReLU):
        new.num_parameters = weight.shape[0]
