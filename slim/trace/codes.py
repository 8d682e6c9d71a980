"""What tensors carry through a trace: a code for each channel along every dimension that follows a layer's channels.

A dimension without codes has a fixed size. Codes lie in an attribute of the tensor, beside the name of a parameter or
buffer and the mark of what comes straight out of a layer; nothing else reads or writes those attributes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.trace.classes import Ints

Bools = NDArray[np.bool_]


NUMBERED = -1  # in place of a dimension: the one, of another tensor, whose channels an index numbers
OPEN, BY_PRODUCER, BY_NORM = 0, 1, 3  # gates; a norm is one of the producers, so its gate includes theirs


class Codes:
    """A label (see `classes`) for each channel, and its gate: what makes the channel exactly zero.

    The gate is `BY_NORM` where the channel is zero once the norms of its class are masked (γ = β = 0), `BY_PRODUCER`
    where it takes the convolutions and linear layers that make channels of its class, too, and `OPEN` where it isn't
    sure to be zero. A second gate says what makes the channel *constant*, one number whatever the network is given:
    zero is one, and what log(x + ε) makes of it another. An immutable array, of one dimension or, while channels are
    moved about, several. Label 0 is a fixed size.
    """

    __slots__ = ("_bits", "_gate", "_labels")  # 16 * label + 4 * constant + gate: one array to move about

    def __init__(self, bits: Ints, gate: int | None = None) -> None:
        self._bits = bits
        self._gate = gate  # both gates (4 * constant + gate) of all channels, where these are known to be alike
        self._labels: Ints | None = None

    @classmethod
    def of(cls, labels: Ints) -> "Codes":
        """Return ungated codes of these labels."""
        made = cls(16 * labels, OPEN)
        made._labels = labels
        return made

    @classmethod
    def fixed(cls, n: int) -> "Codes":
        """Return the codes of `n` channels whose number is fixed."""
        return cls(np.zeros(n, np.int64), OPEN)

    @classmethod
    def join(cls, parts: Iterable["Codes"]) -> "Codes":
        """Return all `parts` end to end (along the last dimension)."""
        parts = list(parts)
        gates = {part._gate for part in parts}
        return cls(np.concatenate([part._bits for part in parts], axis=-1), gates.pop() if len(gates) == 1 else None)

    @property
    def labels(self) -> Ints:
        if self._labels is None:
            self._labels = self._bits >> 4
        return self._labels

    @property
    def gate(self) -> Ints:
        return self._bits & 3

    @property
    def constant(self) -> Ints:
        """Return what makes each channel one number, zero or another: a gate."""
        return self._bits >> 2 & 3

    @property
    def common_constant(self) -> Ints | int:
        """Return the same, as one number where all channels are known to be alike."""
        return self.constant if self._gate is None else self._gate >> 2

    @property
    def common_gate(self) -> int | None:
        """Return the gate of all channels; None where they differ, or aren't known to be alike."""
        return None if self._gate is None else self._gate & 3

    @property
    def common_gates(self) -> int | None:
        """Return both gates of all channels, as one number; None where they differ, or aren't known to be alike."""
        return self._gate

    def ungated(self) -> "Codes":
        """Return the same labels, none of them gated."""
        return self.with_gate(OPEN)

    def with_gate(self, gate: Ints | int = BY_NORM, constant: Ints | int = OPEN) -> "Codes":
        """Return the same labels with this gate (default: zero whatever makes them), `constant` where it isn't zero."""
        gates = gate | (gate | constant) << 2
        if not isinstance(gates, int):
            return self._regated(self._bits & ~15 | gates, None)
        return self if gates == self._gate else self._regated(self._bits & ~15 | gates, gates)

    def add_gate(self, gate: int) -> "Codes":
        """Return the same labels, each with this gate, too."""
        return self._regated(self._bits | 5 * gate, None if self._gate is None else self._gate | 5 * gate)

    def gated_where_all(self, *others: "Codes") -> "Codes":
        """Return the same labels, gated where this and all the others are."""
        bits = self._bits
        for other in others:
            bits = bits & (other._bits | ~15)
        return Codes(bits)

    def gated_where_any(self, other: "Codes") -> "Codes":
        """Return the same labels, zero where this or the other is, and constant where this is."""
        return self._regated(self._bits | 5 * other.gate, None)

    def no_longer_zero(self) -> "Codes":
        """Return the same labels: what was zero is constant."""
        return self._regated(self._bits & ~3, None if self._gate is None else self._gate & ~3)

    def zero_or_open(self) -> "Codes":
        """Return the same labels: a constant other than zero isn't known to be one any more."""
        return self.with_gate(self.gate if self._gate is None else self._gate & 3)

    def _regated(self, bits: Ints, gate: int | None) -> "Codes":
        made = Codes(bits, gate)
        made._labels = self._labels
        return made

    def equals(self, other: "Codes") -> bool:
        """Return whether these are the same labels with the same gates."""
        return self is other or (self.shape == other.shape and bool((self._bits == other._bits).all()))

    # -- as an array -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._bits)

    def __getitem__(self, index: int | slice | Ints | Bools | tuple[slice, int]) -> "Codes":
        return Codes(self._bits[index], self._gate)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._bits.shape

    @property
    def columns(self) -> "Codes":
        """Return the transpose of a grid."""
        return Codes(self._bits.T, self._gate)

    def reshape(self, *shape: int) -> "Codes":
        return Codes(self._bits.reshape(shape), self._gate)

    def broadcast_to(self, shape: Sequence[int]) -> "Codes":
        return Codes(np.broadcast_to(self._bits, shape), self._gate)

    def with_last(self, dim: int) -> "Codes":
        """Return a grid whose rows run along `dim`, one for each place in the other dimensions."""
        return Codes(np.moveaxis(self._bits, dim, -1).reshape(-1, self._bits.shape[dim]), self._gate)

    def repeat(self, n: int) -> "Codes":
        """Return each code `n` times in a row."""
        return self if n == 1 else Codes(np.repeat(self._bits, n), self._gate)

    def tile(self, n: int) -> "Codes":
        """Return all codes `n` times, one copy after the other."""
        return self if n == 1 else Codes(np.tile(self._bits, n), self._gate)

    def first_row(self) -> "Codes":
        """Return the first row of a grid, gated where its whole column is."""
        if self._gate is not None:
            return self[0]
        return Codes(self._bits[0] & ~15 | np.bitwise_and.reduce(self._bits & 15, axis=0))

    def varies_along(self, dim: int) -> bool:
        return self._bits.shape[dim] > 1 and bool((np.diff(self._bits, axis=dim) != 0).any())


