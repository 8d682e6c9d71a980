"""Residual branches: what a network computes only to add it to a stream that goes on without it.

A branch is found by what it feeds. All operators whose results reach the rest of the network through one operand of one
addition alone are the branch's; where masking its layers makes that operand zero, the network without the branch is the
network with the branch masked. The modules that run nothing else are emptied (see `emptied`), so that nothing of the
branch is left to compute.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from slim.trace.classes import Ints
from slim.trace.codes import OPEN, Codes, TensorCodes, codes_on, name_of
from slim.trace.emptied import empty
from slim.trace.hooks import hooked
from slim.trace.inputs import call
from slim.trace.op import tensors_in
from slim.trace.outputs import output_tensors
from slim.trace.state import restored
from slim.trace.traced import Trace
from slim.trace.tracer import Tracer, run_once, shapes_of, tracing_mode

OUTSIDE = -1  # in place of a node: an input, a parameter; or what reads an output
ADDITIONS = {"add", "add_"}
LAYERS = 2  # convolutions and products at least: a single one is a path, not a block


@dataclass(frozen=True)
class Branch:
    """A residual branch that can go as a whole.

    `name` is that of its modules, as far as they have one in common; `label` (see `classes`) stands for the branch
    where it is said what is kept. `emptied` gives for each module that is emptied the dimension of its channels and the
    labels of those that it still gives, all zero. `tensors` are these modules' parameters and buffers, `producers` what
    of them is masked. The branch is an operand of the forward pass's addition number `addition`: `operand` says which;
    `stream` are the labels of the sum's channels, along `dim`. `steps` are the operators, by their place in the run.
    """

    name: str
    label: int
    emptied: Mapping[str, tuple[int, Ints]]
    tensors: Sequence[str]
    producers: Sequence[str]
    addition: int
    operand: int
    dim: int
    stream: Ints
    steps: frozenset[int]


def find_branches(traced: Trace) -> list[Branch]:
    """Return the residual branches of a traced network that can go, none within another: the smallest ones."""
    graph = Flow(traced)
    with restored(traced.meta_copy, traced.state), graph.noting():
        outputs = run_once(traced.meta_copy, traced.inputs, graph, traced.state, training=False)
        ends = [*outputs.values(), *traced.state.written().values()]
        graph.read_outside(ends)
    found = [branch for addition in graph.additions for branch in _largest(graph, addition)]
    apart: list[Branch] = []
    for branch in sorted(found, key=lambda b: len(b.steps)):
        if not any(branch.steps & other.steps for other in apart):
            apart.append(branch)
    apart.sort(key=lambda b: min(b.steps))
    if not _runs_without(traced, apart):
        apart = [branch for branch in apart if _runs_without(traced, [branch])]
    return apart


@dataclass
class Executing:
    """One operator of the run: the nodes that it reads with the codes of what they gave, and what it gave itself."""

    name: str
    reads: list[tuple[int, TensorCodes]]
    parameters: list[str]
    product: bool  # a convolution or matrix product
    mutates: int | None  # the node that made the memory that it writes to, where it writes to some
    shape: tuple[int, ...] = ()
    codes: TensorCodes = field(default_factory=dict)
    readers: list[int] = field(default_factory=list)

    @property
    def unused(self) -> bool:
        """Say whether nothing comes of it."""
        return not self.readers and self.mutates is None


@dataclass
class ModuleCall:
    """One call of a module: its nodes, from `start` to before `stop`, and the node of what it gave. Where it takes and
    gives a tensor of one size, but for its channels, these lie along `dim`."""

    start: int
    stop: int
    node: int
    dim: int | None


class Flow(Tracer):
    """A tracer that notes which operators read what others made, and which module called them."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced.classes, traced.options)
        self.traced = traced
        self.nodes: list[Executing] = []
        self.calls: dict[str, list[ModuleCall]] = {}
        self._node_of: dict[int, int] = {}  # id of a tensor -> what made it, or wrote to it last
        self._memory: dict[int, int] = {}  # storage -> the node that made it
        self._alive: list[Any] = []  # so that ids stay unique

    @property
    def additions(self) -> list[int]:
        """Return the nodes that add two tensors, in order."""
        return [place for place, node in enumerate(self.nodes) if node.name in ADDITIONS and len(node.reads) == 2]

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = tensors_in(args, kwargs)
        data = [t for t in taken if name_of(t) is None]
        reads = [(self._node_of.get(id(t), OUTSIDE), codes_on(t)) for t in data]
        in_place = func._schema.is_mutable
        memory = self._memory.get(_storage(taken[0]), OUTSIDE) if in_place and taken else None
        products = len(self.products)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        place = len(self.nodes)
        parameters = [str(name_of(t)) for t in taken if name_of(t) is not None]
        node = Executing(func.overloadpacket.__name__, reads, parameters, len(self.products) > products, memory)
        for reader, _ in reads:
            if reader != OUTSIDE:
                self.nodes[reader].readers.append(place)
        made = tensors_in(tuple(out) if isinstance(out, tuple | list) else (out,))
        if made:
            node.shape, node.codes = tuple(made[0].shape), codes_on(made[0])
        for tensor in made:
            self._node_of[id(tensor)] = place
            self._memory.setdefault(_storage(tensor), place)
        self.nodes.append(node)
        self._alive += [*made, *taken]
        return out

    def node_of(self, tensor: Any) -> int:
        """Return the node that gave a tensor."""
        return self._node_of.get(id(tensor), OUTSIDE)

    def read_outside(self, tensors: Sequence[Tensor]) -> None:
        """Note that these are read by what isn't part of the run."""
        for tensor in tensors:
            if (place := self.node_of(tensor)) != OUTSIDE:
                self.nodes[place].readers.append(OUTSIDE)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note the calls of the traced network's modules for as long as the context lasts."""
        names = {id(module): prefix[:-1] for prefix, module in reversed(self.traced.state.modules)}
        started: list[int] = []

        def before(module: nn.Module, args: Any) -> None:
            started.append(len(self.nodes))

        def after(module: nn.Module, args: Any, out: Any) -> None:
            start, name = started.pop(), names.get(id(module))
            if name is not None:
                made = ModuleCall(start, len(self.nodes), self.node_of(out), _channel_dim(args, out))
                self.calls.setdefault(name, []).append(made)

        with hooked([register_module_forward_pre_hook(before), register_module_forward_hook(after)]):
            yield


