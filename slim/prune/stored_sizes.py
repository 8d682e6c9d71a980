"""Sizes that modules store follow their channels, so that forward code of the thin network lines up."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from slim.prune.groups import Bools
from slim.prune.plan import PruningPlan
from slim.prune.rebuild import Cuts, set_sizes, thinned
from slim.trace.attributes import StoredSize, kind_of, own_sizes
from slim.trace.check import Misfit, find_misfit
from slim.trace.classes import Ints
from slim.trace.copy import Modules
from slim.trace.given import Counted, kept_size
from slim.trace.traced import SEVERAL, Trace


@dataclass
class StoredSizes:
    """The sizes of a traced network that are known to follow channels: "module.attribute" -> the labels they count."""

    traced: Trace
    followed: dict[str, Counted] = field(default_factory=dict)
    _coupled: dict[str | None, int] = field(default_factory=dict)  # kinds of sizes -> how many were found to be shared
    _helped: dict[frozenset[str], None] = field(default_factory=dict)  # kinds of sizes that were followed together
    _on_trial: set[str] = field(default_factory=set)  # followed although they brought the network no further
    _refuted: set[str] = field(default_factory=set)  # followed on trial, and wrongly

    def __post_init__(self) -> None:
        self.followed |= self.traced.group_counts
        self._modules, self._tensors = dict(self.traced.state.modules), dict(self.traced.tensors)
        self._widths = Widths(self.traced)

    def follow(self, plan: PruningPlan, kept: Bools) -> Misfit | None:
        """Return what keeps the thin network from running once stored sizes follow; they are noted in `plan.sizes`.

        Where an attribute holds a size that an operator was given, it is tried with the thin size, alone or with the
        others of its module; what brings the network further is followed from then on. Sizes that forward code doesn't
        read follow as well, for other methods may: one that forward is exchanged for, the fusing of a block, a new
        head. The thin network must run with them, and without.
        """
        if not self.followed:  # mostly nothing is to do, and one run tells
            misfit, unread = self._with_unread(plan, kept)
            if misfit is None and not self.traced.sizes.read & unread.keys():
                return None
        if self.followed or unread:
            misfit = self._misfit(plan, kept)
        while misfit is not None:
            stale = self._stale(misfit, kept)
            found = self._bring_further(stale, misfit, plan, kept)
            if found is None:  # one size that serves several layers brings it no further until these are coupled
                shared = {name: counted for name, counted in stale.items() if name in misfit.shared}
                self.followed |= shared
                self._on_trial |= shared.keys()
                break
            tried, misfit = found
            self.followed |= tried
        if misfit is not None or not self._fits_with_unread(plan, kept):
            self._note(plan, kept)
        return misfit

    def _bring_further(
        self, stale: Mapping[str, Counted], misfit: Misfit, plan: PruningPlan, kept: Bools
    ) -> tuple[dict[str, Counted], Misfit | None] | None:
        """Return which of the stale sizes bring the thin network further than this misfit, and to which it brings it;
        None where none does."""
        for tried in (*self._as_before(stale), *_attempts(stale)):
            after = self._misfit(plan, kept, tried)
            if not _further(after, misfit):
                if after is not None and len(tried) == len(stale) and after.step == misfit.step:
                    break  # all of them make no difference
                continue
            known = _kinds(tried) in self._helped
            for name in tried if len(tried) > 1 and not known else ():  # one may only look like the size at hand
                fewer = {other: counted for other, counted in tried.items() if other != name}
                without = self._misfit(plan, kept, fewer)
                if _further(without, misfit):
                    tried, after = fewer, without
            self._helped.setdefault(_kinds(tried))
            return tried, after
        return None

    def _as_before(self, stale: Mapping[str, Counted]) -> list[dict[str, Counted]]:
        """Return those of the stale sizes whose likes in other blocks brought the network further."""
        found = []
        for kinds in self._helped:
            likes = {name: counted for name, counted in stale.items() if _kinds([name]) <= kinds}
            if _kinds(likes) == kinds:
                found.append(likes)
        return found

    def _note(self, plan: PruningPlan, kept: Bools, tried: Mapping[str, Counted] | None = None) -> dict[str, Counted]:
        """Note in `plan.sizes` what is followed, and what is `tried`; return both."""
        sizes = self.followed | dict(tried or {})
        plan.sizes = {name: kept_size(counted, kept) for name, counted in sizes.items()}
        return sizes

    def _misfit(self, plan: PruningPlan, kept: Bools, tried: Mapping[str, Counted] | None = None) -> Misfit | None:
        """Return what keeps the thin network from running with the sizes that are followed and those `tried`."""
        sizes = self._note(plan, kept, tried)
        return find_misfit(self.traced, lambda: thinned(self._modules, self._tensors, plan.change), kept, sizes)

    def _fits_with_unread(self, plan: PruningPlan, kept: Bools) -> bool:
        """Return whether the thin network runs once sizes that forward code doesn't read follow, too."""
        misfit, unread = self._with_unread(plan, kept)
        return misfit is None and not self.traced.sizes.read & unread.keys()

    def _with_unread(self, plan: PruningPlan, kept: Bools) -> tuple[Misfit | None, dict[str, StoredSize]]:
        """Return what keeps the thin network from running once sizes that forward code doesn't read follow, too, and
        what these come to. They are noted in `plan.sizes`."""
        sizes, found = self._note(plan, kept), dict[str, StoredSize]()

        @contextmanager
        def thin() -> Iterator[None]:
            with thinned(self._modules, self._tensors, plan.change):
                found.update(self._widths.changed(plan.cuts, kept, self.traced.sizes.read | sizes.keys()))
                set_sizes(self._modules, found)
                with self.traced.sizes.noting():
                    yield

        misfit = find_misfit(self.traced, thin, kept, sizes)
        plan.sizes = found | plan.sizes
        return misfit, found

    def forget_trials(self) -> bool:
        """Follow no longer what was followed on trial: the network didn't run for it; return whether that is new."""
        refuted = self._on_trial - self._refuted
        self._refuted |= refuted
        for name in refuted:
            self.followed.pop(name, None)
        return bool(refuted)

    def couple(self, misfit: Misfit) -> bool:
        """Couple the same places of layers that one stored size serves, such as the heads of an attention, and those of
        which forward code takes the size of one for the other; return whether that is new."""
        new = False
        for name in misfit.shared.keys() & self.followed.keys():
            labels, counted = misfit.shared[name], np.asarray(self.followed[name])
            new |= self._couple_all(name, labels, counted)
        if misfit.alike is not None:
            new |= self._couple_all(*misfit.alike)
        return new

    def _couple_all(self, name: str, labels: Ints, counted: Ints) -> bool:
        """Couple the labels with those that are counted, in the other blocks as well where several had to have that: to
        find out in each would take a trace. Return whether that is new."""
        if not self._united(name, labels, counted):
            return False
        kind = kind_of(name)
        self._coupled[kind] = self._coupled.get(kind, 0) + 1
        if kind is not None and self._coupled[kind] >= SEVERAL:
            self._couple_alike(name, kind, labels, counted)
        return True

    def _united(self, name: str, labels: Ints, counted: Ints) -> bool:
        """Couple the labels with those that a stored size counts; return whether that is new."""
        classes = self.traced.classes
        counted = np.resize(counted, len(labels))  # over and over, for each part
        apart = bool((classes.roots(labels) != classes.roots(counted)).any())
        classes.unite(labels, counted, f"{name} has one size for both")
        return apart

    def _couple_alike(self, name: str, kind: str, labels: Ints, counted: Ints) -> None:
        """Couple in the blocks of a kind what was coupled in one of them."""
        sizes = self.traced.sizes
        own = name.rpartition(".")[2]
        likes = {prefix + own for prefix in self._modules if kind_of(prefix + own) == kind} - {name}
        for other in sorted(likes):
            if sizes.get(other) != sizes.get(name):
                continue
            theirs = self._counterparts(np.concatenate([labels, counted]), _holder(name), _holder(other))
            if theirs is not None:
                if other in sizes:
                    self.followed.setdefault(other, theirs[len(labels) :])
                self._united(other, theirs[: len(labels)], theirs[len(labels) :])

    def _counterparts(self, labels: Ints, block: str, other: str) -> Ints | None:
        """Return the labels that lie in another block where these do in this one: themselves where they lie in none,
        such as those of positions; None where the blocks have nothing in common."""
        own, theirs = (
            {
                tensor.removeprefix(prefix): dims
                for tensor, dims in self.traced.labels.items()
                if tensor.startswith(prefix)
            }
            for prefix in (block, other)
        )
        places = [(tensor, d) for tensor, dims in own.items() for d in dims if d in theirs.get(tensor, {})]
        places = [(tensor, d) for tensor, d in places if len(own[tensor][d]) == len(theirs[tensor][d])]
        if not places:
            return None
        here, there = (np.concatenate([held[tensor][d] for tensor, d in places]) for held in (own, theirs))
        order = np.argsort(here, kind="stable")
        found = np.searchsorted(here[order], labels).clip(max=len(here) - 1)
        return np.where(here[order][found] == labels, there[order][found], labels)

    def _stale(self, misfit: Misfit, kept: Bools) -> dict[str, Counted]:
        """Return the stored sizes at the misfit that aren't followed yet, and that the plan would change."""
        everything = np.ones_like(kept)
        return {
            name: counted
            for name, counted in misfit.stored.items()
            if name not in self.followed
            and name not in self._refuted
            and kept_size(counted, kept) != kept_size(counted, everything)
        }


