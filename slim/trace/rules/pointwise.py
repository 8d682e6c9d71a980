"""Operators that keep each channel to itself: BatchNorm, element by element, pooling."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

from slim.trace.classes import Ints
from slim.trace.codes import (
    BY_NORM,
    BY_PRODUCER,
    OPEN,
    Codes,
    TensorCodes,
    alike_along,
    codes_on,
    fresh_from,
    is_blank,
    is_fixed,
    mark_alike,
    mark_fresh,
    mark_written,
    name_of,
    origin_of,
    pass_source,
    set_codes,
    source_of,
    stands_in,
)
from slim.trace.constants import number_in
from slim.trace.labeller import INDEXED
from slim.trace.meta import META
from slim.trace.op import Op
from slim.trace.rules.registry import rule, rule_where

QUICK = {  # operators whose result is sure to look like their operands: no need to run them on tensors without data
    *("relu", "relu_", "silu", "silu_", "gelu", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "add", "add_"),
    *("mul", "mul_", "sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "leaky_relu", "leaky_relu_"),
    *("sub", "sub_", "relu6", "tanh", "elu", "elu_", "mish", "softplus"),
}
UNTAGGED_POINTWISE = {  # element by element, although torch doesn't tag them so
    *("hardswish", "hardswish_", "hardsigmoid_", "_prelu_kernel", "threshold_", "masked_fill_", "fill_", "zero_"),
    *("bernoulli", "bernoulli_", "normal_", "uniform_", "exponential_", "log_sigmoid_forward", "dropout"),
    *("complex", "polar"),
    *("hardtanh_", "leaky_relu", "leaky_relu_", "elu_", "celu_", "selu_"),  # untagged in torch 2.8
}


@rule(
    *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"),
    *("_native_batch_norm_legit_no_training", "_batch_norm_with_update", "_batch_norm_no_update"),
    *("cudnn_batch_norm", "miopen_batch_norm"),
)
def batch_norm(op: Op) -> Any:
    """Pass labels through, and gate them: γ and β of a masked channel are zero."""
    x, weight = op["input"], op["weight"]
    own = [t for t in (weight, op["bias"], op.get("running_mean"), op.get("running_var")) if t is not None]
    outs = _normalised(op, x, own)
    codes = dict(op.codes(x))
    channels = codes.pop(1, None)
    for vector in codes.values():
        op.freeze(vector, "a BatchNorm runs along it")
    source = None if weight is None else source_of(weight)
    name = None if source is None else name_of(source[0])
    layer = "a norm without γ" if name is None else name.removesuffix(".weight")
    layer = UNREGISTERED if _is_unregistered(weight) else layer
    if source is not None and channels is not None:
        if fresh_from(x) is None:
            op.labeller.streams.add(layer)
        if layer in op.labeller.select:  # reads a shared stream through an index of its own
            op.freeze(channels, f"{INDEXED} {layer}")
            chosen = codes_on(weight).get(0)
            channels = op.fresh(x.shape[1]) if chosen is None else chosen
    before = OPEN if channels is None else channels.gate
    for t in own:
        channels = op.axis(t, 0, channels, f"{layer} has channels of fixed size")
    out = outs[0] if isinstance(outs, (list, tuple)) else outs
    if channels is not None:
        per_image = op.get("running_mean") is None and op.get("training", False)
        gate: Any = before if per_image and not own else OPEN  # of zeros without a spread are zeros
        kind = "BatchNorm" if source is None or name_of(weight) is not None else "InstanceNorm"  # which repeats its γ
        if weight is not None and op.produce(kind, (weight, 0), (op["bias"], 0)):
            gate, op.is_norm = BY_NORM, True
        elif (
            weight is op["bias"] is None and op.get("running_mean") is not None
        ):  # of zeros less a mean of zero are zeros
            gate = np.where(before == OPEN, OPEN, BY_PRODUCER)
            op.scale(op["running_mean"], 0)
        channels = channels.with_gate(gate)
    op.label(out, {} if channels is None else {1: channels})
    return tuple(outs) if isinstance(outs, list) else outs


UNREGISTERED = "a norm that is no submodule (nn.ModuleList registers those of a list)"


def _is_unregistered(weight: Tensor | None) -> bool:
    return isinstance(weight, nn.Parameter) and name_of(weight) is None


def _normalised(op: Op, x: Tensor, own: list[Tensor]) -> Any:
    if not x.is_meta:
        return op.run()
    for t in own:
        if t.shape[0] != x.shape[1]:
            raise RuntimeError(f"a BatchNorm of {t.shape[0]} channels got {x.shape[1]}")
    unused = [torch.empty(0, device=META) for _ in op.func._schema.returns[1:]]
    return [torch.empty(x.shape, dtype=x.dtype, device=META), *unused]


# -- does zero stay zero? ----------------------------------------------------------------------------------------------

_SAMPLE = {
    torch.bool: torch.tensor([True, False, True, True]),
    torch.int64: torch.tensor([1, 3, 2, 7]),
    torch.float64: torch.tensor([0.7, -1.3, 2.1, -0.4], dtype=torch.float64),
    torch.complex128: torch.tensor([0.7 + 1j, -1.3, 2.1 - 3j, -0.4j], dtype=torch.complex128),
}


@cache
def _kind(dtype: torch.dtype) -> torch.dtype:
    if dtype.is_complex:
        return torch.complex128
    return dtype if dtype == torch.bool else torch.float64 if dtype.is_floating_point else torch.int64


_keeps_zero_cache: dict[Any, bool] = {}


def keeps_zero(op: Op, zeros: tuple[bool, ...]) -> bool:
    """Return whether a pointwise operator gives zero when the operands in `zeros` are zero, whatever the others are.

    Found out by trying, once for each operator and its numbers.
    """
    if op.is_random:
        return False
    kinds = tuple(_kind(t.dtype) for t in op.tensors)
    scalars = tuple(repr(a) for a in (*op.args, *op.kwargs.values()) if not isinstance(a, Tensor))
    numbers = tuple(number_in(t, meta=op.labeller.meta) for t in op.tensors)
    zeros = tuple(zero or number == 0 or is_blank(t) for zero, number, t in zip(zeros, numbers, op.tensors))
    key = (id(op.func), kinds, scalars, zeros)
    if key not in _keeps_zero_cache:
        turn = iter(zip(kinds, zeros))

        def stand_in(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            kind, zero = next(turn)
            return torch.zeros(4, dtype=kind) if zero else _SAMPLE[kind].clone()

        try:
            result = op.func(*tree_map(stand_in, op.args), **tree_map(stand_in, op.kwargs))
            _keeps_zero_cache[key] = bool((result == 0).all())
        except Exception:
            _keeps_zero_cache[key] = False
    return _keeps_zero_cache[key]


# -- element by element ------------------------------------------------------------------------------------------------


def _is_pointwise(func: OpOverload) -> bool:
    return torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in UNTAGGED_POINTWISE


@rule_where(_is_pointwise)
def pointwise(op: Op) -> Any:
    operands = op.tensors
    first = operands[0]
    if op.name in QUICK and all(t.is_meta and t.dtype == first.dtype for t in operands):
        shapes = {t.shape for t in operands}
        shape = first.shape if len(shapes) == 1 else np.broadcast_shapes(*shapes)
        if op.in_place and shape != first.shape:
            raise RuntimeError(f"{op.func} can't write {tuple(shape)} into {tuple(first.shape)}")
        out = first if op.in_place else torch.empty(shape, dtype=first.dtype, device=META)
    else:
        out = op.run()
    if not isinstance(out, Tensor):
        return out
    if not op.labelled:
        return out if op.in_place else _mark_common(op, out)
    before = codes_on(out) if out is first and not op.unset[0] else {}
    if len(operands) == 1 and name_of(first) is None:  # the same as below, and most of what networks do
        codes = op.codes(first)
        codes = codes if keeps_zero(op, (True,)) else {d: _no_longer_zero(op, v) for d, v in codes.items()}
    else:
        codes = combine(op, out)
    for d, was in before.items():  # a view of this tensor may still pass for gated
        op.lose_gate(was, codes.get(d))
    op.label(out, codes)
    if op.in_place:
        mark_written(out)
    if op.name in ("add", "add_"):
        _add_bias(op, out)
    return out


def _no_longer_zero(op: Op, codes: Codes) -> Codes:
    return codes.ungated() if op.is_random else codes.no_longer_zero()


def _mark_common(op: Op, out: Tensor) -> Tensor:
    """Mark what follows no channels as one value wherever all that it is made of is."""
    one = [
        {d + out.dim() - t.dim() for d in alike_along(t) | {d for d, n in enumerate(t.shape) if n == 1}}
        for t in op.tensors
    ]
    wide = [set(range(out.dim() - t.dim())) for t in op.tensors]
    alike = set.intersection(*(own | missing for own, missing in zip(one, wide)))
    return mark_alike(out, alike) if alike else out


def _add_bias(op: Op, out: Tensor) -> None:
    """A parameter that is added straight to what a layer gives is that layer's bias, and masked with it."""
    for x, bias in ((op.tensors[0], op.tensors[-1]), (op.tensors[-1], op.tensors[0])):
        producer, source = fresh_from(x), source_of(bias)
        codes = codes_on(out).get(out.dim() - 1)
        if producer and source is not None and bias.dim() == 1 and codes is not None and x.shape == out.shape:
            op.labeller.producers[producer].tensors[str(name_of(source[0]))] = 0
            set_codes(out, codes_on(out) | {out.dim() - 1: codes.with_gate(BY_PRODUCER)})
            mark_fresh(out, producer)


