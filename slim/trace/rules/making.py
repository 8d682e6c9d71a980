"""Operators that make a new tensor: of a size that may follow another's, filled with something of its own."""

from torch import Tensor

from slim.trace.codes import Codes, TensorCodes, mark_alike, mark_blank, mark_unset
from slim.trace.constants import ValuesNeeded, is_constant, is_small
from slim.trace.op import Op
from slim.trace.rules.pointwise import same
from slim.trace.rules.registry import rule


@rule("scalar_tensor")
def scalar_tensor(op: Op) -> Tensor:
    """A number: it keeps its value where the network runs without data."""
    made: Tensor = op.func(*op.args, **{**op.kwargs, "device": "cpu"})
    return made


@rule("lift_fresh", "lift_fresh_copy")
def of_numbers(op: Op) -> Tensor:
    """A tensor of Python's numbers."""
    _keep_values(op)
    made: Tensor = same(op)
    return made


@rule("_to_copy")
def moved(op: Op) -> Tensor:
    """Of another dtype, or on another device: a constant keeps its values where the network runs without data."""
    if op.labeller.meta and not op.input.is_meta and is_constant(op.input, True):
        op.kwargs.pop("device", None)
    made: Tensor = same(op)
    return made


def _keep_values(op: Op) -> None:
    """Raise ValuesNeeded where numbers have been lost on the way to the operator, but needn't be."""
    if op.input.is_meta and not op.labeller.watches_functions:
        raise ValuesNeeded


@rule("zeros_like", "empty_like", "new_zeros", "new_empty", "new_empty_strided")
def nothing(op: Op) -> Tensor:
    """Zero whatever is masked. Memory that isn't set counts as zero, too: what is read of it has been written before,
    and a zero that is written over by something else is noticed there."""
    made = mark_unset(op.label(op.run(), {d: codes.with_gate() for d, codes in _sized_after(op).items()}))
    return mark_blank(mark_alike(made, range(made.dim())) if "zeros" in op.name else made)


@rule("empty", "empty_strided")
def new_memory(op: Op) -> Tensor:
    made: Tensor = op.func(*op.args, **op.kwargs)
    return mark_blank(made)


@rule("ones_like", "full_like", "rand_like", "randn_like", "randint_like", "new_ones", "new_full")
def something(op: Op) -> Tensor:
    if op.name == "new_full" and is_small(op["size"]):
        _keep_values(op)
    made = op.label(op.run(), {d: codes.ungated() for d, codes in _sized_after(op).items()})
    return made if "rand" in op.name else _filled(op, made)


@rule("full", "ones", "zeros")
def full(op: Op) -> Tensor:
    if op.name == "full" and op.labeller.meta and is_small(op["size"]):
        op.kwargs.pop("device", None)  # so that it keeps its values
    return _filled(op, op.func(*op.args, **op.kwargs))


def _filled(op: Op, made: Tensor) -> Tensor:
    mark_alike(made, range(made.dim()))
    return mark_blank(made) if op.name == "zeros" or op.get("fill_value") == 0 else made


def _sized_after(op: Op) -> TensorCodes:
    """The codes of the dimensions that have the size of the tensor that the new one is made after."""
    after = op.input
    size = tuple(op.get("size", after.shape))
    if len(size) != after.dim():
        return {}
    found = {d: codes for d, codes in op.codes().items() if size[d] == after.shape[d]}
    if "size" in op.arguments and found:
        for d, codes in found.items():
            op.count(size[d], codes)
        op.labeller.could_be_read((True, False), size, Codes.join(found.values()))
        if not op.decide(True, (True, False)):  # as large by chance: a state, say
            return {}
    return found


@rule("bernoulli_", "normal_", "uniform_", "exponential_")
def noise(op: Op) -> Tensor:
    """Drawn into a tensor: nothing that was there counts any more. Where that was new, as dropout's is, nothing passes
    for it; else views of it may still."""
    earlier = op.labeller.executed[-2:-1]
    new = bool(earlier) and earlier[0].func.overloadpacket.__name__ in ("empty_like", "new_empty")
    codes = op.codes()
    if not new:
        for vector in codes.values():
            op.freeze(vector)
    return op.label(op.run(), {d: vector.ungated() for d, vector in codes.items()})