TensorCodes = dict[int, Codes]  # by dimension


def codes_on(tensor: Tensor) -> TensorCodes:
    """Return the codes that a tensor carries; none where it was never labelled."""
    found: TensorCodes | None = tensor.__dict__.get("_codes")
    return {} if found is None else found


def holds_numbers(tensor: Tensor) -> bool:
    """Return whether a tensor holds fractions, real or complex: of whole numbers no channel is made."""
    return tensor.is_floating_point() or tensor.is_complex()


def is_labelled(tensor: Tensor) -> bool:
    """Return whether the tensor's codes are known, be it that it has none."""
    return "_codes" in tensor.__dict__


def set_codes(tensor: Tensor, codes: TensorCodes) -> None:
    tensor.__dict__["_codes"] = codes


def label(tensor: Tensor, codes: TensorCodes) -> Tensor:
    """Give `tensor` its codes, and return it."""
    if codes:
        tensor.__dict__["_codes"] = codes
    else:
        tensor.__dict__.pop("_codes", None)
    return tensor


def clear(tensor: Tensor) -> None:
    """Forget a tensor's codes, as before a run."""
    tensor.__dict__.pop("_codes", None)


def name_of(tensor: Tensor) -> str | None:
    """Return the name of a parameter or buffer of the traced network, None for any other tensor."""
    found: str | None = tensor.__dict__.get("_slim_name")
    return found


def set_name(tensor: Tensor, name: str) -> None:
    tensor.__dict__["_slim_name"] = name


def mark_step(tensor: Tensor, step: object) -> None:
    """Mark a tensor as what a step of a run made."""
    tensor.__dict__["_step"] = step


def step_of(tensor: Tensor) -> object:
    """Return the step that made a tensor, or the name of a parameter or buffer; None where neither is known."""
    notes = tensor.__dict__
    return notes.get("_step") or notes.get("_slim_name")


def layer_of(name: str) -> str:
    """Return the name of the module that holds a parameter, or the parameter's where the network itself holds it."""
    return name.rpartition(".")[0] or name


def mark_fresh(tensor: Tensor, producer: str = "") -> Tensor:
    """Mark what comes straight out of a layer that makes channels, as opposed to a stream that several layers share."""
    tensor.__dict__["_fresh"] = producer
    return tensor


def mark_unset(tensor: Tensor) -> Tensor:
    """Mark new memory: nothing holds a view of it, and what writes it first loses nothing."""
    tensor.__dict__["_unset"] = True
    return tensor


