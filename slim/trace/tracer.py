"""Run a model once and watch which channels of which tensors are coupled.

What runs is a *meta-device copy*: its parameters hold no data (meta tensors), so a trace costs no arithmetic and leaves
the model alone. Where the forward code looks at values (detection heads, for example) the copy shares the real weights
and runs for real.

Every tensor carries codes (see `codes`) for each dimension that follows a layer's channels; a dimension without has a
fixed size. What each operator does to the codes is in `rules`.
"""

import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from slim.trace.attention import layer_by_layer
from slim.trace.classes import Classes
from slim.trace.codes import (
    alike_along,
    codes_on,
    fresh_from,
    is_fixed,
    is_plain,
    is_uniform,
    mark_alike,
    mark_blank,
    mark_fixed,
    mark_step,
    mark_varying,
    pass_notes,
)
from slim.trace.constants import Constant, constants_among, constants_of, mark_result
from slim.trace.copy import Modules
from slim.trace.inputs import call
from slim.trace.labeller import Executed, Labeller
from slim.trace.op import Op, tensors_of
from slim.trace.outputs import output_tensors
from slim.trace.readers import noting_readers
from slim.trace.recurrence import OneStep
from slim.trace.repeat import Known, sources_of
from slim.trace.rules.builtin import rule_for
from slim.trace.state import State
from slim.trace.widths import noting_widths

COPIES = {"clone", "detach"}  # autograd detaches what it keeps
EMPTY, CLONE, DETACH = torch.ops.aten.empty.memory_format, torch.ops.aten.clone.default, torch.ops.aten.detach.default


@dataclass
class ForwardPass:
    """One run of the network, in training or inference mode."""

    training: bool
    executed: list[Executed]
    decisions: list[object]  # how ambiguous operators were read, in order
    shapes: dict[str, tuple[int, ...]]  # of the outputs, by their paths
    constants: dict[str, Constant]  # among the outputs: numbers that may follow a width
    seed: int | None  # of the random numbers that forward code draws; None for those that come next

    @classmethod
    def of(cls, tracer: "Tracer", outputs: Mapping[str, Tensor], *, training: bool, seed: int | None) -> "ForwardPass":
        """Return what a run has told, once it is over."""
        return cls(training, tracer.executed, tracer.decisions, shapes_of(outputs), constants_among(outputs), seed)


@dataclass(frozen=True)
class TraceOptions:
    """How a network is traced.

    `select` names BatchNorms that choose their own channels of a shared stream; with `whole_groups`, grouped
    convolutions lose whole groups; `stated_anew` names parameters whose norms may run over fewer channels, and
    `readers` layers whose bias can take up constants; in a `meta` run tensors hold no data; where it
    `watches_functions`, torch's own are seen, too, which takes time.
    """

    select: Container[str] = ()
    whole_groups: bool = False
    stated_anew: Container[str] = ()
    readers: Container[str] = ()
    meta: bool = True
    watches_functions: bool = False


class Tracer(Labeller, TorchDispatchMode):
    """The dispatch mode that carries codes from tensor to tensor; `rules` does the reasoning."""

    def __init__(self, classes: Classes, options: TraceOptions) -> None:
        super().__init__(classes, options.select, options.whole_groups)
        self.stated_anew = options.stated_anew
        self.meta = options.meta
        self.watches_functions = options.watches_functions
        self.readers = options.readers

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing is compiled here, and the guard against it costs a quarter
        return False

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is EMPTY:  # a third of what runs in training is this and copies, for the backward pass
            return mark_blank(func(*args, **kwargs))
        if self.meta and (func is CLONE or func is DETACH) and is_plain(args[0]):  # with data, numpy may come next
            return pass_notes(args[0], func(*args, **(kwargs or {})))
        op = Op(func, args, kwargs or {}, self)
        taken = [codes for tensor in op.tensors for codes in codes_on(tensor).values()]
        constants = constants_of(op, meta=self.meta)
        executed = Executed(func, constants or (), taken, aside=constants is None or passes_on(op))
        self.note(executed)
        for tensor in op.tensors:
            self.meet(tensor)
        sources = sources_of(op.tensors, meta=self.meta)
        result = rule_for(func)(op)
        mark_result(op, result, constant=constants is None, meta=self.meta)
        if (constants is None or all(map(is_fixed, op.tensors))) and not op.is_random:
            for tensor in tensors_of(result):
                mark_fixed(tensor)
        elif op.in_place:
            mark_varying(op.input)
        pass_on_uniform(op, result)
        self._note_bare(op, result)
        executed.decided, executed.place = len(self.decisions), self.place
        executed.read = () if self.meta else op.read  # only values lead forward to other parameters
        executed.made = [(_lasting_shape(t), codes_on(t)) for t in tensors_of(result)]
        if constants is not None:
            self.remember(executed, op, sources, result)
        self.compare(executed, op, result)
        return result

    def compare(self, executed: Executed, op: Op, result: Any) -> None:
        """Hold what an operator gave against an earlier run, where there is one."""

    def remember(self, executed: Executed, op: Op, sources: Sequence[object], result: Any) -> None:
        """Note what the operator was given and gave, for runs that repeat this one."""
        executed.known = Known.of(op, sources, result, meta=self.meta)
        mark_steps(op, sources, result, len(self.executed))

    def _note_bare(self, op: Op, out: Any) -> None:
        """Note the layers whose output something else reads than a norm, or a view that passes it on."""
        read = {producer for tensor in op.tensors if (producer := fresh_from(tensor))}
        if read and not op.is_norm:
            first = out[0] if isinstance(out, (tuple, list)) and out else out
            self.bare |= read - {fresh_from(first) if isinstance(first, Tensor) else None}

    def note(self, executed: Executed) -> None:
        self.executed.append(executed)