def _channel_dim(args: Any, out: Any) -> int | None:
    """Return the dimension of channels of what a module takes and gives, where both have the same size but for that."""
    if len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(out, Tensor) or args[0].dim() != out.dim():
        return None
    dims = codes_on(out) or codes_on(args[0])  # what normalises all channels together gives none that can go
    others = (a == b for d, (a, b) in enumerate(zip(args[0].shape, out.shape)) if d not in dims)
    return next(iter(dims)) if len(dims) == 1 and all(others) else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _largest(graph: Flow, addition: int) -> list[Branch]:
    """Return the branch that is one of the operands of an addition; of two the larger one, as the other is what stays
    of the stream (a projection, say)."""
    node = graph.nodes[addition]
    shapes = {graph.nodes[read].shape for read, _ in node.reads if read != OUTSIDE} | {node.shape}
    if len(shapes) > 1 or OUTSIDE in dict(node.reads):
        return []
    found = [branch for operand in (0, 1) if (branch := _branch(graph, addition, operand)) is not None]
    return sorted(found, key=lambda b: -len(b.steps))[:1]


def _branch(graph: Flow, addition: int, operand: int) -> Branch | None:
    """Return the branch that an operand of an addition is, where it can go."""
    nodes = graph.nodes
    end = nodes[addition].reads[operand][0]
    steps = _feeding(nodes, end, addition)
    modules = _modules_within(graph, steps)
    inside = {place: name for name, made in modules.items() for place in range(made.start, made.stop)}
    products = [place for place in steps if nodes[place].product]
    tensors = _own_tensors(graph, modules, steps)
    if len(products) < LAYERS or not inside.keys() >= {*products} or tensors is None:
        return None
    ends = _ends(nodes, end, steps, inside)
    last = {inside[place]: modules[inside[place]] for place in ends}
    whole = all(made.node in ends and made.dim in nodes[made.node].codes for made in last.values())
    if not whole or len(nodes[addition].codes) != 1:
        return None
    producers = [name for name, made in graph.traced.made.items() if made.tensors.keys() <= {*tensors}]
    masked = {tensor for name in producers for tensor in graph.traced.made[name].tensors}
    layers = {place for place in steps if {*nodes[place].parameters} & masked}
    results = {made.node for made in last.values()}
    if not _is_zero(nodes, end, steps, layers) or not _is_zero(nodes, end, steps, results):
        return None
    [(dim, stream)] = nodes[addition].codes.items()
    return Branch(
        _common(list(modules)),
        int(graph.traced.classes.fresh(1)[0]),
        {name: _emptied(nodes, made, stream, gives=name in last) for name, made in modules.items()},
        tensors,
        producers,
        graph.additions.index(addition),
        operand,
        dim,
        stream.labels,
        frozenset(steps),
    )