def _is_bias(op: Op, t: Tensor) -> bool:
    """Whether a layer's bias is added to what the layer gives: it is masked with that."""
    return op.name in ("add", "add_") and t.dim() == 1 and any(fresh_from(x) for x in op.tensors)


def combine(op: Op, out: Tensor) -> TensorCodes:
    """Return the codes of what operands that broadcast give, element by element."""
    held = [codes_on(t) if name_of(t) is not None else op.codes(t) for t in op.tensors]
    found = {}
    for d, size in enumerate(out.shape):
        why = op.where
        taking = [_along(op, t, codes, d - out.dim(), size) for t, codes in zip(op.tensors, held)]
        combined = _combined(op, taking, size, why)
        if combined is not None:
            found[d] = combined
    return found


Taken = tuple[Tensor, int, Codes | None]  # an operand, its dimension, its codes there


def _along(op: Op, t: Tensor, codes: TensorCodes, dim: int, size: int) -> Taken | None:
    """Return what an operand has along a dimension of the result, counted from the end (-1 …), None where nothing."""
    own = dim + t.dim()
    vector = codes.get(own) if own >= 0 else None
    if size == 1 and name_of(t) is not None:  # one channel always stays, and so may what a parameter has for it
        return None
    if vector is not None and len(vector) != size:  # one channel spread over many: it must stay
        op.freeze(vector)
        vector = None
    there = own >= 0 and t.shape[own] == size and (size > 1 or vector is not None)
    return (t, own, vector) if there else None


