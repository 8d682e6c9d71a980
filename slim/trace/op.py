"""An operator at hand: what a rule is given."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only

from slim.trace.codes import BY_PRODUCER, Codes, TensorCodes, codes_on, label, name_of, origin_of, pop_unset, source_of
from slim.trace.labeller import Labeller, Reading
from slim.trace.meta import META, run_on_meta


@dataclass(frozen=True)
class Operator:
    """What an operator's schema says: its name, its arguments with their defaults, and which of these take any number.

    A fraction is a number to compute with wherever it stands. An integer may be a size or a dimension as well, but for
    arguments that the schema calls a number, and for those of windows, shifts and places (`_NO_SIZES`).
    """

    func: OpOverload
    name: str
    step: str  # its name, alike for all that make a view
    in_place: bool
    defaults: dict[str, Any]
    takes_any: dict[str, bool]

    @classmethod
    def of(cls, func: OpOverload) -> "Operator":
        found = _operators.get(id(func))  # what they hash by is slow
        if found is None:
            found = _operators[id(func)] = cls._of(func)
        return found

    @classmethod
    def _of(cls, func: OpOverload) -> "Operator":
        arguments = func._schema.arguments
        name = func._schema.name.removeprefix("aten::")
        windows = any(a.name == "padding" for a in arguments)  # else strides are those of memory
        plain = _NO_SIZES if windows else _NO_SIZES - {"stride"}
        return cls(
            func,
            func.overloadpacket.__name__,
            "view" if name in ("_unsafe_view", "_reshape_alias") else name,
            func.__name__.partition(".")[0].endswith("_"),
            {a.name: a.default_value for a in arguments},
            {a.name: "number" in str(a.type) or "Tensor" in str(a.type) or a.name in plain for a in arguments},
        )


_NO_SIZES = {
    *("divisor_override", "kernel_size", "stride", "padding", "output_padding", "dilation", "shifts", "diagonal"),
    *("offset", "index"),
}
_operators: dict[int, Operator] = {}  # by id; each holds its function, so that no other gets that id


class Op:
    """One call of an operator in a traced run: `op["name"]` is an argument, `op.run()` what the operator returns.

    `labeller` holds what the run has told so far; the methods below speak to it about this operator's tensors.
    """

    __slots__ = ("_named", "args", "func", "is_norm", "kwargs", "labeller", "operator", "tensors", "unset")

    def __init__(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], labeller: Labeller) -> None:
        self.func, self.args, self.kwargs, self.labeller = func, args, kwargs, labeller
        self.operator = Operator.of(func)
        self.tensors = tensors_in(args, kwargs)  # those among the arguments, in order
        self.is_norm = False  # whether what it reads may count as masked by its scale
        self.unset = [pop_unset(tensor) for tensor in self.tensors]  # which of them nothing has met yet
        self._named: dict[str, Any] | None = None

    # -- what it is --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Return the operator's name, without namespace and overload: "add", "relu_"."""
        return self.operator.name

    @property
    def in_place(self) -> bool:
        return self.operator.in_place

    @property
    def is_random(self) -> bool:
        return torch.Tag.nondeterministic_seeded in self.func.tags

    @property
    def where(self) -> str:
        """Return the operator and the layer before it, for reasons: "softmax after features.3"."""
        return f"{self.name} after {self.labeller.place}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Return all arguments by their names in the operator's schema, defaults included."""
        if self._named is None:
            defaults = self.operator.defaults
            self._named = {**defaults, **dict(zip(defaults, self.args)), **self.kwargs}
        return self._named

    def __getitem__(self, name: str) -> Any:
        return (self._named or self.arguments)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or `default` where the operator has none of this name."""
        return self.arguments.get(name, default)

    @property
    def input(self) -> Any:
        """Return the first argument."""
        return self.args[0] if self.args else next(iter(self.arguments.values()))

    @property
    def others(self) -> list[Tensor]:
        """Return the tensors among the arguments but for the first argument."""
        return tensors_in(self.args[1:], self.kwargs)

    @property
    def read(self) -> list[str]:
        """Return the names of the parameters and buffers among the arguments."""
        return [name for tensor in self.tensors if (name := name_of(tensor)) is not None]

    @property
    def labelled(self) -> bool:
        """Say whether any tensor follows channels."""
        return any(name_of(t) is not None or codes_on(t) for t in self.tensors)

    def run(self) -> Any:
        """Return what the operator returns. A real tensor that meets one without data becomes one without data too."""
        empty = [t.is_meta for t in self.tensors]
        args, kwargs = self.args, self.kwargs
        if any(empty) and not all(empty):
            args, kwargs = tree_map_only(Tensor, lambda t: t.to(META), (args, kwargs))
        return run_on_meta(self.func, args, kwargs) if any(empty) else self.func(*args, **kwargs)

    # -- what it does to channels ------------------------------------------------------------------------------------

    def codes(self, tensor: Tensor | None = None) -> TensorCodes:
        """Return the codes of a tensor, by default of the first argument: one for each channel, by dimension."""
        return self.labeller.codes(self.input if tensor is None else tensor)

    def label(self, out: Tensor, codes: TensorCodes) -> Tensor:
        """Give the result its codes, and return it."""
        return label(out, codes)

    def axis(self, parameter: Tensor, dim: int, codes: Codes | None, why: str = "") -> Codes | None:
        """Couple one dimension of a parameter to `codes`, or fix its size where they are None. Its codes after that."""
        return self.labeller.axis(parameter, dim, codes, why or self.where)

    def made(self, parameter: Tensor, dim: int) -> Codes | None:
        """Return the codes of the channels that a layer makes, along a dimension of its parameter: new ones where it is
        first met, None where it isn't a parameter and its size is fixed."""
        return self.labeller.made(parameter, dim)

    def couple(self, a: Codes, b: Codes, why: str = "") -> None:
        """Make channels `a[i]` and `b[i]` one class for every i: they are kept or pruned together."""
        self.labeller.couple(a, b, why or self.where)

    def couple_rows(self, grid: Codes, why: str = "") -> Codes:
        """Couple the channels of each column of a grid; one code per column, gated where the whole column is."""
        return self.labeller.couple_rows(grid, why or self.where)

    def freeze(self, codes: Codes, why: str = "") -> None:
        """Keep these channels, because of `why` (default: this operator)."""
        self.labeller.freeze(codes, why or self.where)

    def freeze_tensor(self, tensor: Tensor, why: str = "") -> None:
        """Keep all channels of a tensor."""
        self.labeller.freeze_tensor(tensor, why or self.where)

    def mix(self, codes: Codes, why: str = "") -> None:
        """Note that the operator mixes these channels: one that isn't zero when its class is masked can't go."""
        self.labeller.mix(codes, why or self.where)

    def lose_gate(self, before: Codes, after: Codes | None) -> None:
        """Note that a tensor was written over: a view of it may still pass for gated as `before`."""
        self.labeller.lose_gate(before, after, self.where)

    def produce(self, kind: str, *parts: tuple[Tensor | None, int], made: Codes | None = None) -> str | None:
        """Note what makes the channels of the result: parameters (None: there is none), each with its dimension. Where
        they hold the places of one group alone, `made` are the codes of all.

        Returns the producer's name, None where a part is no parameter of the network, so that nothing can mask it.
        """
        sources = [(source_of(tensor), dim) for tensor, dim in parts if tensor is not None]
        known = [(source, dim) for source, dim in sources if source is not None]
        labels = None if made is None else made.labels
        return self.labeller.produce(kind, known, labels) if len(known) == len(sources) else None

    def scale(self, tensor: Tensor, dim: int) -> None:
        """Note that a parameter or buffer (or a view of one) sets channels to zero where it is zero along `dim`."""
        origin = origin_of(tensor)
        name = None if origin is None else self.labeller.produce("Scale", [(origin, dim)])
        if name is not None:
            self.labeller.bare.add(name)

    def gated_as_own(self, codes: Codes, tensor: Tensor, dim: int) -> Codes:
        """Return the codes along `dim` of a tensor gated where that is the network's own, which can be zero there."""
        if source_of(tensor) is None:
            return codes
        self.scale(tensor, dim)
        return codes.with_gate(BY_PRODUCER)

    def fresh(self, n: int) -> Codes:
        """Return codes of `n` new channels, each in a class of its own."""
        return Codes.of(self.labeller.classes.fresh(n))

    def count(self, size: int, codes: Codes) -> None:
        """Note that the operator was given `size` for these channels: the attribute that holds it must follow them."""
        self.labeller.count(size, codes)

    def expect(self, number: object) -> None:
        """Keep the channels that the number follows: the thin network's operator must be given the same."""
        self.labeller.expect(number, self.where)

    def decide(self, choice: Reading, options: Sequence[Reading] = ()) -> Reading:
        """Return how to read an operator that can be read in several ways: the thin network's is read alike.

        `options` are ways that are as exact as `choice`, tried where that leaves channels that can't go.
        """
        return self.labeller.decide(choice, options)


def tensors_of(result: Any) -> list[Tensor]:
    """Return the tensors that an operator gave."""
    return [result] if isinstance(result, Tensor) else tensors_in((result,))


def tensors_in(args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> list[Tensor]:
    """Return the tensors among an operator's arguments, in order (they nest no deeper than a list)."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [v for v in value if isinstance(v, Tensor)]
    return found
