"""The arithmetic of shapes in an ONNX graph, on Python numbers and lists of them.

An exporter writes `x.view(x.shape[0], -1)` as Shape, Gather, Unsqueeze, Concat and Reshape. Read as tensors, such
chains would hide from a trace which size comes from where; as numbers they are what they were in the network's own
code. Where a size is known only once the network runs, `UNKNOWN` stands for it while the file is read.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

GraphSize = Any  # int, float, bool, torch.SymInt, UNKNOWN, or a list of such
BITS = 63  # of a whole number in ONNX, without its sign: Python's would grow until no memory is left


class Unknown:
    """A size that isn't known yet: so is whatever is computed from it."""

    def _stay(self, *_: Any) -> "Unknown":
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = _stay
    __truediv__ = __rtruediv__ = __mod__ = __rmod__ = __neg__ = __pow__ = __rpow__ = __floor__ = __ceil__ = _stay
    __lt__ = __le__ = __gt__ = __ge__ = _stay

    def __deepcopy__(self, memo: Any) -> "Unknown":
        return self


UNKNOWN = Unknown()


def divide(a: Any, b: Any) -> Any:
    """Divide as ONNX does: whole numbers, and tensors of such, towards zero."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        floating = any(t.is_floating_point() if isinstance(t, torch.Tensor) else isinstance(t, float) for t in (a, b))
        return a / b if floating else torch.div(a, b, rounding_mode="trunc")
    return a / b if isinstance(a, float) or isinstance(b, float) else a // b


def equal(a: Any, b: Any) -> Any:
    """Return a == b, or UNKNOWN."""
    return UNKNOWN if UNKNOWN in (a, b) else a == b


def choose(condition: Any, a: Any, b: Any) -> Any:
    """Return `a` where the condition holds, else `b`."""
    return UNKNOWN if condition is UNKNOWN else a if condition else b


def power(a: Any, b: Any) -> Any:
    """Return a to the power of b. Raises OverflowError for a whole number that has no place in ONNX."""
    if isinstance(a, int) and isinstance(b, int) and abs(a) > 1 and b > BITS:
        raise OverflowError(f"a size of {a} to the power of {b}: expected at most {BITS} bits")
    return a**b


def each(function: Callable[..., Any]) -> Callable[..., GraphSize]:
    """Return `function` for numbers and lists of them: one stands for as many as the others have. It raises
    OverflowError for whole numbers that have no place in ONNX."""

    def one(*values: GraphSize) -> GraphSize:
        made = function(*values)
        if isinstance(made, int) and made.bit_length() > BITS:
            raise OverflowError(f"a size of {made.bit_length()} bits: expected at most {BITS}")
        return made

    def apply(*values: GraphSize) -> GraphSize:
        length = max((len(v) for v in values if isinstance(v, list)), default=0)
        if not any(isinstance(v, list) for v in values):
            return one(*values)
        rows = [v * length if isinstance(v, list) and len(v) == 1 else v for v in values]
        return [one(*(v[i] if isinstance(v, list) else v for v in rows)) for i in range(length)]

    return apply


def gather(data: list[GraphSize], index: Any) -> GraphSize:
    """Take one number of a list, or several."""
    return [data[i] for i in index] if isinstance(index, list) else data[index]


def join(*parts: GraphSize) -> list[GraphSize]:
    """Put lists one behind the other."""
    return [value for part in parts for value in (part if isinstance(part, list) else [part])]


def cut(data: list[GraphSize], starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> list[GraphSize]:
    """Return a slice of a list."""
    start, end, step = (v[0] if isinstance(v, list) else v for v in (starts, ends, steps or 1))
    return data[start:end:step]


def listed(value: GraphSize, *_: Any) -> list[GraphSize]:
    """Return a list of the number."""
    return value if isinstance(value, list) else [value]


def alone(value: GraphSize, *_: Any) -> GraphSize:
    """Return the number of a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def cast(value: GraphSize, to: type) -> GraphSize:
    """Return whole numbers or floats."""
    if isinstance(value, list):
        return [cast(each, to) for each in value]
    whole = isinstance(value, int | torch.SymInt)
    if value is UNKNOWN or whole == (to is int):
        return value
    return value * 1.0 if to is float else math.trunc(value)


def product(values: Sequence[GraphSize], *_: Any) -> GraphSize:
    """Multiply the numbers of a list."""
    return math.prod(values[1:], start=values[0]) if values else 1


ARITHMETIC: dict[str, Callable[..., GraphSize]] = {
    "Add": each(operator.add),
    "Sub": each(operator.sub),
    "Mul": each(operator.mul),
    "Div": each(divide),
    "Mod": each(operator.mod),
    "Neg": each(operator.neg),
    "Pow": each(power),
    "Sqrt": each(lambda a: a**0.5),
    "Floor": each(math.floor),
    "Ceil": each(math.ceil),
    "Max": each(max),
    "Min": each(min),
    "Equal": each(equal),
    "Where": each(choose),
    "Gather": gather,
    "Concat": join,
    "Slice": cut,
    "Unsqueeze": listed,
    "Reshape": listed,
    "Squeeze": alone,
    "ReduceProd": product,
    "Identity": lambda value: value,
}
