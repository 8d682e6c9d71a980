"""Readers of the operators that work on each number alone."""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.deploy.onnx.reader.node import Node, Operation, reads
from slim.deploy.onnx.reader.sizes import divide

UNARY: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
BINARY: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "Div": divide,
    "Pow": operator.pow,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "And": torch.logical_and,
    "Or": torch.logical_or,
}
SUM: dict[str, Callable[..., Any]] = {"Sum": operator.add, "Max": torch.maximum, "Min": torch.minimum}


@reads(*UNARY)
def unary(node: Node) -> Operation:
    """Read a function of one tensor without settings."""
    return Operation(UNARY[node.op], [node.tensor(0)])


@reads(*BINARY)
def binary(node: Node) -> Operation:
    """Read a function of two tensors, or of a tensor and a number."""
    return Operation(BINARY[node.op], [node.operand(0), node.operand(1)])


@reads(*SUM, "Mean")
def several(node: Node) -> Operation:
    """Read a function of any number of tensors."""
    names = [node.tensor(i) for i in range(len(node.inputs))]
    return Operation(_mean if node.op == "Mean" else partial(_folded, SUM[node.op]), names)


def _folded(function: Callable[..., Any], *tensors: Tensor) -> Any:
    return reduce(function, tensors)


def _mean(*tensors: Tensor) -> Any:
    return reduce(operator.add, tensors) / len(tensors)


@reads("LeakyRelu", "Elu", "Celu", "Selu", "HardSigmoid", "ThresholdedRelu", "Gelu", "Swish")
def activation(node: Node) -> Operation:
    """Read an activation with settings."""
    alpha = node.attribute("alpha")
    match node.op:
        case "LeakyRelu":
            call: Any = partial(F.leaky_relu, negative_slope=0.01 if alpha is None else alpha)
        case "Elu" | "Celu":
            function: Any = F.elu if node.op == "Elu" else F.celu
            call = partial(function, alpha=1.0 if alpha is None else alpha)
        case "Selu":
            call = F.selu
        case "HardSigmoid":
            call = _hard_sigmoid(0.2 if alpha is None else alpha, node.attribute("beta", 0.5))
        case "ThresholdedRelu":
            call = partial(F.threshold, threshold=1.0 if alpha is None else alpha, value=0.0)
        case "Swish":
            call = F.silu
            if alpha not in (None, 1.0):
                raise node.refused(f"its alpha is {alpha}: expected 1")
        case _:
            call = partial(F.gelu, approximate=node.attribute("approximate", "none"))
    return Operation(call, [node.tensor(0)])


def _hard_sigmoid(alpha: float, beta: float) -> Callable[[Tensor], Tensor]:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:  # float32 in every file
        return F.hardsigmoid
    return partial(_clipped_line, alpha=alpha, beta=beta)


def _clipped_line(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@reads("Clip")
def clip(node: Node) -> Operation:
    """Read a clip, whose ends were attributes before operator set 11."""
    if node.opset >= 11 and not all(node.is_constant(i) or not node.input(i) for i in (1, 2)):
        return Operation(torch.clamp, [node.tensor(0), *(node.input(i) and node.tensor(i) for i in (1, 2))])
    low, high = (node.attribute(name, node.number(i)) for name, i in (("min", 1), ("max", 2)))
    if (low, high) == (0, 6):
        return Operation(F.relu6, [node.tensor(0)])
    return Operation(partial(torch.clamp, min=low, max=high), [node.tensor(0)])


@reads("Where")
def where(node: Node) -> Operation:
    """Read a choice by a condition."""
    return Operation(torch.where, [node.tensor(0), node.operand(1), node.operand(2)])


@reads("Identity", "Dropout")
def identity(node: Node) -> Operation:
    """Read what does nothing in inference."""
    if len([name for name in node.outputs if name]) > 1:
        raise node.refused("it gives its mask: expected an export in eval mode")
    return Operation(_same, [node.tensor(0)])


def _same(x: Tensor) -> Tensor:
    return x


@reads("Softmax", "LogSoftmax")
def softmax(node: Node) -> Operation:
    """Read a softmax, which took all dimensions from its axis on together before operator set 13."""
    function = torch.softmax if node.op == "Softmax" else torch.log_softmax
    if node.opset >= 13:
        return Operation(partial(function, dim=node.attribute("axis", -1)), [node.tensor(0)])
    return Operation(partial(_flat, function=function, axis=node.attribute("axis", 1)), [node.tensor(0)])


def _flat(x: Tensor, function: Callable[..., Tensor], axis: int) -> Tensor:
    if axis % x.dim() == x.dim() - 1:
        return function(x, dim=-1)
    return function(x.flatten(axis), dim=-1).reshape(x.shape)


class Cast(nn.Module):
    """A change of type. The file's float32 is the network's own type, whatever that is by now."""

    like: Tensor

    def __init__(self, to: torch.dtype) -> None:
        super().__init__()
        self.to_type = to
        self.register_buffer("like", torch.zeros((), dtype=torch.float32), persistent=False)

    def forward(self, x: Any) -> Tensor:
        x = torch.as_tensor(x, device=self.like.device)
        return x.to(self.like.dtype if self.to_type == torch.float32 else self.to_type)


@reads("CastLike")
def cast_like(node: Node) -> Operation:
    """Read a change to the type of another tensor."""
    return Operation(_cast_like, [node.tensor(0), node.tensor(1)])


def _cast_like(x: Any, like: Any) -> Tensor:
    like = torch.as_tensor(like)
    return torch.as_tensor(x, device=like.device).to(like.dtype)