def _emptied(nodes: Sequence[Executing], made: ModuleCall, stream: Codes, *, gives: bool) -> tuple[int, Ints]:
    """Return along which dimension a module is emptied, and the labels of the channels that it still gives: none, but
    where something outside of the emptied modules reads them."""
    assert made.dim is not None
    return made.dim, nodes[made.node].codes[made.dim].labels if gives else stream.labels[:0]


def _own_tensors(graph: Flow, modules: Mapping[str, ModuleCall], steps: set[int]) -> list[str] | None:
    """Return the names of the tensors in these modules; None where others hold one or compute with it, and where one is
    computed anew in each pass."""
    prefixes = tuple(f"{name}." for name in modules)
    owned = [(name, name_of(tensor)) for name, tensor in graph.traced.tensors if name.startswith(prefixes)]
    tensors = [name for name, first in owned if name == first]
    own = {*tensors}
    outside = (node for place, node in enumerate(graph.nodes) if place not in steps)
    shared = len(tensors) < len(owned) or any(not own.isdisjoint(node.parameters) for node in outside)
    return None if shared or any(".parametrizations." in name for name in tensors) else tensors


def _feeding(nodes: Sequence[Executing], end: int, addition: int) -> set[int]:
    """Return the nodes whose results reach the rest of the network through `end`, and this one the addition, alone."""
    if nodes[end].readers != [addition]:
        return set()
    steps = {end}
    for place in range(end - 1, -1, -1):
        if nodes[place].readers and steps.issuperset(nodes[place].readers):
            steps.add(place)
    written = {nodes[place].mutates for place in steps} - {None}
    return steps if written <= steps else set()  # it writes to what others read


def _modules_within(graph: Flow, steps: set[int]) -> dict[str, ModuleCall]:
    """Return the modules that run nothing but these steps, the outermost ones, and that can be emptied: that give a
    tensor of the size of the one that they take, but for its channels."""
    found: dict[str, ModuleCall] = {}
    for prefix, _ in graph.traced.state.modules:
        name = prefix[:-1]
        calls = graph.calls.get(name, [])
        if len(calls) != 1 or any(name.startswith(f"{outer}.") for outer in found):
            continue
        made = calls[0]
        own = range(made.start, made.stop)
        if made.dim is not None and made.node in own and all(p in steps or graph.nodes[p].unused for p in own):
            found[name] = made
    return found


def _ends(nodes: Sequence[Executing], end: int, steps: set[int], inside: Mapping[int, str]) -> set[int]:
    """Return the nodes in emptied modules from which `end` follows by operators that are in none."""
    found, pending = set(), [end]
    while pending:
        place = pending.pop()
        if place in inside:
            found.add(place)
        elif place in steps:
            pending += [read for read, _ in nodes[place].reads]
    return found


def _is_zero(nodes: Sequence[Executing], place: int, steps: set[int], zero: set[int]) -> bool:
    """Say whether a node gives zero once those of `zero` do: its gate says that zeros stay zero, and each operand that
    it may owe them to is zero."""
    if place not in steps or not _is_gated(nodes[place].codes):
        return place in zero
    if place in zero:
        return True
    gated = [read for read, codes in nodes[place].reads if _is_gated(codes)]
    return bool(gated) and all(_is_zero(nodes, read, steps, zero) for read in gated)


def _is_gated(codes: TensorCodes) -> bool:
    return any(bool((each.gate != OPEN).all()) for each in codes.values())


def _common(names: Sequence[str]) -> str:
    """Return what the names have in common, up to a dot; the first of them where that is nothing."""
    parts = [name.split(".") for name in names]
    same = 0
    while all(len(each) > same and each[same] == parts[0][same] for each in parts):
        same += 1
    return ".".join(parts[0][:same]) or names[0]


def _runs_without(traced: Trace, branches: Sequence[Branch]) -> bool:
    """Say whether forward code runs, in the modes that were traced, with the branches emptied, and gives the same
    sizes."""
    for run in traced.runs if branches else ():
        with restored(traced.meta_copy, traced.state), tracing_mode(traced.state.modules, training=run.training):
            modules = {prefix[:-1]: module for prefix, module in traced.state.modules}
            for branch in branches:
                for name, (dim, labels) in branch.emptied.items():
                    empty(modules[name], dim, len(labels))
            try:
                outputs = output_tensors(call(traced.meta_copy, traced.inputs), numbers=True)
                if shapes_of(outputs) != run.shapes:
                    return False
            except Exception:  # forward code that can't run on no channels
                return False
    return True
