"""An ONNX file as a PyTorch network that can be traced, pruned and exported again."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, numpy_helper
from torch import Tensor, nn

from slim.deploy.onnx.reader import folding, layers, moving, pointwise, recurrent  # noqa: F401 (they register readers)
from slim.deploy.onnx.reader.network import NodeStep, OnnxNetwork
from slim.deploy.onnx.reader.node import READERS, GraphValues, Node, Operation, Plain, reads
from slim.deploy.onnx.reader.pointwise import Cast
from slim.deploy.onnx.reader.sizes import ARITHMETIC, UNKNOWN, cast, cut
from slim.errors import SlimError

OPSETS = range(9, 27)
ONNX_DOMAINS = ("", "ai.onnx")
READ_HERE = ("Constant", "Shape", "Size")
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu", "LSTM", "GRU", "RNN")
MOST_FOLDED = 2**28  # bytes of a constant that is computed: a few in a file can ask for any number
RESERVED = {*dir(nn.Module()), "inputs", "outputs", "steps", "numbers", "held", "constants"}
TYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.BOOL: torch.bool,
}


def read_onnx(file: str | Path) -> OnnxNetwork:
    """Read an ONNX file into a network for inference, whose layers have the names of the file's weights and nodes.

    It takes the file's inputs in their order, in float32, and returns its outputs: a tensor, or a tuple of several.

    Raises SlimError for a file that is missing or isn't ONNX, for one whose graph is at odds with itself, and for one
    with operators that can't be read, with their names: those of quantised networks, control flow, and other domains
    than ONNX's own.

        net = slim.read_onnx("model.onnx")
    """
    model = load(file)
    try:
        return _Graph(model).network()
    except SlimError as error:
        raise SlimError(f"{Path(file).name}: {error}") from error
    except Exception as error:  # of whatever a node lacks, or has that doesn't fit
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SlimError(f"{Path(file).name}: its graph isn't sound: {said[:200]}") from error


def load(file: str | Path) -> ModelProto:
    """Load an ONNX file, functions inlined. Raises SlimError where it is missing or can't be."""
    path = Path(file)
    if not path.is_file():
        raise SlimError(f"no file {str(file)!r}: expected an ONNX file")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf's, or of missing files of weights
        raise SlimError(f"{str(file)!r} isn't a sound ONNX file: {' '.join(str(error).split())[:200]}") from error
    if not model.graph.node or not model.graph.output:
        raise SlimError(f"{str(file)!r} isn't a sound ONNX file: it holds no graph")
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def opset_of(model: ModelProto) -> int:
    """Return the version of ONNX's operator set that a file needs."""
    return next((each.version for each in model.opset_import if each.domain in ONNX_DOMAINS), 0)


class _Graph:
    """A graph while it is read."""

    def __init__(self, model: ModelProto) -> None:
        self.opset = opset_of(model)
        if self.opset not in OPSETS:
            raise SlimError(f"it needs opset {self.opset} of ONNX: expected {OPSETS[0]} to {OPSETS[-1]}")
        _check_operators(model.graph.node)
        self.graph = model.graph
        constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
        for name, array in constants.items():
            if array.dtype == np.float16 or array.dtype.kind not in "fiub":
                raise SlimError(
                    f"weight {name!r} is {array.dtype}: expected float32 (export it in that, and convert the thin file)"
                )
        self.inputs = [entry for entry in model.graph.input if entry.name not in constants]
        first = shape_of(self.inputs[0]) if self.inputs else None
        batch = first[0] if first else None
        self.values = GraphValues(constants, _shapes(model), batch)
        self.steps: list[NodeStep] = []
        self.modules: dict[str, nn.Module] = {}

    def network(self) -> OnnxNetwork:
        """Return the network."""
        for proto in self.graph.node:
            self._read(Node(proto, self.values, self.opset))
        inputs, outputs = ([entry.name for entry in entries] for entries in (self.inputs, self.graph.output))
        for name in outputs:
            if name in self.values.constants:
                raise SlimError(f"output {name!r} is a constant: expected what the network computes")
        return OnnxNetwork(inputs, outputs, self.steps, self.modules, self.values.tensors, self.values.numbers)

    def _read(self, node: Node) -> None:
        constants, sizes = self.values.constants, self.values.sizes
        computed = [name for name in node.inputs if name and name not in constants]
        if node.op == "Constant":
            constants[node.outputs[0]] = _constant(node)
        elif node.op == "CastLike" and node.is_constant(0):
            constants[node.outputs[0]] = node.array(0)
        elif node.op in ("Shape", "Size"):
            self._read_shape(node)
        elif not computed and node.inputs:
            self._fold(node)
        elif computed and all(name in sizes for name in computed) and node.op in (*ARITHMETIC, "Cast"):
            self._read_size(node)
        else:
            self._add(node, READERS[node.op](node))

    def _add(self, node: Node, operation: Operation) -> None:
        call: Any = operation.call
        if isinstance(call, nn.Module):
            path = self._free(path_of(node))
            self.modules[path], call = call, path
        self.steps.append(NodeStep(node.name, call, tuple(operation.takes), tuple(node.outputs)))

    def _fold(self, node: Node) -> None:
        """Compute what follows from constants alone."""
        operation, values = READERS[node.op](node), self.values
        taken = [
            None if not name else values.numbers[name] if isinstance(name, Plain) else values.tensors[name]
            for name in operation.takes
        ]
        with torch.no_grad():
            if (memory := _memory_of(operation, taken)) > MOST_FOLDED:
                raise node.refused(f"it makes a constant of {memory:,} bytes: expected at most {MOST_FOLDED:,}")
            made = operation.call(*taken)
        for name, found in zip(node.outputs, made if isinstance(made, tuple) else [made]):
            values.constants[name] = torch.as_tensor(found).numpy()

    def _read_shape(self, node: Node) -> None:
        """Return a shape is a list of sizes that is known once the network runs."""
        [name] = node.outputs
        shape, sizes = node.shape(0), self.values.sizes
        part = slice(node.attribute("start", 0), node.attribute("end"))
        if node.is_constant(0):
            size = node.array(0).size if node.op == "Size" else node.array(0).shape[part]
            self.values.constants[name] = np.array(size, np.int64)
            return
        if isinstance(sizes.get(node.input(0)), list):
            self.values.constants[name] = np.array([len(sizes[node.input(0)])], np.int64)
            return
        sizes[name] = UNKNOWN if node.op == "Size" else None if shape is None else [UNKNOWN] * len(shape[part])
        call = torch.numel if node.op == "Size" else partial(_shape, part=(part.start, part.stop))
        self._add(node, Operation(call, [node.tensor(0)]))

    def _read_size(self, node: Node) -> None:
        """Return a size that is computed from others."""
        call = partial(cast, to=_kind(node)) if node.op == "Cast" else ARITHMETIC[node.op]
        if node.has("starts"):  # of older operator sets
            call = partial(cut, starts=node.attribute("starts"), ends=node.attribute("ends"))
        places = range(len(node.inputs))
        known = [node.size(i) if node.input(i) else None for i in places]
        open_ones = any(each is None and node.input(i) for i, each in zip(places, known))
        self.values.sizes[node.outputs[0]] = None if open_ones else call(*known)
        self._add(node, Operation(call, [node.plain(i) if node.input(i) else "" for i in places]))

    def _free(self, path: str) -> str:
        """Return the path, or one like it where another module has it or lies on its way."""
        parts = [part + "_" * (part in RESERVED) for part in path.split(".") if part] or ["layer"]
        wanted, number = ".".join(parts), 1
        while above := next((each for each in self.modules if wanted.startswith(f"{each}.")), ""):
            wanted = f"{above}_{wanted.removeprefix(above)[1:]}"  # beside it: a layer holds no others
        path = wanted
        while any(path == each or each.startswith(f"{path}.") for each in self.modules):
            number += 1
            path = f"{wanted}_{number}"
        return path


