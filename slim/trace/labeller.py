"""What one run of a network has told so far: codes of its tensors, coupled labels, and what else follows channels."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from torch import Tensor
from torch._ops import OpOverload

from slim.trace.classes import Classes, Ints
from slim.trace.codes import (
    BY_NORM,
    BY_PRODUCER,
    OPEN,
    Bools,
    Codes,
    Source,
    TensorCodes,
    codes_on,
    holds_numbers,
    is_labelled,
    layer_of,
    name_of,
    set_codes,
)

Reading = TypeVar("Reading")
INDEXED = "read through an index by"  # the reason for what a BatchNorm chooses its own channels of


class Mismatch(Exception):
    """What should hold already in the thin network doesn't."""


@dataclass
class Product:
    """A convolution or matrix product: its multiply-adds are `positions` × the kept sizes of `dims`."""

    layer: str
    positions: int
    dims: list[int | Ints]  # a fixed size, or one label for each channel


@dataclass
class Producer:
    """What makes channels and can set each of them to zero: a norm with its scale, a convolution, a linear layer.

    A channel is masked where `tensors` are zero: each has the labels along this dimension of it.
    """

    kind: str  # "BatchNorm", "Conv", "Linear", …
    tensors: dict[str, int]
    labels: Ints

    @property
    def is_norm(self) -> bool:
        return self.kind.endswith("Norm")


@dataclass
class Fold:
    """A layer that reads channels which are constant, if not zero, once they are masked: its bias can take them up."""

    layer: str
    codes: Codes  # of all channels that it reads
    why: str  # they stay if they aren't constant after all

    @property
    def constant(self) -> Bools:
        """Return which of the channels are constant, and not zero."""
        return (self.codes.gate == OPEN) & (self.codes.constant != OPEN)


@dataclass(slots=True)
class Executed:
    """One operator of a run: what it was, the numbers that it was given (see `constants`), the codes of what it took,
    and the sizes that it was given for what follows channels (the size, and the labels that it counts).

    `aside`: it makes constants, which a cache may keep from one run to the next, or copies, which depend on strides:
    where a dimension has one channel, more is contiguous.
    """

    func: OpOverload
    constants: Sequence[object]
    codes: list[Codes]
    sizes: list[tuple[int, Ints]] = field(default_factory=list)
    made: Sequence[tuple[Sequence[int], TensorCodes]] = ()  # the shapes of its results, and their codes
    known: Any = None  # what it was given and gave, where a thin network's run can go by it (`repeat.Known`)
    decided: int = 0  # how many decisions had been made after it
    place: str = ""  # the last layer met
    aside: bool = False
    read: Sequence[str] = ()  # the parameters and buffers among what it took


@dataclass
class Ambiguous:
    """An operator that can be read in several ways; `shapes` are alike for all that are read alike."""

    options: tuple[object, ...]
    shapes: object
    labels: Ints


