"""Run a model once and watch which channels of which tensors are coupled.

What runs is a *meta-device copy*: its parameters hold no data (meta tensors), so a trace costs no arithmetic and leaves
the model alone. Where the forward code looks at values (detection heads, for example) the copy shares the real weights
and runs for real.

Every tensor carries codes (see `codes`) for each dimension that follows a layer's channels; a dimension without has a
fixed size. What each operator does to the codes is in `rules`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slim.errors import SlimError
from slim.trace.attention import run_headwise
from slim.trace.attributes import KeptSizes, kind_of
from slim.trace.classes import Classes, Ints
from slim.trace.codes import (
    Bools,
    alike_along,
    clear,
    codes_on,
    fresh_from,
    is_labelled,
    mark_stand_in,
    mark_step,
    name_of,
    set_codes,
    set_name,
)
from slim.trace.constants import Constant, constants_among, constants_of, mark_result, same
from slim.trace.copy import Modules, Tensors, clone, named_modules, unwrapped
from slim.trace.emptied import Emptied
from slim.trace.labeller import INDEXED, Ambiguous, Executed, Labeller, Producer, Product
from slim.trace.lengths import stated_anew
from slim.trace.meta import META
from slim.trace.op import Op, tensors_of
from slim.trace.outputs import find_tensors, output_tensors
from slim.trace.recurrence import OneStep
from slim.trace.repeat import Known, sources_of
from slim.trace.rules.builtin import rule_for
from slim.trace.spectral import run_as_one_operator
from slim.trace.state import State, restored

COPIES = {"clone"}
SEVERAL = 3  # blocks in which the same was found, so that it will be in the others
PER_CHANNEL = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm)
KEPT = "kept on request"  # the reason for channels that could go


@dataclass
class Trace:
    """What a run of the model told: labels of every parameter's dimensions, and which of them are one class.

    `labels[name][dim]` are the labels along one dimension of a parameter or buffer; `made` holds everything that makes
    channels, `bare` the names of what something else than a norm reads, `relied` the labels that are read as zero
    although no norm makes them so; `selecting` names the BatchNorms that choose their own channels of a shared stream,
    and `streams` those that read one. `group_counts` has, with `whole_groups`, one label for each group of grouped
    convolutions: "layer.groups" -> labels; and the channels of the zeros that stand for branches that are gone.
    `switches` has, where residual branches may go as a whole, the label that stands for the branch, for each of its
    tensors and layers (by name) and operators (by their place in an inference run): what isn't kept of these labels
    isn't there at all.
    """

    classes: Classes
    labels: dict[str, dict[int, Ints]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    made: dict[str, Producer] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    relied: list[Ints] = field(default_factory=list)
    readings: dict[tuple[bool, int], object] = field(
        default_factory=dict
    )  # (training, decision) -> not the first choice
    tried: dict[frozenset[object], int] = field(default_factory=dict)  # readings -> the most channels they leave free
    misfits: list[tuple[str, Bools, str]] = field(default_factory=list)  # producers' channels that `settle` froze, why
    stuck: dict[str, int] = field(default_factory=dict)  # kinds of layers -> how many of them `settle` froze
    ambiguous: dict[tuple[bool, int], Ambiguous] = field(default_factory=dict)
    selecting: set[str] = field(default_factory=set)
    whole_groups: bool = False
    group_counts: dict[str, Ints] = field(default_factory=dict)
    streams: set[str] = field(default_factory=set)
    switches: dict[str | int, int] = field(default_factory=dict)
    products: list[Product] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)  # names in `shapes` of what lies in plain attributes of modules
    parameters: list[str] = field(default_factory=list)  # names in `shapes` that are parameters, not buffers
    runs: list["ForwardPass"] = field(default_factory=list)  # for `check`, with what it needs to run again:
    masked_runs: tuple[object, list["ForwardPass"]] | None = None  # the last ones of the masked network, and of which
    meta_copy: nn.Module = field(default_factory=nn.Module)
    inputs: Any = None
    inputs_are_meta: bool = True
    state: State = field(init=False)  # of the copy before each run, taken once
    tensors: Tensors = field(init=False)  # all of the copy's
    sizes: KeptSizes = field(init=False)  # which its modules keep
    stated_anew: set[str] = field(init=False)  # names of parameters whose norms may run over fewer channels

    def __post_init__(self) -> None:
        self.state = State(self.meta_copy)
        self.tensors = self.state.all_tensors
        for name, tensor in self.tensors:
            if name_of(tensor) is None:  # the first of its names
                set_name(tensor, name)
        self.sizes = KeptSizes(self.state.modules)
        self.stated_anew = stated_anew(self.state.modules)
        registered = self.state.registered
        self.stored = {name for name, _ in self.tensors[len(registered) :]} - {name for name, _ in registered}
        named = {id(t): name for name, t in reversed(registered) if isinstance(t, nn.Parameter)}
        self.parameters = list(reversed(named.values()))

    def add_run(self, *, training: bool) -> "ForwardPass":
        """Run the meta-device copy once more, in this mode, and take in what it tells."""
        tracer = self.tracer(training=training)
        with restored(self.meta_copy, self.state), self.sizes.noting():
            outputs = run_once(self.meta_copy, self.inputs, tracer, self.state, training=training)
        self.ambiguous |= {(training, number): found for number, found in tracer.ambiguous.items()}
        run = ForwardPass.of(tracer, outputs, training=training)
        self.runs.append(run)
        self.products = tracer.products
        self.group_counts |= tracer.group_counts
        self.streams |= tracer.streams
        for name, tensor in self.tensors:
            if name == name_of(tensor):
                self.shapes[name] = tuple(tensor.shape)
                if found := codes_on(tensor):
                    self.labels[name] = {d: codes.labels for d, codes in sorted(found.items())}
        self._label_unread()
        self.made |= tracer.producers
        self.bare |= tracer.bare
        self.relied += tracer.relied
        return run

    def tracer(self, *, training: bool) -> "Tracer":
        """Return what traces a run in this mode, and reads operators as this trace does."""
        tracer = Tracer(self.classes, self)
        tracer.preferred = {number: choice for (mode, number), choice in self.readings.items() if mode == training}
        return tracer

    def _label_unread(self) -> None:
        """Let what a layer has for each channel that it makes follow its weight where forward doesn't read it: a bias
        that a subclass leaves out, statistics of a norm that is applied by a function."""
        for prefix, module in self.state.modules:
            if not isinstance(module, PER_CHANNEL):
                continue
            made = self.labels.get(f"{prefix}weight", {}).get(1 if getattr(module, "transposed", False) else 0)
            for key in ("bias", "running_mean", "running_var"):
                tensor = module._parameters.get(key, module._buffers.get(key))  # one that is computed is read
                if made is not None and tensor is not None and tensor.shape == made.shape:
                    self.labels.setdefault(name_of(tensor) or prefix + key, {0: made})

    @property
    def producers(self) -> dict[str, Producer]:
        """Return what can be ranked, and is zero where a channel is masked: norms with a scale, and the convolutions
        and linear layers of channels that no norm gates on their way to every reader. Only BatchNorms are there
        although none of their channels can go."""
        relied = np.zeros(len(self.classes), bool)
        relied[self.classes.roots(np.concatenate([*self.relied, np.zeros(0, np.int64)]))] = True

        def gates(producer: Producer) -> bool:
            """Say whether channels that can go, or that are kept on request, need this producer's zeros."""
            free = producer.labels[~self.classes.frozen(producer.labels)]
            needed = len(free) > 0 and (producer.is_norm or bool(relied[self.classes.roots(free)].any()))
            return needed or self.classes.reason(int(producer.labels[0])) == KEPT

        return {
            name: producer
            for name, producer in self.made.items()
            if producer.kind == "BatchNorm" or ((producer.is_norm or name in self.bare) and gates(producer))
        }

    @property
    def norms(self) -> dict[str, Ints]:
        """Return the labels of every BatchNorm that has a scale γ."""
        return {name: norm.labels for name, norm in self.made.items() if norm.kind == "BatchNorm"}

    def switch(self, name: str | int) -> list[Ints]:
        """Return the label that stands for the branch which a tensor, a layer or an operator goes with, as a factor of
        its size: one, or none where it is in no such branch."""
        return [np.array([self.switches[name]])] if name in self.switches else []

    @property
    def free(self) -> int:
        """Return the number of channels that can go, over all that makes some."""
        return sum(int((~self.classes.frozen(producer.labels)).sum()) for producer in self.made.values())

    def settle(self, labels: Ints, reason: str) -> "Trace":
        """Deal with channels that can't go as planned: return a trace that reads otherwise what split or merged them,
        into heads say, where that leaves more channels free than to freeze them; else freeze them here."""
        without = self.classes.roots(labels)
        lost = sum(int(np.isin(self.classes.roots(made.labels), without).sum()) for made in self.made.values())
        other = self._reread(labels, self.free - lost + 1)
        if other is None:
            labels = np.concatenate([labels, *self._alike(without)])
            without = self.classes.roots(labels)
            for name, made in self.made.items():
                stuck = np.isin(self.classes.roots(made.labels), without)
                if stuck.any():
                    self.misfits.append((name, stuck, reason))
            self.classes.freeze(labels, reason)
        return other or self

    def _alike(self, stuck: Ints) -> list[Ints]:
        """Return the labels of layers whose likes in other blocks were stuck as a whole, several times: to find each of
        a hundred blocks stuck would take a trace."""
        kinds = {
            kind
            for name, made in self.made.items()
            if (kind := kind_of(name)) and np.isin(self.classes.roots(made.labels), stuck).all()
        }
        for kind in kinds:
            self.stuck[kind] = self.stuck.get(kind, 0) + 1
        known = {kind for kind in kinds if self.stuck[kind] >= SEVERAL}
        return [made.labels for name, made in self.made.items() if kind_of(name) in known]

    def read_best(self) -> "Trace":
        """Return a trace that reads otherwise what this one reads so that it is frozen, where that frees channels."""
        stuck = [found.labels for found in self.ambiguous.values() if self.classes.frozen(found.labels).all()]
        other = self._reread(np.concatenate(stuck), self.free + 1) if stuck else None
        return self if other is None else other.read_best()

    def _reread(self, labels: Ints, at_least: int) -> "Trace | None":
        """Return a trace that reads these channels otherwise and leaves `at_least` channels free, if there is one."""
        roots, readings = self.classes.roots(labels), self.readings
        held = [(tensor, codes_on(tensor)) for _, tensor in self.tensors if is_labelled(tensor)]
        met = {a.shapes for a in self.ambiguous.values() if np.isin(self.classes.roots(a.labels), roots).any()}
        mine = [place for place, a in self.ambiguous.items() if a.shapes in met]  # all blocks of a kind alike
        while True:
            flips = {}
            for place in mine:
                options = self.ambiguous[place].options
                after = options.index(readings.get(place, options[0])) + 1
                if after < len(options):
                    flips[place] = options[after]
            if not flips:
                break
            readings = readings | flips
            if self.tried.get(key := frozenset(readings.items()), at_least) < at_least:
                continue
            other = self._traced_again(readings)
            if other.free >= at_least:
                return other
            self.tried[key] = other.free
        if readings != self.readings:
            for tensor, codes in held:
                set_codes(tensor, codes)
        return None

    def _traced_again(self, readings: dict[tuple[bool, int], object]) -> "Trace":
        """Trace the same copy with other readings."""
        empty = Trace(Classes())
        other = replace(self, **{name: getattr(empty, name) for name in _TOLD}, readings=readings)
        for _, tensor in self.tensors:
            clear(tensor)
        for run in self.runs:
            other.add_run(training=run.training)
        for name, stuck, reason in self.misfits:
            other.classes.freeze(other.made[name].labels[stuck], reason)
        return other

    def pruned(self, kept: Bools) -> dict[str, list[int]]:
        """Return for each producer that loses channels the indices of those that aren't `kept`."""
        found = {name: np.flatnonzero(~kept[producer.labels]).tolist() for name, producer in self.producers.items()}
        return {name: indices for name, indices in found.items() if indices}

    def masks(self, pruned: Mapping[str, list[int]]) -> dict[str, dict[int, list[int]]]:
        """Return what is zero in the masked original, of what producers lose: tensor -> dimension -> indices."""
        found: dict[str, dict[int, list[int]]] = {}
        for name, indices in pruned.items():
            made = self.made[name]
            gone = self.classes.roots(made.labels[indices])
            for tensor, dim in made.tensors.items():
                own = self.labels[tensor][dim]
                same = len(own) == len(made.labels) and bool((own == made.labels).all())
                zero = indices if same else np.flatnonzero(np.isin(self.classes.roots(own), gone)).tolist()
                dims = found.setdefault(tensor, {})  # of which several producers may have a part
                dims[dim] = zero if dims.get(dim, zero) == zero else sorted({*dims[dim], *zero})
        return found

    def with_data(self, model: nn.Module, example_inputs: Any) -> "Trace":
        """Trace the same runs of `model` for real: its forward code looks at values in a mode that wasn't traced."""
        empty = Trace(Classes())
        fresh = {name: getattr(empty, name) for name in (*_TOLD, "readings", "tried", "misfits", "stuck")}
        run_on: Any = {"meta_copy": data_copy(model), "inputs": example_inputs, "inputs_are_meta": False}
        other = replace(self, **fresh, **run_on)
        for run in self.runs:
            other.add_run(training=run.training)
        return other.read_best()

    def add_inference(self) -> bool:
        """Trace the inference forward too, unless that was done; whether it differs from the training one."""
        if len(self.runs) > 1 or not self.runs[0].training:
            return False
        run, other = self.add_run(training=False).executed, self.runs[0].executed
        return [e.func for e in run] != [e.func for e in other] or not all(
            same(a.constants, b.constants) for a, b in zip(run, other)
        )