def _combined(op: Op, taking: list[Taken | None], size: int, why: str) -> Codes | None:
    """Couple what operands have along a dimension."""
    lead = next((taken[2] for taken in taking if taken and taken[2] is not None), None)
    if lead is None:
        if size == 1 or not any(taken and name_of(taken[0]) is not None for taken in taking):
            return None
        lead = op.fresh(size)
    zero: list[Codes | None] = [None] * len(taking)  # the codes of operands that may be zero
    scales = {}  # the places of those that could be set to zero as well
    for place, taken in enumerate(taking):
        if taken is None:
            continue
        t, own, vector = taken
        origin = origin_of(t)
        if origin is not None and own in origin[1] and not _is_bias(op, t):
            scales[place] = t, own
        if name_of(t) is not None:
            op.axis(t, own, lead, why)
        elif vector is None and (counted := stands_in(t)) is not None:
            op.labeller.group_counts[counted] = lead.labels
            zero[place] = lead.with_gate()
        elif vector is None and own in alike_along(t):
            op.count(size, lead)
            zero[place] = lead.with_gate() if is_blank(t) else None
        elif vector is None:
            op.freeze(lead, f"combined with a fixed size by {why}")
        else:
            op.couple(lead, vector, why)
            zero[place] = vector
    gate = _gate_of(op, zero, size)
    if scales and not np.any(gate):
        zeros = tuple(p in scales or (v is not None and bool((v.gate != OPEN).all())) for p, v in enumerate(zero))
        if keeps_zero(op, zeros):
            gate = BY_PRODUCER
            for tensor, dim in scales.values():
                op.scale(tensor, dim)
    constant = OPEN if isinstance(gate, int) and gate == BY_NORM else _constant_of(op, taking)
    return lead.with_gate(gate, constant)


def _constant_of(op: Op, taking: list[Taken | None]) -> Ints | int:
    """Return what makes each channel of the result one number: where all operands are one, or hang on no input."""
    varying = [taken and taken[2] for t, taken in zip(op.tensors, taking) if not is_fixed(t)]
    if op.is_random or not varying:
        return OPEN
    gate: Ints | int = BY_NORM
    for codes in varying:
        gate = gate & (OPEN if codes is None else codes.common_constant)
    return gate


