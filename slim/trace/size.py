"""How large a network is: parameters, FLOPs, channels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from slim.trace.inputs import as_meta, call
from slim.trace.meta_copy import data_copy, meta_copy


@dataclass(frozen=True)
class NetworkSize:
    """`params`: trainable and frozen parameters; `flops`: multiply-adds × 2 of one forward pass on the example
    inputs (convolutions and matrix products, as torch.utils.flop_counter counts them); `channels`: the sum of all
    BatchNorm widths."""

    params: int
    flops: int
    channels: int


def network_size(model: nn.Module, example_inputs: Any) -> NetworkSize:
    """Return the size of a model, without any arithmetic where its forward code allows (tensors without data)."""
    params = sum(p.numel() for p in model.parameters())
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            flops = _flops(meta_copy(model), as_meta(example_inputs))
        except Exception:  # forward code that looks at values
            flops = _flops(data_copy(model), example_inputs)
    return NetworkSize(params, flops, channels(model))


def channels(model: nn.Module) -> int:
    """Return the sum of all BatchNorm widths."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine)
    return sum(norm.weight.numel() for norm in norms)


def _flops(model: nn.Module, inputs: Any) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        call(model.eval(), inputs)
    return counter.get_total_flops()
