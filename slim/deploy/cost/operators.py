"""What a network runs: its operators, their sizes, and which channels those sizes follow.

The trace's meta-device copy runs once more, in inference mode, and every operator that costs time is noted together
with the labels along its channel dimensions. Pointwise operators join the operator whose result they take, as a runtime
fuses them: convolution, BatchNorm, the sum with a shortcut and ReLU make one kernel.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slim.deploy.target import Kernel
from slim.trace.codes import is_blank, name_of, stands_in
from slim.trace.op import tensors_in
from slim.trace.state import restored
from slim.trace.traced import Trace
from slim.trace.tracer import Tracer, run_once

Ints = NDArray[np.int64]
Width = int | Ints  # a fixed size, or one label for each channel

# aten operators that cost nothing worth counting: views, and what is done when the file is loaded
FREE = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand", "expand_as", "detach"),
    *("alias", "empty", "empty_like", "zeros", "ones", "full", "arange", "lift_fresh", "lift_fresh_copy", "_to_copy"),
    *("reshape", "flatten", "select", "split", "chunk", "split_with_sizes", "unbind", "unfold", "as_strided"),
}
POINTWISE = {  # aten's name (without a trailing _) -> ONNX's
    "relu": "Relu",
    "hardtanh": "Clip",
    "clamp": "Clip",
    "relu6": "Clip",
    "sigmoid": "Sigmoid",
    "silu": "Silu",
    "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid",
    "tanh": "Tanh",
    "gelu": "Gelu",
    "leaky_relu": "LeakyRelu",
    "elu": "Elu",
    "mish": "Mish",
    "native_batch_norm": "BatchNormalization",
    "_native_batch_norm_legit_no_training": "BatchNormalization",
    "cudnn_batch_norm": "BatchNormalization",
    "add": "Add",
    "sub": "Add",
    "mul": "Mul",
    "div": "Mul",
}


def resized_by(name: str) -> str:
    """Return ONNX's word for how an aten operator such as upsample_bilinear2d resizes."""
    return next((mode for part, mode in (("linear", "linear"), ("cubic", "cubic")) if part in name), "nearest")


@dataclass
class PlacedKernel:
    """A kernel at its place in a network: it reads channels (of each group, where it has groups) and makes some.

    `switch` is the label of the residual branch that it goes with, if any.
    """

    kernel: Kernel
    reads: Width
    makes: Width
    switch: int | None = None

    def counts(self, kept: NDArray[np.bool_]) -> tuple[int, int]:
        """Return the numbers of channels that it reads and makes, where `kept` says of each label whether it stays."""
        reads, makes = (size if isinstance(size, int) else int(kept[size].sum()) for size in (self.reads, self.makes))
        return reads, makes


def operators(traced: Trace, batch_size: int) -> list[PlacedKernel]:
    """Return the operators of a traced model's inference forward, for batches of `batch_size`."""
    recorder = Recorder(traced, batch_size)
    with restored(traced.meta_copy, traced.state):
        run_once(traced.meta_copy, traced.inputs, recorder, traced.state, training=False)
    return recorder.found


