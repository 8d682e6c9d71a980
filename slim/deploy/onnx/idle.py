"""Nodes of a graph that change nothing: what is left around a residual block that is gone.

The block's branch is a tensor of zeros, of a size that follows the batch, so the exporter's optimiser can't fold it.
"""

from onnxscript import ir

MAKES_ONE_VALUE = ("ConstantOfShape", "Expand")


def drop_idle(model: ir.Model) -> None:
    """Take out of a graph, in place, additions of zeros and the ReLU of what is the result of one already."""
    outputs = {id(value) for value in model.graph.outputs}
    for node in list(model.graph):
        same = _unchanged(node)
        if same is not None and id(node.outputs[0]) not in outputs:
            node.outputs[0].replace_all_uses_with(same)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def _unchanged(node: ir.Node) -> ir.Value | None:
    """Return the input that a node gives again, of the same shape; None where it does something."""
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Relu" and first is not None and _made_by(first) == "Relu":
        return first
    if node.op_type != "Add" or first is None:
        return None
    for zero, other in (node.inputs, node.inputs[::-1]):
        if _is_zero(zero) and other is not None and other.shape is not None and other.shape == node.outputs[0].shape:
            return other
    return None


def _made_by(value: ir.Value) -> str:
    producer = value.producer()
    return "" if producer is None else producer.op_type


def _is_zero(value: ir.Value | None) -> bool:
    """Say whether a value is known to be zero everywhere."""
    if value is None:
        return False
    constant = value.const_value
    if constant is not None:
        return not constant.numpy().any()
    producer = value.producer()
    if producer is None or producer.op_type not in MAKES_ONE_VALUE:
        return False
    if producer.op_type == "Expand":
        return _is_zero(producer.inputs[0])
    filled = producer.attributes.get("value")
    return filled is None or not filled.as_tensor().numpy().any()
