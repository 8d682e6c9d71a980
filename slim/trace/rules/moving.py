"""Operators that move channels about: views, slices, concatenations, shuffles."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from slim.trace.codes import (
    BY_PRODUCER,
    Codes,
    TensorCodes,
    alike_along,
    codes_on,
    fresh_from,
    is_blank,
    is_fixed,
    mark_alike,
    mark_fresh,
    name_of,
    pass_source,
    set_codes,
    source_of,
)
from slim.trace.op import Op
from slim.trace.rules.registry import no_rule, rule


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Return the smallest runs of dimensions of two shapes that hold the same elements."""
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
            else:
                break
        if not ins and not outs:
            break
        blocks.append((ins, outs))
    return blocks


def _carried(old: tuple[int, ...], new: tuple[int, ...]) -> dict[int, int]:
    """Return which dimension of `old` each one of `new` is, of those that a view leaves whole."""
    blocks = (
        [[d for d in dims if shape[d] > 1] for dims, shape in zip(block, (old, new))] for block in _blocks(old, new)
    )
    return {outs[0]: ins[0] for ins, outs in blocks if len(ins) == len(outs) == 1}


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "_reshape_copy")
def view(op: Op) -> Tensor:
    """Split dimensions and merge them. Splitting one into parts couples the parts."""
    x = op.input
    out: Tensor = op.run()
    codes = op.codes()
    if out.dtype != x.dtype and out.shape != x.shape:
        return no_rule(op)
    pass_source(x, out, _carried(tuple(x.shape), tuple(out.shape)))
    if not codes:
        return out
    old, new = tuple(x.shape), tuple(out.shape)
    if 0 in old:
        op.freeze_tensor(x)
        return out
    result: TensorCodes = {}
    for ins, outs in op.decide(_blocks(old, new)):  # the thin network's, too, where sizes of 1 could be of any block
        named = [d for d in ins if d in codes]
        if not named:
            continue
        free = [d for d in named if not op.labeller.classes.frozen(codes[d].labels).all()]
        kept = op.decide((free or named)[0])  # what stays anyway has a fixed size
        for d in named:
            if d != kept:
                op.freeze(codes[d], f"merged with other channels by {op.where}")
        grid = codes[kept].reshape(*(-1 if d == kept else 1 for d in ins))
        grid = grid.broadcast_to([old[d] for d in ins]).reshape(*(new[d] for d in outs))
        if not outs:  # a dimension of one channel goes
            op.freeze(grid.reshape(-1))
            continue
        varying = [k for k in range(len(outs)) if grid.varies_along(k)]
        largest = sorted(varying or range(len(outs)), key=lambda k: (grid.shape[k], k), reverse=True)
        keep = op.decide(largest[0], largest)
        rows = grid.with_last(keep)
        result[outs[keep]] = rows[0] if len(varying) < 2 else op.couple_rows(rows)
        others = [new[d] for d in outs if d != outs[keep]]
        if op.decide(others) != others:  # two heads of four channels aren't one of four, once half of each are gone
            op.freeze(result[outs[keep]])
        if len(varying) > 1:  # heads and the channels of each: whole heads, or the same channels of all
            op.labeller.could_be_read(largest, (old, new), result[outs[keep]])
        op.count(new[outs[keep]], result[outs[keep]])
    op.label(out, result)
    producer = fresh_from(x)
    return out if producer is None else mark_fresh(out, producer)


@rule("permute", "transpose", "t", "transpose_", "t_")
def permute(op: Op) -> Tensor:
    codes = op.codes()
    n = op.input.dim()
    order = list(range(n))
    if op.name == "permute":
        order = [d % n for d in op["dims"]]
    elif n > 1:
        i, j = op.get("dim0", 0) % n, op.get("dim1", 1) % n
        order[i], order[j] = order[j], order[i]
    out = op.label(op.run(), {k: codes[d] for k, d in enumerate(order) if d in codes})
    pass_source(op.input, out, dict(enumerate(order)))
    return out


@rule("view_as_real")
def view_as_real(op: Op) -> Tensor:
    return op.label(op.run(), op.codes())


