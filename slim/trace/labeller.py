"""What one run of a network has told so far: codes of its tensors, coupled labels, and what else follows channels."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor
from torch._ops import OpOverload

from slim.trace.classes import Classes, Ints
from slim.trace.codes import Codes, TensorCodes, codes_on, is_labelled, layer_of, name_of, set_codes

Choice = TypeVar("Choice")
INDEXED = "read through an index by"  # the reason for what a BatchNorm chooses its own channels of


@dataclass
class Product:
    """A convolution or matrix product: its multiply-adds are `positions` × the kept sizes of `dims`."""

    layer: str
    positions: int
    dims: list[int | Ints]  # a fixed size, or one label for each channel


@dataclass
class Executed:
    """One operator of a run: what it was, the numbers that it was given (see `constants`), the codes of what it took,
    and the sizes that it was given for what follows channels (the size, and the labels that it counts)."""

    func: OpOverload
    constants: Sequence[object]
    codes: list[Codes]
    sizes: list[tuple[int, Ints]] = field(default_factory=list)


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
        self.group_counts: dict[str, Ints] = {}
        self.streams: set[str] = set()  # BatchNorms that read what isn't straight out of a layer
        self.norms: dict[str, Tensor] = {}  # BatchNorm name -> its γ in the traced copy
        self.products: list[Product] = []
        self.executed: list[Executed] = []
        self.decisions: list[object] = []
        self.place = "the input"  # the last layer met, for messages

    def count(self, size: int, codes: Codes) -> None:
        """Note that the operator at hand was given `size` for these channels."""
        self.executed[-1].sizes.append((size, codes.labels))

    def decide(self, choice: Choice) -> Choice:
        """Return how to read an operator that can be read in several ways, and remember it for later runs."""
        self.decisions.append(choice)
        return choice

    def codes(self, tensor: Tensor) -> TensorCodes:
        """Return the tensor's codes by dimension. A parameter that is first met here gets labels of its own."""
        if is_labelled(tensor):
            return codes_on(tensor)
        found: TensorCodes = {}
        name = name_of(tensor)
        if name is not None:
            self.place = layer_of(name)
            if tensor.is_floating_point():
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
                own = Codes.fixed(parameter.shape[dim]) if codes is None else codes.ungated()
                set_codes(parameter, codes_on(parameter) | {dim: own})
                return own
        if own is not None and codes is not None:
            self.couple(own, codes, why)
        else:
            for only in (own, codes):
                if only is not None:
                    self.freeze(only, why)
        return own

    def made(self, parameter: Tensor, dim: int) -> Codes | None:
        """Return the codes of the channels that a layer makes, along a dimension of its parameter: new ones where it is
        first met, None where it isn't a parameter and its size is fixed."""
        own = codes_on(parameter).get(dim)
        if own is None and name_of(parameter) is not None:
            own = Codes.of(self.classes.fresh(parameter.shape[dim]))
            set_codes(parameter, codes_on(parameter) | {dim: own})
        return None if own is None else own.ungated()

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

    def mix(self, codes: Codes, why: str) -> None:
        """Note that a layer mixes these channels: one that isn't zero when its class is masked can't go."""
        gated = codes.gated
        if not gated.all():
            self.freeze(codes[~gated], why)
