"""What may stay of a network: the door for budgets, and the ones that need no measuring.

Every cost is known for any choice of channels without a rebuild: parameters and FLOPs are sums of products of numbers
of channels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from slim.errors import SlimError
from slim.prune.groups import Bools, Floats, Groups, Vectors
from slim.prune.knapsack import CostModel
from slim.prune.plan import PruningPlan
from slim.prune.rules import Rules, checked_number
from slim.trace.traced import Trace

Cost = Callable[[Bools], float]  # of a choice: for every label of the trace, whether it is kept
Dims = Sequence[int | NDArray[np.int64]]  # of each dimension its fixed size, or the labels along it


@dataclass(frozen=True)
class BoundBudget:
    """A budget for one network: `cost(kept)` of a choice, which is to come down to `limit`.

    `whole` is the cost of the unpruned network. With `stops_short`, a plan ends before the group that would bring the
    cost below the limit, not with it.
    """

    cost: Cost
    limit: float
    whole: float
    stops_short: bool = False


@dataclass
class Chosen:
    """The groups that go for a budget."""

    pruned: Bools
    exhausted: bool  # whether nothing more may go
    next_step: float = 0.0  # with a cost model: smallest step that the budget has no room for, as a share of the whole


class Plans(Protocol):
    """What a budget is given to plan with: a `slim.prune.planner.Planner`."""

    model: nn.Module
    example_inputs: Any
    traced: Trace
    rules: Rules
    after: Sequence[PruningPlan]
    cost_model: CostModel | None

    def within(self, budget: "Budget") -> tuple[PruningPlan, Chosen]:
        """Return the best plan within the budget, by the budget's own cost function, and what was chosen for it."""


@dataclass(frozen=True)
class Budget(ABC):
    """What may be kept of a network: `asked` is a share in (0, 1] of the unpruned network's, or a number above 1.

    A budget of one's own says what a choice costs; more channels may not cost less:

        class Widest(slim.Budget):
            name = "widest"  # in the plan and in messages

            def cost(self, costs):
                return lambda kept: max(costs.shape(name, kept)[0] for name in costs.traced.parameters)

        slim.plan(model, x, Widest(48))

    Raises SlimError for what isn't such a number.
    """

    asked: float
    name: ClassVar[str] = "budget"
    total: ClassVar[str] = ""  # the entry of a plan's totals that it limits, for plans after other plans
    by_flops: ClassVar[bool] = False  # with a cost model: time is to shrink as FLOPs do

    @property
    def by_time(self) -> bool:
        """Say whether it chooses sizes by measured times itself."""
        return False

    def __post_init__(self) -> None:
        if not checked_number(self.name, self.asked) > 0:
            raise SlimError(
                f"{self.name} {self.asked!r} is out of range: expected a share above 0, up to 1, or an absolute number"
            )

    @abstractmethod
    def cost(self, costs: "Costs") -> Cost:
        """Return what a choice of channels costs: a function of `kept`, a bool for every label of the trace."""

    def savings(self, costs: "Costs") -> Floats:
        """Return, for each group, what its removal is taken to save, for scores that weigh it: channels."""
        return costs.channels.shares()

    def bind(self, costs: "Costs") -> BoundBudget:
        """Return the budget for one network."""
        cost = self.cost(costs)
        whole = costs.whole(self, cost)
        return BoundBudget(cost, self.asked * whole if self.asked <= 1 else self.asked, whole)

    def meet(self, planner: "Plans") -> PruningPlan:
        """Return the plan that meets the budget; one that has to be measured plans more than once."""
        return planner.within(self)[0]

    def part(self, done: float, whole: float) -> "Budget":
        """Return the budget after the share `done`, 0 to 1, of what it removes from a network that costs `whole`."""
        keep = self.asked if self.asked <= 1 else min(1.0, self.asked / whole)
        return replace(self, asked=(1 - done) + keep * done)

    @property
    def requested(self) -> dict[str, float]:
        """Return what was asked for, by name, as plans note it."""
        return {self.name: self.asked}

    def achieved(self, cost: float, whole: float) -> float:
        """Return what a cost is in the terms of `asked`."""
        return cost / whole if self.asked <= 1 else float(cost)

    def missed(self, achieved: float) -> float:
        """Return how far a plan falls short, as a share."""
        return achieved / self.asked - 1


class Channels(Budget):
    """A budget of prunable channels: `Channels(0.5)` keeps at most half of them."""

    name = total = "channels"

    def cost(self, costs: "Costs") -> Cost:
        return costs.channels


class Params(Budget):
    """A budget of parameters: `Params(0.3)` keeps at most 30 % of them, `Params(1_000_000)` at most a million."""

    name = total = "params"

    def cost(self, costs: "Costs") -> Cost:
        return costs.params

    def savings(self, costs: "Costs") -> Floats:
        return costs.params.shares()


