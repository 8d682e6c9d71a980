"""Does forward code still line up once channels are gone? Found out without arithmetic, by tracing the thin network.

The parameters of its meta-device copy carry the labels of the channels that they keep. Under the same rules, every
union must hold already, and every output must have the shape that it had. A size that forward code holds on its own (a
stored split size, a constant in a view) shows as a union that doesn't hold or an operator that fails; the channels that
met there must stay.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from slim.trace.classes import Classes, Ints
from slim.trace.codes import Bools, Codes, codes_on, is_blank, label, mark_step, name_of, set_codes, set_name
from slim.trace.constants import constants_among, constants_of, mark_result, same
from slim.trace.copy import clone
from slim.trace.given import AHEAD, Counted, labels_at_hand, sizes_given, taken_for
from slim.trace.labeller import Executed, Mismatch, Reading
from slim.trace.op import Op, Operator, tensors_of
from slim.trace.repeat import Known, ThinCodes
from slim.trace.rules.builtin import rule_for
from slim.trace.state import State, restored
from slim.trace.traced import Trace
from slim.trace.tracer import ForwardPass, Tracer, mark_steps, pass_on_uniform, passes_on, run_once, shapes_of


@dataclass
class Misfit:
    """Channels that can't go as planned, and why.

    `step` is how far the thin network came. `stored` are attributes of the modules that ran there, each of which holds
    a size that operators before were given: "module.attribute" -> the labels that it counts. `shared` are those that
    follow their channels already, and that an operator here was given for other channels: heads of attention of one
    stored size. `alike` are channels of which there must be as many as of others, as forward code takes the size of
    those for these, under its name.
    """

    labels: Ints
    reason: str
    step: int
    stored: dict[str, Counted]
    shared: dict[str, Ints] = field(default_factory=dict)
    alike: tuple[str, Ints, Ints] | None = None


class Settled(Classes):
    """The classes of a trace that is over: what is united or frozen now must have been so before.

    Labels that the thin network alone has are those of zeros, one like another: they join what they first meet.
    """

    def __init__(self, classes: Classes) -> None:
        self.__dict__ = classes.__dict__
        self._known = len(classes)

    def unite(self, a: Ints, b: Ints, reason: str) -> None:
        if a is b or (a.shape == b.shape and bool((a == b).all())):
            return
        if a.shape[-1] != b.shape[-1]:
            raise Mismatch(reason)
        apart = self.roots(a) != self.roots(b)
        if apart.any():
            a, b = (each[apart] for each in np.broadcast_arrays(a, b))
            new = self._is_new(a) | self._is_new(b)
            super().unite(a[new], b[new], reason)
            if not (self.frozen(a[~new]) & self.frozen(b[~new])).all():
                raise Mismatch(reason)

    def freeze(self, labels: Ints, reason: str) -> None:
        new = self._is_new(labels)
        super().freeze(labels[new], reason)
        if not self.frozen(labels[~new]).all():
            raise Mismatch(reason)

    def _is_new(self, labels: Ints) -> Bools:
        return self.roots(labels) >= self._known


def _step_of(executed: Executed) -> str:
    return Operator.of(executed.func).step


def _is_same_step(before: Executed, executed: Executed) -> bool:
    return before.func is executed.func or _step_of(before) == _step_of(executed)


def _count(codes: Iterable[Codes]) -> int:
    return sum(map(len, codes))


class Follower(Tracer):
    """A tracer that must take the same steps as an earlier run."""

    def __init__(self, traced: Trace, run: ForwardPass, thin: ThinCodes) -> None:
        super().__init__(Settled(traced.classes), traced.options)
        self.run_before = run
        self.at = 0  # how many operators of that run have been met again
        self.producers = {**traced.made}
        self.names = traced.shapes.keys()
        self._thin = thin
        self.astray: list[Codes] = []  # of what an operator takes that the earlier run doesn't have

    def note(self, executed: Executed) -> None:
        super().note(executed)
        if executed.aside:
            return
        before = self._counterpart(executed)
        if before is None:
            self.astray = executed.codes
            raise Mismatch(f"forward takes another path at {_step_of(executed)} after {self.place}")
        self._pass(before)
        if not same(before.constants, executed.constants):
            raise Mismatch(f"a constant that follows a size, in {_step_of(executed)} after {self.place}")

    def _counterpart(self, executed: Executed) -> Executed | None:
        """Return the operator of the earlier run that this one repeats; None where there is no such."""
        while (before := self._next()) is not None and not _is_same_step(before, executed):
            if not self._takes_all_left(before):
                return None
            self.decisions = self.run_before.decisions[: before.decided]
            if executed.func is torch.ops.aten.alias.default:  # what newer torch makes of a slice of all
                return before
            self._pass(before)  # and older torch leaves it out
        return before

    def counterpart(self, codes: Codes) -> Ints | None:
        """Return the original's labels of which these are what is left; None where no operator met such."""
        for step in reversed(self.run_before.executed[: self.at]):
            for whole in (*step.codes, *(each for _, made in step.made for each in made.values())):
                left = self._thin.of(whole)
                if left.shape == codes.shape and (left.labels == codes.labels).all():
                    return whole.labels
        return None

    def _takes_all_left(self, before: Executed) -> bool:
        """Return whether a slice of the original takes channels that are all there are in the thin network, where it
        decides nothing."""
        if before.func is not torch.ops.aten.slice.Tensor:
            return False
        made = before.made[0][1].values()
        gone = _count(before.codes) - _count(made)
        left = _count(map(self._thin.of, before.codes)) - _count(map(self._thin.of, made))
        return bool(gone) and not left

    def _next(self) -> Executed | None:
        """Return the operator of the earlier run that comes next, what happens aside left out."""
        earlier, at = self.run_before.executed, self.at
        while at < len(earlier) and earlier[at].aside:
            at += 1
        return earlier[at] if at < len(earlier) else None

    def _pass(self, before: Executed) -> None:
        """Go on behind an operator of the earlier run."""
        earlier = self.run_before.executed
        while earlier[self.at] is not before:
            self.at += 1
        self.at += 1

    def decide(self, choice: Reading, options: Sequence[Reading] = ()) -> Reading:
        if self.executed[-1].aside:
            return choice
        earlier = self.run_before.decisions
        choice = cast(Reading, earlier[len(self.decisions)]) if len(self.decisions) < len(earlier) else choice
        self.decisions.append(choice)
        return choice

    def remember(self, executed: Executed, op: Op, sources: Sequence[object], result: Any) -> None:
        mark_steps(op, sources, result, self.at)

    def compare(self, executed: Executed, op: Op, result: Any) -> None:
        """Expect what is left of the original's results. Other sizes may agree with all that is coupled, too: four
        heads of which half of the channels stay pass for two whole ones."""
        if op.in_place or executed.aside:
            return
        before = self.run_before.executed[self.at - 1].made
        if not any(codes for _, codes in before) and not op.labelled:
            return  # new memory, say, whose codes are those of what is written to it
        if any(is_blank(tensor) for tensor in tensors_of(result)):
            return
        fits = [tuple(now) == tuple(self._thin.shape(*whole)) for (now, _), whole in zip(executed.made, before)]
        told = [number == 0 or bool(codes) for number, (_, codes) in enumerate(before)]  # statistics are not
        if len(executed.made) != len(before) or not all(fit for fit, known in zip(fits, told) if known):
            raise Mismatch(f"{op.where} gives other sizes")

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_select.default and self.is_new(args[2]):
            return label(func(args[0], args[1], args[2].to(args[0].device)), self.codes(args[0]))
        before = None if kwargs else self._next()
        if before is not None and before.func is func and before.known is not None:
            known: Known = before.known
            if known.is_given(Operator.of(func).name, args, self._thin, meta=self.meta):
                return self._repeat(before, args)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _repeat(self, before: Executed, args: Any) -> Any:
        """Return what an operator gives that is given what it was given before: see `repeat`."""
        self._pass(before)
        self.executed.append(before)
        self.decisions = self.run_before.decisions[: before.decided]
        self.place = before.place
        result = before.known.again(before.func, args, self._thin, meta=self.meta)
        for number, tensor in enumerate(result if isinstance(result, tuple) else (result,)):
            mark_step(tensor, (self.at, number))
        return result

    @property
    def is_between(self) -> bool:
        """Return whether no operator is at work: what failed came before the next one, and has seen what that takes."""
        return bool(self.executed) and bool(self.executed[-1].made)

    def is_new(self, index: Tensor) -> bool:
        """Return whether a BatchNorm selects its channels by this index, which the original doesn't have."""
        name = name_of(index)
        return name is not None and name not in self.names


