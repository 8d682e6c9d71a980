"""The network that an ONNX graph is read into: its operators in their order, those that hold something as modules."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slim.deploy.onnx.reader.node import Plain

Value = Any  # a tensor, or what stands for one: a number, or a list of numbers that are sizes


@dataclass(frozen=True)
class NodeStep:
    """One operator: what it takes and makes, by name, and which values nothing reads after it."""

    name: str  # of the node, for errors
    call: str | Callable[..., Any]  # the name of a submodule, or a function
    takes: tuple[str, ...]  # "" where an optional input is left out; `Plain` for what is taken as numbers
    makes: tuple[str, ...]
    drops: tuple[str, ...] = ()


class OnnxNetwork(nn.Module):
    """An ONNX graph as a module, for inference: `forward` takes the graph's inputs and returns its outputs.

    Layers with weights, and what holds sizes, are submodules, named after the file's own weights and nodes; other
    constants are buffers of `constants`. One output comes as a tensor, several as a tuple, both in the file's order.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        outputs: Sequence[str],
        steps: Sequence[NodeStep],
        modules: Mapping[str, nn.Module],
        tensors: Mapping[str, Tensor],
        numbers: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.steps = _needed(steps, outputs)
        taken = {name for step in self.steps for name in step.takes}
        self.numbers = {name: value for name, value in numbers.items() if name in taken}
        self.held = {name: f"constant_{i}" for i, name in enumerate(tensors) if name in taken}
        self.constants = nn.Module()
        for name, held in self.held.items():
            self.constants.register_buffer(held, tensors[name])
        for step in self.steps:
            if isinstance(step.call, str):
                _place(self, step.call, modules[step.call])
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return the graph's outputs."""
        values: dict[str, Value] = {"": None}
        values |= {name: getattr(self.constants, held) for name, held in self.held.items()}
        values |= zip(self.inputs, inputs, strict=True)
        for step in self.steps:
            call = self.get_submodule(step.call) if isinstance(step.call, str) else step.call
            made = call(*self._taken(step, values))
            values |= zip(step.makes, made if len(step.makes) > 1 or isinstance(made, tuple) else [made])
            for name in step.drops:
                values.pop(name, None)
        made = [values[name] for name in self.outputs]
        return made[0] if len(made) == 1 else tuple(made)

    def _taken(self, step: NodeStep, values: Mapping[str, Value]) -> list[Value]:
        """Return what a step takes: numbers and lists of them, or tensors, whatever it was made as."""
        found = [
            self.numbers[name] if isinstance(name, Plain) and name in self.numbers else values[name]
            for name in step.takes
        ]
        device = next((value.device for value in found if isinstance(value, Tensor)), None)
        for i, (name, value) in enumerate(zip(step.takes, found)):
            if isinstance(name, Plain) and isinstance(value, Tensor):
                found[i] = value.tolist()
            elif isinstance(value, list) and not isinstance(name, Plain):
                found[i] = torch.tensor(value, device=device)
        return found


def _needed(steps: Sequence[NodeStep], outputs: Sequence[str]) -> list[NodeStep]:
    """Return the steps that something needs, each with the values that nothing reads after it."""
    read, found = set(outputs), []
    for step in reversed(steps):
        if read & set(step.makes):
            last = tuple(dict.fromkeys(name for name in step.takes if name and name not in read))
            read.update(step.takes)
            unread = tuple(name for name in step.makes if name not in read)
            found.append(replace(step, drops=last + unread))
    return found[::-1]


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in its place, with plain ones as holders above it."""
    *above, name = path.split(".")
    for part in above:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(name, module)
