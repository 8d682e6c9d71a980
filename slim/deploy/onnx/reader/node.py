"""A node of an ONNX graph as the readers of operators see it, and the place where these are registered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from onnx import NodeProto, helper
from torch import nn

from slim.errors import SlimError


class Plain(str):
    """The name of a value that an operator takes as numbers, not as a tensor."""


@dataclass(frozen=True)
class Operation:
    """What an operator becomes: a module or a function, and the values that it takes, by name."""

    call: Callable[..., Any]
    takes: Sequence[str]


@dataclass
class GraphValues:
    """What is known of a graph's values while it is read."""

    constants: dict[str, np.ndarray]
    shapes: dict[str, list[int | None]]  # by shape inference; None where a size is open
    batch: int | None  # the size of a batch where the file fixes it
    sizes: dict[str, Any] = field(default_factory=dict)  # of what is a number or a list of sizes: as far as known
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # constants that operators take as tensors
    numbers: dict[str, Any] = field(default_factory=dict)  # constants that operators take as numbers
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)  # weights as the file has them: some are shared


class Node:
    """One operator: its attributes, and its inputs, which it asks for as what they have to be."""

    def __init__(self, proto: NodeProto, values: GraphValues, opset: int) -> None:
        self.op, self.name, self.opset = proto.op_type, proto.name or proto.output[0], opset
        self.inputs, self.outputs = list(proto.input), list(proto.output)
        self.values = values
        self._attributes = {each.name: helper.get_attribute_value(each) for each in proto.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute, text as str. SlimError where it hasn't as many numbers as a `default` that is a list."""
        value = self._attributes.get(name, default)
        if default and isinstance(default, list) and not (isinstance(value, Sequence) and len(value) == len(default)):
            raise self.refused(f"{name} is {value!r}: expected {len(default)} numbers")
        return value.decode() if isinstance(value, bytes) else value

    def has(self, name: str) -> bool:
        """Return whether it has this attribute."""
        return name in self._attributes

    def input(self, i: int) -> str:
        """Return the name of an input, "" where it is left out."""
        return self.inputs[i] if i < len(self.inputs) else ""

    def is_constant(self, i: int) -> bool:
        """Return whether an input is part of the file."""
        return self.input(i) in self.values.constants

    def constant(self, i: int) -> np.ndarray | None:
        """Return what an input holds, None where it is left out. SlimError where it is computed."""
        if not self.input(i):
            return None
        if not self.is_constant(i):
            raise self.refused(f"input {self.input(i)!r} is computed by the network: expected a constant")
        return self.values.constants[self.input(i)]

    def array(self, i: int) -> np.ndarray:
        """Return what an input holds that can't be left out."""
        found = self.constant(i)
        if found is None:
            raise self.refused(f"input {i} is missing")
        return found

    def integers(self, name: str, i: int) -> list[int] | None:
        """Return whole numbers that older operator sets have as an attribute, newer ones as an input."""
        if name in self._attributes:
            return [int(value) for value in self._attributes[name]]
        found = self.constant(i)
        return None if found is None else [int(value) for value in np.atleast_1d(found)]

    def number(self, i: int) -> Any:
        """Return a number that an input holds, None where it is left out."""
        found = self.constant(i)
        return None if found is None or not found.size else found.reshape(-1)[0].item()

    def parameter(self, i: int) -> nn.Parameter | None:
        """Return an input as a trained weight, the same one wherever it is used."""
        found = self.constant(i)
        if found is None:
            return None
        name = self.input(i)
        if name not in self.values.parameters:
            self.values.parameters[name] = weight(found)
        return self.values.parameters[name]

    def tensor(self, i: int) -> str:
        """Return the name of an input that has to be a tensor."""
        if self.is_constant(i):
            self.values.tensors[self.input(i)] = tensor(self.array(i))
        return self.input(i)

    def operand(self, i: int) -> str:
        """Return the name of an input of a pointwise operator: constants are numbers where they are single ones."""
        if self.is_constant(i) and self.array(i).size == 1 and self.array(i).ndim <= 1:
            name = f"{self.input(i)}[0]"  # beside the list, which other operators may take
            self.values.numbers[name] = self.number(i)
            return Plain(name)
        return self.tensor(i)

    def size(self, i: int) -> Any:
        """Return a number or a list of sizes that an input holds, as far as it is known; None where nothing is."""
        name = self.input(i)
        if self.is_constant(i):
            return self.values.constants[name].tolist()
        return self.values.sizes.get(name)

    def plain(self, i: int) -> Plain:
        """Return the name of an input that is a number or a list of sizes."""
        if self.is_constant(i):
            self.values.numbers[self.input(i)] = self.array(i).tolist()
        return Plain(self.input(i))

    def shape(self, i: int) -> list[int | None] | None:
        """Return the shape of an input, as far as it is known."""
        if self.is_constant(i):
            return list(self.array(i).shape)
        return self.values.shapes.get(self.input(i))

    def refused(self, why: str) -> SlimError:
        """Return the error for what can't be read."""
        return SlimError(f"operator {self.op} ({self.name}) can't be read: {why}")


def tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor of its own."""
    return torch.from_numpy(np.array(array))


def weight(array: np.ndarray) -> nn.Parameter:
    """Return a trained weight."""
    return nn.Parameter(tensor(array))


NodeReader = TypeVar("NodeReader", bound=Callable[[Node], Operation])
READERS: dict[str, Callable[[Node], Operation]] = {}


def reads(*operators: str) -> Callable[[NodeReader], NodeReader]:
    """Register a function that reads the operators of these names."""

    def register(reader: NodeReader) -> NodeReader:
        READERS.update(dict.fromkeys(operators, reader))
        return reader

    return register