class Recorder(Tracer):
    """A tracer that notes operators."""

    def __init__(self, traced: Trace, batch_size: int) -> None:
        super().__init__(traced.classes, traced.options)
        example = next(leaf for leaf in tree_leaves(traced.inputs) if isinstance(leaf, Tensor))
        self.switches = traced.switches
        self.step = -1  # the place of the operator at hand in the run
        self.images, self.batch_size = max(1, example.shape[0]) if example.dim() else 1, batch_size
        self.found: list[PlacedKernel] = []
        self.tails: dict[int, int] = {}  # id of a tensor that nothing has read yet -> its operator
        self.alive: list[Any] = []  # so that ids stay unique

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = tensors_in(args, kwargs)
        absent = {id(t) for t in taken if stands_in(t)}  # of a branch that is gone: no file has them
        products = len(self.products)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.step += 1
        made = out[0] if isinstance(out, (tuple, list)) and len(out) else out
        if isinstance(made, Tensor) and taken and not is_blank(made):
            self.alive += [made, *taken]
            name = func.overloadpacket.__name__.removesuffix("_")
            data = [t for t in taken if name_of(t) is None and id(t) not in absent]
            if name in FREE or absent:
                self._pass_on(data, out)
            elif made.is_floating_point() and data and made.dim() and made.numel():
                self._note(name, args, made, taken, data, len(self.products) > products)
        return out

    def _pass_on(self, data: list[Tensor], out: Any) -> None:
        mine = self.tails.pop(id(data[0]), None) if data else None
        if mine is not None and isinstance(out, Tensor):
            self.tails[id(out)] = mine

    def _note(self, name: str, args: Any, made: Tensor, taken: list[Tensor], data: list[Tensor], product: bool) -> None:
        unread = [(self.tails.pop(id(t)), t) for t in data if id(t) in self.tails]
        onnx = POINTWISE.get(name)
        if onnx and not product:
            others = [t for t in taken[1:] if t.numel() > 1] if onnx in ("Add", "Mul") else []
            operand = "" if not others else "same" if others[0].shape == taken[0].shape else "channel"
            host = max((operator for operator, t in unread if t.shape == made.shape), default=-1)
            if host >= 0:
                kernel = self.found[host].kernel
                self.found[host].kernel = replace(kernel, tail=(*kernel.tail, (onnx, operand)))
                self.tails[id(made)] = host
                return
            operator = self._by_channel("Copy", made, made, (), ((onnx, operand),))
        elif product:
            operator = self._product(name, args, made)
        else:
            operator = self._other(name, args, made, data[0])
        self.tails[id(made)] = len(self.found)
        self.found.append(replace(operator, switch=self.switches.get(self.step)))

    def _channels(self, tensor: Tensor) -> Width:
        dim = self._dim(tensor)
        codes = self.codes(tensor).get(dim)
        return int(tensor.shape[dim]) if codes is None else codes.labels

    def _dim(self, tensor: Tensor) -> int:
        """Return the channel dimension: the first whose size follows a layer's channels, else the second."""
        return min((d for d in self.codes(tensor) if d), default=min(1, tensor.dim() - 1))

    def _batch(self, n: int) -> int:
        return n * self.batch_size // self.images if n % self.images == 0 else n

    def _product(self, name: str, args: Any, made: Tensor) -> PlacedKernel:
        product = self.products[-1]
        if name != "convolution":
            *_, reads, makes = product.dims
            rows = math.prod(made.shape) // made.shape[-1]
            return PlacedKernel(Kernel("gemm", (self._batch(rows),)), reads, makes)
        x, w, _, stride, padding, dilation, transposed, _, groups = args
        space = tuple(x.shape[2:])
        window = (tuple(w.shape[2:]), *(tuple(int(v) for v in each) for each in (stride, padding, dilation)))
        window = tuple(each * len(space) if len(each) == 1 else each for each in window)
        first, second = product.dims[:2]
        shape = (self._batch(x.shape[0]), *space)
        if groups > 1 and groups == x.shape[1] and not transposed:
            return PlacedKernel(Kernel("depthwise", shape, window, w.shape[0] // groups), first, first)
        # each channel of a transposed depthwise convolution is a group, and goes as a whole
        whole = w.shape[0] // groups if groups > 1 and (self.whole_groups or groups == x.shape[1]) else 0
        kind = "conv_transpose" if transposed else "conv"
        kernel = Kernel(kind, shape, window, 1 if whole else groups, whole=whole)
        return PlacedKernel(kernel, first, second) if transposed else PlacedKernel(kernel, second, first)

    def _other(self, name: str, args: Any, made: Tensor, x: Tensor) -> PlacedKernel:
        space = tuple(x.shape[2:])
        if name in ("max_pool2d_with_indices", "avg_pool2d") and x.dim() == 4:
            pairs = [tuple(args[i]) if len(args) > i and args[i] else () for i in (1, 2, 3)]
            kernel, stride, padding = pairs[0], pairs[1] or pairs[0], pairs[2] or (0, 0)
            window = tuple(each * 2 if len(each) == 1 else each for each in (kernel, stride, padding))
            kind = "MaxPool" if name.startswith("max") else "AveragePool"
            return self._by_channel(kind, x, made, (*window, (1, 1)))
        if x.dim() == 4 and made.numel() * math.prod(space) == x.numel() and math.prod(space) > 1:
            return self._by_channel("ReduceMean", x, made)
        if name.startswith("upsample_") and x.dim() == 4:  # upsample_nearest2d, …: several passes over memory
            larger = tuple(-(-after // before) for before, after in zip(space, made.shape[2:]))
            return self._by_channel(f"Resize-{resized_by(name)}", x, made, (larger,))
        return self._by_channel("Concat" if name == "cat" else "Copy", made, made)

    def _by_channel(
        self,
        kind: str,
        x: Tensor,
        made: Tensor,
        window: Iterable[tuple[int, ...]] = (),
        tail: tuple[tuple[str, str], ...] = (),
    ) -> PlacedKernel:
        dim = self._dim(x)
        if kind in ("Copy", "Concat"):
            each = x.numel() // max(1, x.shape[0] * x.shape[dim]) if dim else x.numel() // max(1, x.shape[0])
            shape: tuple[int, ...] = (self._batch(x.shape[0]) if dim else 1, each)
        else:
            shape = (self._batch(x.shape[0]), *x.shape[2:])
        channels = self._channels(x if kind in ("Copy", "Concat") else made)
        return PlacedKernel(Kernel(kind, shape, tuple(window), 1, tail), channels, channels)