# what a run tells a Trace, as opposed to what it was run on
_TOLD = (
    *("classes", "labels", "shapes", "made", "bare", "relied", "group_counts", "streams", "products", "runs"),
    *("ambiguous", "masked_runs"),
)


@dataclass
class ForwardPass:
    """One run of the network, in training or inference mode."""

    training: bool
    executed: list[Executed]
    decisions: list[object]  # how ambiguous operators were read, in order
    shapes: dict[str, tuple[int, ...]]  # of the outputs, by their paths
    constants: dict[str, Constant]  # among the outputs: numbers that may follow a width

    @classmethod
    def of(cls, tracer: "Tracer", outputs: Mapping[str, Tensor], *, training: bool) -> "ForwardPass":
        """Return what a run has told, once it is over."""
        return cls(training, tracer.executed, tracer.decisions, shapes_of(outputs), constants_among(outputs))


class Tracer(Labeller, TorchDispatchMode):
    """The dispatch mode that carries codes from tensor to tensor; `rules` does the reasoning."""

    def __init__(self, classes: Classes, traced: "Trace") -> None:
        super().__init__(classes, traced.selecting, traced.whole_groups)
        self.stated_anew = traced.stated_anew
        self.meta = traced.inputs_are_meta

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing is compiled here, and the guard against it costs a quarter
        return False

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = Op(func, args, kwargs or {}, self)
        taken = [codes for tensor in op.tensors for codes in codes_on(tensor).values()]
        constants = constants_of(op, meta=self.meta)
        executed = Executed(func, constants or (), taken, aside=constants is None or op.name in COPIES)
        self.note(executed)
        for tensor in op.tensors:
            self.meet(tensor)
        sources = sources_of(op.tensors)
        result = rule_for(func)(op)
        mark_result(op, result, constant=constants is None, meta=self.meta)
        self._note_bare(op, result)
        executed.decided, executed.place = len(self.decisions), self.place
        executed.made = [(_lasting_shape(t), codes_on(t)) for t in tensors_of(result)]
        if self.meta and constants is not None:
            self.remember(executed, op, sources, result)
        self.compare(executed, op, result)
        return result

    def compare(self, executed: Executed, op: Op, result: Any) -> None:
        """Hold what an operator gave against an earlier run, where there is one."""

    def remember(self, executed: Executed, op: Op, sources: Sequence[object], result: Any) -> None:
        """Note what the operator was given and gave, for runs that repeat this one."""
        executed.known = Known.of(op, sources, result)
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


