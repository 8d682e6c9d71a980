"""The ONNX file of a thin network from that of the original, in place of an export that takes ten times as long.

A plan says which indices every parameter loses, and the exporter keeps the names of parameters: so the graph stays, and
its weights are cut. What the names don't tell (sizes in constants, weights that were folded away) makes a file that
doesn't run or fails the comparison with the thin network; then that has to be exported.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from slim.prune.plan import PruningPlan


def cut(content: bytes, plan: PruningPlan, thin: nn.Module) -> bytes | None:
    """Return the file of `thin`, which `plan` made, given the original's; None where the plan adds operators or biases.
    Whether it is right is left to a comparison: sizes that modules keep may be in its constants, or read by nothing."""
    if plan.selects or plan.constants:
        return None
    model = onnx.load_from_string(content)
    initializers = {each.name: each for each in model.graph.initializer}
    cuts = {name: plan.cuts[name] for name in initializers.keys() & plan.cuts.keys()}
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        weight, *bias = node.input[1:3] if len(node.input) > 1 else [""]
        if node.op_type not in ("Conv", "Gemm") or weight not in initializers:
            continue
        if bias and bias[0] not in cuts and 0 in cuts.get(weight, {}):  # made where a BatchNorm was folded
            cuts[bias[0]] = {0: cuts[weight][0]}
        if node.op_type == "Conv":
            _set_groups(node, weight, thin)
        elif 1 in cuts.get(weight, {}):
            _flatten_to(makers.get(node.input[0]), initializers, cuts[weight][1])
    for name, each in cuts.items():
        array = without(numpy_helper.to_array(initializers[name]), each)
        initializers[name].CopyFrom(numpy_helper.from_array(array, name))
    if plan.blocks:
        drop_emptied(model.graph)
    del model.graph.value_info[:]  # sizes in between, as they were
    made: bytes = model.SerializeToString()
    return made


def drop_emptied(graph: Any) -> None:
    """Take the nodes out of a graph, in place, that follow from weights of which nothing is left, up to where they are
    added to something else, which goes on without them."""
    weights = {each.name: math.prod(each.dims) for each in graph.initializer}
    gone = {name for name, size in weights.items() if not size}
    same: dict[str, str] = {}  # the result of a node that is gone -> what takes its place
    makes: dict[str, str] = {}  # a tensor -> the kind of node that made it
    left = []
    for node in graph.node:
        taken = [same.get(name, name) for name in node.input]
        stays = [name for name in taken if name and name not in gone]
        if node.op_type == "Add" and len(stays) == 1 and stays[0] not in weights:
            same[node.output[0]] = stays[0]
        elif len(stays) < len([name for name in taken if name]):
            gone.update(node.output)
        elif node.op_type == "Relu" and makes.get(taken[0]) == "Relu":
            same[node.output[0]] = taken[0]
        else:
            node.input[:] = taken
            makes |= dict.fromkeys(node.output, node.op_type)
            left.append(node)
    used = {name for node in left for name in node.input}
    for kept, among in (
        (left, graph.node),
        ([each for each in graph.initializer if each.name in used], graph.initializer),
    ):
        del among[:]
        among.extend(kept)


def without(array: NDArray[Any], indices: Mapping[int, Sequence[int]]) -> NDArray[Any]:
    """Return an array without the indices given for each dimension."""
    for dimension, gone in indices.items():
        array = np.delete(array, gone, dimension)
    return array


def _set_groups(node: Any, weight: str, thin: nn.Module) -> None:
    """Give a convolution the groups that its module has in the thin network."""
    owner = thin
    for part in weight.split(".")[:-1]:
        owner = getattr(owner, part, owner)
    groups = getattr(owner, "groups", None)
    for attribute in node.attribute:
        if attribute.name == "group" and groups is not None:
            attribute.i = groups


def _flatten_to(reshape: Any, initializers: Mapping[str, Any], gone: Sequence[int]) -> None:
    """Lower the number of features that a flattening before a linear layer gives."""
    if reshape is None or reshape.op_type != "Reshape" or reshape.input[1] not in initializers:
        return
    shape = numpy_helper.to_array(initializers[reshape.input[1]]).copy()
    if shape[-1] > 0:
        shape[-1] -= len(gone)
    initializers[reshape.input[1]].CopyFrom(numpy_helper.from_array(shape, reshape.input[1]))
