"""Sizes that modules store follow their channels, so that forward code of the thin network lines up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from slim.prune.groups import Bools
from slim.prune.plan import PruningPlan
from slim.prune.rebuild import Change, thinned
from slim.trace.attributes import Size, kept_sizes, own_sizes
from slim.trace.check import Counted, Misfit, find_misfit, kept_size
from slim.trace.classes import Ints
from slim.trace.copy import named_modules
from slim.trace.tracer import Trace


@dataclass
class StoredSizes:
    """The sizes of a traced network that are known to follow channels: "module.attribute" -> the labels they count."""

    traced: Trace
    followed: dict[str, Counted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.followed |= self.traced.group_counts

    def follow(self, plan: PruningPlan, kept: Bools) -> Misfit | None:
        """Return what keeps the thin network from running once stored sizes follow; they are noted in `plan.sizes`.

        Where an attribute holds a size that an operator was given, it is tried with the thin size, alone or with the
        others of its module; what brings the network further is followed from then on.
        """

        def check(tried: dict[str, Counted]) -> Misfit | None:
            sizes = self.followed | tried
            plan.sizes = {name: kept_size(counted, kept) for name, counted in sizes.items()}
            return find_misfit(self.traced, lambda copy: thinned(copy, plan.change), kept, sizes)

        misfit = check({})
        while misfit is not None:
            stale = self._stale(misfit, kept)
            for tried in _attempts(stale):
                after = check(tried)
                if not _further(after, misfit):
                    continue
                for name in tried if len(tried) > 1 else ():  # one of them may only look like the size at hand
                    fewer = {other: counted for other, counted in tried.items() if other != name}
                    without = check(fewer)
                    if _further(without, misfit):
                        tried, after = fewer, without
                self.followed |= tried
                misfit = after
                break
            else:  # one size that serves several layers brings the network no further until these are coupled
                self.followed |= {name: counted for name, counted in stale.items() if name in misfit.shared}
                break
        plan.sizes = {name: kept_size(counted, kept) for name, counted in self.followed.items()}
        if misfit is None:
            self._follow_unread(plan, kept)
        return misfit

    def _follow_unread(self, plan: PruningPlan, kept: Bools) -> None:
        """Note in `plan.sizes` the stored sizes that forward code doesn't read, but other methods may: one that forward
        is exchanged for, the fusing of a block, a new head. The thin network runs without them, and must with them."""
        read, before = self.traced.read, plan.sizes
        widths = Widths(self.traced, plan.change, kept)
        changed: dict[str, Size] = {}
        for name, size in kept_sizes(self.traced.meta_copy).items():
            after = None if name in read else widths.after(name, size)
            if after is not None and after != size:
                changed[name] = after
        plan.sizes = changed | before
        if not changed:
            return
        misfit = find_misfit(self.traced, lambda copy: thinned(copy, plan.change), kept, self.followed)
        if misfit is not None or read & changed.keys():
            plan.sizes = before

    def couple(self, misfit: Misfit) -> bool:
        """Couple the same places of layers that one stored size serves, such as the heads of an attention; return
        whether that is new."""
        new = False
        classes = self.traced.classes
        for name in misfit.shared.keys() & self.followed.keys():
            labels = misfit.shared[name]
            counted = np.resize(np.asarray(self.followed[name]), len(labels))  # over and over, for each part
            if (classes.roots(labels) != classes.roots(counted)).any():
                classes.unite(labels, counted, f"{name} holds the size of both")
                new = True
        return new

    def _stale(self, misfit: Misfit, kept: Bools) -> dict[str, Counted]:
        """Return the stored sizes at the misfit that aren't followed yet, and that the plan would change."""
        everything = np.ones_like(kept)
        return {
            name: counted
            for name, counted in misfit.stored.items()
            if name not in self.followed and kept_size(counted, kept) != kept_size(counted, everything)
        }