def mark_steps(op: Op, sources: Sequence[object], result: Any, step: int) -> None:
    """Mark the results of an operator by its place in the run; a copy comes from where the copied tensor does."""
    if op.name in COPIES:
        mark_step(result, sources[0])
        return
    for number, tensor in enumerate(result if isinstance(result, (tuple, list)) else (result,)):
        if isinstance(tensor, Tensor):
            mark_step(tensor, (step, number))


def meta_copy(model: nn.Module) -> nn.Module:
    """Copy a model for a trace, without the data of its floating-point tensors."""

    def without_data(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter) or tensor.is_floating_point():
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
            return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        return tensor.detach().clone()

    return _ready(clone(model, without_data))


def data_copy(model: nn.Module) -> nn.Module:
    """Copy a model for a trace that runs for real: parameters share their data, buffers are of its own."""

    def with_data(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor.detach(), requires_grad=False)
        return tensor.detach().clone()

    return _ready(clone(model, with_data))


def _ready(copied: nn.Module) -> nn.Module:
    """Prepare the modules of a copy for a trace, and return it. Counters of batches are of no use to it."""
    for prefix, module in named_modules(copied):
        run_headwise(module)
        run_as_one_operator(module)
        if isinstance(module, Emptied):
            module.register_forward_hook(partial(_mark_emptied, f"{prefix}emptied_channels"))
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module._buffers["num_batches_tracked"] = None
    return copied


