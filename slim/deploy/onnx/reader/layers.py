"""Readers of the operators that have weights: torch.nn's own layers, which the rest of slim knows."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.deploy.onnx.reader.node import Node, Operation, reads, tensor, weight

CONVOLUTIONS: dict[int, Any] = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
Window = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class Padded(nn.Module):
    """Padding of each side of the space by a number of its own. `value` fills it."""

    def __init__(self, widths: Sequence[int], value: float = 0.0) -> None:
        super().__init__()
        self.widths, self.value = (tuple(widths),), value  # not plain numbers, which could pass for widths of layers

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.widths[0], value=self.value)


class PaddedToSame(nn.Module):
    """Padding by which a window gives as many places as its input has, divided by the stride and rounded up."""

    def __init__(self, window: Window, value: float = 0.0, *, upper: bool) -> None:
        super().__init__()
        self.window, self.value, self.upper = (window,), value, upper

    def forward(self, x: Tensor) -> Tensor:
        widths: list[int] = []
        [window] = self.window
        for size, kernel, stride, dilation in zip(x.shape[2:], *window):
            whole = max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size)
            less, more = whole // 2, whole - whole // 2
            widths = [*((less, more) if self.upper else (more, less)), *widths]
        return F.pad(x, widths, value=self.value)


def window_of(node: Node, kernel: Sequence[int]) -> Window:
    """Return kernel, strides and dilations."""
    ones = [1] * len(kernel)
    return tuple(kernel), tuple(node.attribute("strides", ones)), tuple(node.attribute("dilations", ones))


def padding_of(node: Node, window: Window, value: float = 0.0) -> tuple[tuple[int, ...], nn.Module | None]:
    """Return padding that is the same on both sides, or a module that does what isn't."""
    rank, auto = len(window[0]), node.attribute("auto_pad", "NOTSET")
    pads = node.attribute("pads", [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
    none = (0,) * rank
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        return none, PaddedToSame(window, value, upper=auto == "SAME_UPPER")
    before, after = pads[:rank], pads[rank:]
    if before == after:
        return tuple(before), None
    return none, Padded([each for pair in reversed(list(zip(before, after))) for each in pair], value)


def behind(padding: nn.Module | None, layer: nn.Module) -> nn.Module:
    """Return a layer behind its padding."""
    return layer if padding is None else nn.Sequential(padding, layer)


def filled(layer: nn.Module, node: Node, bias: int = 2) -> nn.Module:
    """Give a layer, made without memory, its weights."""
    layer._parameters["weight"] = node.parameter(1)
    layer._parameters["bias"] = node.parameter(bias)
    return layer


@reads("Conv")
def conv(node: Node) -> Operation:
    """Read a convolution of one to three dimensions."""
    shape = node.array(1).shape
    if len(shape) not in CONVOLUTIONS:
        raise node.refused(f"its weight has shape {list(shape)}: expected one to three dimensions of space")
    window = window_of(node, shape[2:])
    padding, extra = padding_of(node, window)
    groups = node.attribute("group", 1)
    with torch.device("meta"):
        layer = CONVOLUTIONS[len(shape)](
            shape[1] * groups, shape[0], *window[:2], padding=padding, dilation=window[2], groups=groups
        )
    return Operation(behind(extra, filled(layer, node)), [node.tensor(0)])


@reads("ConvTranspose")
def conv_transpose(node: Node) -> Operation:
    """Read a transposed convolution."""
    shape = node.array(1).shape
    pads = node.attribute("pads", [0] * 2 * (len(shape) - 2))
    if len(shape) not in TRANSPOSED or node.attribute("auto_pad", "NOTSET") != "NOTSET":
        raise node.refused("expected one to three dimensions of space, and padding in numbers")
    if pads[: len(pads) // 2] != pads[len(pads) // 2 :] or node.attribute("output_shape"):
        raise node.refused("expected the same padding on both sides, and no output_shape")
    kernel, stride, dilation = window_of(node, shape[2:])
    groups = node.attribute("group", 1)
    with torch.device("meta"):
        layer = TRANSPOSED[len(shape)](
            shape[0],
            shape[1] * groups,
            kernel,
            stride,
            padding=tuple(pads[: len(pads) // 2]),
            output_padding=tuple(node.attribute("output_padding", [0] * len(kernel))),
            groups=groups,
            dilation=dilation,
        )
    return Operation(filled(layer, node), [node.tensor(0)])


@reads("Gemm")
def gemm(node: Node) -> Operation:
    """Read a linear layer; with a computed second factor, a product."""
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    turned = node.attribute("transA", 0)
    plain = not turned and node.is_constant(1) and (not node.input(2) or node.is_constant(2))
    bias = node.constant(2) if plain else None
    if not plain or (bias is not None and bias.size not in (1, *bias.shape[-1:])):
        names = [node.tensor(i) for i in range(len(node.inputs))]
        return Operation(_Product(alpha, beta, turned=(bool(turned), bool(node.attribute("transB", 0)))), names)
    matrix = node.array(1) if node.attribute("transB", 0) else node.array(1).T
    if bias is not None:
        bias = beta * np.broadcast_to(bias.reshape(-1), [len(matrix)])
    if alpha == beta == 1.0 and node.attribute("transB", 0) and (bias is None or bias.shape == node.array(2).shape):
        return Operation(_linear(node.parameter(1), node.parameter(2)), [node.tensor(0)])
    return Operation(_linear(weight(alpha * matrix), None if bias is None else weight(bias)), [node.tensor(0)])


class _Product(nn.Module):
    """Gemm of what is computed."""

    def __init__(self, alpha: float, beta: float, turned: tuple[bool, bool]) -> None:
        super().__init__()
        self.alpha, self.beta, self.turned = float(alpha), float(beta), turned

    def forward(self, a: Tensor, b: Tensor, c: Any = None) -> Tensor:
        product = self.alpha * ((a.T if self.turned[0] else a) @ (b.T if self.turned[1] else b))
        return product if c is None else product + self.beta * c


def _linear(matrix: nn.Parameter | None, bias: nn.Parameter | None) -> nn.Linear:
    assert matrix is not None
    with torch.device("meta"):
        layer = nn.Linear(matrix.shape[1], matrix.shape[0])
    layer._parameters["weight"], layer._parameters["bias"] = matrix, bias
    return layer


@reads("MatMul")
def matmul(node: Node) -> Operation:
    """Read a linear layer without bias, or a product of two tensors."""
    if node.is_constant(1) and node.array(1).ndim == 2:
        return Operation(_linear(weight(node.array(1).T), None), [node.tensor(0)])
    return Operation(torch.matmul, [node.tensor(0), node.tensor(1)])


@reads("Einsum")
def einsum(node: Node) -> Operation:
    """Read a sum of products by its equation."""
    names = [node.tensor(i) for i in range(len(node.inputs))]
    return Operation(partial(torch.einsum, node.attribute("equation")), names)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm of any number of dimensions."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


@reads("BatchNormalization")
def batch_norm(node: Node) -> Operation:
    """Read a BatchNorm of inference."""
    if node.attribute("training_mode", 0) or len(node.outputs) > 1:
        raise node.refused("it computes statistics of the batch: expected an export in eval mode")
    with torch.device("meta"):
        layer = BatchNorm(node.array(1).size, eps=node.attribute("epsilon", 1e-5))
    filled(layer, node)
    layer.running_mean, layer.running_var = tensor(node.array(3)), tensor(node.array(4))
    layer.num_batches_tracked = torch.tensor(0)
    return Operation(layer, [node.tensor(0)])


class InstanceNorm(nn.modules.instancenorm._InstanceNorm):
    """InstanceNorm of any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        return F.instance_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)


@reads("InstanceNormalization")
def instance_norm(node: Node) -> Operation:
    """Read an InstanceNorm."""
    with torch.device("meta"):
        layer = InstanceNorm(node.array(1).size, eps=node.attribute("epsilon", 1e-5), affine=True)
    return Operation(filled(layer, node), [node.tensor(0)])


@reads("LayerNormalization")
def layer_norm(node: Node) -> Operation:
    """Read a LayerNorm over the last dimensions."""
    if len(node.outputs) > 1:
        raise node.refused("it gives its statistics, too: expected one output")
    with torch.device("meta"):
        layer = nn.LayerNorm(node.array(1).shape, eps=node.attribute("epsilon", 1e-5))
    return Operation(filled(layer, node), [node.tensor(0)])


@reads("GroupNormalization")
def group_norm(node: Node) -> Operation:
    """Read a GroupNorm, whose scale is one for each channel since operator set 21."""
    groups, scale = node.attribute("num_groups"), node.array(1)
    if node.opset < 21 and scale.size != 1 and scale.size == groups:
        raise node.refused("it scales whole groups: expected a scale for each channel (opset 21)")
    with torch.device("meta"):
        layer = nn.GroupNorm(groups, scale.size, eps=node.attribute("epsilon", 1e-5))
    return Operation(filled(layer, node), [node.tensor(0)])


@reads("PRelu")
def prelu(node: Node) -> Operation:
    """Read a PReLU with a slope for each channel, or one for all."""
    if not node.is_constant(1):
        return Operation(_sloped, [node.tensor(0), node.tensor(1)])
    slopes = node.array(1)
    if slopes.size != max(slopes.shape[:1] or (1,)):  # [C, 1, 1]
        raise node.refused(f"its slopes have shape {list(slopes.shape)}: expected one for each channel")
    with torch.device("meta"):
        layer = nn.PReLU(slopes.size)
    layer._parameters["weight"] = weight(slopes.reshape(-1))
    return Operation(layer, [node.tensor(0)])


def _sloped(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)