def _gate_of(op: Op, operands: list[Codes | None], size: int) -> Ints | int:
    """Return what gates the result of operands of which some are zero (None: it isn't), all channels alike if so."""
    common = [OPEN if codes is None else codes.common_gate for codes in operands]
    if None not in common:
        by_norm, by_any = (tuple(gate in gates for gate in common) for gates in ({BY_NORM}, {BY_NORM, BY_PRODUCER}))
        if any(by_norm) and keeps_zero(op, by_norm):
            return BY_NORM
        return BY_PRODUCER if any(by_any) and keeps_zero(op, by_any) else OPEN
    zeros = np.zeros((2, size), np.int64)  # which operands are zero, as bits: once norms are masked, or all producers
    for place, codes in enumerate(operands):
        if codes is not None:
            zeros[0] |= (codes.gate == BY_NORM).astype(np.int64) << place
            zeros[1] |= (codes.gate != OPEN).astype(np.int64) << place
    gate = np.zeros(size, np.int64)
    for bits in np.flatnonzero(np.bincount(zeros.ravel())):
        if bits and keeps_zero(op, tuple(bool(bits >> place & 1) for place in range(len(operands)))):
            gate |= np.where(zeros[0] == bits, BY_NORM, OPEN) | np.where(zeros[1] == bits, BY_PRODUCER, OPEN)
    return gate


@rule(
    *("clone", "detach", "alias", "contiguous", "native_dropout"),
    *("_conj", "_neg_view", "resolve_conj", "resolve_neg"),
)
def same(op: Op) -> Any:
    out = op.run()
    first = out[0] if isinstance(out, (tuple, list)) else out
    op.label(first, dict(op.codes()))
    pass_source(op.input, first, {d: d for d in range(op.input.dim())})
    if alike := alike_along(op.input):
        mark_alike(first, alike)
    producer = fresh_from(op.input)
    if producer is not None:
        mark_fresh(first, producer)
    return out


@rule("rrelu_with_noise", "rrelu_with_noise_")
def rrelu(op: Op) -> Tensor:
    """Slopes below zero are drawn: zero stays zero whatever they are."""
    return op.label(op.run(), op.codes())


@rule("fake_quantize_per_tensor_affine_cachemask", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams")
@rule("fake_quantize_per_channel_affine_cachemask")
def fake_quantize(op: Op) -> Any:
    """Rounded to whole steps, of which zero is one."""
    outs = op.run()
    codes = dict(op.codes())
    for step in op.others:
        if "axis" in op.arguments:
            op.axis(step, 0, codes.get(op["axis"]))
        else:
            op.freeze_tensor(step)
    pass_source(op.input, outs[0], {d: d for d in range(op.input.dim())})
    for out in outs:
        op.label(out, codes)
    return outs


# -- over space --------------------------------------------------------------------------------------------------------


def _is_roi_pooling(func: OpOverload) -> bool:
    return func.namespace == "torchvision" and "roi_" in func.__name__


@rule_where(_is_roi_pooling)
@rule(
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d"),
    *("reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "grid_sampler_2d"),
)
def per_channel(op: Op) -> Any:
    """Over space, each channel by itself."""
    out = op.run()
    channel = 1 if _is_roi_pooling(op.func) else op.input.dim() - 1 - _space(op.func)
    codes = dict(op.codes())
    keep = {d: codes.pop(d) for d in list(codes) if d <= channel}
    if op.others:  # places, outside of which there may be zeros
        keep = {d: vector.zero_or_open() for d, vector in keep.items()}
    for vector in codes.values():
        op.freeze(vector, f"{op.where} runs along it")
    for t in op.others:
        op.freeze_tensor(t)
    for t in tree_leaves(out):
        if isinstance(t, Tensor):
            op.label(t, keep)
    return out


@cache
def _space(func: OpOverload) -> int:
    """Return the number of spatial dimensions that a pooling or padding operator runs over."""
    return next(int(n) for n in "123" if f"{n}d" in func.__name__)


@rule("max_unpool2d", "max_unpool3d")
def unpool(op: Op) -> Tensor:
    """Values back to the places that a pooling took them from, among zeros: each channel by itself."""
    x, places = op["self"], op["indices"]
    channel = x.dim() - 1 - _space(op.func)
    codes, theirs = op.codes(x), op.codes(places)
    for d, vector in codes.items():
        if d > channel:
            op.freeze(vector, f"{op.where} runs along it")
        elif d in theirs:
            op.couple(vector, theirs[d])
        else:
            op.freeze(vector, f"combined with a fixed size by {op.where}")
    return op.label(op.run(), {d: vector.zero_or_open() for d, vector in codes.items() if d <= channel})