@rule("view_as_complex")
def view_as_complex(op: Op) -> Tensor:
    codes = dict(op.codes())
    parts = op.input.dim() - 1
    if parts in codes:
        op.freeze(codes.pop(parts))
    return op.label(op.run(), codes)


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(op: Op) -> Tensor:
    codes = op.codes()
    at = op["dim"] % (op.input.dim() + 1)
    out = op.label(op.run(), {d + (d >= at): v for d, v in codes.items()})
    pass_source(op.input, out, {d + (d >= at): d for d in range(op.input.dim())})
    return out


@rule("squeeze", "squeeze_")
def squeeze(op: Op) -> Tensor:
    codes = dict(op.codes())
    old = tuple(op.input.shape)
    dims = op.get("dim", range(len(old)))
    dims = [dims] if isinstance(dims, int) else dims
    gone = {d % len(old) for d in dims if old[d] == 1}
    for d in gone & codes.keys():
        op.freeze(codes.pop(d))
    return op.label(op.run(), {d - sum(g < d for g in gone): v for d, v in codes.items()})


@rule("expand", "broadcast_to")
def expand(op: Op) -> Tensor:
    out = op.run()
    shift = out.dim() - op.input.dim()
    result = {}
    for d, vector in op.codes().items():
        if out.shape[d + shift] == len(vector):
            result[d + shift] = vector
            op.count(len(vector), vector)
        else:
            op.freeze(vector)
    pass_source(
        op.input, out, {d + shift: d for d in range(op.input.dim()) if out.shape[d + shift] == op.input.shape[d]}
    )
    return op.label(out, result)


