"""What runs of a network told: which channels of which tensors are coupled.

A network is traced in the mode that it trains in; where that leaves a doubt, in inference mode, too. Operators that can
be read in several ways are read in the one that leaves most channels free.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from slim.errors import SlimError
from slim.trace.attributes import KeptSizes, kind_of
from slim.trace.classes import Classes, Ints
from slim.trace.codes import Bools, clear, codes_on, is_labelled, layer_of, name_of, set_codes, set_name
from slim.trace.constants import ValuesNeeded, same
from slim.trace.copy import Tensors, named_modules
from slim.trace.inputs import as_meta, call, cannot_follow, cannot_run, check_inputs
from slim.trace.labeller import INDEXED, Ambiguous, Executed, Fold, Producer, Product
from slim.trace.lengths import stated_anew
from slim.trace.meta_copy import data_copy, meta_copy
from slim.trace.readers import readers
from slim.trace.recurrence import is_recurrent
from slim.trace.state import State, restored
from slim.trace.tracer import ForwardPass, TraceOptions, Tracer, run_once

DRAWS = 16  # of random numbers in a row that lead to no new layer, where forward code leaves layers out
SEVERAL = 3  # blocks in which the same was found, so that it will be in the others
PER_CHANNEL = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.GroupNorm)
KEPT = "kept on request"  # the reason for channels that could go


@dataclass
class Trace:
    """What a run of the model told: labels of every parameter's dimensions, and which of them are one class.

    `labels[name][dim]` are the labels along one dimension of a parameter or buffer, `left` those of tensors that
    forward puts into attributes where an earlier one hasn't; `made` holds everything that makes channels, `bare` the
    names of what something else than a norm reads, `relied` the labels that are read as zero although no norm makes
    them so, `folds` the layers that read constants of channels that can go; `selecting` names
    the BatchNorms that choose their own channels of a shared stream, and `streams` those that read one. `group_counts`
    has, with `whole_groups`, one label for each group of grouped convolutions: "layer.groups" -> labels; and the
    channels of norms without parameters, and of the zeros that stand for branches that are gone.
    `switches` has, where residual branches may go as a whole, the label that stands for the branch, for each of its
    tensors and layers (by name) and operators (by their place in an inference run): what isn't kept of these labels
    isn't there at all.
    """

    classes: Classes
    labels: dict[str, dict[int, Ints]] = field(default_factory=dict)
    left: dict[str, dict[int, Ints]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    made: dict[str, Producer] = field(default_factory=dict)
    bare: set[str] = field(default_factory=set)
    relied: list[Ints] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
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
    draws: bool = False  # whether forward code has drawn random numbers
    stored: set[str] = field(default_factory=set)  # names in `shapes` of what lies in plain attributes of modules
    parameters: list[str] = field(default_factory=list)  # names in `shapes` that are parameters, not buffers
    runs: list["ForwardPass"] = field(default_factory=list)  # for `check`, with what it needs to run again:
    masked_runs: tuple[object, list["ForwardPass"]] | None = None  # the last ones of the masked network, and of which
    meta_copy: nn.Module = field(default_factory=nn.Module)
    inputs: Any = None
    inputs_are_meta: bool = True
    watches_functions: bool = False  # whether runs see more than operators
    state: State = field(init=False)  # of the copy before each run, taken once
    tensors: Tensors = field(init=False)  # all of the copy's
    sizes: KeptSizes = field(init=False)  # which its modules keep
    stated_anew: set[str] = field(init=False)  # names of parameters whose norms may run over fewer channels
    readers: dict[str, nn.Module] = field(init=False)  # layers whose bias can take up constants

    def __post_init__(self) -> None:
        self.state = State(self.meta_copy)
        self.tensors = self.state.all_tensors
        for name, tensor in self.tensors:
            if name_of(tensor) is None:  # the first of its names
                set_name(tensor, name)
        self.sizes = KeptSizes(self.state.modules)
        self.stated_anew = stated_anew(self.state.modules)
        self.readers = readers(self.state.modules)
        self.watches_functions = self.watches_functions or is_recurrent(self.state.modules)
        registered = self.state.registered
        self.stored = {name for name, _ in self.tensors[len(registered) :]} - {name for name, _ in registered}
        named = {id(t): name for name, t in reversed(registered) if isinstance(t, nn.Parameter)}
        self.parameters = list(reversed(named.values()))

    @property
    def options(self) -> TraceOptions:
        return TraceOptions(
            self.selecting,
            self.whole_groups,
            self.stated_anew,
            self.readers,
            self.inputs_are_meta,
            self.watches_functions,
        )

    def add_runs(self, *, training: bool) -> "ForwardPass":
        """Run the meta-device copy in this mode, and again where forward code draws random numbers and leaves layers
        out: other numbers may lead it there. Return the first run."""
        run = self.add_run(training=training)
        seed = idle = 0
        while self.passed_by and self.draws and idle < DRAWS:
            unmet = self.passed_by
            self.add_run(training=training, seed=seed)
            seed += 1
            idle = idle + 1 if self.passed_by == unmet else 0
            if idle:
                self.runs.pop()  # which only takes time to follow
        return run

    def add_run(self, *, training: bool, seed: int | None = None) -> "ForwardPass":
        """Run the meta-device copy once more, in this mode, and take in what it tells."""
        try:
            return self._run(training=training, seed=seed)
        except ValuesNeeded:
            self.watches_functions = True
            return self._run(training=training, seed=seed)

    def _run(self, *, training: bool, seed: int | None) -> "ForwardPass":
        tracer = self.tracer(training=training)
        with restored(self.meta_copy, self.state), self.sizes.noting():
            before = self.state.drawn()
            outputs = run_once(self.meta_copy, self.inputs, tracer, self.state, training=training, seed=seed)
            draws = self.state.drawn() != before
        self.ambiguous |= {(training, number): found for number, found in tracer.ambiguous.items()}
        run = ForwardPass.of(tracer, outputs, training=training, seed=seed)
        self.draws |= draws
        self.runs.append(run)
        self.products = tracer.products
        self.take_in(tracer)
        return run

    def take_in(self, tracer: "Tracer") -> None:
        """Take in what a run of the copy told, or of a masked one, which values may lead to other layers."""
        self.group_counts |= tracer.group_counts
        self.streams |= tracer.streams
        for name, tensor in self.tensors:
            if name == name_of(tensor):
                self.shapes[name] = tuple(tensor.shape)
                if found := codes_on(tensor):
                    self.labels[name] = {d: codes.labels for d, codes in sorted(found.items())}
        left = {name: {d: codes.labels for d, codes in found.items()} for name, found in tracer.left.items()}
        self.left |= {name: labels for name, labels in left.items() if name not in self.labels}
        self._label_unread()
        self.made |= tracer.producers
        self.bare |= tracer.bare
        self.relied += tracer.relied
        self.folds += tracer.folds

    @property
    def passed_by(self) -> list[str]:
        """Return the layers that no run has come to, where values or random numbers say which way forward takes."""
        if self.inputs_are_meta and not self.draws:
            return []
        parameters = [(name, t) for name, t in self.state.registered if isinstance(t, nn.Parameter) and t.dim()]
        return list(dict.fromkeys(layer_of(name) for name, t in parameters if not is_labelled(t)))

    def tracer(self, *, training: bool) -> "Tracer":
        """Return what traces a run in this mode, and reads operators as this trace does."""
        tracer = Tracer(self.classes, self.options)
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
            other.add_run(training=run.training, seed=run.seed)
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

    def with_tied(self, pruned: Mapping[str, list[int]]) -> dict[str, list[int]]:
        """Return what producers lose, and what layers lose that share a producer's weight but have a bias of their
        own."""
        names: dict[int, list[str]] = {}
        for name, tensor in self.state.registered:
            names.setdefault(id(tensor), []).append(name.removesuffix(".weight"))
        tied = {same[0]: same for same in names.values()}
        return {
            layer: indices
            for name, indices in pruned.items()
            for layer in tied.get(name, [name])
            if layer == name or f"{layer}.bias" in self.made[name].tensors
        }

    def with_data(self, model: nn.Module, example_inputs: Any) -> "Trace":
        """Trace the same runs of `model` for real: its forward code looks at values in a mode that wasn't traced."""
        empty = Trace(Classes())
        fresh = {name: getattr(empty, name) for name in (*_TOLD, "readings", "tried", "misfits", "stuck")}
        run_on: Any = {"meta_copy": data_copy(model), "inputs": example_inputs, "inputs_are_meta": False}
        other = replace(self, **fresh, **run_on)
        for run in self.runs:
            other.add_run(training=run.training, seed=run.seed)
        return other.read_best()

    def add_inference(self) -> bool:
        """Trace the inference forward too, unless that was done; whether it differs from the training one."""
        if not all(run.training for run in self.runs):
            return False
        known = set(self.labels)
        run, other = self.add_runs(training=False), self.runs[0]
        if self.labels.keys() - known:  # the same steps, with other layers
            return True
        if not same([*run.constants.values()], [*other.constants.values()]):  # what isn't torch has computed from data
            return True
        steps, others = run.executed, other.executed
        return len(steps) != len(others) or not all(map(_alike, steps, others))


