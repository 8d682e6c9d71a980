"""Readers of recurrent layers: torch.nn's own, whose gates come in another order than ONNX's."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.deploy.onnx.reader.node import Node, Operation, reads, weight

LAYERS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's order, by place in ONNX's
ACTIVATIONS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
STATES = (5, 6)  # inputs
UNREAD = {4: "lengths of sequences", 7: "peepholes"}  # inputs


class Recurrent(nn.Module):
    """A recurrent layer as ONNX has it: [time, batch, features] in, [time, directions, batch, hidden] out, with states
    [directions, batch, hidden]. `backward`: one direction, from the end to the beginning."""

    def __init__(self, layer: nn.RNNBase, *, backward: bool) -> None:
        super().__init__()
        self.layer, self.backward = layer, backward

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        states = tuple(state.to(x) for state in states)  # most are zeros that the graph makes, of float32
        given: Any = (states if isinstance(self.layer, nn.LSTM) else states[0]) if states else None
        out, last = self.layer(x.flip(0) if self.backward else x, given)
        out = out.flip(0) if self.backward else out
        out = out.unflatten(2, (2 if self.layer.bidirectional else 1, self.layer.hidden_size)).transpose(1, 2)
        return out, *(last if isinstance(last, tuple) else (last,))


@reads(*LAYERS)
def recurrent(node: Node) -> Operation:
    """Read a recurrent layer of one or two directions, over sequences of one length."""
    _check(node)
    kind, direction = node.op, node.attribute("direction", "forward")
    features, hidden = node.array(1).shape[2], node.array(2).shape[2]
    options = {"nonlinearity": "relu"} if kind == "RNN" and _activations(node)[:1] == ["Relu"] else {}
    with torch.device("meta"):
        layer = LAYERS[kind](features, hidden, bidirectional=direction == "bidirectional", **options)
    biases = node.constant(3)
    for number, suffix in enumerate(("", "_reverse") if layer.bidirectional else ("",)):
        bias = np.zeros([2 * len(GATES[kind]) * hidden], np.float32) if biases is None else biases[number]
        parts = {"weight_ih": node.array(1)[number], "weight_hh": node.array(2)[number]}
        parts |= zip(("bias_ih", "bias_hh"), np.split(bias, 2))
        for name, part in parts.items():
            gates = np.split(part, len(GATES[kind]))
            setattr(layer, f"{name}_l0{suffix}", weight(np.concatenate([gates[i] for i in GATES[kind]])))
    layer.flatten_parameters()
    return Operation(Recurrent(layer, backward=direction == "reverse"), [node.tensor(0), *_states(node, layer)])


def _states(node: Node, layer: nn.RNNBase) -> list[str]:
    """Return the names of the states that a layer begins with; none where all are zeros, of whatever batch."""
    given = [i for i in STATES if node.input(i)]
    if all(node.is_constant(i) and not node.array(i).any() for i in given):
        return []
    if isinstance(layer, nn.LSTM) and len(given) < len(STATES):
        raise node.refused("it begins with one of two states: expected both, or none")
    return [node.tensor(i) for i in given]


def _activations(node: Node) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else name for name in node.attribute("activations", [])]


def _check(node: Node) -> None:
    """Raise SlimError for what torch's layers don't have."""
    directions = node.array(1).shape[0]
    expected = ACTIVATIONS[node.op] * directions
    relu = node.op == "RNN" and _activations(node) == ["Relu"] * directions
    if _activations(node) not in ([], expected) and not relu:
        raise node.refused(f"its activations are {', '.join(_activations(node))}: expected {', '.join(expected)}")
    if node.op == "GRU" and not node.attribute("linear_before_reset", 0):
        raise node.refused("it resets the state before the product: expected linear_before_reset, as torch does")
    if node.has("clip") or node.attribute("input_forget", 0) or node.attribute("layout", 0):
        raise node.refused("expected neither clip nor input_forget, and the time first (layout 0)")
    for i, what in UNREAD.items():
        if node.input(i):
            raise node.refused(f"it is given {what}: expected none")
