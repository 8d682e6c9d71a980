"""What tensors carry through a trace: a code for each channel along every dimension that follows a layer's channels.

A dimension without codes has a fixed size. Codes lie in an attribute of the tensor, beside the name of a parameter or
buffer and the mark of what comes straight out of a layer; nothing else reads or writes those attributes.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from slim.trace.classes import Ints

Bools = NDArray[np.bool_]


class Codes:
    """A label (see `classes`) for each channel, and whether the channel is *gated*: exactly zero once everything that
    makes the channels of its class is masked.

    An immutable array, of one dimension or, while channels are moved about, several. Label 0 is a fixed size.
    """

    __slots__ = ("_bits", "_labels")  # 2 * label, + 1 where gated: moving both as one array halves the work

    def __init__(self, bits: Ints) -> None:
        self._bits = bits
        self._labels: Ints | None = None

    @classmethod
    def of(cls, labels: Ints) -> "Codes":
        """Return ungated codes of these labels."""
        return cls(2 * labels)

    @classmethod
    def fixed(cls, n: int) -> "Codes":
        """Return the codes of `n` channels whose number is fixed."""
        return cls(np.zeros(n, np.int64))

    @classmethod
    def join(cls, parts: Iterable["Codes"]) -> "Codes":
        """Return all `parts` end to end (along the last dimension)."""
        return cls(np.concatenate([part._bits for part in parts], axis=-1))

    @property
    def labels(self) -> Ints:
        if self._labels is None:
            self._labels = self._bits >> 1
        return self._labels

    @property
    def gated(self) -> Bools:
        return (self._bits & 1).astype(bool)

    def ungated(self) -> "Codes":
        """Return the same labels, none of them gated."""
        return Codes(self._bits & ~1)

    def with_gate(self, gated: Bools | bool = True) -> "Codes":
        """Return the same labels, gated where `gated` says so and nowhere else."""
        return Codes(self._bits & ~1 | gated)

    def gated_as(self, *others: "Codes") -> "Codes":
        """Return the same labels, gated where this and all the others are."""
        bits = self._bits
        for other in others:
            bits = bits & (other._bits | ~1)
        return Codes(bits)

    def lost_gate(self, after: "Codes | None") -> Ints:
        """Return the labels that are gated here and not in `after`, which holds none where it is None."""
        lost = self.gated if after is None else self.gated & ~after.gated
        return self.labels[lost]

    # -- as an array -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._bits)

    def __getitem__(self, index: int | slice | Ints | Bools | tuple[slice, int]) -> "Codes":
        return Codes(self._bits[index])

    @property
    def shape(self) -> tuple[int, ...]:
        return self._bits.shape

    @property
    def columns(self) -> "Codes":
        """The transpose of a grid."""
        return Codes(self._bits.T)

    def reshape(self, *shape: int) -> "Codes":
        return Codes(self._bits.reshape(shape))

    def broadcast_to(self, shape: Sequence[int]) -> "Codes":
        return Codes(np.broadcast_to(self._bits, shape))

    def with_last(self, dim: int) -> "Codes":
        """Return a grid whose rows run along `dim`, one for each place in the other dimensions."""
        return Codes(np.moveaxis(self._bits, dim, -1).reshape(-1, self._bits.shape[dim]))

    def repeat(self, n: int) -> "Codes":
        """Return each code `n` times in a row."""
        return Codes(np.repeat(self._bits, n))

    def tile(self, n: int) -> "Codes":
        """Return all codes `n` times, one copy after the other."""
        return Codes(np.tile(self._bits, n))

    def first_row(self) -> "Codes":
        """Return the first row of a grid, gated where its whole column is."""
        return Codes(self._bits[0] & ~1 | (self._bits & 1).min(axis=0))

    def varies_along(self, dim: int) -> bool:
        return self._bits.shape[dim] > 1 and bool((np.diff(self._bits, axis=dim) != 0).any())


TensorCodes = dict[int, Codes]  # by dimension


def codes_on(tensor: Tensor) -> TensorCodes:
    """Return the codes that a tensor carries; none where it was never labelled."""
    found: TensorCodes | None = tensor.__dict__.get("_codes")
    return {} if found is None else found


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


def name_of(tensor: Tensor) -> str | None:
    """Return the name of a parameter or buffer of the traced network, None for any other tensor."""
    found: str | None = tensor.__dict__.get("_slim_name")
    return found


def set_name(tensor: Tensor, name: str) -> None:
    tensor.__dict__["_slim_name"] = name


def layer_of(name: str) -> str:
    """Return the name of the module that holds a parameter, or the parameter's where the network itself holds it."""
    return name.rpartition(".")[0] or name


def mark_fresh(tensor: Tensor) -> Tensor:
    """Mark what comes straight out of a layer that makes channels, as opposed to a stream that several layers share."""
    tensor.__dict__["_fresh"] = True
    return tensor


def is_fresh(tensor: Tensor) -> bool:
    return "_fresh" in tensor.__dict__