class SameSteps(Follower):
    """Runs the original anew, for other values, and raises Mismatch where these lead it another way. No rule is asked:
    which channels are coupled is known."""

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = Op(func, args, kwargs or {}, self)
        constants = constants_of(op, meta=self.meta)
        executed = Executed(func, constants or (), [], aside=constants is None or passes_on(op))
        self.note(executed)
        result = op.run() if op.tensors else rule_for(func)(op)  # which marks what holds one value all over
        mark_result(op, result, constant=constants is None, meta=self.meta)
        pass_on_uniform(op, result)
        if not executed.aside:
            before = self.run_before.executed[self.at - 1]
            if before.read != op.read:
                raise Mismatch(f"{op.where} takes other parameters")
            if not all(map(_fills, [shape for shape, _ in before.made], tensors_of(result))):
                raise Mismatch(f"{op.where} gives other sizes")  # which follow from values
        return result


def _fills(shape: Sequence[int], tensor: Tensor) -> bool:
    """Return whether a tensor has a shape, in which 1 may stand for any number of the same value."""
    return tensor.dim() == len(shape) and all(size in (1, now) for size, now in zip(shape, tensor.shape))


def find_misfit(
    traced: Trace, thinned: Callable[[], AbstractContextManager[None]], kept: Bools, followed: Mapping[str, Counted]
) -> Misfit | None:
    """Return the first place where the thin network's forward code doesn't line up with the original's, or None.

    `thinned` makes the tensors of the trace's meta-device copy thin for a while, and what its modules hold (which is
    put back here); `kept` says for every label whether it stays; `followed` are stored sizes that are thin then.
    """
    # Forward code that looks at values takes the path that the values say: compare with the masked network's.
    runs = traced.runs if traced.inputs_are_meta else _masked_runs(traced, kept)
    several = len(traced.runs) > 1
    for number, run in enumerate(runs):
        kept = _of_all(traced, kept)
        thin = ThinCodes(kept)
        with _notes_kept(traced), restored(traced.meta_copy, traced.state), thinned():
            for _, tensor in traced.tensors:
                if whole := codes_on(tensor):
                    set_codes(tensor, {d: thin.of(each).ungated() for d, each in whole.items()})
            _name_new(traced)
            follower = Follower(traced, run, thin)
            misfit = _follow(traced, follower, kept, followed, training=run.training and several)
        if misfit is not None:
            misfit.step += 10**6 * number
            return misfit
    return None