class Widths:
    """What becomes of the widths of a network's layers under a change: how a number that a module keeps may be read."""

    def __init__(self, traced: Trace, change: Change, kept: Bools) -> None:
        before = _widths(traced.meta_copy)
        self._levels = _levels(traced.meta_copy)
        with thinned(traced.meta_copy, change):
            after = _widths(traced.meta_copy)
        self._becomes: dict[int, list[tuple[str, int]]] = {}  # width -> the layers that have it, and what it becomes
        for (owner, name), size in before.items():
            self._becomes.setdefault(size, []).append((owner, after.get((owner, name), size)))
        self._parts: dict[tuple[str, str], tuple[Ints, Bools]] = {}
        for name, dims in change.cuts.items():
            owner = name[: name.rfind(".") + 1]
            for dim in dims if owner in self._levels else ():
                labels = traced.labels[name][dim]
                self._parts[owner, f"{name}.{dim}"] = traced.classes.roots(labels), kept[labels]

    def after(self, name: str, size: Size) -> Size | None:
        """Return what the size that a module keeps in this attribute becomes; None where that isn't clear."""
        prefix = name[: name.rfind(".") + 1]
        numbers = [self._after(prefix, number) for number in ((size,) if isinstance(size, int) else size)]
        known = [number for number in numbers if number is not None]
        if len(known) < len(numbers):
            return None
        return known[0] if isinstance(size, int) else type(size)(known)

    def _after(self, prefix: str, number: int) -> int | None:
        """Return the one thing that this number becomes where layers as near to the module as can be have such a
        width, or such parts that are pruned alike."""
        if number < 2:  # no width
            return number
        found: dict[int, set[int]] = {}  # level -> the widths that it may become
        for owner, after in self._becomes.get(number, ()):
            if owner.startswith(prefix):
                found.setdefault(self._levels[owner], set()).add(after)
        for (owner, _), (roots, kept) in self._parts.items():
            if owner.startswith(prefix) and len(roots) > number and len(roots) % number == 0:
                parts = roots.reshape(-1, number)
                if (parts == parts[0]).all():
                    found.setdefault(self._levels[owner], set()).add(int(kept[:number].sum()))
        readings = found[min(found)] if found else set()
        return next(iter(readings)) if len(readings) == 1 else None


def _levels(model: nn.Module) -> dict[str, int]:
    """Return how deep each module lies, where containers such as nn.Sequential are no level of their own."""
    levels: dict[str, int] = {}
    for prefix, module in named_modules(model):
        parent = prefix[: prefix.rfind(".", 0, -1) + 1]
        levels[prefix] = levels.get(parent, 0) + (type(module).__module__ != "torch.nn.modules.container")
    return levels


def _widths(model: nn.Module) -> dict[tuple[str, str], int]:
    """Return the sizes of all layers: of their tensors, and what torch.nn stores of them (a kernel's as well, for a
    number may mean that). (module's name, place) -> size."""
    found = {}
    for prefix, module in named_modules(model):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            for dim, size in enumerate(() if tensor is None else tensor.shape):
                found[prefix, f"{name}.{dim}"] = size
        for name in own_sizes(module):
            value = vars(module).get(name)
            for i, size in enumerate(value if isinstance(value, tuple) else (value,)):
                if type(size) is int:
                    found[prefix, f"{name}[{i}]"] = size
    return found


def _attempts(stale: Mapping[str, Counted]) -> Iterator[dict[str, Counted]]:
    """Yield each size alone, then all those of a module."""
    for name, counted in stale.items():
        yield {name: counted}
    modules = dict.fromkeys(name.rpartition(".")[0] for name in stale)
    for module in modules:
        together = {name: counted for name, counted in stale.items() if name.rpartition(".")[0] == module}
        if len(together) > 1:
            yield together


def _further(after: Misfit | None, before: Misfit) -> bool:
    return after is None or after.step > before.step
