"""What each operator does to the codes of its tensors.

A rule takes `(tracer, func, args, kwargs)`, runs the operator and labels what comes out. There are few, because they
follow what an operator does rather than what it is called: mix channels (convolution, product), keep each to itself
(pointwise, pooling, BatchNorm), move them about (views, cat, split), or fold a dimension (mean, softmax). An operator
without a rule freezes what it touches.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from slim.trace.classes import Ints
from slim.trace.tracer import INDEXED, META, Product, Tracer, label, mark_fresh, tensors_in

Rule = Callable[[Tracer, Any, Any, Any], Any]
aten = torch.ops.aten
RULES: dict[Any, Rule] = {}
QUICK = {  # operators whose result is sure to look like their operands: no need to run them on tensors without data
    getattr(aten, name)
    for name in (
        *("relu", "relu_", "silu", "silu_", "gelu", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "add", "add_"),
        *("mul", "mul_", "sigmoid", "sigmoid_", "hardsigmoid", "hardsigmoid_", "leaky_relu", "leaky_relu_"),
        *("sub", "sub_", "relu6", "tanh", "elu", "elu_", "mish", "softplus"),
    )
}
UNTAGGED_POINTWISE = {  # element by element, although torch doesn't tag them so
    getattr(aten, name)
    for name in (
        *("hardswish", "hardswish_", "hardsigmoid_", "_prelu_kernel", "threshold_", "masked_fill_", "fill_", "zero_"),
        *("bernoulli", "bernoulli_", "normal_", "uniform_", "exponential_", "log_sigmoid_forward", "dropout"),
    )
    if hasattr(aten, name)
}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for these aten operators (those that this version of torch has)."""

    def register(function: Rule) -> Rule:
        for name in names:
            if hasattr(aten, name):
                RULES[getattr(aten, name)] = function
        return function

    return register


@cache
def rule_for(func: Any) -> Rule:
    if not any("Tensor" in str(a.type) for a in func._schema.arguments):
        return factory
    found = RULES.get(func.overloadpacket)
    if found is not None:
        return found
    if torch.Tag.pointwise in func.tags or func.overloadpacket in UNTAGGED_POINTWISE:
        return pointwise
    if func.namespace == "torchvision" and "roi_" in func.__name__:
        return per_channel
    return unknown


# -- helpers -----------------------------------------------------------------------------------------------------------


@cache
def _parameters(func: Any) -> list[tuple[str, Any]]:
    return [(a.name, a.default_value) for a in func._schema.arguments]


