"""Whole residual blocks: which of them may go, what they are worth beside channels, and what a plan says of them.

Where a network is narrow already, fewer channels hardly save time: a block costs its calls and its traffic of memory
however thin it is. A block that goes saves all of it. What goes is the branch that is added to the stream (see
`slim.trace.branches`); the masked original has it at zero, all its layers masked.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Protocol, runtime_checkable

import numpy as np

from slim.errors import SlimError
from slim.prune.groups import Bools, Floats, Groups
from slim.prune.plan import PlannedLayer, PruningPlan
from slim.prune.rules import Rules
from slim.prune.scores import Score, name_of_score
from slim.trace.branches import Branch, find_branches
from slim.trace.traced import Trace


@runtime_checkable
class ScoresBlocks(Protocol):
    """A score that says what blocks are worth, too."""

    def missed_without(self, groups: Groups, branches: Sequence[Branch]) -> Sequence[float]:
        """Return what the network misses without each branch, in units of what it misses without a channel before that
        is divided by `groups.savings`; infinite for one that has to stay."""


def removable(traced: Trace, rules: Rules, score: Score) -> list[Branch]:
    """Return the branches that may go: those without a layer that is to stay, or whose size is given. The trace notes
    what goes with them. Raises SlimError for a score that doesn't say what they are worth."""
    if not isinstance(score, ScoresBlocks):
        by = name_of_score(score)
        raise SlimError(
            f"blocks by {by}, which knows of channels alone: expected slim.Residual(images), score residual"
        )
    if rules.scope != "global":
        raise SlimError(f"blocks with scope {rules.scope!r}: expected 'global', as they belong to no kind of layer")
    patterns = (*rules.keep, *rules.layer_ratios)
    found = [
        branch
        for branch in find_branches(traced)
        if not any(fnmatch(name, pattern) for name in branch.producers for pattern in patterns)
    ]
    for branch in found:
        layers = {name.rpartition(".")[0] for name in branch.tensors}
        traced.switches |= dict.fromkeys((*branch.tensors, *layers, *branch.producers, *branch.steps), branch.label)
    return found


def add_to(groups: Groups, branches: Sequence[Branch], missed: Sequence[float], savings: Callable[[], Floats]) -> None:
    """Add branches to scored groups: at what is `missed` without them for what that saves, each as large as the number
    of channels of its own that would save as much."""
    channels = groups.savings
    groups.add_blocks([branch.label for branch in branches], np.array(missed))
    groups.savings = savings()
    saved = groups.savings[groups.blocks]
    groups.score[groups.blocks] /= saved
    switches = groups.traced.switches
    for place, branch in enumerate(branches):
        inside = np.array([switches.get(name) == branch.label for name in groups.names])[groups.layer]
        own = np.bincount(groups.member, weights=~inside) == 0
        each = channels[own].mean() if own.any() else saved[place]
        groups.size[groups.blocks.start + place] = max(1, round(saved[place] / each))


def without(plan: PruningPlan, traced: Trace, branches: Sequence[Branch], kept: Bools) -> None:
    """Note in a plan that these branches go, each as a whole."""
    for branch in branches:
        emptied = branch.emptied.items()
        plan.blocks[branch.name] = {name: [dim, int(kept[labels].sum())] for name, (dim, labels) in emptied}
        for name in branch.tensors:
            shape = traced.shapes[name]
            plan.cuts[name] = {dim: list(range(shape[dim])) for dim in traced.labels.get(name) or (0,)}
            plan.shapes[name] = list(shape)
        for name in branch.producers:
            made = traced.made[name]
            plan.removed[name] = list(range(len(made.labels)))
            for tensor, dim in made.tensors.items():
                plan.masks[tensor] = {dim: plan.cuts[tensor][dim]}
    plan.layers = [
        PlannedLayer(each.name, each.before, 0, 0, 0) if len(plan.removed.get(each.name, ())) == each.before else each
        for each in plan.layers
    ]