def _mark_emptied(attribute: str, module: nn.Module, args: Any, out: Tensor) -> None:
    """Let what a module of a branch that is gone gives know which attribute follows the stream's channels."""
    mark_stand_in(out, attribute)


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
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole layer, in inference only
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Return `model(example_inputs)`: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""
    model = unwrapped(model)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return model(*example_inputs)
    return model(example_inputs)


def run_once(
    copied: nn.Module, example_inputs: Any, tracer: Tracer, state: State, *, training: bool
) -> dict[str, Tensor]:
    """Run a copy under the tracer and freeze what it returns; the tensors of its output.

    `state` is what the copy held before: the caller puts it back.
    """
    with tracing_mode(state.modules, training=training), OneStep(tracer), tracer:
        outputs = output_tensors(call(copied, example_inputs))
    for name, written in state.written().items():
        _carry_over(tracer, name, state.tensors[name], written)
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


def as_meta(inputs: Any) -> Any:
    """Return the inputs without their data."""
    return tree_map_only(Tensor, lambda t: torch.empty_like(t, device=META), inputs)


def trace(model: nn.Module, example_inputs: Any, *, select: bool = False, whole_groups: bool = False) -> Trace:
    """Trace the model's training forward (its inference forward where the other can't run), without touching it.

    `example_inputs` is a tensor, a tuple or a dict of what `forward` takes. With `select`, a BatchNorm that reads a
    shared stream (pre-activation) chooses its own channels of it. With `whole_groups`, a grouped convolution loses
    whole groups, instead of the same places within each. Raises SlimError where the model can't be run.
    """
    _check_kind(model)
    check_inputs(example_inputs)
    traced = _trace_somehow(model, example_inputs, set(), whole_groups).read_best()
    if not select:
        return traced
    # Which BatchNorms read a shared stream? Those after a sum or a concat; and then those that share with them.
    chosen: set[str] = set()
    while more := traced.streams - chosen | {bn for bn in traced.norms.keys() - chosen if _is_indexed(traced, bn)}:
        chosen |= more
        traced = _trace_somehow(model, example_inputs, set(chosen), whole_groups).read_best()
    return traced


