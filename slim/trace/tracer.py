"""Run a model once and watch which channels of which tensors stand or fall together.

The model that runs is a *skeleton*: a copy whose parameters hold no data (meta tensors), so a trace costs no
arithmetic and leaves the model alone. Where the forward code looks at values (detection heads, for example) the
skeleton shares the real weights and runs for real.

Every tensor carries, in the attribute `_codes`, one vector of codes (see `classes`) for each dimension that follows a
layer's channels; a dimension without a vector has a fixed size. What each operator does to the codes is in `rules`.
"""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from slim.errors import SlimError
from slim.trace.classes import Classes, Ints
from slim.trace.copy import clone, named_modules, named_tensors
from slim.trace.outputs import output_tensors

META = torch.device("meta")


@dataclass
class Product:
    """A convolution or matrix product: its multiply-adds are `positions` × the kept sizes of `dims`."""

    layer: str
    positions: int
    dims: list[int | Ints]  # a fixed size, or one code per channel


@dataclass
class Trace:
    """What a run of the model told: labels of every parameter's dimensions, and which of them are one class.

    `labels[name][dim]` are the labels along one dimension of a parameter or buffer; `norms[bn]` are those of a
    BatchNorm's channels; `selecting` names the BatchNorms that choose their own channels of a shared stream, and
    `streams` those that read one. With `whole_groups`, `group_counts` has one label for each group of the grouped
    convolutions: "layer.groups" -> labels.
    """

    classes: Classes
    labels: dict[str, dict[int, Ints]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    norms: dict[str, Ints] = field(default_factory=dict)
    selecting: set[str] = field(default_factory=set)
    whole_groups: bool = False
    group_counts: dict[str, Ints] = field(default_factory=dict)
    streams: set[str] = field(default_factory=set)
    products: list[Product] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)  # names in `shapes` that are parameters, not buffers
    runs: list["Run"] = field(default_factory=list)  # for `check`, with what it needs to run again:
    skeleton: nn.Module = field(default_factory=nn.Module)
    inputs: Any = None
    inputs_are_meta: bool = True

    def add_run(self, training: bool) -> "Run":
        """Run the skeleton once more, in this mode, and take in what it tells."""
        tracer = Tracer(self.classes, self.selecting, self.whole_groups)
        with torch.random.fork_rng(devices=[]):
            outputs = run_once(self.skeleton, self.inputs, tracer, training)
        run = Run(training, tracer.steps, tracer.decisions, shapes_of(outputs))
        self.runs.append(run)
        self.products = tracer.products
        self.group_counts |= tracer.group_counts
        self.streams |= tracer.streams
        for name, tensor in named_tensors(self.skeleton):
            if name == tensor._slim_name:  # type: ignore[attr-defined]
                self.shapes[name] = tuple(tensor.shape)
                found = getattr(tensor, "_codes", None)
                if found:
                    self.labels[name] = {d: v >> 1 for d, v in sorted(found.items())}
        self.norms |= {n: g._codes[0] >> 1 for n, g in tracer.norms.items() if 0 in getattr(g, "_codes", {})}  # type: ignore[attr-defined]
        return run

    def add_inference(self) -> bool:
        """Trace the inference forward too, unless that was done; whether it differs from the training one."""
        if len(self.runs) > 1 or not self.runs[0].training:
            return False
        run = self.add_run(training=False)
        return [s.func for s in run.steps] != [s.func for s in self.runs[0].steps]


@dataclass
class Step:
    """One operator of a run: what it was, its fractional constants, the codes of what it took, and the sizes that it
    was given for what follows channels (the size, and the labels that it counts)."""

    func: Any
    constants: list[float]
    codes: list[Ints]
    sizes: list[tuple[int, Ints]] = field(default_factory=list)


@dataclass
class Run:
    """One forward pass, in training or inference mode."""

    training: bool
    steps: list[Step]
    decisions: list[Any]  # how ambiguous operators were read, in order
    shapes: dict[str, tuple[int, ...]]  # of the outputs, by their paths