def _holder(attribute: str) -> str:
    """Return how the names of what lies in the module of an attribute begin."""
    return attribute[: attribute.rfind(".") + 1]


class Widths:
    """The widths of a network's layers, and what becomes of them: how a number that a module keeps may be read."""

    def __init__(self, traced: Trace) -> None:
        self._traced = traced
        self._levels = _levels(traced.state.modules)
        self._numbers = {number for size in traced.sizes.values() for number in _numbers(size) if number > 1}
        self._places: dict[int, list[tuple[str, nn.Module, str, int]]] = {}  # width -> where layers have it
        for prefix, module in traced.state.modules if self._numbers else ():
            for place, width in _widths(module):
                if width in self._numbers:
                    self._places.setdefault(width, []).append((prefix, module, *place))

    def changed(self, cuts: Cuts, kept: Bools, others: Set[str]) -> dict[str, StoredSize]:
        """Return what becomes of the sizes that modules keep, other than `others`, now that the network is thin: of
        those that change, and where it is clear."""
        parts: dict[int, LabelledDims] = {}  # by their lengths
        for name, dims in cuts.items() if self._numbers else ():
            prefix, known = name[: name.rfind(".") + 1], self._traced.labels.get(name, {})
            for dim in known.keys() & dims if prefix in self._levels else ():  # a state isn't there yet
                labels = known[dim]
                parts.setdefault(len(labels), []).append((prefix, labels))
        found: dict[str, StoredSize] = {}
        for name, size in self._traced.sizes.items():
            if name in others:
                continue
            after = self._size_after(_holder(name), size, parts, kept)
            if after is not None and after != size:
                found[name] = after
        return found

    def _size_after(
        self, prefix: str, size: StoredSize, parts: dict[int, "LabelledDims"], kept: Bools
    ) -> StoredSize | None:
        """Return what a size becomes, None where that isn't clear of one of its numbers; a table may hold thousands."""
        after: dict[int, int] = {}
        for number in dict.fromkeys(_numbers(size)):
            became = self._after(prefix, number, parts, kept)
            if became is None:
                return None
            after[number] = became
        return after[size] if isinstance(size, int) else type(size)(after[number] for number in size)

    def _after(self, prefix: str, number: int, parts: dict[int, "LabelledDims"], kept: Bools) -> int | None:
        """Return the one thing that this number becomes where layers as near to the module as can be have such a
        width, or such parts that are pruned alike."""
        if number < 2:  # no width
            return number
        found: dict[int, set[int]] = {}  # level -> the widths that it may become
        for owner, module, place, index in self._places.get(number, ()):
            if owner.startswith(prefix):
                found.setdefault(self._levels[owner], set()).add(_width(module, place, index))
        for length in parts:
            for owner, labels in parts[length] if length > number and length % number == 0 else ():
                if owner.startswith(prefix):
                    roots = self._traced.classes.roots(labels).reshape(-1, number)
                    if (roots == roots[0]).all():
                        found.setdefault(self._levels[owner], set()).add(int(kept[labels[:number]].sum()))
        readings = found[min(found)] if found else set()
        return next(iter(readings)) if len(readings) == 1 else None