def bind(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """The operator's arguments by name, defaults included."""
    named = {name: default for name, default in _parameters(func)}
    named.update(zip(named, args))
    named.update(kwargs)
    return named


def any_codes(tensors: list[Tensor]) -> bool:
    return any(hasattr(t, "_slim_name") or getattr(t, "_codes", None) for t in tensors)


def tie_rows(tracer: Tracer, grid: Ints, why: str) -> Ints:
    """Unite each column of a 2-D grid of codes; one code per column, gated where the whole column is."""
    if len(grid) > 1:
        tracer.classes.unite(grid[:1] >> 1, grid[1:] >> 1, why)
    return (grid[0] & ~1) | (grid & 1).min(axis=0)


def fixed(n: int) -> Ints:
    return np.zeros(n, np.int64)


# -- mixing channels: convolutions and products ------------------------------------------------------------------------


def _conv_shape(x: Tensor, w: Tensor, p: dict[str, Any]) -> list[int]:
    sizes = []
    k = w.dim() - 2
    per = [[v[0]] * k if len(v) == 1 else v for v in (p["stride"], p["padding"], p["dilation"], p["output_padding"])]
    for i, (n, s, pad, d, extra) in enumerate(zip(x.shape[2:], *per)):
        reach = d * (w.shape[2 + i] - 1)
        sizes.append(
            (n - 1) * s - 2 * pad + reach + extra + 1 if p["transposed"] else (n + 2 * pad - reach - 1) // s + 1
        )
    channels = w.shape[1] * p["groups"] if p["transposed"] else w.shape[0]
    expected = w.shape[0] if p["transposed"] else w.shape[1] * p["groups"]
    if x.shape[1] != expected or (not p["transposed"] and w.shape[0] % p["groups"]):
        raise RuntimeError(f"a convolution that takes {expected} channels in {p['groups']} groups got {x.shape[1]}")
    return [x.shape[0], channels, *sizes]


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    p = bind(func, args, kwargs)
    x, w, b, groups = p["input"], p["weight"], p["bias"], p["groups"]
    if x.is_meta and x.dim() == w.dim() and "transposed" in p:
        out = torch.empty(_conv_shape(x, w, p), dtype=x.dtype, device=META)
    else:
        out = tracer.run(func, args, kwargs)
    transposed = p.get("transposed", False)
    codes = dict(tracer.codes(x))
    incoming = codes.pop(1, None)
    for vector in codes.values():
        tracer.classes.freeze(vector >> 1, "a convolution runs along it")
    name = getattr(w, "_slim_name", "").rpartition(".")[0] or getattr(w, "_slim_name", "a computed weight")
    why = f"read by {name} with no BatchNorm before it"
    taking = _dense
    if groups > 1:
        taking = _depthwise if groups == x.shape[1] else _whole_groups if tracer.whole_groups else _within_groups
    taking = tracer.decide(taking)
    if incoming is not None and taking is not _depthwise:
        tracer.read(incoming, why)
    outgoing = taking(tracer, w, incoming, groups, transposed, why)
    if b is not None:
        biased = tracer.axis(b, 0, outgoing, why)
        outgoing = None if biased is None else biased & ~1
    dims = [getattr(w, "_codes", {}).get(d, n) if d < 2 else n for d, n in enumerate(w.shape)]
    space = x if transposed else out
    tracer.products.append(Product(name, x.shape[0] * math.prod(space.shape[2:]), dims))
    return mark_fresh(label(out, {} if outgoing is None else {1: outgoing}))


def _made(tracer: Tracer, w: Tensor, dim: int) -> Ints | None:
    """The codes of the channels that a layer makes, along a dimension of its weight."""
    own = getattr(w, "_codes", {}).get(dim)
    if own is None and hasattr(w, "_slim_name"):
        own = w._codes[dim] = 2 * tracer.classes.fresh(w.shape[dim])  # type: ignore[attr-defined]
    return None if own is None else own & ~1


def _dense(tracer: Tracer, w: Tensor, incoming: Ints | None, groups: int, transposed: bool, why: str) -> Ints | None:
    tracer.axis(w, 0 if transposed else 1, incoming, why)
    return _made(tracer, w, 1 if transposed else 0)


def _depthwise(
    tracer: Tracer, w: Tensor, incoming: Ints | None, groups: int, transposed: bool, why: str
) -> Ints | None:
    """Each channel keeps to itself, and makes one channel or several (a multiplier)."""
    if incoming is not None:
        tracer.counts(groups, incoming)
    many = w.shape[1] if transposed else w.shape[0] // groups
    expanded = None if incoming is None else np.repeat(incoming, many)
    if transposed and many > 1:
        by_channel = tracer.axis(w, 0, incoming, why)
        tracer.axis(w, 1, None, why)
        outgoing = None if by_channel is None else np.repeat(by_channel, many)
    else:
        outgoing = tracer.axis(w, 0, expanded, why)
    if outgoing is None:
        return None
    return (outgoing & ~1) | (fixed(len(outgoing)) if expanded is None else expanded & 1)


def _within_groups(
    tracer: Tracer, w: Tensor, incoming: Ints | None, groups: int, transposed: bool, why: str
) -> Ints | None:
    """Each group of channels reads a group of its own: the same places of all groups stand or fall together."""
    if incoming is not None:
        tied = tie_rows(tracer, incoming.reshape(groups, -1), why)
        incoming = np.tile(tied, groups) if transposed else tied
    outgoing = _dense(tracer, w, incoming, groups, transposed, why)
    if outgoing is None:
        return None
    if transposed:
        return np.tile(outgoing, groups)
    tie_rows(tracer, outgoing.reshape(groups, -1), why)
    return outgoing


def _whole_groups(
    tracer: Tracer, w: Tensor, incoming: Ints | None, groups: int, transposed: bool, why: str
) -> Ints | None:
    """As `_within_groups`, but what a group reads and makes stands or falls as a whole."""
    if incoming is not None:
        tie_rows(tracer, incoming.reshape(groups, -1).T, why)
    if transposed:
        by_channel = tracer.axis(w, 0, incoming, why)
        tracer.axis(w, 1, None, why)
        outgoing = None if by_channel is None else np.repeat(by_channel.reshape(groups, -1)[:, 0], w.shape[1]) & ~1
    else:
        tracer.axis(w, 1, None, why)
        outgoing = _made(tracer, w, 0)
        if outgoing is not None and incoming is None:
            tracer.classes.freeze(outgoing >> 1, why)
        elif outgoing is not None and incoming is not None:
            both = [outgoing.reshape(groups, -1), incoming.reshape(groups, -1)]
            tie_rows(tracer, np.concatenate(both, axis=1).T, why)
    if incoming is not None and hasattr(w, "_slim_name"):
        tracer.group_counts[w._slim_name.rpartition(".")[0] + ".groups"] = incoming.reshape(groups, -1)[:, 0] >> 1
    return outgoing


@rule("mm", "bmm", "addmm", "baddbmm")
def product(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """a @ b (+ bias) over the last two dimensions."""
    p = bind(func, args, kwargs)
    first, second = next(names for names in (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2")) if names[0] in p)
    a, b, bias = p[first], p[second], p["self"] if first != "self" else None
    if a.is_meta and a.shape[-1] == b.shape[-2] and a.shape[:-2] == b.shape[:-2]:
        out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype, device=META)
    else:
        out = tracer.run(func, args, kwargs)
    name = tracer.place
    ca, cb = tracer.codes(a), tracer.codes(b)
    last = out.dim() - 1
    why = f"read by {name} with no BatchNorm before it"
    inner_a, inner_b = ca.get(last), cb.get(last - 1)
    if inner_a is not None and inner_b is not None:
        tracer.classes.unite(inner_a >> 1, inner_b >> 1, why)
        tracer.read(inner_a | (inner_b & 1), why)
    else:
        for inner in (inner_a, inner_b):
            if inner is not None:
                tracer.classes.freeze(inner >> 1, f"multiplied by a fixed size in {name}")
    codes = {}
    if last == 2:  # the batch of a batched product
        batches = [c[0] for c in (ca, cb) if 0 in c]
        if len(batches) == 2:
            tracer.classes.unite(batches[0] >> 1, batches[1] >> 1, why)
            codes[0] = batches[0] | (batches[1] & 1)
        elif batches:
            tracer.classes.freeze(batches[0] >> 1, f"batch of a product in {name}")
    codes |= {d: c[d] for d, c in ((last - 1, ca), (last, cb)) if d in c}
    if bias is not None:
        codes = {d: vector & ~1 for d, vector in codes.items()}
        own = tracer.axis(bias, bias.dim() - 1, codes.get(last), why)
        if own is not None:
            codes[last] = own & ~1
    rows = math.prod(a.shape[:-1])
    dims: list[Any] = [inner_a if inner_a is not None else a.shape[last], codes.get(last, out.shape[last])]
    if last - 1 in ca:
        rows, dims = rows // a.shape[last - 1], [ca[last - 1], *dims]
    tracer.products.append(Product(name, rows, dims))
    return mark_fresh(label(out, codes))


# -- keeping each channel to itself: BatchNorm, pointwise, pooling -----------------------------------------------------


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
def batch_norm(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    p = bind(func, args, kwargs)
    x, weight = p["input"], p["weight"]
    own = [t for t in (weight, p["bias"], p.get("running_mean"), p.get("running_var")) if t is not None]
    if x.is_meta:
        for t in own:
            if t.shape[0] != x.shape[1]:
                raise RuntimeError(f"a BatchNorm of {t.shape[0]} channels got {x.shape[1]}")
        outs: Any = [torch.empty(x.shape, dtype=x.dtype, device=META)]
        outs += [torch.empty(0, device=META) for _ in func._schema.returns[1:]]
    else:
        outs = tracer.run(func, args, kwargs)
    codes = dict(tracer.codes(x))
    channels = codes.pop(1, None)
    for vector in codes.values():
        tracer.classes.freeze(vector >> 1, "a BatchNorm runs along it")
    affine = weight is not None and isinstance(weight, torch.nn.Parameter)
    name = weight._slim_name.rpartition(".")[0] if affine else "a BatchNorm without γ"
    why = f"{name} has channels of fixed size"
    if affine and channels is not None and not hasattr(x, "_fresh"):
        tracer.streams.add(name)
    if affine and channels is not None and name in tracer.select:  # reads a shared stream through an index of its own
        tracer.classes.freeze(channels >> 1, f"{INDEXED} {name}")
        channels = getattr(weight, "_codes", {}).get(0)
        if channels is None:
            channels = 2 * tracer.classes.fresh(x.shape[1])
    for t in own:
        channels = tracer.axis(t, 0, channels, why)
    if affine:
        tracer.norms[name] = weight
    out = outs[0] if isinstance(outs, (list, tuple)) else outs
    label(out, {} if channels is None else {1: (channels | 1) if affine else (channels & ~1)})
    return tuple(outs) if isinstance(outs, list) else outs


_SAMPLE = {
    torch.bool: torch.tensor([True, False, True, True]),
    torch.int64: torch.tensor([1, 3, 2, 7]),
    torch.float64: torch.tensor([0.7, -1.3, 2.1, -0.4], dtype=torch.float64),
}


@cache
def _kind(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.bool else torch.float64 if dtype.is_floating_point else torch.int64


_keeps_zero_cache: dict[Any, bool] = {}


def keeps_zero(func: Any, args: Any, kwargs: Any, gated: tuple[bool, ...]) -> bool:
    """Whether a pointwise operator gives zero when the gated operands are zero, whatever the others are."""
    if torch.Tag.nondeterministic_seeded in func.tags:
        return False
    kinds = tuple(_kind(t.dtype) for t in tensors_in(args, kwargs))
    scalars = tuple(repr(a) for a in (*args, *kwargs.values()) if not isinstance(a, Tensor))
    key = (func, kinds, scalars, gated)
    if key not in _keeps_zero_cache:
        turn = iter(zip(kinds, gated))

        def stand_in(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            kind, zero = next(turn)
            return torch.zeros(4, dtype=kind) if zero else _SAMPLE[kind].clone()

        try:
            result = func(*tree_map(stand_in, args), **tree_map(stand_in, kwargs))
            _keeps_zero_cache[key] = bool((result == 0).all())
        except Exception:
            _keeps_zero_cache[key] = False
    return _keeps_zero_cache[key]


@cache
def in_place(func: Any) -> bool:
    return func.__name__.partition(".")[0].endswith("_")


def pointwise(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    operands = tensors_in(args, kwargs)
    first = operands[0]
    if func.overloadpacket in QUICK and all(t.is_meta and t.dtype == first.dtype for t in operands):
        shape = first.shape if len(operands) == 1 else np.broadcast_shapes(*(t.shape for t in operands))
        if in_place(func) and shape != first.shape:
            raise RuntimeError(f"{func} can't write {tuple(shape)} into {tuple(first.shape)}")
        out = first if in_place(func) else torch.empty(shape, dtype=first.dtype, device=META)
    else:
        out = tracer.run(func, args, kwargs)
    if not isinstance(out, Tensor) or not any_codes(operands):
        return out
    before = getattr(out, "_codes", {}) if out is first else {}

    def zero(gated: tuple[bool, ...]) -> bool:
        return any(gated) and keeps_zero(func, args, kwargs, gated)

    if len(operands) == 1 and not hasattr(first, "_slim_name"):  # the same as below, and most of what networks do
        codes = tracer.codes(first)
        codes = codes if zero((True,)) else {d: v & ~1 for d, v in codes.items()}
    else:
        held = [getattr(t, "_codes", {}) if hasattr(t, "_slim_name") else tracer.codes(t) for t in operands]
        codes = {}
        for d, size in enumerate(out.shape):
            combined = _combined(tracer, list(zip(operands, held)), d - out.dim(), size, zero, tracer.where(func))
            if combined is not None:
                codes[d] = combined
    for d, was in before.items():  # a view of this tensor may still pass for gated
        lost = (was & 1) > (codes[d] & 1 if d in codes else 0)
        if lost.any():
            tracer.classes.freeze(was[lost] >> 1, tracer.where(func))
    return label(out, codes)


def _combined(
    tracer: Tracer,
    operands: list[tuple[Tensor, dict[int, Ints]]],
    dim: int,
    size: int,
    zero: Callable[[tuple[bool, ...]], bool],
    why: str,
) -> Ints | None:
    """Unite what operands (each with its codes) have along a dimension of the result, counted from the end (-1 …).

    `zero` tells whether the result is zero where certain operands are.
    """
    taking = []  # of each operand that has this dimension: whether it is a parameter, its dimension, its codes
    for t, codes in operands:
        own = dim + t.dim()
        vector = codes.get(own) if own >= 0 else None
        if vector is not None and len(vector) != size:  # one channel spread over many: it must stay
            tracer.classes.freeze(vector >> 1, why)
            vector = None
        there = own >= 0 and t.shape[own] == size and (size > 1 or vector is not None or hasattr(t, "_slim_name"))
        taking.append((t, own, vector) if there else None)
    vectors = [taken[2] for taken in taking if taken and taken[2] is not None]
    if not vectors:
        if size == 1 or not any(taken and hasattr(taken[0], "_slim_name") for taken in taking):
            return None
        vectors = [2 * tracer.classes.fresh(size)]
    lead = vectors[0]
    zeros = np.zeros(size, np.int64)  # which operands are zero, as bits
    for place, taken in enumerate(taking):
        if taken is None:
            continue
        t, own, vector = taken
        if hasattr(t, "_slim_name"):
            tracer.axis(t, own, lead, why)
        elif vector is None:
            tracer.classes.freeze(lead >> 1, f"combined with a fixed size by {why}")
        else:
            tracer.classes.unite(lead >> 1, vector >> 1, why)
            zeros |= (vector & 1) << place
    gate = fixed(size)
    for bits in np.flatnonzero(np.bincount(zeros)):
        if zero(tuple(bool(bits >> place & 1) for place in range(len(operands)))):
            gate |= zeros == bits
    return (lead & ~1) | gate


@rule(
    "clone",
    "detach",
    "alias",
    "_to_copy",
    "contiguous",
    "lift_fresh",
    "lift_fresh_copy",
    "native_dropout",
    "zeros_like",
)
def same(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    out = tracer.run(func, args, kwargs)
    first = out[0] if isinstance(out, (tuple, list)) else out
    codes = dict(tracer.codes(args[0]))
    if func.overloadpacket is aten.zeros_like:
        codes = {d: v | 1 for d, v in codes.items()}
    label(first, codes)
    if hasattr(args[0], "_fresh"):
        mark_fresh(first)
    return out


@rule("empty_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like")
def like(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """Sized after a tensor, filled with something else."""
    return label(tracer.run(func, args, kwargs), {d: v & ~1 for d, v in tracer.codes(args[0]).items()})


@rule(
    *("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "reflection_pad1d", "reflection_pad2d"),
    *("reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "grid_sampler_2d"),
)
def per_channel(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """Over space, each channel by itself."""
    out = tracer.run(func, args, kwargs)
    x = args[0]
    channel = 1 if func.namespace == "torchvision" else x.dim() - _space(func)
    codes = dict(tracer.codes(x))
    keep = {d: codes.pop(d) for d in list(codes) if d <= channel}
    for vector in codes.values():
        tracer.classes.freeze(vector >> 1, f"{tracer.where(func)} runs along it")
    for t in tensors_in(args[1:], kwargs):
        tracer.freeze(t, tracer.where(func))
    for t in tree_leaves(out):
        if isinstance(t, Tensor):
            label(t, keep)
    return out


@cache
def _space(func: Any) -> int:
    """One more than the number of spatial dimensions that a pooling or padding operator runs over."""
    return next(int(n) for n in "123" if f"{n}d" in func.__name__) + 1


# -- moving channels about ---------------------------------------------------------------------------------------------


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions of two shapes that hold the same elements."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        ins: list[int] = []
        outs: list[int] = []
        a = b = 1
        while True:
            if a <= b and i < len(old) and (not ins or a < b):
                a *= old[i]
                ins.append(i)
                i += 1
            elif j < len(new) and (not outs or b < a):
                b *= new[j]
                outs.append(j)
                j += 1
            elif i < len(old) and a < b:
                a *= old[i]
                ins.append(i)
                i += 1
            else:
                break
        if not ins and not outs:
            break
        blocks.append((ins, outs))
    return blocks


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy")
def view(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    out = tracer.run(func, args, kwargs)
    codes = tracer.codes(args[0])
    if out.dtype != args[0].dtype and out.shape != args[0].shape:
        return unknown(tracer, func, args, kwargs)
    if not codes:
        return out
    old, new = tuple(args[0].shape), tuple(out.shape)
    result: dict[int, Ints] = {}
    if 0 in old:
        tracer.freeze(args[0], tracer.where(func))
        return out
    for ins, outs in _blocks(old, new):
        named = [d for d in ins if d in codes]
        if not named:
            continue
        for d in named[1:]:  # two labelled dimensions in one: keep the first
            tracer.classes.freeze(codes[d] >> 1, f"merged with other channels by {tracer.where(func)}")
        grid = codes[named[0]].reshape([-1 if d == named[0] else 1 for d in ins])
        grid = np.broadcast_to(grid, [old[d] for d in ins]).reshape([new[d] for d in outs])
        varying = [k for k in range(grid.ndim) if grid.shape[k] > 1 and (np.diff(grid, axis=k) != 0).any()]
        if not outs:  # a dimension of one channel goes
            tracer.classes.freeze(grid.reshape(-1) >> 1, tracer.where(func))
            continue
        keep = tracer.decide(max(varying or range(grid.ndim), key=lambda k: (grid.shape[k], k)))
        columns = np.moveaxis(grid, keep, -1).reshape(-1, grid.shape[keep])
        result[outs[keep]] = columns[0] if len(varying) < 2 else tie_rows(tracer, columns, tracer.where(func))
        tracer.counts(new[outs[keep]], result[outs[keep]])
    label(out, result)
    if hasattr(args[0], "_fresh"):
        mark_fresh(out)
    return out


@rule("permute", "transpose", "t", "transpose_", "t_")
def permute(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    out = tracer.run(func, args, kwargs)
    codes = tracer.codes(args[0])
    n = args[0].dim()
    order = list(range(n))
    if func.overloadpacket is aten.permute:
        order = [d % n for d in args[1]]
    elif n > 1:
        i, j = (args[1] % n, args[2] % n) if len(args) == 3 else (0, 1)
        order[i], order[j] = order[j], order[i]
    return label(out, {k: codes[d] for k, d in enumerate(order) if d in codes})


@rule("unsqueeze", "unsqueeze_", "squeeze", "squeeze_")
def squeeze(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    codes = dict(tracer.codes(args[0]))
    old = tuple(args[0].shape)
    out = tracer.run(func, args, kwargs)
    if "unsqueeze" in func.__name__:
        at = args[1] % (len(old) + 1)
        return label(out, {d + (d >= at): v for d, v in codes.items()})
    if len(args) == 1:
        gone = [d for d, n in enumerate(old) if n == 1]
    else:
        dims = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
        gone = [d % len(old) for d in dims if old[d] == 1]
    for d in gone:
        if d in codes:
            tracer.classes.freeze(codes.pop(d) >> 1, tracer.where(func))
    return label(out, {d - sum(g < d for g in gone): v for d, v in codes.items()})


@rule("expand", "broadcast_to")
def expand(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    out = tracer.run(func, args, kwargs)
    shift = out.dim() - args[0].dim()
    result = {}
    for d, vector in tracer.codes(args[0]).items():
        if out.shape[d + shift] == len(vector):
            result[d + shift] = vector
            tracer.counts(len(vector), vector)
        else:
            tracer.classes.freeze(vector >> 1, tracer.where(func))
    return label(out, result)


@rule("slice", "narrow")
def slice_(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    p = bind(func, args, kwargs)
    out = tracer.run(func, args, kwargs)
    codes = dict(tracer.codes(args[0]))
    d = p["dim"] % args[0].dim()
    if d in codes and out.shape[d] != len(codes[d]):
        n, size, step = len(codes[d]), out.shape[d], p.get("step", 1)
        start = p["start"] or 0
        start = max(0, min(n, start + n if start < 0 else start))
        vector = codes[d]
        if tracer.decide(step == 1 and size and n % size == 0 and start % size == 0):  # one of equal parts
            vector = np.tile(tie_rows(tracer, vector.reshape(-1, size), tracer.where(func)), n // size)
        tracer.counts(start, vector[:start])
        tracer.counts(start + size, vector[: start + size])
        codes[d] = vector[start::step][:size]
        if not size:
            codes.pop(d)
    return label(out, codes)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "tensor_split")
def split(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    p = bind(func, args, kwargs)
    outs = tracer.run(func, args, kwargs)
    codes = dict(tracer.codes(args[0]))
    d = p["dim"] % args[0].dim()
    vector = codes.get(d)
    start = 0
    if vector is not None and tracer.decide(len({t.shape[d] for t in outs}) == 1):
        tied = tie_rows(tracer, vector.reshape(len(outs), -1), tracer.where(func))
        vector = np.tile(tied, len(outs))
    for t in outs:
        size = t.shape[d]
        if vector is not None:
            tracer.counts(size, vector[start : start + size])
        label(t, codes if vector is None else {**codes, d: vector[start : start + size]})
        start += size
    if vector is not None:  # the whole may be what is stored: x.split(self.channels // 2)
        tracer.counts(start, vector)
    return outs


@rule("unbind", "select")
def select(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    p = bind(func, args, kwargs)
    outs = tracer.run(func, args, kwargs)
    codes = dict(tracer.codes(args[0]))
    d = p["dim"] % args[0].dim()
    if d in codes:
        tracer.classes.freeze(codes.pop(d) >> 1, f"taken one by one by {tracer.where(func)}")
    for t in tree_leaves(outs):
        label(t, {k - (k > d): v for k, v in codes.items()})
    return outs


@rule("cat", "concat", "stack")
def cat(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    p = bind(func, args, kwargs)
    out = tracer.run(func, args, kwargs)
    parts = [t for t in p["tensors"] if t.dim() == p["tensors"][-1].dim() and t.numel()]
    if not any_codes(parts):
        return out
    why = tracer.where(func)
    along = p["dim"] % out.dim()
    stacked = func.overloadpacket is aten.stack
    all_codes = [tracer.codes(t) for t in parts]
    result: dict[int, Ints] = {}
    for d in range(parts[0].dim()):
        vectors = [c.get(d) for c in all_codes]
        if all(v is None for v in vectors):
            continue
        if d == along and not stacked:
            result[d] = np.concatenate([fixed(t.shape[d]) if v is None else v for t, v in zip(parts, vectors)])
            continue
        named = [v for v in vectors if v is not None]
        for v in named[1:]:
            tracer.classes.unite(named[0] >> 1, v >> 1, why)
        if len(named) < len(vectors):
            tracer.classes.freeze(named[0] >> 1, f"joined with a fixed size by {why}")
        result[d + (stacked and d >= along)] = (named[0] & ~1) | np.minimum.reduce([v & 1 for v in named])
    return label(out, result)


@rule("repeat")
def repeat(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    out = tracer.run(func, args, kwargs)
    shift = out.dim() - args[0].dim()
    codes = tracer.codes(args[0])
    return label(out, {d + shift: np.tile(v, args[1][d + shift]) for d, v in codes.items()})


@rule("constant_pad_nd")
def pad(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    p = bind(func, args, kwargs)
    out = tracer.run(func, args, kwargs)
    widths = {args[0].dim() - 1 - i: tuple(p["pad"][2 * i : 2 * i + 2]) for i in range(len(p["pad"]) // 2)}
    result = {}
    for d, vector in tracer.codes(args[0]).items():
        if any(any(w) for k, w in widths.items() if k != d) and p["value"] != 0:
            vector = vector & ~1
        before, after = widths.get(d, (0, 0))
        if before or after:  # channels of zeros that no layer makes: their number is fixed
            vector = np.concatenate([fixed(max(before, 0)), vector, fixed(max(after, 0))])
            vector = vector[-min(before, 0) : len(vector) + min(after, 0)]
        result[d] = vector
    return label(out, result)


@rule("flip", "roll")
def shift(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    out = tracer.run(func, args, kwargs)
    codes = dict(tracer.codes(args[0]))
    dims = args[1] if "flip" in func.__name__ else (args[2] if len(args) > 2 else list(range(args[0].dim())))
    for d in [d % args[0].dim() for d in dims]:
        if d in codes:
            tracer.classes.freeze(codes[d] >> 1, tracer.where(func))
    return label(out, codes)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "im2col")
def shuffle(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    out = tracer.run(func, args, kwargs)
    codes = dict(tracer.codes(args[0]))
    name = func.overloadpacket.__name__
    d = args[0].dim() - 3 if "pixel" in name else 1
    vector = codes.pop(d, None)
    for other in codes.values():
        tracer.classes.freeze(other >> 1, tracer.where(func))
    if vector is None:
        return out
    if name == "pixel_shuffle":
        vector = tie_rows(tracer, vector.reshape(-1, args[1] ** 2).T, tracer.where(func))
    elif "channel_shuffle" in name:
        vector = np.repeat(tie_rows(tracer, vector.reshape(args[1], -1), tracer.where(func)), args[1])
    else:
        vector = np.repeat(vector, out.shape[d] // len(vector))
    return label(out, {d: vector})


@rule("index_select")
def index_select(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """A choice of channels. Where the index is a buffer, thinning it thins the choice; what it reads stays whole."""
    out = tracer.run(func, args, kwargs)
    x, d, index = args[0], args[1] % args[0].dim(), args[2]
    codes = dict(tracer.codes(x))
    if d in codes:
        tracer.classes.freeze(codes.pop(d) >> 1, f"read through an index after {tracer.place}")
    if hasattr(index, "_slim_name"):
        if not getattr(index, "_codes", None):
            index._codes = {0: 2 * tracer.classes.fresh(len(index))}
        codes[d] = index._codes[0]
        mark_fresh(out)
    return label(out, codes)


@rule("copy_")
def copy_(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """Written over: what is written and what it is written to have the same channels."""
    target, source = args[:2]
    if any_codes([target, source]):
        why = tracer.where(func)
        mine, theirs = tracer.codes(target), tracer.codes(source)
        shift = target.dim() - source.dim()
        for d in {*mine, *(d + shift for d in theirs)}:
            a, b = mine.get(d), theirs.get(d - shift)
            if a is not None and b is not None and len(a) == len(b):
                tracer.classes.unite(a >> 1, b >> 1, why)
                lost = (a & 1) > (b & 1)
                tracer.classes.freeze(a[lost] >> 1, why)
            else:
                for v in (a, b):
                    if v is not None:
                        tracer.classes.freeze(v >> 1, why)
    if not target.is_meta:
        tracer.run(func, args, kwargs)
    return target


# -- folding a dimension -----------------------------------------------------------------------------------------------


def _dims(value: Any, n: int) -> list[int]:
    if value is None or value == []:
        return list(range(n))
    return [d % n for d in (value if isinstance(value, (list, tuple)) else [value])] if n else []


@rule(
    *("mean", "sum", "amax", "amin", "max", "min", "prod", "any", "all", "var", "std", "var_mean", "std_mean"),
    *("logsumexp", "argmax", "argmin", "linalg_vector_norm", "norm", "median", "nansum", "count_nonzero"),
)
def reduce(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """A reduction keeps the channels that it does not run along. A plain sum over gated channels loses nothing."""
    operands = tensors_in(args, kwargs)
    if len(operands) > 1:  # max(a, b) and its like
        return pointwise(tracer, func, args, kwargs)
    p = bind(func, args, kwargs)
    x = operands[0]
    name = func.overloadpacket.__name__
    dims = _dims(p.get("dim"), x.dim())
    if name == "mean" and x.is_meta and p.get("dtype") is None:
        kept = [1 if d in dims else n for d, n in enumerate(x.shape) if d not in dims or p.get("keepdim")]
        out: Any = torch.empty(kept, dtype=x.dtype, device=META)
    else:
        out = tracer.run(func, args, kwargs)
    codes = tracer.codes(x)
    if not codes:
        return out
    keeps_gate = name in ("mean", "sum", "amax", "amin", "max", "min", "prod", "linalg_vector_norm", "norm")
    result = {}
    for d, vector in codes.items():
        if d in dims:
            if name == "sum":
                tracer.read(vector, f"summed over by {tracer.where(func)}")
            else:
                tracer.classes.freeze(vector >> 1, f"{tracer.where(func)} runs over the channels")
        else:
            result[d if p.get("keepdim") else d - sum(g < d for g in dims)] = vector if keeps_gate else vector & ~1
    for t in tree_leaves(out):
        if isinstance(t, Tensor):
            label(t, result)
    return out


@rule(
    *("_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk", "native_layer_norm", "native_group_norm"),
    *("_fused_rms_norm", "_safe_softmax", "glu"),
)
def normalise(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator mixes along a dimension depends on how many channels there are: they stay."""
    p = bind(func, args, kwargs)
    out = tracer.run(func, args, kwargs)
    name = func.overloadpacket.__name__
    x = args[0]
    if name == "native_group_norm":
        mixed = list(range(1, x.dim()))
    elif "normalized_shape" in p:
        mixed = list(range(x.dim() - len(p["normalized_shape"]), x.dim()))
    else:
        mixed = _dims(p["dim"], x.dim())
    codes = dict(tracer.codes(x))
    for d in mixed:
        if d in codes:
            tracer.classes.freeze(codes.pop(d) >> 1, f"{tracer.where(func)} needs all of its channels")
    for t in tensors_in(args[1:], kwargs):
        tracer.freeze(t, tracer.where(func))
    for t in tree_leaves(out):
        if isinstance(t, Tensor) and t.shape == x.shape:
            label(t, {d: v & ~1 for d, v in codes.items()})
    return out


def factory(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def unknown(tracer: Tracer, func: Any, args: Any, kwargs: Any) -> Any:
    """No rule: nothing that this operator touches may change."""
    for t in tensors_in(args, kwargs):
        tracer.freeze(t, f"no rule for {tracer.where(func)}")
    return tracer.run(func, args, kwargs)