class Tracer(TorchDispatchMode):
    """The dispatch mode that carries codes from tensor to tensor; `rules` does the reasoning."""

    def __init__(self, classes: Classes, select: Container[str] = (), whole_groups: bool = False) -> None:
        from slim.trace.rules import rule_for  # rules use what is defined here

        super().__init__()
        self.rule_for = rule_for
        self.classes = classes
        self.select = select  # BatchNorms that choose their own channels of what they read
        self.whole_groups = whole_groups  # of grouped convolutions: a group's channels stand or fall together
        self.group_counts: dict[str, Ints] = {}
        self.streams: set[str] = set()  # BatchNorms that read what isn't straight out of a layer
        self.norms: dict[str, Tensor] = {}  # BatchNorm name -> its γ in the skeleton
        self.products: list[Product] = []
        self.steps: list[Step] = []
        self.decisions: list[Any] = []
        self.place = "the input"  # the last layer met, for messages

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing is compiled here, and the guard against it costs a quarter
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = [v for t in tensors_in(args, kwargs) if (c := getattr(t, "_codes", None)) for v in c.values()]
        self.step(Step(func, [a for a in args if isinstance(a, float)], taken))
        return self.rule_for(func)(self, func, args, kwargs)

    def step(self, step: Step) -> None:
        self.steps.append(step)

    def counts(self, size: int, codes: Ints) -> None:
        """The operator at hand was given `size` for the channels that `codes` stand for."""
        self.steps[-1].sizes.append((size, codes >> 1))

    def decide(self, choice: Any) -> Any:
        """How to read an operator that can be read in several ways."""
        self.decisions.append(choice)
        return choice

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator itself; a real tensor that meets one without data becomes one without data too."""
        empty = [t.is_meta for t in tensors_in(args, kwargs)]
        if any(empty) and not all(empty):
            args, kwargs = tree_map_only(Tensor, lambda t: t.to(META), (args, kwargs))
        return func(*args, **kwargs)

    def where(self, func: Any) -> str:
        return f"{func.overloadpacket.__name__} after {self.place}"

    # -- codes of tensors ------------------------------------------------------------------------------------------

    def codes(self, tensor: Tensor) -> dict[int, Ints]:
        """The tensor's codes by dimension. A parameter that is first met here gets labels of its own."""
        found = getattr(tensor, "_codes", None)
        if found is None:
            found = {}
            if hasattr(tensor, "_slim_name"):
                self.place = tensor._slim_name.rpartition(".")[0] or tensor._slim_name
                if tensor.is_floating_point():
                    found = {d: 2 * self.classes.fresh(n) for d, n in enumerate(tensor.shape) if n > 1}
                tensor._codes = found  # type: ignore[attr-defined]
        return found

    def axis(self, parameter: Tensor, dim: int, codes: Ints | None, why: str) -> Ints | None:
        """Tie one dimension of a parameter to `codes`, or fix its size where they are None. Its codes after that."""
        if not hasattr(parameter, "_slim_name"):
            own = self.codes(parameter).get(dim)
        else:
            self.place = parameter._slim_name.rpartition(".")[0] or parameter._slim_name
            mine = parameter.__dict__.setdefault("_codes", {})
            own = mine.get(dim)
            if own is None:  # first use: the parameter's channels are these, or its size is fixed
                own = mine[dim] = np.zeros(parameter.shape[dim], np.int64) if codes is None else codes & ~1
                return own
        if own is not None and codes is not None:
            self.classes.unite(own >> 1, codes >> 1, why)
        elif own is not None:
            self.classes.freeze(own >> 1, why)
        elif codes is not None:
            self.classes.freeze(codes >> 1, why)
        return own

    def freeze(self, tensor: Any, why: str) -> None:
        for vector in self.codes(tensor).values():
            self.classes.freeze(vector >> 1, why)

    def read(self, codes: Ints, why: str) -> None:
        """A layer mixes these channels: one that isn't zero when its class is masked can't go."""
        open_ = (codes & 1) == 0
        if open_.any():
            self.classes.freeze(codes[open_] >> 1, why)


def tensors_in(args: Any, kwargs: Any = None) -> list[Tensor]:
    """The tensors among an operator's arguments, in order (they nest no deeper than a list)."""
    found = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [v for v in value if isinstance(v, Tensor)]
    return found


def label(tensor: Tensor, codes: dict[int, Ints]) -> Tensor:
    """Give `tensor` its codes."""
    if codes:
        tensor._codes = codes  # type: ignore[attr-defined]
    else:
        tensor.__dict__.pop("_codes", None)
    return tensor


def mark_fresh(tensor: Tensor) -> Tensor:
    """Straight out of a layer that makes channels, as opposed to a stream that several layers share."""
    tensor._fresh = True  # type: ignore[attr-defined]
    return tensor


