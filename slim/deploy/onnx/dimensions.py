"""Which sizes a file leaves open: the batch, and height and width; and what another file calls them."""

import re
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from slim.deploy.onnx.arguments import Arguments
from slim.deploy.target import BatchUnit
from slim.errors import SlimError

OTHER_SIZE = (32, 64)  # pixels added to height and width, to try a file of any image size: networks halve up to 5 times
HEIGHT_AXIS = {False: -2, True: 1}  # whether images are raw -> where height stands: [N, C, …, H, W] or [N, H, W, C]


class OpenSizes:
    """The names of a file's open dimensions. Raises SlimError where `dynamic_size` is asked of what has no size."""

    def __init__(self, arguments: Arguments, batch: BatchUnit, *, raw_images: bool = False, dynamic_size: bool) -> None:
        self.batch, self.dynamic_size, self._axis = batch, dynamic_size, HEIGHT_AXIS[raw_images]
        name = torch.export.Dim("batch")
        self._batch = name if batch.unit == 1 else batch.unit * name
        for tensor in arguments.tensors:
            if dynamic_size and tensor.ndim < 4:
                raise SlimError(f"dynamic_size: the network takes {list(tensor.shape)}: expected images [N, C, H, W]")

    def named(self, arguments: Any) -> Any:
        """Return a name for every open dimension, as torch.onnx.export takes them."""
        return pytree.tree_map(self._name, arguments)

    def larger(self, arguments: Arguments) -> Arguments:
        """Return the arguments with images of another size."""
        return arguments.map(self._enlarge)

    def _name(self, leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        height = self._axis % leaf.ndim
        size = {height: "height", height + 1: "width"} if self.dynamic_size else {}
        return ({0: self._batch} if self.batch.multiples else {}) | size

    def _enlarge(self, tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        height = self._axis % tensor.ndim
        for i, more in enumerate(OTHER_SIZE):
            shape[height + i] += more
        return tensor.new_zeros(shape)


def keep_words(thin: onnx.ModelProto, original: onnx.ModelProto) -> None:
    """Give a file, in place, what another one of the same inputs and outputs says of itself: the names of its open
    sizes and of its graph, its version, and its descriptions."""
    for field in ("doc_string", "domain", "model_version"):
        setattr(thin, field, getattr(original, field))
    thin.graph.name, thin.graph.doc_string = original.graph.name, original.graph.doc_string
    described = {entry.name: entry for entry in (*original.graph.input, *original.graph.output)}
    names: dict[str, str] = {}
    for entry in (*thin.graph.input, *thin.graph.output):
        entry.doc_string = described[entry.name].doc_string
        for ours, theirs in zip(_sizes(entry), _sizes(described[entry.name])):
            if ours.dim_param.isidentifier() and theirs.dim_param:
                names.setdefault(ours.dim_param, theirs.dim_param)
    for entry in (*thin.graph.input, *thin.graph.output, *thin.graph.value_info):
        for size in _sizes(entry):
            if size.dim_param:  # such as batch, or 4*batch
                size.dim_param = re.sub(r"[^\W\d]\w*", lambda word: names.get(word[0], word[0]), size.dim_param)


def _sizes(entry: onnx.ValueInfoProto) -> Any:
    return entry.type.tensor_type.shape.dim
