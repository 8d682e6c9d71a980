"""Kernels side by side in one ONNX graph, to be timed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from slim.deploy.target import Kernel, SizedKernel

OPSET = 20


def channels_of(sized: SizedKernel) -> tuple[int, int]:
    """Return the channels of the input and the output."""
    kernel, reads, makes = sized
    if kernel.kind == "depthwise":
        return max(1, makes // kernel.groups), makes
    if not kernel.mixes:
        return makes, makes
    groups = kernel.group_count(reads, makes)
    return reads * (groups if kernel.kind == "conv" else 1), makes * (groups if kernel.kind == "conv_transpose" else 1)


class KernelGraph:
    """An ONNX graph of kernels side by side; every name of kernel 7 starts with "k7_"."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.weights: list[Any] = []
        self.prefix = ""

    def input(self, name: str, shape: Sequence[int]) -> str:
        self.inputs.append(helper.make_tensor_value_info(self.prefix + name, TensorProto.FLOAT, shape))
        return self.prefix + name

    def weight(self, name: str, shape: Sequence[int], value: float = 0.01) -> str:
        self.weights.append(numpy_helper.from_array(np.full(shape, value, np.float32), self.prefix + name))
        return self.prefix + name

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{self.prefix}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def add(self, index: int, sized: SizedKernel) -> None:
        """Add a kernel, with inputs and outputs of its own."""
        self.prefix = f"k{index}_"
        kernel = sized[0]
        taken, made = channels_of(sized)
        batch, *space = kernel.shape
        if kernel.kind == "gemm":
            x = self.input("x", [batch, taken])
            out = self.node("Gemm", [x, self.weight("w", [made, taken]), self.weight("b", [made])], transB=1)
        elif kernel.kind in ("conv", "conv_transpose", "depthwise"):
            out = self._convolution(sized, taken, made)
        elif kernel.kind in ("MaxPool", "AveragePool"):
            size, strides, padding, _ = kernel.window
            x = self.input("x", [batch, made, *space])
            out = self.node(kernel.kind, [x], kernel_shape=size, strides=strides, pads=[*padding, *padding])
        elif kernel.kind == "ReduceMean":
            x = self.input("x", [batch, made, *space])
            self.weights.append(numpy_helper.from_array(np.arange(2, 2 + len(space)), self.prefix + "axes"))
            out = self.node("ReduceMean", [x, self.prefix + "axes"], keepdims=1)
        elif kernel.kind.startswith("Resize"):
            out = self._resize(kernel, self.input("x", [batch, made, *space]), [batch, made, *self._space(kernel)])
        elif kernel.kind == "Concat":
            half = made // 2
            parts = [self.input(f"x{i}", [batch, n, *space]) for i, n in enumerate((half, made - half)) if n]
            out = self.node("Concat", parts, axis=1)
        else:
            out = self.input("x", [batch, made, *space])
            if not kernel.tail:
                out = self.node("Neg", [out])
        shape = [batch, made, *self._space(kernel)]
        for op, operand in kernel.tail:
            out = self._pointwise(op, operand, out, shape)
        self.outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))

    def _convolution(self, sized: SizedKernel, taken: int, made: int) -> str:
        kernel = sized[0]
        batch, *space = kernel.shape
        size, strides, padding, dilation = kernel.window
        transposed = kernel.kind == "conv_transpose"
        groups = taken if kernel.kind == "depthwise" else kernel.group_count(*sized[1:])
        shape = [taken, made // groups, *size] if transposed else [made, taken // groups, *size]
        return self.node(
            "ConvTranspose" if transposed else "Conv",
            [self.input("x", [batch, taken, *space]), self.weight("w", shape), self.weight("b", [made])],
            kernel_shape=size,
            strides=strides,
            pads=[*padding, *padding],
            dilations=dilation,
            group=groups,
        )

    def _resize(self, kernel: Kernel, x: str, shape: list[int]) -> str:
        self.weights.append(numpy_helper.from_array(np.array(shape, np.int64), self.prefix + "sizes"))
        _, mode = kernel.kind.split("-")
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if mode == "nearest" else {}
        return self.node("Resize", [x, "", "", self.prefix + "sizes"], mode=mode, **how)

    @staticmethod
    def _space(kernel: Kernel) -> list[int]:
        """Return the space of what a kernel makes."""
        space = kernel.shape[1:]
        if kernel.kind == "ReduceMean":
            return [1] * len(space)
        if not kernel.window:
            return list(space)
        if len(kernel.window) == 1:  # how many times as large
            return [n * times for n, times in zip(space, kernel.window[0])]
        out = []
        for n, size, stride, pad, dilation in zip(space, *kernel.window):
            reach = dilation * (size - 1) + 1
            out.append(
                (n - 1) * stride - 2 * pad + reach
                if kernel.kind == "conv_transpose"
                else (n + 2 * pad - reach) // stride + 1
            )
        return out

    def _pointwise(self, op: str, operand: str, x: str, shape: list[int]) -> str:
        if op == "Silu":
            return self.node("Mul", [x, self.node("Sigmoid", [x])])
        if op == "Mish":
            return self.node("Mul", [x, self.node("Tanh", [self.node("Softplus", [x])])])
        if op == "Clip":
            low, high = (self.weight(f"{end}{len(self.nodes)}", [], end * 6.0) for end in (0, 1))
            return self.node("Clip", [x, low, high])
        if op == "BatchNormalization":
            return self.node(op, [x, *(self.weight(f"n{i}{len(self.nodes)}", [shape[1]], 1.0) for i in range(4))])
        if op in ("Add", "Mul"):
            name = f"{op}{len(self.nodes)}"
            if operand == "same":
                return self.node(op, [x, self.input(name, shape)])
            if operand == "channel":
                return self.node(op, [x, self.input(name, [shape[0], shape[1], *[1] * len(shape[2:])])])
            return self.node(op, [x, self.weight(name, [], 0.5)])
        return self.node(op, [x])

    def idle(self, nodes: int) -> None:
        """Add nodes that do next to nothing, one after the other."""
        x = self.input("x", [1, 16])
        for i in range(nodes):
            x = self.node("Sin" if i % 2 else "Cos", [x])
        self.outputs.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, None))

    def serialized(self) -> bytes:
        """Return the graph as an ONNX file."""
        graph = helper.make_graph(self.nodes, "kernels", self.inputs, self.outputs, self.weights)
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        return model.SerializeToString()