LabelledDims = list[tuple[str, Ints]]  # a layer and the labels along a dimension of one of its tensors


def _numbers(size: StoredSize) -> Sequence[int]:
    return (size,) if isinstance(size, int) else size


def _levels(modules: Modules) -> dict[str, int]:
    """Return how deep each module lies, where containers such as nn.Sequential are no level of their own."""
    levels: dict[str, int] = {}
    for prefix, module in modules:
        parent = prefix[: prefix.rfind(".", 0, -1) + 1]
        levels[prefix] = levels.get(parent, 0) + (type(module).__module__ != "torch.nn.modules.container")
    return levels


def _widths(module: nn.Module) -> Iterator[tuple[tuple[str, int], int]]:
    """Yield the sizes of a layer: of its tensors, and what torch.nn stores of them (a kernel's as well, for a number
    may mean that), each with its place."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        for dim, size in enumerate(() if tensor is None else tensor.shape):
            yield (name, dim), size
    for name in own_sizes(type(module)):
        value = vars(module).get(name)
        for i, size in enumerate(value if isinstance(value, tuple) else (value,)):
            if type(size) is int:
                yield (name, i), size


def _width(module: nn.Module, place: str, index: int) -> int:
    """Return the size that lies now at one of the places of `_widths`."""
    held: Any = getattr(module, place)
    return int(held.shape[index] if isinstance(held, Tensor) else held[index] if isinstance(held, tuple) else held)


def _attempts(stale: Mapping[str, Counted]) -> Iterator[dict[str, Counted]]:
    """Yield each size of the first module alone, then those together, then all sizes, and the same of the others."""
    modules: dict[str, dict[str, Counted]] = {}
    for name, counted in stale.items():
        modules.setdefault(name.rpartition(".")[0], {})[name] = counted
    for number, sizes in enumerate(modules.values()):
        yield from ({name: counted} for name, counted in sizes.items())
        if len(sizes) > 1:
            yield sizes
        if number == 0 and len(modules) > 1:
            yield dict(stale)


def _kinds(names: Iterable[str]) -> frozenset[str]:
    """Return what names have in common with their likes in other blocks."""
    return frozenset(kind_of(name) or name for name in names)


def _further(after: Misfit | None, before: Misfit) -> bool:
    return after is None or after.step > before.step