class Labeller:
    """Labels the tensors of one run, and says which labels are coupled.

    `select` names BatchNorms that choose their own channels of what they read. With `whole_groups`, all channels of a
    group of a grouped convolution are coupled, instead of the same places of each group.
    """

    def __init__(self, classes: Classes, select: Container[str] = (), whole_groups: bool = False) -> None:
        super().__init__()
        self.classes = classes
        self.select = select
        self.whole_groups = whole_groups
        self.stated_anew: Container[str] = ()
        self.meta = True  # whether the run is one without data
        self.watches_functions = False  # whether what forward code calls is seen before torch makes operators of it
        self.group_counts: dict[str, Ints] = {}
        self.streams: set[str] = set()  # BatchNorms that read what isn't straight out of a layer
        self.producers: dict[str, Producer] = {}
        self.bare: set[str] = set()  # producers whose output is read by something else than a norm
        self.relied: list[Ints] = []  # labels that are read as zero, or constant, although no norm makes them so
        self.reader: str | None = None  # the layer at work, where its bias can take up what is constant
        self.folds: list[Fold] = []
        self.products: list[Product] = []
        self.executed: list[Executed] = []
        self.decisions: list[object] = []
        self.preferred: Mapping[int, object] = {}  # readings other than the first choice, by the operator's number
        self.ambiguous: dict[int, Ambiguous] = {}
        self.left: dict[str, TensorCodes] = {}  # of the tensors that forward put into attributes, by name
        self.place = "the input"  # the last layer met, for messages

    def count(self, size: int, codes: Codes) -> None:
        """Note that the operator at hand was given `size` for these channels."""
        self.executed[-1].sizes.append((size, codes.labels))

    def decide(self, choice: Reading, options: Sequence[Reading] = ()) -> Reading:
        """Return how to read an operator that can be read in several ways, and remember it for later runs.

        `options` are ways that are as exact as `choice`; a trace that wants another than that says so by `preferred`.
        """
        if self.executed[-1].aside:
            return choice
        wanted = self.preferred.get(self.number)
        choice = next((option for option in options if option == wanted), choice)
        self.decisions.append(choice)
        return choice

    def expect(self, number: object, where: str) -> None:
        """Raise Mismatch where an operator of the thin network is given another number than the original's."""
        if self.decide(number) != number:
            raise Mismatch(f"a constant that follows a size, in {where}")

    @property
    def number(self) -> int:
        """Return the place of the operator at hand among those executed."""
        return len(self.executed) - 1

    def could_be_read(self, options: Sequence[object], shapes: object, codes: Codes) -> None:
        """Note the ways to read the operator at hand, the likeliest first, and the codes that the one taken gave.

        Operators of the same `shapes` are read in the same way.
        """
        self.ambiguous[self.number] = Ambiguous(tuple(options), shapes, codes.labels)

    def codes(self, tensor: Tensor) -> TensorCodes:
        """Return the tensor's codes by dimension. A parameter that is first met here gets labels of its own."""
        if is_labelled(tensor):
            return codes_on(tensor)
        found: TensorCodes = {}
        name = name_of(tensor)
        if name is not None:
            self.place = layer_of(name)
            if holds_numbers(tensor):
                found = {d: Codes.of(self.classes.fresh(n)) for d, n in enumerate(tensor.shape) if n > 1}
            set_codes(tensor, found)
        return found

    def axis(self, parameter: Tensor, dim: int, codes: Codes | None, why: str) -> Codes | None:
        """Couple one dimension of a parameter to `codes`, or fix its size where they are None. Its codes after that."""
        name = name_of(parameter)
        if name is None:
            own = self.codes(parameter).get(dim)
        else:
            self.place = layer_of(name)
            own = codes_on(parameter).get(dim)
            if own is None:  # first use: the parameter's channels are these, or its size is fixed
                own = self._fixed(parameter.shape[dim], why) if codes is None else codes.ungated()
                set_codes(parameter, codes_on(parameter) | {dim: own})
                return own
        if own is not None and codes is not None:
            self.couple(own, codes, why)
        else:
            for only in (own, codes):
                if only is not None:
                    self.freeze(only, why)
        return own

    def _fixed(self, n: int, why: str) -> Codes:
        """Return codes of `n` channels that stay, with a reason of their own."""
        codes = Codes.of(self.classes.fresh(n))
        self.freeze(codes, why)
        return codes

    def made(self, parameter: Tensor, dim: int) -> Codes | None:
        """Return the codes of the channels that a layer makes, along a dimension of its parameter: new ones where it is
        first met, None where it isn't a parameter and its size is fixed; gated where a computed weight is zero."""
        own = codes_on(parameter).get(dim)
        if own is None and name_of(parameter) is not None:
            own = Codes.of(self.classes.fresh(parameter.shape[dim]))
            set_codes(parameter, codes_on(parameter) | {dim: own})
        return None if own is None else own.zero_or_open()

    def couple(self, a: Codes, b: Codes, why: str) -> None:
        """Make channels `a[i]` and `b[i]` one class for every i: they are kept or pruned together."""
        if a is not b:
            self.classes.unite(a.labels, b.labels, why)

    def couple_rows(self, grid: Codes, why: str) -> Codes:
        """Couple the channels of each column of a grid; one code per column, gated where the whole column is."""
        if len(grid) > 1:
            self.couple(grid[:1], grid[1:], why)
        return grid.first_row()

    def freeze(self, codes: Codes, why: str) -> None:
        """Keep these channels, because of `why`."""
        self.classes.freeze(codes.labels, why)

    def freeze_tensor(self, tensor: Tensor, why: str) -> None:
        for codes in self.codes(tensor).values():
            self.freeze(codes, why)
        self.meet(tensor)

    def defer(self, tensor: Tensor, codes: Codes, why: str) -> None:
        """Keep these channels if anything reads `tensor`: many modules return what nobody looks at."""
        tensor.__dict__.setdefault("_deferred", []).append((codes, why))

    def meet(self, tensor: Tensor) -> None:
        """Do what was put off until something reads the tensor."""
        if "_deferred" in tensor.__dict__:
            for codes, why in tensor.__dict__.pop("_deferred"):
                self.freeze(codes, why)

    def mix(self, codes: Codes, why: str) -> None:
        """Note that a layer mixes these channels: one that isn't zero when its class is masked can't go, but for a
        constant that the layer's bias can take up."""
        if codes.common_gate == BY_NORM:
            return
        gate = codes.gate
        if self.reader is not None and (codes.constant != gate).any():
            self.folds.append(Fold(self.reader, codes, why))
            gate = np.where(gate == OPEN, codes.constant, gate)
        if (gate != BY_NORM).any():
            self.freeze(codes[gate == OPEN], why)
            self.relied.append(codes.labels[gate == BY_PRODUCER])

    def lose_gate(self, before: Codes, after: Codes | None, why: str) -> None:
        """Note that a tensor was written over: a view of it may still pass for gated as `before`."""
        if after is before or (after is not None and before.common_gates == after.common_gates is not None):
            return
        after = before.ungated() if after is None else after
        for was, now in ((before.gate, after.gate), (before.constant, after.constant)):
            gate = was & now
            self.freeze(before[(was != OPEN) & (gate == OPEN)], why)
            self.relied.append(before.labels[(was == BY_NORM) & (gate == BY_PRODUCER)])

    def produce(self, kind: str, parts: Iterable[tuple[Source, int]], labels: Ints | None = None) -> str | None:
        """Note what makes the channels at hand: parameters, each with the dimension of it that holds them; `labels` are
        the channels' own, by default those of the first.

        Returns the producer's name, None where a part is no parameter of the network, so that nothing can mask it.
        """
        tensors: dict[str, int] = {}
        for (parameter, dims), d in parts:
            name = name_of(parameter)
            own = codes_on(parameter).get(dims[d]) if d in dims else None
            if name is None or own is None:
                return None
            tensors[name] = dims[d]
            labels = own.labels if labels is None else labels
        if labels is None:
            return None
        first = next(iter(tensors))
        made = first.removesuffix(".weight")
        known = self.producers.get(made)
        if known is not None and known.tensors.get(first) != tensors[first]:  # a layer whose weight is turned round
            made = f"{made}[{tensors[first]}]"
            known = self.producers.get(made)
        self.producers[made] = Producer(kind, tensors if known is None else known.tensors | tensors, labels)
        return made
