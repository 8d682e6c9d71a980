"""The thinner network: a copy of a model without the channels that a plan removes.

Every parameter and buffer is copied once, without its removed channels; the modules around them are copied as they
are, and the sizes that they store follow. The original is not touched.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError

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
    stays = torch.ones(size, dtype=torch.bool)
    stays[torch.tensor(removed, dtype=torch.int64)] = False
    return stays.nonzero().squeeze(1).to(device)


def thin_tensor(tensor: Tensor, cuts: Mapping[int, list[int]]) -> Tensor:
    """A copy of `tensor` without the removed indices along each dimension; memory format kept."""
    out = tensor.detach()
    for dim, removed in sorted(cuts.items(), key=lambda c: -len(c[1]) / tensor.shape[c[0]]):  # the largest cut first
        if tensor.is_meta:
            out = out.new_empty([n - len(removed) if d == dim else n for d, n in enumerate(out.shape)])
        else:
            out = out.index_select(dim, kept(tensor.shape[dim], removed, tensor.device))
    for fmt in (torch.channels_last, torch.channels_last_3d):
        rank = 4 if fmt is torch.channels_last else 5
        if tensor.dim() == rank and tensor.is_contiguous(memory_format=fmt) and not tensor.is_contiguous():
            out = out.contiguous(memory_format=fmt)
    return out


def rebuild(
    model: nn.Module,
    cuts: Cuts,
    sizes: Mapping[str, Any] | None = None,
    selects: Mapping[str, list[int]] | None = None,
    share: Callable[[Tensor], bool] = lambda tensor: False,
) -> nn.Module:
    """A thinner copy of `model`.

    `cuts` names what each tensor loses along each dimension; `sizes` are new values of attributes
    ("module.attribute") that forward code reads; `selects` gives for BatchNorms that read a shared stream the channels
    of it that they choose. Mode, device, dtype, memory format and `requires_grad` stay as they are. Raises SlimError
    where a name or a shape doesn't fit the model.
    """
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    memo: dict[int, Any] = {}
    for name, cut in cuts.items():
        tensor = named.get(name)
        if tensor is None:
            raise SlimError(f"the plan doesn't fit this model: it has no parameter or buffer {name!r}")
        for dim, removed in cut.items():
            if dim >= tensor.dim() or (removed and max(removed) >= tensor.shape[dim]):
                raise SlimError(f"the plan doesn't fit this model: {name!r} has shape {tuple(tensor.shape)}")
        thinner = thin_tensor(tensor, cut)
        memo[id(tensor)] = (
            nn.Parameter(thinner, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else thinner
        )
    memo |= {id(tensor): tensor for tensor in named.values() if share(tensor)}
    thin = copy.deepcopy(model, memo)
    for p in thin.parameters():
        p.grad = None
    old = dict(model.named_modules(remove_duplicate=False))
    new = dict(thin.named_modules(remove_duplicate=False))
    for owner in {name.rpartition(".")[0] for name in cuts}:
        if owner in new:
            resize(old[owner], new[owner])
    for name, index in (selects or {}).items():
        bn = new[name]
        bn.__class__ = selecting(type(bn))
        device = next(iter(old[name].parameters())).device
        bn.register_buffer("select", torch.tensor(index, dtype=torch.int64, device=device))
    for name, value in (sizes or {}).items():
        owner, _, attribute = name.rpartition(".")
        setattr(new[owner], attribute, value)
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