def _of_all(traced: Trace, kept: Bools) -> Bools:
    """Return for every label whether it stays: those of zeros that a masked run added go with what they have joined."""
    roots = traced.classes.roots(np.arange(len(traced.classes)))
    known, new = np.split(roots, [len(kept)])
    return np.concatenate([kept, ~np.isin(new, known[~kept])]) if len(new) else kept


@contextmanager
def _notes_kept(traced: Trace) -> Iterator[None]:
    """Put back what the copy's tensors carry once the thin network has run."""
    notes = [(tensor, {**tensor.__dict__}) for _, tensor in traced.tensors]
    try:
        yield
    finally:
        for tensor, held in notes:
            tensor.__dict__.clear()
            tensor.__dict__.update(held)


def _name_new(traced: Trace) -> None:
    """Give the tensors that the thin copy alone has their names."""
    for prefix, module in traced.state.modules:
        for key, buffer in module._buffers.items():
            if buffer is not None and name_of(buffer) is None:
                set_name(buffer, prefix + key)


def _follow(
    traced: Trace, follower: Follower, kept: Bools, followed: Mapping[str, Counted], *, training: bool
) -> Misfit | None:
    """Run the thin copy along a run. Where there is but one, both modes take the same steps, or this finds out."""
    run = follower.run_before
    try:
        _hold_against(follower, traced.meta_copy, traced.inputs, traced.state, training=training)
        return None
    except Exception as error:
        why = str(error) if isinstance(error, Mismatch) else _described(follower)
        executed = run.executed[: follower.at + AHEAD]
        taken = [whole for codes in follower.astray if (whole := follower.counterpart(codes)) is not None]
        stored, shared = sizes_given(traced, error, executed, followed, taken)
        reached = follower.at + (not isinstance(error, Mismatch) and follower.is_between)
        alike = taken_for(traced, error, executed, kept)
        asked = labels_at_hand(traced, error)
    at = follower.at
    met = (labels for step in reversed(run.executed[:reached]) for labels in _met(step))
    ahead = (labels for step in run.executed[reached:] for labels in _met(step))
    for some in itertools.chain(taken, met, [asked], ahead):
        loose = some[~traced.classes.frozen(some)]
        if len(loose) and not kept[loose].all():
            return Misfit(loose, f"forward code holds a size: {why}", at, stored, shared, alike)
    return Misfit(np.zeros(0, np.int64), why, at, stored, shared)