@rule("slice", "narrow")
def slice_(op: Op) -> Tensor:
    out = op.run()
    codes = dict(op.codes())
    d = op["dim"] % op.input.dim()
    if d in codes and out.shape[d] != len(codes[d]):
        vector = codes[d]
        n, size, step = len(vector), out.shape[d], op.get("step", 1)
        start = op["start"] or 0
        start = max(0, min(n, start + n if start < 0 else start))
        if op.decide(step == 1 and size and n % size == 0 and start % size == 0):  # one of equal parts
            vector = op.couple_rows(vector.reshape(-1, size)).tile(n // size)
        elif op.decide(step > 1 and n % step == 0):  # one of each few, which stay or go together
            vector = op.couple_rows(vector.reshape(-1, step).columns).repeat(step)
        op.count(start, vector[:start])
        op.count(start + size, vector[: start + size])
        codes[d] = vector[start::step][:size]
        if not size:
            codes.pop(d)
    elif d not in codes:
        op.expect(op["start"])
    pass_source(op.input, out, {k: k for k in range(out.dim())})
    return op.label(out, codes)


@rule("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "tensor_split")
def split(op: Op) -> Any:
    outs = op.run()
    codes = dict(op.codes())
    d = op["dim"] % op.input.dim()
    vector = codes.pop(d, None)
    if vector is None:
        for t in outs:
            op.label(t, codes)
        return outs
    if op.decide(len({t.shape[d] for t in outs}) == 1):
        vector = op.couple_rows(vector.reshape(len(outs), -1)).tile(len(outs))
    start = 0
    for t in outs:
        part = vector[start : start + t.shape[d]]
        op.count(t.shape[d], part)
        op.label(t, {**codes, d: part})
        pass_source(op.input, t, {k: k for k in range(t.dim())})
        start += t.shape[d]
    op.count(start, vector)  # the whole may be what is stored: x.split(self.channels // 2)
    return outs


@rule("unbind", "select")
def select(op: Op) -> Any:
    outs = op.run()
    codes = dict(op.codes())
    d = op["dim"] % op.input.dim()
    if d in codes:
        op.freeze(codes.pop(d), f"taken one by one by {op.where}")
    for t in tree_leaves(outs):
        op.label(t, {k - (k > d): v for k, v in codes.items()})
        pass_source(op.input, t, {k - (k > d): k for k in range(op.input.dim()) if k != d})
    return outs


@rule("cat", "concat", "stack")
def cat(op: Op) -> Tensor:
    out: Tensor = op.run()
    tensors = op["tensors"]
    parts = [t for t in tensors if t.dim() == tensors[-1].dim() and t.numel()]
    along = op["dim"] % out.dim()
    stacked = op.name == "stack"
    zeros = [not stacked and is_blank(t) and along in alike_along(t) for t in parts]
    numbers = all(zero or is_fixed(t) for t, zero in zip(parts, zeros))  # zeros beside numbers are numbers
    if (numbers or not any(zeros)) and not any(name_of(t) is not None or codes_on(t) for t in parts):
        return out
    why = op.where
    all_codes = [_any_number(op, t, along) if zero else op.codes(t) for t, zero in zip(parts, zeros)]
    result: TensorCodes = {}
    for d in range(parts[0].dim()):
        vectors = [c.get(d) for c in all_codes]
        named = [v for v in vectors if v is not None]
        if not named:
            continue
        if d == along and not stacked:
            result[d] = Codes.join(Codes.fixed(t.shape[d]) if v is None else v for t, v in zip(parts, vectors))
            continue
        for v in named[1:]:
            op.couple(named[0], v, why)
        if len(named) < len(vectors):
            op.freeze(named[0], f"joined with a fixed size by {why}")
        result[d + (stacked and d >= along)] = named[0].gated_where_all(*named[1:])
    return op.label(out, result)


def _any_number(op: Op, zeros: Tensor, dim: int) -> TensorCodes:
    """Return codes of channels of nothing but zeros, such as a first state: there may be as many as their reader has,
    where what their size is made of can follow."""
    codes = op.fresh(zeros.shape[dim]).with_gate()
    op.count(zeros.shape[dim], codes)
    return op.codes(zeros) | {dim: codes}


@rule("repeat")
def repeat(op: Op) -> Tensor:
    out = op.run()
    shift = out.dim() - op.input.dim()
    pass_source(op.input, out, {d + shift: d for d in range(op.input.dim())})
    mark_alike(out, (d for d in range(out.dim()) if d < shift or op.input.shape[d - shift] == 1))
    return op.label(out, {d + shift: v.tile(op["repeats"][d + shift]) for d, v in op.codes().items()})


@rule("constant_pad_nd")
def pad(op: Op) -> Tensor:
    n, widths = op.input.dim(), op["pad"]
    added = {n - 1 - i: tuple(widths[2 * i : 2 * i + 2]) for i in range(len(widths) // 2)}
    result = {}
    for d, vector in op.codes().items():
        if any(any(w) for k, w in added.items() if k != d):
            vector = vector.zero_or_open() if op["value"] == 0 else vector.ungated()
        before, after = added.get(d, (0, 0))
        if before or after:  # channels of zeros that no layer makes: their number is fixed
            vector = Codes.join([Codes.fixed(max(before, 0)), vector, Codes.fixed(max(after, 0))])
            vector = vector[-min(before, 0) : len(vector) + min(after, 0)]
        result[d] = vector
    return op.label(op.run(), result)


@rule("flip")
def flip(op: Op) -> Tensor:
    """Turned round, channels keep their order among those that stay."""
    n = op.input.dim()
    turned = {d % n for d in op["dims"]}
    return op.label(op.run(), {d: v[::-1] if d in turned else v for d, v in op.codes().items()})


@rule("roll")
def roll(op: Op) -> Tensor:
    """The order of channels changes: they stay where that is along them."""
    codes = op.codes()
    n = op.input.dim()
    for d in {d % n for d in op["dims"] or range(n)} & codes.keys():
        op.freeze(codes[d])
    return op.label(op.run(), codes)


@rule("unfold")
def unfold(op: Op) -> Tensor:
    """Windows along one dimension, which then have a dimension of their own, the last."""
    codes = dict(op.codes())
    d = op["dimension"] % op.input.dim()
    if d in codes:
        op.freeze(codes.pop(d), f"{op.where} runs along it")
    return op.label(op.run(), codes)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "im2col", "col2im")
def shuffle(op: Op) -> Tensor:
    out = op.run()
    codes = dict(op.codes())
    d = 1 if "channel" in op.name else op.input.dim() - (2 if op.name == "col2im" else 3)
    vector = codes.pop(d, None)
    for other in codes.values():
        op.freeze(other)
    if vector is None:
        return op.label(out, {})
    if op.name in ("pixel_shuffle", "col2im"):
        vector = op.couple_rows(vector.reshape(out.shape[d], -1).columns)
    elif "channel_shuffle" in op.name:
        vector = op.couple_rows(vector.reshape(op["groups"], -1)).repeat(op["groups"])
    else:
        vector = vector.repeat(out.shape[d] // len(vector))
    return op.label(out, {d: vector})


@rule("copy_")
def copy_(op: Op) -> Tensor:
    """Written over: what is written and what it is written to have the same channels."""
    target: Tensor = op["self"]
    source: Tensor = op["src"]
    if op.labelled:
        theirs = {d + target.dim() - source.dim(): codes for d, codes in op.codes(source).items()}
        theirs |= _scales(op, source, theirs, target.dim() - source.dim())
        mine = op.codes(target) or _take_on(target, theirs)
        for d in {*mine, *theirs}:
            a, b = mine.get(d), theirs.get(d)
            if a is not None and b is not None and len(a) == len(b):
                op.couple(a, b)
                op.lose_gate(a, b)
            else:
                for v in (a, b):
                    if v is not None:
                        op.freeze(v)
    if not target.is_meta:
        op.run()
    return target


def _scales(op: Op, source: Tensor, codes: TensorCodes, shift: int) -> TensorCodes:
    """Return the codes of what is written where that is a parameter, a bias say, which can be set to zero."""
    origin = source_of(source)
    if origin is None:
        return {}
    masked = any(name_of(origin[0]) in made.tensors for made in op.labeller.producers.values())  # with a layer's weight
    found = {d: vector for d, vector in codes.items() if d - shift in origin[1]}
    for d in found if not masked else ():
        op.scale(source, d - shift)
    return {d: vector.with_gate(BY_PRODUCER) for d, vector in found.items()}


def _take_on(view: Tensor, codes: TensorCodes) -> TensorCodes:
    """Give new memory, all of it zeros or not set, the channels of what is first written to a part of it; return those
    of the part."""
    memory = view._base if view._base is not None else view
    if not is_blank(memory) or codes_on(memory):
        return {}
    whole: TensorCodes = {}
    for d, vector in codes.items():
        along = [k for k in range(memory.dim()) if (memory.shape[k], memory.stride(k)) == (len(vector), view.stride(d))]
        if len(along) != 1 or len(vector) != view.shape[d]:
            return {}
        whole[along[0]] = vector
    set_codes(memory, whole)
    return codes


@rule("_pack_padded_sequence")
def pack(op: Op) -> Any:
    """Sequences of several lengths, [B, T, C], end to end: [steps, C]."""
    x, lengths = op["input"], op["lengths"]
    codes = op.codes(x)
    for d in {0, 1} & codes.keys():
        op.freeze(codes[d], f"{op.where} runs along it")
    if x.is_meta:  # how many steps there are is a matter of values
        data, sizes = op.func(torch.empty(*x.shape[:2], 0), lengths, op["batch_first"])
        outs = torch.empty(len(data), *x.shape[2:], dtype=x.dtype, device=x.device), sizes
    else:
        outs = op.run()
    op.label(outs[0], {d - 1: vector for d, vector in codes.items() if d > 1})
    return outs


@rule("_pad_packed_sequence")
def unpack(op: Op) -> Any:
    data, sizes = op["data"], op["batch_sizes"]
    codes = op.codes(data)
    if 0 in codes:
        op.freeze(codes[0], f"{op.where} runs along it")
    settings = op["batch_first"], op["padding_value"], op["total_length"]
    if data.is_meta:
        empty, lengths = op.func(torch.empty(len(data), 0), sizes, *settings)
        outs = torch.empty(*empty.shape[:2], *data.shape[1:], dtype=data.dtype, device=data.device), lengths
    else:
        outs = op.run()
    keep = {d + 1: vector for d, vector in codes.items() if d > 0}
    zero = op["padding_value"] == 0
    op.label(outs[0], {d: vector.zero_or_open() if zero else vector.ungated() for d, vector in keep.items()})
    return outs


@rule("as_strided_", "as_strided")
def as_strided(op: Op) -> Tensor:
    """Other strides under the same shape, as torch sets them for its memory formats, move no channels."""
    if tuple(op["size"]) != tuple(op.input.shape):
        return no_rule(op)
    return op.label(op.run(), op.codes())


@rule("glu")
def glu(op: Op) -> Tensor:
    """One half of the channels times the sigmoid of the other: both are coupled, and zero where the first one is."""
    out: Tensor = op.run()
    codes = dict(op.codes())
    d = op["dim"] % op.input.dim()
    if d in codes:
        half = len(codes[d]) // 2
        first, second = codes[d][:half], codes[d][half:]
        op.couple(first, second)
        codes[d] = first.zero_or_open()
    return op.label(out, codes)
