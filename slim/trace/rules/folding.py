"""Operators that fold a dimension, or mix along it in a way that depends on its size."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slim.trace.codes import BY_NORM, Codes
from slim.trace.meta import META
from slim.trace.op import Op
from slim.trace.rules.registry import rule

KEEPS_GATE = {  # 0 of zeros
    *("mean", "sum", "amax", "amin", "max", "min", "prod", "linalg_vector_norm", "norm", "var", "std", "var_mean"),
    *("std_mean", "median", "nansum", "any", "all", "count_nonzero", "argmax", "argmin"),
}

COUNTS = {*("sum", "nansum", "prod", "linalg_vector_norm", "norm", "count_nonzero")}  # what hangs on how many there are


def _is_norm(op: Op) -> bool:
    """Whether zeros add nothing: not so for the smallest absolute value, and what is akin to it."""
    order = op.get("ord", op.get("p", 2))
    return op.name in ("linalg_vector_norm", "norm") and (order is None or order >= 0)


def _dims(value: Any, n: int) -> list[int]:
    if value is None or value == []:
        return list(range(n))
    return [d % n for d in (value if isinstance(value, (list, tuple)) else [value])] if n else []


@rule(
    *("mean", "sum", "amax", "amin", "max", "min", "prod", "any", "all", "var", "std", "var_mean", "std_mean"),
    *("logsumexp", "argmax", "argmin", "linalg_vector_norm", "norm", "median", "nansum", "count_nonzero"),
)
def reduce(op: Op) -> Any:
    """A reduction keeps the channels that it does not run along. A plain sum over gated channels loses nothing."""
    x = op.tensors[0]
    dims = _dims(op.get("dim"), x.dim())
    if op.name == "mean" and x.is_meta and op.get("dtype") is None:
        kept = [1 if d in dims else n for d, n in enumerate(x.shape) if d not in dims or op.get("keepdim")]
        out: Any = torch.empty(kept, dtype=x.dtype, device=META)
    else:
        out = op.run()
    codes = op.codes(x)
    if not codes:
        return out
    result: dict[int, Codes] = {}
    folded = []
    for d, vector in codes.items():
        if d not in dims:
            at = d if op.get("keepdim") else d - sum(g < d for g in dims)
            gated = vector.zero_or_open() if op.name in COUNTS else vector
            result[at] = gated if op.name in KEEPS_GATE else vector.ungated()
        elif op.name == "sum" or _is_norm(op):
            op.mix(op.gated_as_own(vector, x, d), f"summed over by {op.where}")
        else:
            folded.append(vector)
    for t in tree_leaves(out):
        if isinstance(t, Tensor):
            op.label(t, result)
            for vector in folded:
                op.labeller.defer(t, vector, f"{op.where} runs over the channels")
    return out


@rule(
    *("_softmax", "_log_softmax", "cumsum", "cumprod", "cummax", "cummin", "sort", "topk", "kthvalue", "mode"),
    *("native_layer_norm", "_fused_rms_norm", "_safe_softmax", "_fft_r2c", "_fft_c2c", "_fft_c2r"),
)
def normalise(op: Op) -> Any:
    """What an operator mixes along a dimension depends on how many channels there are: they stay."""
    out = op.run()
    x = op.input
    codes = dict(op.codes())
    mixed = _mixed(op)
    for d in mixed:
        if d in codes:
            op.freeze(codes.pop(d), f"{op.where} needs all of its channels")
    for t in op.others:
        op.freeze_tensor(t)
    for place, t in enumerate(tree_leaves(out)):
        if isinstance(t, Tensor) and t.dim() == x.dim():  # not statistics, whose dimensions are others
            zero = place == 0 and op.name in ZERO_OF_ZEROS  # second are indices
            op.label(t, {d: v.zero_or_open() if zero else v.ungated() for d, v in codes.items()})
    return out


ZERO_OF_ZEROS = {"cumsum", "cumprod", "cummax", "cummin", "sort", "topk", "_fft_r2c", "_fft_c2c", "_fft_c2r"}


@rule("native_group_norm")
def group_norm(op: Op) -> Any:
    """Normalise over the channels of each group: all of a group are coupled, and zero once γ and β are."""
    outs = op.run()
    weight, bias, groups = op["weight"], op["bias"], op["group"]
    codes = dict(op.codes())
    channels = codes.pop(1, None)
    for vector in codes.values():
        op.freeze(vector, f"{op.where} runs along it")
    if channels is not None:
        whole = op.couple_rows(channels.reshape(groups, -1).columns)
        op.count(groups, whole)
        for statistics in outs[1:]:
            op.label(statistics, {1: whole.ungated()})
        op.count(len(channels), channels)
        width = len(channels) // groups
        op.expect(width)
        channels = whole.repeat(len(channels) // groups)
        if groups == 1:
            op.freeze(channels, f"{op.where} needs all of its channels")
    for t in (weight, bias):
        channels = channels if t is None else op.axis(t, 0, channels)
    name = None if channels is None or weight is None else op.produce("GroupNorm", (weight, 0), (bias, 0))
    if channels is not None:
        if name is not None:
            op.is_norm = True
            channels = channels.with_gate(BY_NORM)
        elif weight is not None:
            channels = channels.ungated()
        op.label(outs[0], {1: channels})
    return outs


def _mixed(op: Op) -> list[int]:
    n = op.input.dim()
    if "normalized_shape" in op.arguments:
        return list(range(n - len(op["normalized_shape"]), n))
    return _dims(op["dim"], n)
