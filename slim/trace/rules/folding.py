"""Operators that fold a dimension, or mix along it in a way that depends on its size."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slim.trace.codes import Codes
from slim.trace.op import META, Op
from slim.trace.rules.pointwise import pointwise
from slim.trace.rules.registry import rule

KEEPS_GATE = {"mean", "sum", "amax", "amin", "max", "min", "prod", "linalg_vector_norm", "norm"}  # 0 of zeros


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
    if len(op.tensors) > 1:  # max(a, b) and its like
        return pointwise(op)
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
    for d, vector in codes.items():
        if d not in dims:
            at = d if op.get("keepdim") else d - sum(g < d for g in dims)
            result[at] = vector if op.name in KEEPS_GATE else vector.ungated()
        elif op.name == "sum" or _is_norm(op):
            op.mix(vector, f"summed over by {op.where}")
        else:
            op.freeze(vector, f"{op.where} runs over the channels")
    for t in tree_leaves(out):
        if isinstance(t, Tensor):
            op.label(t, result)
    return out


@rule(
    *("_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk", "native_layer_norm", "native_group_norm"),
    *("_fused_rms_norm", "_safe_softmax"),
)
def normalise(op: Op) -> Any:
    """What an operator mixes along a dimension depends on how many channels there are: they stay."""
    out = op.run()
    x = op.input
    codes = dict(op.codes())
    for d in _mixed(op):
        if d in codes:
            op.freeze(codes.pop(d), f"{op.where} needs all of its channels")
    for t in op.others:
        op.freeze_tensor(t)
    for t in tree_leaves(out):
        if isinstance(t, Tensor) and t.shape == x.shape:
            op.label(t, {d: v.ungated() for d, v in codes.items()})
    return out


def _mixed(op: Op) -> list[int]:
    n = op.input.dim()
    if op.name == "native_group_norm":
        return list(range(1, n))
    if "normalized_shape" in op.arguments:
        return list(range(n - len(op["normalized_shape"]), n))
    return _dims(op["dim"], n)
