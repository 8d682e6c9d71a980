"""Operators that read or write at places given by numbers: indexing, gather, scatter."""

from typing import Any

import torch
from torch import Tensor

from slim.trace.codes import (
    BY_NORM,
    BY_PRODUCER,
    NUMBERED,
    Codes,
    TensorCodes,
    alike_along,
    codes_on,
    is_blank,
    mark_fresh,
    mark_written,
    name_of,
    set_codes,
)
from slim.trace.constants import number_in
from slim.trace.op import Op
from slim.trace.rules.registry import no_rule, rule


@rule("index_select")
def index_select(op: Op) -> Tensor:
    out: Tensor = op.run()
    x, index = op["self"], op["index"]
    d = op["dim"] % x.dim()
    codes = dict(op.codes())
    chosen = _chosen(op, index, codes.pop(d, None), out)
    return op.label(out, codes if chosen is None else codes | {d: chosen})


@rule("index")
def index(op: Op) -> Tensor:
    """A choice by lists of numbers."""
    out: Tensor = op.run()
    x, indices = op["self"], op["indices"]
    codes = dict(op.codes())
    taken = _taken(indices)
    if taken is None:
        for t in op.tensors:
            op.freeze_tensor(t)
        return op.label(out, {})
    made = out.dim() - (x.dim() - len(taken))  # dimensions in place of those
    first = taken[0]
    chosen = None
    if len(taken) == made == 1 and indices[first].dtype != torch.bool:
        chosen = _chosen(op, indices[first], codes.pop(first, None), out)
    for d in taken:
        if d in codes:
            op.freeze(codes.pop(d), _read(op))
    for each in op.others:
        if each.dtype == torch.bool:
            op.freeze_tensor(each, _read(op))
    result = {d if d < first else d - len(taken) + made: vector for d, vector in codes.items()}
    return op.label(out, result if chosen is None else result | {first: chosen})


def _taken(indices: list[Tensor | None]) -> list[int] | None:
    """Return the dimensions that indices take, of which a mask takes several; None where they aren't beside each
    other."""
    taken: list[int] = []
    d = 0
    for each in indices:
        width = each.dim() if each is not None and each.dtype == torch.bool else 1
        taken += range(d, d + width) if each is not None else ()
        d += width
    return taken if taken == list(range(taken[0], taken[0] + len(taken))) else None


@rule("index_put", "index_put_", "_index_put_impl_")
def index_put(op: Op) -> Tensor:
    """What is written to places given by numbers or by a mask, along the dimensions that these take."""
    target, values, indices = op["self"], op["values"], op["indices"]
    taken = _taken(indices)
    if taken is None:
        return no_rule(op)
    before = op.codes(target) if op.in_place and not op.unset[0] else {}
    mine, theirs = dict(op.codes(target)), dict(op.codes(values))
    for d in mine.keys() & taken:
        op.freeze(mine.pop(d), _read(op))
    for each in indices:
        if each is not None:
            op.freeze_tensor(each)
    codes: TensorCodes = {}
    for d in range(target.dim()):
        own = d - target.dim() + values.dim()  # counted from the end, as they broadcast
        written = theirs.pop(own, None) if d > taken[-1] else None
        vector = mine.get(d)
        if vector is not None and written is not None and len(vector) == len(written):
            op.couple(vector, written)
            codes[d] = vector.gated_where_all(written).zero_or_open()
        elif vector is not None and written is None and (own < 0 or values.shape[own] == 1):
            codes[d] = vector.zero_or_open() if _is_zero(op, values) else vector.ungated()
        elif written is not None and vector is None and is_blank(target) and d in alike_along(target):
            op.count(len(written), written)
            codes[d] = written.zero_or_open()
        else:
            for only in (vector, written):
                if only is not None:
                    op.freeze(only, f"combined with a fixed size by {op.where}")
    for vector in theirs.values():
        op.freeze(vector, _read(op))
    for d, was in before.items():
        op.lose_gate(was, codes.get(d))
    out = op.label(op.run(), codes)
    mark_written(out)
    return out


def _is_zero(op: Op, values: Tensor) -> bool:
    """Return whether what is written is zero."""
    return is_blank(values) or number_in(values, meta=op.labeller.meta) == 0


def _read(op: Op) -> str:
    return f"read through an index after {op.labeller.place}"