def _memory_of(operation: Operation, taken: Iterable[Any]) -> int:
    """Return the bytes of what an operator makes; 0 where that follows from numbers that its tensors hold."""
    with suppress(Exception), torch.device("meta"):
        made = operation.call(*(each.to("meta") if isinstance(each, Tensor) else each for each in taken))
        return sum(each.numel() * each.element_size() for each in (made if isinstance(made, tuple) else [made]))
    return 0


def path_of(node: Node) -> str:
    """Return a name for what a node becomes: that of its weight, else its own.

    torch's older exporter writes the way to a module into the names of its nodes: /layer1/layer1.0/conv1/Conv.
    """
    weights = node.input(1)
    if weights.endswith(".weight") and "::" not in weights:
        return weights.removesuffix(".weight")
    *parts, own = [part for part in node.name.split("/") if part] or [node.op]
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    if node.op in WEIGHTED and path:
        return ".".join(path)
    return ".".join([*path, own.replace(".", "_")])


def shape_of(entry: ValueInfoProto) -> list[int | None] | None:
    """Return the shape that a file gives for a value: None where a size, or their number, is open."""
    kind = entry.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [each.dim_value if each.HasField("dim_value") else None for each in kind.shape.dim]


def _shapes(model: ModelProto) -> dict[str, list[int | None]]:
    """Return the shapes of all values, as far as they can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # a graph above protobuf's limit, or one that it finds at odds with itself
        graph = model.graph
    found = {entry.name: shape_of(entry) for entry in (*graph.input, *graph.value_info, *graph.output)}
    return {name: shape for name, shape in found.items() if shape is not None}


def _check_operators(nodes: Iterable[NodeProto]) -> None:
    """Raise SlimError with the names of all operators that can't be read."""
    found = {node.op_type if node.domain in ONNX_DOMAINS else f"{node.domain}::{node.op_type}" for node in nodes}
    unread = sorted(found - READERS.keys() - set(READ_HERE))
    if unread:
        quantised = any("Quantize" in name or "QLinear" in name for name in unread)
        instead = (
            "the float network, to be quantised once it is pruned" if quantised else "ONNX's own, without control flow"
        )
        raise SlimError(f"can't read operator{'s' * (len(unread) > 1)} {', '.join(unread)}: expected {instead}")


def _constant(node: Node) -> np.ndarray:
    for name in ("value_float", "value_int", "value_floats", "value_ints"):
        if node.has(name):
            return np.array(node.attribute(name), np.float32 if "float" in name else np.int64)
    if not node.has("value"):
        raise node.refused("it is sparse, or text")
    return numpy_helper.to_array(node.attribute("value"))


def _shape(x: Tensor, part: tuple[int, int | None]) -> list[Any]:
    return list(x.shape[slice(*part)])


def _kind(node: Node) -> type:
    return float if node.attribute("to") in (TensorProto.FLOAT, TensorProto.DOUBLE) else int


@reads("Cast")
def cast_tensor(node: Node) -> Operation:
    """Read a change of type."""
    to = node.attribute("to")
    if to not in TYPES:
        raise node.refused(f"it makes {TensorProto.DataType.Name(to)}: expected float32, a whole number or bool")
    return Operation(Cast(TYPES[to]), [node.tensor(0)])
