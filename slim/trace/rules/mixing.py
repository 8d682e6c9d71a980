"""Operators that mix channels: convolutions and matrix products."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from slim.trace.classes import Ints
from slim.trace.codes import (
    BY_PRODUCER,
    OPEN,
    Codes,
    TensorCodes,
    alike_along,
    codes_on,
    is_fixed,
    layer_of,
    mark_fresh,
    name_of,
    origin_of,
    pass_source,
    source_of,
)
from slim.trace.copy import dotted
from slim.trace.labeller import Product
from slim.trace.lengths import owner_of
from slim.trace.meta import META
from slim.trace.op import Op
from slim.trace.rules.registry import no_rule, rule


@rule("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution")
def convolution(op: Op) -> Tensor:
    x, weight, bias = op["input"], op["weight"], op.get("bias")
    conv = Convolution(op, weight, op["groups"], op.get("transposed", False))
    if x.is_meta and x.dim() == weight.dim() and "transposed" in op.arguments:
        out = torch.empty(_conv_shape(op), dtype=x.dtype, device=META)
    else:
        out = op.run()
    codes = dict(op.codes(x))
    incoming, batch = codes.pop(1, None), codes.pop(0, None)
    for vector in codes.values():
        op.freeze(vector, f"the convolution {conv.name} runs along it")
    reading = "dense"
    if conv.groups > 1:
        depthwise = conv.groups == x.shape[1] and (incoming is not None or conv.multiplier == 1)
        reading = "depthwise" if depthwise else "whole groups" if op.labeller.whole_groups else "within groups"
    reading = op.decide(reading)
    if incoming is not None and reading != "depthwise":
        op.mix(incoming, conv.why)
    outgoing = _READINGS[reading](conv, incoming)
    computed = outgoing
    if bias is not None:
        biased = op.axis(bias, 0, outgoing, conv.why)
        outgoing = None if biased is None else biased.ungated()
    producer = None
    if outgoing is not None and not (conv.transposed and reading == "whole groups"):
        dim = 1 if conv.transposed and reading != "depthwise" else 0
        producer = op.produce("Conv", (weight, dim), (bias, 0), made=outgoing)
        outgoing = _of_computed(op, computed, outgoing, bias) if producer is None else outgoing.add_gate(BY_PRODUCER)
    own = codes_on(weight)
    for d, vector in own.items():
        if d > 1:  # a computed weight knows them, too
            op.freeze(vector, f"the window of {conv.name}")
    dims: list[int | Ints] = [own[d].labels if d < 2 and d in own else n for d, n in enumerate(weight.shape)]
    positions = math.prod((x if conv.transposed else out).shape[2:])
    made = {} if outgoing is None else {1: outgoing}
    if batch is None:
        positions *= x.shape[0]
    else:  # channels of images of one channel each
        kept = batch if conv.keeps_constants else batch.zero_or_open()
        made[0] = kept if bias is None else batch.ungated()
        dims.append(batch.labels)
    op.labeller.products.append(Product(conv.name, positions, dims))
    return mark_fresh(op.label(out, made), producer or "")


@rule("torchvision::deform_conv2d")
def deformable(op: Op) -> Tensor:
    """A convolution, whose places are given, for each of some parts of the channels. torch's counter of FLOPs doesn't
    know it."""
    for places in (op["offset"], op["mask"]):
        op.freeze_tensor(places, f"places of {op.where}")
    codes, parts = dict(op.codes(op["input"])), op["offset_groups"]
    if 1 in codes and parts > 1:
        codes[1] = op.couple_rows(codes[1].reshape(parts, -1)).tile(parts)
        op.label(op["input"], codes)
    out = convolution(op)
    op.labeller.products.pop()
    return out


def _conv_shape(op: Op) -> list[int]:
    """Compute the shape of a convolution's output, which takes a tenth of the time that tensors without data take."""
    x, w, groups, transposed = op["input"], op["weight"], op["groups"], op["transposed"]
    sizes = []
    k = w.dim() - 2
    per = [[v[0]] * k if len(v) == 1 else v for v in (op[n] for n in ("stride", "padding", "dilation"))]
    extras = op["output_padding"]
    extras = [extras[0]] * k if len(extras) == 1 else extras
    for i, (n, s, pad, d, extra) in enumerate(zip(x.shape[2:], *per, extras)):
        reach = d * (w.shape[2 + i] - 1)
        sizes.append((n - 1) * s - 2 * pad + reach + extra + 1 if transposed else (n + 2 * pad - reach - 1) // s + 1)
    channels = w.shape[1] * groups if transposed else w.shape[0]
    expected = w.shape[0] if transposed else w.shape[1] * groups
    if x.shape[1] != expected or (not transposed and w.shape[0] % groups):
        raise RuntimeError(f"a convolution that takes {expected} channels in {groups} groups got {x.shape[1]}")
    return [x.shape[0], channels, *sizes]


@dataclass
class Convolution:
    """A convolution at hand. Its readings below take the codes of the channels that it reads, and return those of the
    channels that it makes: None where their number is fixed."""

    op: Op
    weight: Tensor
    groups: int
    transposed: bool

    @cached_property
    def name(self) -> str:
        name = name_of(self.weight)
        return "a computed weight" if name is None else layer_of(name)

    @cached_property
    def why(self) -> str:
        return f"not zero where {self.name} reads it"

    @cached_property
    def keeps_constants(self) -> bool:
        """Say whether what it makes of a channel that is the same at all places is the same at all places."""
        return is_fixed(self.weight) and not self.transposed and not any(self.op.get("padding", (1,)))

    @property
    def multiplier(self) -> int:
        """Return how many channels each channel becomes, where each is a group."""
        return self.weight.shape[1] if self.transposed else self.weight.shape[0] // self.groups

    def axis(self, dim: int, codes: Codes | None) -> Codes | None:
        return self.op.axis(self.weight, dim, codes, self.why)

    def _count_groups(self, codes: Codes) -> None:
        """Note that there is a group for each of these channels."""
        source = origin_of(self.weight)
        name = None if source is None else name_of(source[0])
        if name is not None:
            self.op.labeller.group_counts[dotted(owner_of(name), "groups")] = codes.labels

    def dense(self, incoming: Codes | None) -> Codes | None:
        self.axis(0 if self.transposed else 1, incoming)
        return self.op.made(self.weight, 1 if self.transposed else 0)

    def depthwise(self, incoming: Codes | None) -> Codes | None:
        """Each channel keeps to itself, and makes one channel or several (a multiplier)."""
        if incoming is not None:
            self.op.count(self.groups, incoming)
        many = self.multiplier
        expanded = None if incoming is None else incoming.repeat(many)
        if self.transposed and many > 1:
            by_channel = self.axis(0, incoming)
            self.axis(1, None)
            outgoing = None if by_channel is None else by_channel.repeat(many)
        elif expanded is not None and 0 in alike_along(self.weight):
            self.op.count(len(expanded), expanded)
            outgoing = expanded
        else:
            outgoing = self.axis(0, expanded)
        if outgoing is None or expanded is None:
            return None if outgoing is None else outgoing.ungated()
        return outgoing.with_gate(expanded.gate, expanded.constant if self.keeps_constants else OPEN)

    def within_groups(self, incoming: Codes | None) -> Codes | None:
        """Each group of channels reads a group of its own: the same places of all groups are coupled."""
        if incoming is not None:
            coupled = self.op.couple_rows(incoming.reshape(self.groups, -1), self.why)
            incoming = coupled.tile(self.groups) if self.transposed else coupled
        elif self.groups == self.op["input"].shape[1]:
            self._count_groups(Codes.fixed(self.groups))  # each channel makes several, of which some go
        outgoing = self.dense(incoming)
        if outgoing is None:
            return None
        if self.transposed:
            return outgoing.tile(self.groups)
        self.op.couple_rows(outgoing.reshape(self.groups, -1), self.why)
        return outgoing

    def all_of_groups(self, incoming: Codes | None) -> Codes | None:
        """As `within_groups`, but all that a group reads and makes is coupled."""
        if incoming is not None:
            self.op.couple_rows(incoming.reshape(self.groups, -1).columns, self.why)
            self._count_groups(incoming.reshape(self.groups, -1)[:, 0])
        if self.transposed:
            by_channel = self.axis(0, incoming)
            self.axis(1, None)
            if by_channel is None:
                return None
            return by_channel.reshape(self.groups, -1)[:, 0].repeat(self.weight.shape[1]).ungated()
        self.axis(1, None)
        outgoing = self.op.made(self.weight, 0)
        if outgoing is not None and incoming is None:
            self.op.freeze(outgoing, self.why)
        elif outgoing is not None and incoming is not None:
            both = Codes.join([outgoing.reshape(self.groups, -1), incoming.reshape(self.groups, -1)])
            self.op.couple_rows(both.columns, self.why)
        return outgoing


_READINGS: dict[str, Callable[[Convolution, Codes | None], Codes | None]] = {
    "dense": Convolution.dense,
    "depthwise": Convolution.depthwise,
    "within groups": Convolution.within_groups,
    "whole groups": Convolution.all_of_groups,
}


@rule("mm", "bmm", "addmm", "baddbmm")
def product(op: Op) -> Tensor:
    """a @ b (+ bias) over the last two dimensions."""
    names = (("mat1", "mat2"), ("batch1", "batch2"), ("self", "mat2"))
    first, second = next(pair for pair in names if pair[0] in op.arguments)
    a, b, bias = op[first], op[second], op["self"] if first != "self" else None
    if a.is_meta and a.shape[-1] == b.shape[-2] and a.shape[:-2] == b.shape[:-2]:
        out = torch.empty((*a.shape[:-1], b.shape[-1]), dtype=a.dtype, device=META)
    else:
        out = op.run()
    name = op.labeller.place
    of_a, of_b = op.codes(a), op.codes(b)
    last = out.dim() - 1
    why = f"not zero where {name} reads it"
    inner_a, inner_b = of_a.get(last), of_b.get(last - 1)
    _contract(op, inner_a, inner_b, why)
    codes: TensorCodes = {}
    if last == 2:  # the batch of a batched product
        one, other = of_a.get(0), of_b.get(0)
        if one is not None and other is not None:
            op.couple(one, other, why)
            codes[0] = one.gated_where_any(other).zero_or_open()
        for only in (one, other):
            if only is not None and 0 not in codes:
                op.freeze(only, f"batch of a product in {name}")
    codes |= {d: c[d].zero_or_open() for d, c in ((last - 1, of_a), (last, of_b)) if d in c}
    computed = codes.get(last)
    if bias is not None:
        codes = {d: vector.ungated() for d, vector in codes.items()}
        own = op.axis(bias, bias.dim() - 1, codes.get(last), why)
        if own is not None:
            codes[last] = own.ungated()
    producer = _gate_products(op, codes, {last - 1: a, last: b}, bias)
    if producer is None and last in codes:
        codes[last] = _of_computed(op, computed, codes[last], bias)
    rows = math.prod(a.shape[:-1])
    dims: list[Any] = [_sizes(inner_a, a.shape[last]), _sizes(codes.get(last), out.shape[last])]
    if last - 1 in of_a:
        rows, dims = rows // a.shape[last - 1], [of_a[last - 1].labels, *dims]
    op.labeller.products.append(Product(name, rows, dims))
    return mark_fresh(op.label(out, codes), producer or "")


def _of_computed(op: Op, computed: Codes | None, made: Codes, bias: Tensor | None) -> Codes:
    """Gate what a computed weight makes where that is zero, and the bias with it."""
    if bias is None or computed is None or computed.common_gate == OPEN:
        return made
    gate = computed.gate & codes_on(bias)[bias.dim() - 1].gate
    if source_of(bias) is not None and (computed.gate != OPEN).any():
        op.scale(bias, bias.dim() - 1)
        gate = computed.gate & BY_PRODUCER
    return made.with_gate(gate)


@rule("_cdist_forward", "_euclidean_dist")
def distances(op: Op) -> Tensor:
    """How far the rows of one tensor are from those of another: a channel that is zero in both adds nothing."""
    out: Tensor = op.run()
    last, codes = out.dim() - 1, TensorCodes()
    inner: list[Codes | None] = []
    for place, x in enumerate((op["x1"], op["x2"])):
        found = dict(op.codes(x))
        channels = found.pop(x.dim() - 1, None)
        inner.append(None if channels is None else op.gated_as_own(channels, x, x.dim() - 1))
        rows = found.pop(x.dim() - 2, None)
        if rows is not None:
            codes[last - 1 + place] = rows.ungated()
        for vector in found.values():
            op.freeze(vector)
    one, other = inner
    if one is not None and other is not None:
        op.couple(one, other)
        op.mix(one.gated_where_all(other), f"summed over by {op.where}")
    for only in inner:
        if only is not None and None in inner:
            op.freeze(only, f"combined with a fixed size by {op.where}")
    return op.label(out, codes)


@rule("_trilinear")
def bilinear(op: Op) -> Tensor:
    """nn.Bilinear: for each output a matrix between both inputs, [out, in1, in2]. A channel of either can go."""
    weight, inputs = op["i2"], {1: op["i1"], 2: op["i3"]}
    if [op[name] for name in ("expand1", "expand2", "expand3", "sumdim")] != [[1, 3], [0], [1, 2], [2, 3]]:
        return no_rule(op)
    out: Tensor = op.run()
    sizes: list[int | Ints] = []
    for dim, x in inputs.items():
        codes = dict(op.codes(x))
        inner = codes.pop(1, None)
        own = op.axis(weight, dim, inner)
        if inner is not None:
            op.mix(inner, f"not zero where {op.labeller.place} reads it")
        sizes.append(_sizes(own, x.shape[1]))
        for vector in codes.values():
            op.freeze(vector)
    made = op.made(weight, 0)
    if made is None:
        return out
    op.labeller.products.append(Product(op.labeller.place, len(out), [*sizes, made.labels]))
    producer = op.produce("Linear", (weight, 0))
    return mark_fresh(op.label(out, {1: made.with_gate(BY_PRODUCER if producer else OPEN)}), producer or "")


def _gate_products(op: Op, codes: TensorCodes, operands: dict[int, Tensor], bias: Tensor | None) -> str | None:
    """Gate what a parameter makes along a dimension of a product; the name of the last one that does."""
    producer = None
    for d, operand in operands.items():
        along_bias = bias is not None and d == max(operands)
        if d not in codes or source_of(operand) is None or (bias is not None and not along_bias):
            continue
        made = op.produce("Linear", (operand, d), (bias, bias.dim() - 1 if bias is not None else 0))
        if made is not None:
            codes[d] = codes[d].add_gate(BY_PRODUCER)
            producer = made
    return producer


def _contract(op: Op, a: Codes | None, b: Codes | None, why: str) -> None:
    """Sum over what two operands have in common: a channel can go where one of them is zero."""
    if a is not None and b is not None:
        op.couple(a, b, why)
        op.mix(a.gated_where_any(b), why)
        return
    for inner in (a, b):
        if inner is not None:
            op.freeze(inner, f"multiplied by a fixed size in {op.labeller.place}")


def _sizes(codes: Codes | None, size: int) -> int | Ints:
    return size if codes is None else codes.labels


@rule("_weight_norm_interface")
def weight_norm(op: Op) -> Any:
    """A weight computed of directions v and lengths g: g follows v along the dimension that has lengths of its own."""
    v, g = op["v"], op["g"]
    codes = _along_lengths(op, v)
    if op["dim"] in codes:
        op.axis(g, op["dim"], codes[op["dim"]])
    weight, lengths = op.run()
    pass_source(g, weight, {op["dim"]: op["dim"]})  # without length a direction is zero
    return op.label(weight, codes), lengths


@rule("slim::spectral_norm")
def spectral_norm(op: Op) -> Tensor:
    """A weight over a number of its own: one vector follows what it makes, the other what it reads."""
    weight, made = op["weight"], op["dim"]
    read, *window = (d for d in range(weight.dim()) if d != made)
    codes = op.codes(weight)
    out = op.run()
    pass_source(weight, out, {d: d for d in range(weight.dim())})
    for vector, along in ((op["u"], codes.get(made)), (op["v"], codes.get(read))):
        times = math.prod(weight.shape[d] for d in window) if vector is op["v"] else 1
        op.axis(vector, 0, None if along is None else along.repeat(times))
    return op.label(out, {d: codes[d] for d in (made, read) if d in codes})


@rule("renorm")
def renorm(op: Op) -> Tensor:
    """A weight whose slices along a dimension are no longer than a length."""
    codes = _along_lengths(op, op.input)
    out = op.label(op.run(), codes)
    pass_source(op.input, out, {op["dim"]: op["dim"]})
    return out


def _along_lengths(op: Op, weight: Tensor) -> TensorCodes:
    """The codes of a tensor whose lengths run over all dimensions but one. Channels along those stay, but for weights
    that `rebuild` states anew for the channels that are left."""
    codes = op.codes(weight)
    if name_of(weight) not in op.labeller.stated_anew:
        for d, vector in codes.items():
            if d != op["dim"]:
                op.freeze(vector, f"{op.where} runs over it")
    return codes