def _alike(step: Executed, other: Executed) -> bool:
    """Return whether two runs took the same step: they may differ in the sizes that follow from values."""
    sizes, others = ([shape for shape, _ in each.made] for each in (step, other))
    return step.func is other.func and sizes == others and same(step.constants, other.constants)


# what a run tells a Trace, as opposed to what it was run on
_TOLD = (
    *("classes", "labels", "left", "shapes", "made", "bare", "relied", "folds", "group_counts", "streams", "products"),
    *("runs", "ambiguous", "masked_runs"),
)


def trace(model: nn.Module, example_inputs: Any, *, select: bool = False, whole_groups: bool = False) -> Trace:
    """Trace the model's training forward (its inference forward where the other can't run), without touching it.

    `example_inputs` is a tensor, a tuple or a dict of what `forward` takes. With `select`, a BatchNorm that reads a
    shared stream (pre-activation) chooses its own channels of it. With `whole_groups`, a grouped convolution loses
    whole groups, instead of the same places within each. Raises SlimError where the model can't be run.
    """
    _check_kind(model)
    check_inputs(example_inputs)
    if torch.is_inference_mode_enabled():  # operators are seen undivided there
        raise SlimError("networks can't be traced within torch.inference_mode(): expected torch.no_grad()")
    traced = _trace_somehow(model, example_inputs, set(), whole_groups).read_best()
    if not select:
        return traced
    # Which BatchNorms read a shared stream? Those after a sum or a concat; and then those that share with them.
    chosen: set[str] = set()
    while more := traced.streams - chosen | {bn for bn in traced.norms.keys() - chosen if _is_indexed(traced, bn)}:
        chosen |= more
        traced = _trace_somehow(model, example_inputs, set(chosen), whole_groups).read_best()
    return traced


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
                result.add_runs(training=training)
                return result
            except Exception as error:
                last = error
    if isinstance(last, SlimError):
        raise last
    raise (cannot_follow(last) if _runs_alone(model, example_inputs) else cannot_run(last)) from last


def _runs_alone(model: nn.Module, example_inputs: Any) -> bool:
    """Say whether the model runs where nothing watches it: then it is no fault of its own that it can't be traced."""
    copied = data_copy(model).eval()
    try:
        with torch.no_grad(), restored(copied, State(copied)):
            call(copied, example_inputs)
        return True
    except Exception:
        return False