def _met(step: Executed) -> tuple[Ints, Ints]:
    """Return the labels that an operator's sizes count, and all that it met."""
    counted = [np.zeros(0, np.int64), *(labels for _, labels in step.sizes)]
    return np.concatenate(counted), np.concatenate([*(codes.labels.ravel() for codes in step.codes), *counted])


def _hold_against(follower: Follower, copied: nn.Module, inputs: Any, state: State, *, training: bool) -> None:
    """Run a copy, and raise where it doesn't take the steps of the run before, or gives something else."""
    run = follower.run_before
    outputs = run_once(copied, inputs, follower, state, training=training, seed=run.seed)
    if shapes_of(outputs) != run.shapes:
        raise Mismatch("an output changes its shape")
    for name, number in constants_among(outputs).items():
        if not same([number], [run.constants.get(name)]):
            raise Mismatch(f"{name} is a constant that follows a size")


def _described(follower: Follower) -> str:
    """Say where forward code failed: at or before the operator that came next in the original."""
    coming = (executed for executed in follower.run_before.executed[follower.at :] if not executed.aside)
    operator = next(map(_step_of, coming), "forward")
    return f"{operator} after {follower.place} fails with fewer channels"


def _masked_runs(traced: Trace, kept: Bools) -> Iterator[ForwardPass]:
    """Yield the masked network's runs, which are the same for all sizes that are tried with one choice of channels."""
    asked = kept.tobytes(), len(traced.runs)
    if traced.masked_runs is None or traced.masked_runs[0] != asked:
        traced.masked_runs = asked, []
    made = traced.masked_runs[1]
    for number, run in enumerate(traced.runs):
        if number == len(made):
            made.append(_masked_run(traced, kept, run))
        yield made[number]


def _masked_run(traced: Trace, kept: Bools, run: ForwardPass) -> ForwardPass:
    """Return the original's run with its pruned channels masked, under the classes that are known: the very run where
    it takes the same steps, else one that is traced again."""
    kept = _of_all(traced, kept)
    masks = traced.masks(traced.pruned(kept))

    def mask(tensor: Tensor) -> Tensor:
        pruned = masks.get(name_of(tensor) or "")
        if pruned is None:
            return tensor
        masked = tensor.detach().clone()
        for dim, indices in pruned.items():
            masked.index_fill_(dim, torch.tensor(indices, device=masked.device), 0)
        parameter = nn.Parameter(masked, requires_grad=False)
        parameter.__dict__.update(tensor.__dict__)
        return parameter

    masked = clone(traced.meta_copy, mask, mask)
    with _notes_kept(traced), restored(masked) as state:
        try:
            follower = SameSteps(traced, run, ThinCodes(np.ones_like(kept)))
            _hold_against(follower, masked, traced.inputs, state, training=run.training)
            return run
        except Exception:  # forward code may also fail on the way that it began
            pass
    tracer = traced.tracer(training=run.training)
    with restored(masked) as state:
        outputs = run_once(masked, traced.inputs, tracer, state, training=run.training, seed=run.seed)
    traced.take_in(tracer)
    return ForwardPass.of(tracer, outputs, training=run.training, seed=run.seed)
