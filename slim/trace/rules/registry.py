"""Which rule an operator has, and how it gets one.

A rule takes an `Op`, runs the operator and labels what comes out. There are few, because they follow what an operator
does rather than what it is called: mix channels (convolution, product), keep each to itself (pointwise, pooling,
BatchNorm), move them about (views, cat, split), or fold a dimension (mean, softmax). An operator without a rule
freezes what it touches.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from slim.errors import SlimError
from slim.trace.codes import codes_on, mark_written
from slim.trace.op import Op

Rule = Callable[[Op], Any]
_rules: dict[str, Rule] = {}  # "namespace::operator" -> rule
_known: dict[int, tuple[OpOverload, Rule]] = {}  # by the operator's id
_kinds: list[tuple[Callable[[OpOverload], bool], Rule]] = []


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of operators: how their channels follow those of their inputs.

    `names`: as the dispatcher calls them, "namespace::operator"; aten's may go without the namespace. The function
    takes a `slim.Op`, whose `run()` runs the operator, and returns its result with codes for each dimension that
    follows channels (`op.label`). It may pass the codes of its inputs on; `ungated()` where a zero doesn't stay zero;
    couple them (`op.couple`); or freeze them (`op.freeze`), as happens to all that an operator without a rule touches.
    A later rule replaces an earlier one. Raises SlimError where a name can't be an operator's.

        @slim.rule("mylib::swish_clip")
        def swish_clip(op: slim.Op) -> torch.Tensor:
            # each channel by itself, and zero stays zero: the channels of the result are those of the input
            return op.label(op.run(), op.codes(op["x"]))
    """
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"(\w+::)?\w+", name):
            raise SlimError(f"{name!r} can't be an operator: expected a name such as 'relu' or 'mylib::swish'")

    def register(function: Rule) -> Rule:
        for name in names:
            _rules[name if "::" in name else f"aten::{name}"] = function
        _known.clear()
        return function

    return register


def rule_where(applies: Callable[[OpOverload], bool]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of all operators that `applies` to and that have none by name."""

    def register(function: Rule) -> Rule:
        _kinds.append((applies, function))
        return function

    return register


def rule_for(func: OpOverload) -> Rule:
    """Return the rule of an operator."""
    known = _known.get(id(func))  # what they hash by is slow
    if known is None:
        known = _known[id(func)] = func, _rule_of(func)
    return known[1]


def _rule_of(func: OpOverload) -> Rule:
    if any(argument.is_out for argument in func._schema.arguments):
        return writes_out
    found = _rules.get(func._schema.name)
    if found is None and not any("Tensor" in str(argument.type) for argument in func._schema.arguments):
        return makes_constants
    return found or next((each for applies, each in _kinds if applies(func)), no_rule)


def makes_constants(op: Op) -> Any:
    """Run an operator that takes no tensors, so that nothing of it follows channels."""
    return op.func(*op.args, **op.kwargs)


def writes_out(op: Op) -> Any:
    """Run an operator whose results are written to tensors that it is given, `out=`: as itself without them, and a
    copy."""
    given = [argument.name for argument in op.func._schema.arguments if argument.is_out]
    plain = _without_out(op.func)
    if plain is None or not op.labelled:
        return no_rule(op)
    run = op.labeller.__torch_dispatch__  # type: ignore[attr-defined]  # a tracer is a mode
    result = run(plain, (), op.args, {name: value for name, value in op.kwargs.items() if name not in given})
    made = [result] if isinstance(result, Tensor) else list(result)
    outs = [op.kwargs[name] for name in given]
    for tensor, out in zip(made, outs):
        if out.numel() == 0 and tensor.numel():
            out.resize_(tensor.shape)
            op.label(out, codes_on(tensor))
        run(torch.ops.aten.copy_.default, (), (out, tensor), {})
    return outs[0] if len(outs) == 1 else tuple(outs)


def _without_out(func: OpOverload) -> OpOverload | None:
    """Return the overload of an operator that gives what this one writes to `out=`."""
    packet, taken = func.overloadpacket, [(a.name, str(a.type)) for a in func._schema.arguments if not a.is_out]
    for overload in (getattr(packet, name) for name in packet.overloads()):
        schema = overload._schema
        if not schema.is_mutable and [(a.name, str(a.type)) for a in schema.arguments] == taken:
            return overload
    return None


def no_rule(op: Op) -> Any:
    """Run an operator that has no rule: nothing that it touches may change."""
    for tensor in op.tensors:
        op.freeze_tensor(tensor, f"no rule for {op.where}")
        if op.func._schema.is_mutable:
            mark_written(tensor)
    return op.run()