def _lasting_shape(tensor: Tensor) -> Sequence[int]:
    """Return a shape, with 1 where one value is repeated: any number of it would do."""
    alike = alike_along(tensor) - codes_on(tensor).keys()
    return torch.Size(1 if d in alike else n for d, n in enumerate(tensor.shape)) if alike else tensor.shape


def passes_on(op: Op) -> bool:
    """Say whether an operator gives what it is given: a copy, or a slice of all, as older torch makes of `:`."""
    if op.name != "slice":
        return op.name in COPIES
    places = range(op.input.shape[op["dim"]])
    return len(places[slice(op["start"], op["end"], op["step"])]) == len(places)


def pass_on_uniform(op: Op, result: Any) -> None:
    """Mark a view of what holds one value all over."""
    if op.func.is_view and isinstance(result, Tensor) and is_uniform(op.input):
        mark_alike(result, range(result.dim()))


def mark_steps(op: Op, sources: Sequence[object], result: Any, step: int) -> None:
    """Mark the results of an operator by its place in the run; a copy comes from where the copied tensor does."""
    if op.name in COPIES:
        mark_step(result, sources[0])
        return
    for number, tensor in enumerate(result if isinstance(result, (tuple, list)) else (result,)):
        if isinstance(tensor, Tensor):
            mark_step(tensor, (step, number))


@contextmanager
def tracing_mode(modules: Modules, *, training: bool) -> Iterator[None]:
    """Put a copy in training or inference mode; what is random or needs several processes stays out of it."""
    for _, module in modules:
        if type(module).train is not nn.Module.train:
            module.train()  # there and back: modules that cache something for inference drop it
            module.train(training)
    for _, module in modules:
        leaf = not (module._modules or module._parameters or module._buffers)  # dropout, drop path: noise, no channels
        module.__dict__["training"] = training and not leaf and not isinstance(module, nn.SyncBatchNorm)
    # forward code may ask whether gradients are taken; which of the fused kernels of attention runs hangs on sizes
    with torch.set_grad_enabled(training), sdpa_kernel(SDPBackend.MATH), layer_by_layer(), _uncompiled():
        yield


def _uncompiled() -> AbstractContextManager[Any]:
    """Run what torch.compile has wrapped as it stands: to compile it for a trace takes most of a minute."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def run_once(
    copied: nn.Module, example_inputs: Any, tracer: Tracer, state: State, *, training: bool, seed: int | None = None
) -> dict[str, Tensor]:
    """Run a copy under the tracer and freeze what it returns; the tensors of its output.

    `state` is what the copy held before: the caller puts it back, and the random numbers that follow from `seed`.
    """
    if seed is not None:
        state.seed(seed)
    noting = noting_readers(tracer, state.modules, tracer.readers), noting_widths(tracer, state.modules)
    watching = OneStep(tracer) if tracer.watches_functions else nullcontext()
    with tracing_mode(state.modules, training=training), noting[0], noting[1], watching, tracer:
        outputs = output_tensors(call(copied, example_inputs), numbers=True)
    for name, written in state.written().items():
        if name in state.tensors:
            _carry_over(tracer, name, state.tensors[name], written)
        if codes := tracer.codes(written):
            tracer.left[name] = codes
    for out in outputs.values():
        tracer.freeze_tensor(out, "the model's output")
    return outputs


def _carry_over(tracer: Tracer, name: str, before: Tensor, written: Tensor) -> None:
    """Forward put another tensor in the place of one that an earlier forward left: both have the same channels."""
    for dim, codes in tracer.codes(written).items():
        if before.dim() == written.dim() and before.shape[dim] == written.shape[dim]:
            tracer.axis(before, dim, codes, f"kept in {name}")


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors, by name."""
    return {path: tuple(tensor.shape) for path, tensor in tensors.items()}
