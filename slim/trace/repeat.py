"""Operators that the thin network repeats: what they do there follows from what they did in the original.

Where an operator is given the same numbers, and the thin counterparts of the tensors that it was given in the original,
what it gives is the thin counterpart of what it gave: the channels that stay, with the codes that they had. Where there
is data the operator runs, for the values, and only its rule is spared. That holds for the operators here, none of whose
numbers counts channels (but for the groups of a depthwise convolution, which are the channels that it reads). All
others are worked out by their rules.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from slim.trace.codes import (
    Bools,
    Codes,
    TensorCodes,
    alike_along,
    codes_on,
    fresh_from,
    label,
    mark_fresh,
    name_of,
    step_of,
)
from slim.trace.constants import is_constant, mark_constant
from slim.trace.meta import META
from slim.trace.op import Op, tensors_in

_REPEATED = {
    *("convolution", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
    *("_batch_norm_no_update", "_batch_norm_with_update", "addmm", "mm", "mean", "cat", "max_pool2d_with_indices"),
    *("avg_pool2d", "_adaptive_avg_pool2d", "relu", "relu_", "silu", "silu_", "gelu", "hardtanh", "hardtanh_"),
    *("hardswish", "hardswish_", "add", "add_", "mul", "mul_", "sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_"),
    *("leaky_relu", "leaky_relu_", "sub", "sub_", "relu6", "tanh", "elu", "elu_", "mish", "softplus"),
}
_NOTES = frozenset({"_deferred", "_unset", "_source", "_fixed"})  # what a result may carry that isn't repeated here


@dataclass(slots=True)
class Known:
    """What an operator was given and gave: the `sources` of its tensors, with their shapes and codes, its other
    `arguments`, and for each tensor of its result shape, codes, dtype, producer and the order of its dimensions in
    memory (None: contiguous). `several`: the result is a tuple.
    """

    sources: Sequence[object]
    arguments: Sequence[object]
    given: Sequence[tuple[Sequence[int], TensorCodes]]
    results: Sequence[tuple[Sequence[int], TensorCodes, torch.dtype, str | None, list[int] | None]]
    in_place: bool
    several: bool

    @classmethod
    def of(cls, op: Op, sources: Sequence[object], result: Any, *, meta: bool) -> "Known | None":
        """Return what is known of an operator that has run; None where the thin network's has to be worked out."""
        if op.name not in _REPEATED or op.kwargs or None in sources:
            return None
        if any(alike_along(t) - codes_on(t).keys() for t in op.tensors):  # of such there may be more or fewer
            return None
        several = isinstance(result, (tuple, list))
        tensors = result if several else (result,)
        for tensor in tensors:
            if not (isinstance(tensor, Tensor) and tensor.is_meta is meta and _NOTES.isdisjoint(tensor.__dict__)):
                return None
        given = [(t.shape, codes_on(t)) for t in op.tensors]
        made = [(t.shape, codes_on(t), t.dtype, fresh_from(t), _order(t)) for t in tensors]
        return cls(sources, arguments(op.name, op.args), given, made, op.in_place, several)

    def is_given(self, name: str, args: tuple[Any, ...], thin: "ThinCodes", *, meta: bool) -> bool:
        """Return whether an operator of the thin network is given the counterpart of what this one was."""
        tensors = tensors_in(args)
        return (
            sources_of(tensors, meta=meta) == self.sources
            and arguments(name, args) == self.arguments
            and all(thin.is_left(t, *whole) for t, whole in zip(tensors, self.given))
        )

    def again(self, func: OpOverload, args: tuple[Any, ...], thin: "ThinCodes", *, meta: bool) -> Any:
        """Return what the operator gives in the thin network."""
        out = self._empty(args, thin) if meta else func(*args)
        for tensor, (_, codes, _, producer, _) in zip(out if self.several else (out,), self.results):
            label(tensor, {d: thin.of(each) for d, each in codes.items()})
            if producer is not None:
                mark_fresh(tensor, producer)
            if not meta:
                mark_constant(tensor, False)
        return out

    def _empty(self, args: tuple[Any, ...], thin: "ThinCodes") -> Any:
        """Return tensors of the shapes that the operator gives in the thin network."""
        out = [
            args[0] if self.in_place and not number else _empty(thin.shape(shape, codes), dtype, order)
            for number, (shape, codes, dtype, _, order) in enumerate(self.results)
        ]
        return tuple(out) if self.several else out[0]


def _order(tensor: Tensor) -> list[int] | None:
    """Return the dimensions of a tensor from the one of the largest steps in memory on; None where it is contiguous."""
    steps = list(tensor.stride())
    return None if tensor.is_contiguous() else sorted(range(tensor.dim()), key=steps.__getitem__, reverse=True)


def _empty(shape: Sequence[int], dtype: torch.dtype, order: list[int] | None) -> Tensor:
    if order is None:
        return torch.empty(shape, dtype=dtype, device=META)
    return torch.empty_permuted(shape, order, dtype=dtype, device=META)


class ThinCodes:
    """The codes of the channels that stay."""

    def __init__(self, kept: Bools) -> None:
        self._kept = kept
        self._found: dict[int, Codes] = {}
        self._shapes: dict[tuple[int, Sequence[int]], Sequence[int]] = {}

    def of(self, codes: Codes) -> Codes:
        """Return those of `codes` whose labels are kept; `codes` must live as long as this does."""
        found = self._found.get(id(codes))
        if found is None:
            found = self._found[id(codes)] = codes[self._kept[codes.labels]]
        return found

    def is_left(self, tensor: Tensor, whole: Sequence[int], codes: TensorCodes) -> bool:
        """Return whether a tensor is what is left of one of this shape with these codes: the same channels, not only as
        many."""
        found = codes_on(tensor)
        known = found.keys() == codes.keys() or (name_of(tensor) is not None and found.keys() >= codes.keys())
        return (
            known
            and tensor.shape == self.shape(whole, codes)
            and all(found[d].equals(self.of(each)) for d, each in codes.items())
        )

    def shape(self, whole: Sequence[int], codes: TensorCodes) -> Sequence[int]:
        """Return what is left of a shape; `codes` must live as long as this does."""
        if not codes:
            return whole
        found = self._shapes.get((id(codes), whole))
        if found is None:
            sizes = [len(self.of(codes[d])) if d in codes else n for d, n in enumerate(whole)]
            found = self._shapes[id(codes), whole] = torch.Size(sizes)
        return found


def arguments(name: str, args: tuple[Any, ...]) -> list[object]:
    """Return an operator's arguments without the tensors; alike where the rules make no difference."""
    found: list[object] = [
        None if isinstance(a, Tensor) else len(a) if isinstance(a, list) and a and isinstance(a[0], Tensor) else a
        for a in args
    ]
    if name == "convolution" and args[-1] > 1 and args[-1] == args[0].shape[1]:
        found[-1] = "each channel"
    if name == "native_batch_norm" and isinstance(args[3], Tensor):
        found[5] = "either mode"  # of a norm with running statistics
    return found


def sources_of(tensors: Sequence[Tensor], *, meta: bool) -> list[object]:
    """Return where each tensor comes from: a parameter's name, or the step that made it; None where that is unknown, or
    the tensor is a constant, whose values are compared."""
    return [step_of(tensor) if tensor.is_meta or not is_constant(tensor, meta) else None for tensor in tensors]
