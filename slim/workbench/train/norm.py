"""BatchNorm over the batches of all processes, on any device.

torch.nn.SyncBatchNorm computes the same, but only on accelerators, and takes the place of the modules. Here they stay
what they are; only their forward is another while training.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def synchronised(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Let every BatchNorm of `model` normalise by the statistics of all processes' batches, if `wanted`."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and wanted]
    for norm in norms:
        norm.forward = MethodType(_uncompiled(), norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Let the BatchNorms of `model` wait for no other process for a while, so that one can run it by itself."""
    own = [m for m in model.modules() if "forward" in vars(m)]
    waiting = [m for m in own if getattr(m.forward, "__func__", None) is _uncompiled()]
    for norm in waiting:
        del norm.forward
    try:
        yield
    finally:
        for norm in waiting:
            norm.forward = MethodType(_uncompiled(), norm)


@cache
def _uncompiled() -> Callable[[_BatchNorm, Tensor], Tensor]:
    return torch.compiler.disable(_forward)  # imports the compiler, for seconds


def _forward(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    norm._check_input_dim(x)
    weight = torch.ones(x.shape[1], device=x.device) if norm.weight is None else norm.weight
    bias = torch.zeros(x.shape[1], device=x.device) if norm.bias is None else norm.bias
    output, mean, variance, count = _Synchronised.apply(x, weight, bias, norm.eps)
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore[arg-type]
        with torch.no_grad():
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), share)
    return output


class _Synchronised(torch.autograd.Function):
    """y = γ·x̂ + β with x̂ = (x − μ)/√(σ² + ε), where μ and σ² are over all processes. As both depend on x,
    dx = γ/√(σ² + ε) · (dy − mean(dy) − x̂·mean(dy·x̂)), with means over all processes, too (Ioffe and Szegedy 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        total = torch.cat([wide.sum(dims), wide.new_tensor([x.numel() / x.shape[1]])])
        dist.all_reduce(total)
        count = total[-1]
        mean = total[:-1] / count
        centred = wide - mean.view(shape)
        variance = centred.square().sum(dims)  # in a second round: E[x²] − μ² would cancel digits
        dist.all_reduce(variance)
        variance /= count
        scale = (variance + eps).rsqrt()
        normal = centred * scale.view(shape)
        ctx.save_for_backward(normal, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        return (normal * weight.view(shape) + bias.view(shape)).to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        normal, weight, scale, count = ctx.saved_tensors
        dims = [0, *range(2, normal.ndim)]
        shape = [1, -1] + [1] * (normal.ndim - 2)
        incoming = gradients[0].to(normal.dtype)
        own = torch.stack([incoming.sum(dims), (incoming * normal).sum(dims)])
        means = own.clone()
        dist.all_reduce(means)
        means /= count
        centred = incoming - means[0].view(shape) - normal * means[1].view(shape)
        dx = centred * (weight * scale).view(shape)
        return dx.to(gradients[0].dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None
