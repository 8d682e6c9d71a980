"""Sizes that modules store follow their channels, so that forward code of the thin network lines up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from slim.prune.groups import Bools
from slim.prune.plan import PruningPlan
from slim.prune.rebuild import thinned
from slim.trace.check import Counted, Misfit, find_misfit, kept_size
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
        return misfit

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