def mark_blank(tensor: Tensor) -> Tensor:
    """Mark new memory that nothing has been written to, so that it is zero, or never read, but for what will be."""
    tensor.__dict__["_blank"] = tensor._version
    return tensor


def is_blank(tensor: Tensor) -> bool:
    return tensor.__dict__.get("_blank") == tensor._version


def mark_alike(tensor: Tensor, dims: Iterable[int]) -> Tensor:
    """Mark that all places along these dimensions hold one value, so that fewer of them would."""
    tensor.__dict__["_alike"] = frozenset(dims), tensor._version
    return tensor


def alike_along(tensor: Tensor) -> set[int]:
    """Return the dimensions along which all places of a tensor hold one value: marked so, or spread by expand."""
    if "_alike" not in tensor.__dict__ and tensor.is_contiguous():
        return set()
    dims, version = tensor.__dict__.get("_alike", (frozenset(), 0))
    marked = dims if version == tensor._version else frozenset()
    return {d for d, n in enumerate(tensor.shape) if d in marked or (n > 1 and tensor.stride(d) == 0)}


def is_uniform(tensor: Tensor) -> bool:
    """Return whether one value was put all over a tensor, and no channels are known of it."""
    return "_alike" in tensor.__dict__ and not codes_on(tensor) and len(alike_along(tensor)) == tensor.dim()


def mark_written(tensor: Tensor) -> None:
    """Mark what was written to, which the version of one without data doesn't always tell."""
    tensor.__dict__.pop("_blank", None)


def mark_fixed(tensor: Tensor) -> None:
    """Mark what is made of parameters, buffers and numbers alone: it is the same whatever the network is given."""
    tensor.__dict__["_fixed"] = True


def mark_varying(tensor: Tensor) -> None:
    """Mark what the input has been written to, and the memory of which it is a view."""
    for written in (tensor, tensor._base):
        if written is not None:
            written.__dict__.pop("_fixed", None)


def is_fixed(tensor: Tensor) -> bool:
    notes = tensor.__dict__
    return "_slim_name" in notes or "_fixed" in notes


def mark_stand_in(tensor: Tensor, attribute: str) -> None:
    """Mark zeros that stand for a branch that is gone, as many channels as an attribute "module.attribute" says."""
    tensor.__dict__["_stand_in"] = attribute


def stands_in(tensor: Tensor) -> str | None:
    """Return the attribute that says how many channels these zeros have; None for any other tensor."""
    found: str | None = tensor.__dict__.get("_stand_in") if is_blank(tensor) else None
    return found


def pop_unset(tensor: Tensor) -> bool:
    """Return whether nothing has met the tensor since it was made, and forget it."""
    return tensor.__dict__.pop("_unset", False)


def fresh_from(tensor: Tensor) -> str | None:
    """Return the producer that a tensor comes straight out of ("" where it has no name), None for any other tensor."""
    found: str | None = tensor.__dict__.get("_fresh")
    return found


_PLAIN = {"_codes", "_fresh", "_step", "_constant", "_fixed"}


def is_plain(tensor: Tensor) -> bool:
    """Return whether a step of the run made a tensor of which nothing is noted that a copy hasn't, too."""
    notes = tensor.__dict__
    return "_step" in notes and _PLAIN.issuperset(notes) and tensor.is_contiguous()


def pass_notes(tensor: Tensor, out: Tensor) -> Tensor:
    """Let `out` carry what is noted of `tensor`, and return it."""
    out.__dict__.update(tensor.__dict__)
    return out


Source = tuple[Tensor, dict[int, int]]  # a parameter or buffer, and which of its dimensions each one of a view of it is


def origin_of(tensor: Tensor) -> Source | None:
    """Return the parameter or buffer of numbers that a tensor is, or is a view of by moving dimensions about; None for
    any other tensor."""
    if name_of(tensor) is not None:
        return (tensor, {d: d for d in range(tensor.dim())}) if holds_numbers(tensor) else None
    found: Source | None = tensor.__dict__.get("_source")
    return found


def source_of(tensor: Tensor) -> Source | None:
    """Return `origin_of(tensor)` where that is a parameter."""
    found = origin_of(tensor)
    if found is None or not (type(found[0]) is nn.Parameter or isinstance(found[0], nn.Parameter)):  # which is slow
        return None
    return found


def pass_source(tensor: Tensor, out: Tensor, dims: dict[int, int]) -> None:
    """Let `out` know the parameter or buffer that `tensor` is, where its dimension d is dimension `dims[d]` of that."""
    source = origin_of(tensor)
    if source is not None:
        out.__dict__["_source"] = source[0], {d: source[1][own] for d, own in dims.items() if own in source[1]}
