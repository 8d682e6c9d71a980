"""Does forward code still line up once channels are gone? Found out without arithmetic, by tracing the thin network.

The thin skeleton's parameters carry the labels of the channels that they keep. Under the same rules, every union must
hold already, and every output must have the shape that it had. A size that forward code holds on its own (a stored
split size, a constant in a view) shows as a union that doesn't hold or an operator that fails; the channels that met
there must stay.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slim.trace.classes import Classes, Ints
from slim.trace.copy import clone, named_modules, named_tensors
from slim.trace.tracer import Run, Step, Trace, Tracer, label, name_tensors, run_once, shapes_of

Counted = Ints | list[Ints]  # the labels that a stored size counts, or those of each of a list of sizes


@dataclass
class Misfit:
    """Channels that can't go as planned, and why.

    `step` is how far the thin network came. `stored` are attributes of the modules at work there that hold a size which
    operators before were given: "module.attribute" -> the labels that it counts. `shared` are those that follow their
    channels already, and that an operator here was given for other channels: heads of attention of one stored size.
    """

    labels: Ints
    reason: str
    step: int
    stored: dict[str, Counted]
    shared: dict[str, Ints] = field(default_factory=dict)


class _Apart(Exception):
    """A union that should hold already doesn't."""


class Settled(Classes):
    """The classes of a trace that is over: what is united or frozen now must have been so before."""

    def __init__(self, classes: Classes) -> None:
        self.__dict__ = classes.__dict__

    def unite(self, a: Ints, b: Ints, reason: str) -> None:
        if np.array_equal(a, b):
            return
        if a.shape[-1] != b.shape[-1]:
            raise _Apart(reason)
        apart = self.roots(a) != self.roots(b)
        if apart.any():
            a, b = np.broadcast_arrays(a, b)
            if not (self.frozen(a[apart]) & self.frozen(b[apart])).all():
                raise _Apart(reason)

    def freeze(self, labels: Ints, reason: str) -> None:
        if not self.frozen(labels).all():
            raise _Apart(reason)


class Follower(Tracer):
    """A tracer that must take the same steps as an earlier run."""

    def __init__(self, traced: Trace, run: Run) -> None:
        super().__init__(Settled(traced.classes), traced.selecting, traced.whole_groups)
        self.run_before = run
        self.readings = iter(run.decisions)
        self.names = traced.shapes.keys()

    def step(self, step: Step) -> None:
        super().step(step)
        n = len(self.steps)
        before = self.run_before.steps[n - 1] if n <= len(self.run_before.steps) else None
        if before is None or before.func is not step.func:
            raise _Apart("forward takes another path")
        if before.constants != step.constants:
            raise _Apart(f"a constant that follows a size, in {self.where(step.func)}")

    def decide(self, choice: Any) -> Any:
        return next(self.readings, choice)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_select.default and self.is_new(args[2]):
            return label(func(args[0], args[1], args[2].to(args[0].device)), self.codes(args[0]))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def is_new(self, index: Any) -> bool:
        """A BatchNorm that selects its channels of a shared stream has an index that the original doesn't have."""
        name = getattr(index, "_slim_name", None)
        return name is not None and name not in self.names


def find_misfit(
    traced: Trace,
    thinned: Callable[[nn.Module], AbstractContextManager[None]],
    kept: np.ndarray,
    followed: Mapping[str, Counted],
) -> Misfit | None:
    """The first place where the thin network's forward code doesn't line up with the original's, or None.

    `thinned` makes the trace's skeleton thin for a while; `kept` says for every label whether it stays; `followed` are
    stored sizes that are thin then.
    """
    # Forward code that looks at values takes the path that the values say: compare with the masked network's.
    runs = traced.runs if traced.inputs_are_meta else [_masked_run(traced, kept, run.training) for run in traced.runs]
    with thinned(traced.skeleton):
        for name, tensor in named_tensors(name_tensors(traced.skeleton)):
            labels = traced.labels.get(name)
            if labels:
                tensor._codes = {d: 2 * v[kept[v]] for d, v in labels.items()}  # type: ignore[attr-defined]
        for run in runs:
            misfit = _follow(traced, run, run.training and len(runs) > 1, kept, followed)
            if misfit is not None:
                misfit.step += 10**6 * runs.index(run)
                return misfit
    return None


