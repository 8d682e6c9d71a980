"""Copies of a network to trace: without data, or sharing it."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slim.trace.attention import run_headwise
from slim.trace.codes import mark_stand_in
from slim.trace.copy import clone, named_modules
from slim.trace.emptied import Emptied
from slim.trace.meta import META
from slim.trace.spectral import run_as_one_operator


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy a model for a trace, without the data of its floating-point tensors."""

    def without_data(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter) or tensor.is_floating_point():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
            return (
                nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
            )
        return tensor.detach().clone()

    return _ready(clone(model, without_data))


def data_copy(model: nn.Module) -> nn.Module:
    """Copy a model for a trace that runs for real: parameters share their data, buffers are of its own."""

    def with_data(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.detach(), requires_grad=tensor.requires_grad)
        return tensor.detach().clone()

    return _ready(clone(model, with_data))


def _ready(copied: nn.Module) -> nn.Module:
    """Prepare the modules of a copy for a trace, and return it. Counters of batches are of no use to it."""
    for prefix, module in named_modules(copied):
        run_headwise(module)
        run_as_one_operator(module)
        if isinstance(module, Emptied):
            module.register_forward_hook(partial(_mark_emptied, f"{prefix}emptied_channels"))
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module._buffers["num_batches_tracked"] = None
    return copied


def _mark_emptied(attribute: str, module: nn.Module, args: Any, out: Tensor) -> None:
    """Let what a module of a branch that is gone gives know which attribute follows the stream's channels."""
    mark_stand_in(out, attribute)