def check_inputs(example_inputs: Any) -> None:
    """SlimError for inputs that hold no tensor, or none with an element: they would show nothing."""
    tensors = find_tensors(example_inputs, arrays=False).values()
    if not tensors and not isinstance(example_inputs, tuple | list | dict):
        raise SlimError(f"example_inputs is a {type(example_inputs).__name__}: expected a tensor, a tuple or a dict")
    if tensors and not any(tensor.numel() for tensor in tensors):
        raise SlimError("example_inputs is an empty batch: expected at least one sample")


def cannot_run(error: Exception) -> SlimError:
    """Say in one line that the model can't be run."""
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:299]}…"
    return SlimError(f"the model can't be run on example_inputs: {type(error).__name__}: {said}")


def _check_kind(model: nn.Module) -> None:
    """SlimError for a model without a forward in Python, or without shapes."""
    for name, module in named_modules(model):
        where = name[:-1] or "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise SlimError(f"{where} is a TorchScript module: expected the torch.nn.Module that it was made from")
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise SlimError(f"{where} is a DistributedDataParallel inside the model: wrap the thin network instead")
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
            raise SlimError(f"{where} ({type(module).__name__}) has no shape yet: run the model on a batch first")


def _is_indexed(traced: Trace, bn: str) -> bool:
    labels = traced.norms[bn]
    frozen = labels[traced.classes.frozen(labels)]
    return any((traced.classes.reason(int(label)) or "").startswith(INDEXED) for label in frozen)


def _trace_somehow(model: nn.Module, example_inputs: Any, select: set[str], whole_groups: bool) -> Trace:
    """Trace in the first way that works: without data if forward code allows; for inference only if training wants
    targets."""
    for training in (True, False):
        for meta in (True, False):
            copied = meta_copy(model) if meta else data_copy(model)
            inputs = as_meta(example_inputs) if meta else example_inputs
            run_on: Any = {"meta_copy": copied, "inputs": inputs, "inputs_are_meta": meta}
            result = Trace(Classes(), selecting=select, whole_groups=whole_groups, **run_on)
            try:
                result.add_run(training=training)
                return result
            except Exception as error:
                last = error
    if isinstance(last, SlimError):
        raise last
    raise cannot_run(last) from last