def _follow(
    traced: Trace, run: Run, training: bool, kept: np.ndarray, followed: Mapping[str, Counted]
) -> Misfit | None:
    """Run the thin skeleton along `run`. Where there is but one, both modes take the same steps, or this finds out."""
    follower = Follower(traced, run)
    try:
        with torch.random.fork_rng(devices=[]):
            outputs = run_once(traced.skeleton, traced.inputs, follower, training)
        if shapes_of(outputs) != run.shapes:
            raise _Apart("an output changes its shape")
        return None
    except Exception as error:
        why = str(error) if isinstance(error, _Apart) else f"{type(error).__name__} after {follower.place}"
        steps = run.steps[: len(follower.steps) + AHEAD]
        stored, shared = _stored_sizes(traced.skeleton, error, steps, followed)
    at = len(follower.steps)
    for step in reversed(run.steps[: max(at, 1)]):
        met = [v >> 1 for v in step.codes]
        loose = np.concatenate([v[~traced.classes.frozen(v)] for v in met]) if met else np.zeros(0, np.int64)
        if len(loose) and not kept[loose].all():
            return Misfit(loose, f"forward code holds a size: {why}", at, stored, shared)
    return Misfit(np.zeros(0, np.int64), why, at, stored, shared)


def _masked_run(traced: Trace, kept: np.ndarray, training: bool) -> Run:
    """The original with γ = β = 0 on the channels that go, traced again under the classes that are known."""

    def mask(tensor: Tensor) -> Tensor:
        bn, _, kind = tensor._slim_name.rpartition(".")  # type: ignore[attr-defined]
        if bn not in traced.norms or kind not in ("weight", "bias"):
            return tensor
        stays = torch.from_numpy(kept[traced.norms[bn]])
        masked = nn.Parameter(tensor.detach() * stays.to(tensor), requires_grad=False)
        masked.__dict__.update(tensor.__dict__)
        return masked

    tracer = Tracer(traced.classes, traced.selecting, traced.whole_groups)
    with torch.random.fork_rng(devices=[]):
        outputs = run_once(clone(traced.skeleton, mask), traced.inputs, tracer, training)
    return Run(training, tracer.steps, tracer.decisions, shapes_of(outputs))


AHEAD = 2  # operators that one call may have come to, had it not failed: reshape copies, then views
RECENT = 60  # operators back from a failure, among which the one that was given a stored size is looked for


def _stored_sizes(
    bones: nn.Module, error: Exception, steps: list[Step], followed: Mapping[str, Counted]
) -> tuple[dict[str, Counted], dict[str, Ints]]:
    """Attributes of the modules that were at work when `error` came up, and that hold what an operator was given; and
    those of `followed` among them that the last operator was given for other labels."""
    given = [step.sizes for step in reversed(steps[-RECENT:]) if step.sizes]
    names = {id(module): name for name, module in named_modules(bones)}
    at_work, trace = [], error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_locals.get("self")
        if id(module) in names and not type(module).__module__.startswith("torch.nn"):
            at_work.append(module)
        trace = trace.tb_next
    found: dict[str, Counted] = {}
    for module in reversed(at_work):  # the innermost first
        for attribute, value in vars(module).items():
            counted: Counted | None = None
            if type(value) is int:
                counted = next((labels for sizes in given for size, labels in sizes if size == value), None)
            elif isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
                n = len(value)
                lists = [[c for _, c in sizes[:n]] for sizes in given if [s for s, _ in sizes[:n]] == list(value)]
                counted = lists[0] if lists else None
            if counted is not None:
                found.setdefault(names[id(module)] + attribute, counted)
    shared: dict[str, Ints] = {}
    last = [labels for sizes in given[: AHEAD + 1] for size, labels in sizes if size == len(labels)]
    for name in [names[id(module)] + attribute for module in at_work for attribute in vars(module)]:
        known = followed.get(name)
        if known is None or isinstance(known, list):
            continue
        others = [labels for labels in last if len(labels) == len(known) and not np.array_equal(labels, known)]
        if others:
            shared[name] = others[0]
    return found, shared


def count(counted: Counted, kept: np.ndarray) -> int | list[int]:
    """What a stored size comes to when only `kept` labels stay."""
    return [int(kept[c].sum()) for c in counted] if isinstance(counted, list) else int(kept[counted].sum())