class Flops(Budget):
    """A budget of FLOPs: `Flops(0.5)` keeps at most half of them, `Flops(2e9)` at most 2 GFLOPs (multiply-adds × 2)."""

    name = total = "flops"
    by_flops = True

    def cost(self, costs: "Costs") -> Cost:
        return costs.flops

    def savings(self, costs: "Costs") -> Floats:
        return costs.flops.shares()


class Ratio(Budget):
    """The paper's pruning ratio: at most the share `asked`, in [0, 1), of the prunable channels goes."""

    name, total = "ratio", "channels"

    def __post_init__(self) -> None:
        if not 0 <= checked_number(self.name, self.asked) < 1:
            raise SlimError(f"ratio {self.asked!r} is out of range: expected 0 <= ratio < 1")

    def cost(self, costs: "Costs") -> Cost:
        return costs.channels

    def bind(self, costs: "Costs") -> BoundBudget:
        whole = costs.whole(self, costs.channels)
        return BoundBudget(costs.channels, whole - self.asked * whole, whole, stops_short=True)

    def part(self, done: float, whole: float) -> "Ratio":
        return Ratio(self.asked * done)

    def achieved(self, cost: float, whole: float) -> float:
        return 1 - cost / whole

    def missed(self, achieved: float) -> float:
        return self.asked - achieved


class Costs:
    """What any choice costs: `channels`, `params` and `flops` are functions of `kept`, a bool for each label.

    `before` holds the totals of the unpruned network where earlier plans made this one.
    """

    def __init__(self, groups: Groups, before: Mapping[str, float] | None = None) -> None:
        self.traced, self.groups, self.before = groups.traced, groups, before

    @cached_property
    def channels(self) -> "SumOfProducts":
        """Return prunable channels."""
        layers = self.groups.labels.items()
        return SumOfProducts(self.groups, [(1, [labels, *self.traced.switch(name)]) for name, labels in layers])

    @cached_property
    def params(self) -> "SumOfProducts":
        """Return parameters."""
        sizes = [(1, [*self._dims(name), *self.traced.switch(name)]) for name in self.traced.parameters]
        return SumOfProducts(self.groups, sizes)

    @cached_property
    def flops(self) -> "SumOfProducts":
        """Return FLOPs of the convolutions and matrix products of one forward pass: multiply-adds × 2."""
        products = [(2 * p.positions, [*p.dims, *self.traced.switch(p.layer)]) for p in self.traced.products]
        return SumOfProducts(self.groups, products)

    def shape(self, name: str, kept: Bools) -> tuple[int, ...]:
        """Return the shape that a parameter or buffer has where only `kept` labels stay."""
        return tuple(dim if isinstance(dim, int) else int(kept[dim].sum()) for dim in self._dims(name))

    def whole(self, budget: Budget, cost: Cost) -> float:
        """Return the cost of the network before all pruning. Raises SlimError where earlier plans don't know it."""
        if self.before is None:
            return cost(self.groups.kept())
        if budget.total not in self.before:
            raise SlimError(
                f"{budget.name} can't be planned after other plans: expected ratio, Channels, Flops or Params"
            )
        return self.before[budget.total]

    def _dims(self, name: str) -> Dims:
        labels = self.traced.labels.get(name, {})
        return [labels.get(dim, size) for dim, size in enumerate(self.traced.shapes[name])]


class SumOfProducts:
    """Σ factor × Π (what is kept along each dimension), as a function of `kept`."""

    def __init__(self, groups: Groups, terms: Sequence[tuple[int, Dims]]) -> None:
        self.groups = groups
        vectors = [(t, dim) for t, (_, dims) in enumerate(terms) for dim in dims if not isinstance(dim, int)]
        self.vectors = Vectors([labels for _, labels in vectors])
        self.term = np.array([t for t, _ in vectors], np.int64)
        self.fixed = [factor * math.prod(d for d in dims if isinstance(d, int)) for factor, dims in terms]

    def __call__(self, kept: Bools) -> int:
        """Return the sum where only `kept` labels stay."""
        value = np.array(self.fixed, np.int64)
        np.multiply.at(value, self.term, self.vectors.count(kept))
        return int(value.sum())

    def shares(self) -> Floats:
        """Return, for each group, its share of every product that it takes part in, added up."""
        whole = np.array(self.fixed, np.float64)
        lengths = self.vectors.lengths[self.vectors.of]
        np.multiply.at(whole, self.term, lengths)
        each = np.bincount(self.vectors.of, whole[self.term] / np.maximum(lengths, 1), len(self.vectors.different))
        out = np.zeros(len(self.groups.root_of))
        np.add.at(out, self.groups.root_of[self.vectors.all], np.repeat(each, self.vectors.lengths))
        return np.maximum(out[self.groups.roots], 1e-12)