def skeleton(model: nn.Module, meta: bool = True) -> nn.Module:
    """A copy of the model to trace: parameters without data (`meta`) or sharing it; buffers of its own."""

    def bone(tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            data = torch.empty(tensor.shape, dtype=tensor.dtype, device=META) if meta else tensor.detach()
            return nn.Parameter(data, requires_grad=False)
        if meta and tensor.is_floating_point():
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=META)
        return tensor.detach().clone()

    return name_tensors(clone(model, bone))


def name_tensors(bones: nn.Module) -> nn.Module:
    """Let each tensor of a skeleton know its (first) name. Counters of batches are of no use to it."""
    for _, module in named_modules(bones):
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module._buffers["num_batches_tracked"] = None
    for name, tensor in named_tensors(bones):
        if not hasattr(tensor, "_slim_name"):
            tensor._slim_name = name  # type: ignore[attr-defined]
    return bones


@contextmanager
def tracing_mode(bones: nn.Module, training: bool) -> Iterator[None]:
    """Put the skeleton in training or inference mode; what is random or needs several processes stays out of it."""
    modules = named_modules(bones)
    for _, module in modules:
        if type(module).train is not nn.Module.train:
            module.train()  # there and back: modules that cache something for inference drop it
            module.train(training)
    for _, module in modules:
        leaf = not (module._modules or module._parameters or module._buffers)  # dropout, drop path: noise, no channels
        module.__dict__["training"] = training and not leaf and not isinstance(module, nn.SyncBatchNorm)
    with torch.no_grad():
        yield


def call(model: nn.Module, example_inputs: Any) -> Any:
    """`model(example_inputs)`: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return model(*example_inputs)
    return model(example_inputs)


def run_once(bones: nn.Module, example_inputs: Any, tracer: Tracer, training: bool) -> dict[str, Tensor]:
    """Run the skeleton under the tracer and freeze what it returns; the tensors of its output."""
    with tracing_mode(bones, training), tracer:
        outputs = output_tensors(call(bones, example_inputs))
    for out in outputs.values():
        tracer.freeze(out, "the model's output")
    return outputs


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in tensors.items()}


def as_meta(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda t: torch.empty_like(t, device=META), inputs)


def trace(model: nn.Module, example_inputs: Any, *, select: bool = False, whole_groups: bool = False) -> Trace:
    """Trace the model's training forward (its inference forward where the other can't run), without touching it.

    `example_inputs` is a tensor, a tuple or a dict of what `forward` takes. With `select`, a BatchNorm that reads a
    shared stream (pre-activation) chooses its own channels of it. With `whole_groups`, a grouped convolution loses
    whole groups, instead of the same places within each. Raises SlimError where the model can't be run.
    """
    traced = _trace_somehow(model, example_inputs, set(), whole_groups)
    if not select:
        return traced
    # Which BatchNorms read a shared stream? Those after a sum or a concat; and then those that share with them.
    chosen: set[str] = set()
    while more := traced.streams - chosen | {bn for bn in traced.norms.keys() - chosen if _is_indexed(traced, bn)}:
        chosen |= more
        traced = _trace_somehow(model, example_inputs, set(chosen), whole_groups)
    return traced


INDEXED = "read through an index by"


def _is_indexed(traced: Trace, bn: str) -> bool:
    labels = traced.norms[bn]
    frozen = labels[traced.classes.frozen(labels)]
    return any((traced.classes.reason(int(label)) or "").startswith(INDEXED) for label in frozen)


def _trace_somehow(model: nn.Module, example_inputs: Any, select: set[str], whole_groups: bool) -> Trace:
    """The first way that works: without data if forward code allows; for inference only if training wants targets."""
    for training in (True, False):
        for meta in (True, False):
            bones = skeleton(model, meta)
            result = Trace(Classes(), skeleton=bones, inputs_are_meta=meta, selecting=select, whole_groups=whole_groups)
            result.inputs = as_meta(example_inputs) if meta else example_inputs
            named = {id(t): name for name, t in reversed(named_tensors(bones)) if isinstance(t, nn.Parameter)}
            result.parameters = list(reversed(named.values()))
            try:
                result.add_run(training)
                return result
            except Exception as error:
                last = error
    if isinstance(last, SlimError):
        raise last
    raise SlimError(f"the model can't be run on example_inputs: {type(last).__name__}: {last}") from last