def _chosen(op: Op, index: Tensor, vector: Codes | None, out: Tensor) -> Codes | None:
    """Return the codes of what an index chooses along a dimension, None where their number is fixed.

    An index that is a buffer is thinned and numbered anew where all that it reads are channels that a norm can set to
    zero. Of another stream it is a choice of its own, which can be thinned, and the stream stays whole.
    """
    if name_of(index) is None or index.dim() != 1:
        if vector is not None:
            op.freeze(vector, _read(op))
        return None
    own = codes_on(index)
    moves = vector is not None and bool((vector.gate == BY_NORM).all()) and not index.is_meta and int(index.min()) >= 0
    if vector is not None and moves and (not own or NUMBERED in own):
        moved = vector[index.cpu().numpy()]
        if own:
            op.couple(own[NUMBERED], vector)
            op.couple(own[0], moved)
        else:
            set_codes(index, {0: moved.ungated(), NUMBERED: vector.ungated()})
        return moved
    if vector is not None:
        op.freeze(vector, _read(op))
    if not own:
        set_codes(index, {0: op.fresh(len(index))})
    mark_fresh(out)
    return codes_on(index)[0]


@rule("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embedding(op: Op) -> Any:
    """Rows of a table, by number: its columns are channels."""
    table = op["weight"]
    codes = op.codes(table)
    if 0 in codes:
        op.freeze(codes[0], _read(op))
    for t in op.others:
        op.freeze_tensor(t)
    outs = op.run()
    out = outs if isinstance(outs, Tensor) else outs[0]
    producer = None
    if 1 in codes:
        producer = op.produce("Embedding", (table, 1))
        made = codes[1] if producer is None else codes[1].add_gate(BY_PRODUCER)
        op.label(out, {out.dim() - 1: made})
        mark_fresh(out, producer or "")
    return outs


@rule("gather")
def gather(op: Op) -> Tensor:
    """Elements at places along one dimension, each place of the others by itself."""
    x, places = op["self"], op["index"]
    along = op["dim"] % x.dim() if x.dim() else 0
    codes = _elsewhere(op, [x, places], along)
    return op.label(op.run(), codes)


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(op: Op) -> Tensor:
    """Elements written to places along one dimension, each place of the others by itself."""
    return _written(op, [op["index"]], [op[name] for name in ("src",) if name in op.arguments])


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def index_add(op: Op) -> Tensor:
    """Slices written to places along one dimension."""
    return _written(op, [], [op["source"]])


def _written(op: Op, places: list[Tensor], sources: list[Tensor]) -> Tensor:
    target: Tensor = op["self"]
    before = op.codes(target) if op.in_place and not op.unset[0] else {}
    codes = _elsewhere(op, [target, *sources, *places], op["dim"] % target.dim() if target.dim() else 0)
    codes = {d: v.gated_where_all(*(c[d] for s in sources if d in (c := op.codes(s)))) for d, v in codes.items()}
    if not sources:  # a number, which need not be zero
        codes = {d: v.ungated() for d, v in codes.items()}
    codes = {d: v.zero_or_open() for d, v in codes.items()}  # at some places, which ones is a matter of values
    for d, was in before.items():
        op.lose_gate(was, codes.get(d))
    return op.label(op.run(), codes)


def _elsewhere(op: Op, operands: list[Tensor], along: int) -> TensorCodes:
    """Couple what the operands have along all dimensions but the one along which they are read or written at places.
    The codes there are the first operand's."""
    held = [dict(op.codes(t)) for t in operands]
    for codes in held:
        if along in codes:
            op.freeze(codes.pop(along), _read(op))
    found = {}
    for d in sorted({d for codes in held for d in codes}):
        sizes = {t.shape[d] for t in operands}
        labelled = [codes[d] for codes in held if d in codes]
        fixed = [t for t, codes in zip(operands, held) if d not in codes]
        if len(sizes) > 1 or any(d not in alike_along(t) for t in fixed):
            for vector in labelled:
                op.freeze(vector, f"combined with a fixed size by {op.where}")
            continue
        for vector in labelled[1:]:
            op.couple(labelled[0], vector)
        if fixed:  # one value for all of them, spread by expand
            op.count(len(labelled[0]), labelled[0])
        found[d] = labelled[0] if d in held[0] or is_blank(operands[0]) else labelled[0].ungated()
    return found
