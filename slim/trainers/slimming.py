"""A network that gets thinner while it trains, whoever trains it: a penalty, pruning in steps, recovery after each."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from slim.batches import as_one
from slim.errors import NothingToPrune, SlimError, SlimWarning
from slim.prune.budgets import Budget
from slim.prune.calibration import MOST
from slim.prune.plan import PruningPlan
from slim.prune.planner import plan
from slim.prune.rebuild import take_over
from slim.prune.recovery.recover import recover
from slim.prune.verify import verify
from slim.sparsity import Penalty, sparsify
from slim.trace.intercept import evaluating


@dataclass(frozen=True)
class Schedule:
    """When a training prunes: in `prunes` steps, spread over what lies between two shares of its steps."""

    start: float
    end: float
    prunes: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= 1:
            raise SlimError(
                f"start {self.start} and end {self.end}: expected shares of the steps, 0 <= start < end <= 1"
            )

    def at(self, steps: int) -> list[int]:
        """Return the numbers of the steps after which to prune, in a training of so many."""
        shares = (self.start + (self.end - self.start) * i / self.prunes for i in range(1, self.prunes + 1))
        return sorted({max(1, round(steps * share)) for share in shares})


class Thinned:
    """What was pruned of a network, in a trainer whose checkpoints keep it: `plans`, in order."""

    def __init__(self) -> None:
        self.plans: list[PruningPlan] = []

    def follow(self, network: nn.Module, records: Sequence[Any]) -> None:
        """Make a network in place as thin as the plans of a checkpoint say. Raises SlimError where it was pruned
        otherwise."""
        plans = [PruningPlan.from_dict(record) for record in records]
        done = len(self.plans)
        if [plan.digest for plan in plans[:done]] != [plan.digest for plan in self.plans]:
            raise SlimError(
                f"the checkpoint's network was pruned in {len(plans)} steps, this one in {done}: expected one that "
                "wasn't pruned, and a new callback"
            )
        for more in plans[done:]:
            take_over(network, more.apply(network))
            self.plans.append(more)


class Slimming:
    """Train `network` with a penalty, and prune it in place at given steps: the same object, thinner.

        slimming = slim.Slimming(network, optimizer, x, slim.Flops(0.5), penalty=slim.L1(1e-4), at=[600, 800, 1000])
        for inputs, targets in loader:                       # your loop, as it is
            ...
            optimizer.step()
            slimming.after_step()                            # prunes at these steps; True where it did

    `at`: the steps of the optimizer, from 1, after which it is pruned. By the i-th of n of them the share
    1 − (1 − i/n)³ of what the budget removes is gone (Zhu and Gupta, https://arxiv.org/abs/1710.01878, equation 1).
    `penalty`, `method`: of `slim.sparsify`, until the last of them; None: no penalty.
    `images`: as `slim.recover` takes them; the network is recovered on them after each prune. None: it isn't.
    `rules`: more keywords of `slim.plan`, such as score or round_to.

    Each prune is verified. The optimizer keeps what it knows of the channels that stay; its param_groups, schedulers,
    and whatever holds the network stay valid. `plans` holds what was done, in order; `go_on(plans, step)` goes on with
    a training that was cut off, and `end()` ends the penalty where one ends early. Raises SlimError where steps aren't
    increasing numbers, and as `slim.plan` and `slim.verify` do.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        example_inputs: Any,
        budget: Budget,
        *,
        at: Sequence[int],
        penalty: Penalty | None = None,
        method: str = "auto",
        images: Any = None,
        rules: dict[str, Any] | None = None,
    ) -> None:
        if not at or any(isinstance(n, bool) or not isinstance(n, int) for n in at) or list(at) != sorted({*at}):
            raise SlimError(f"at {list(at)}: expected steps in increasing order, such as [600, 800, 1000]")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        processes = torch.distributed.get_world_size() if distributed else 1
        if processes > 1:
            raise SlimError(
                f"slim.Slimming in a training of {processes} processes: expected one, or slim.sparsify there and a "
                "plan that each applies to its network"
            )
        self.network, self.optimizer, self.example_inputs, self.budget = network, optimizer, example_inputs, budget
        self.at, self.step, self.rules = list(at), 0, rules or {}
        self.images = None if images is None else as_one(images, MOST)
        self.sparsity = None if penalty is None else sparsify(network, optimizer, penalty, method=method)
        self.plans: list[PruningPlan] = []
        self._whole: float | None = None

    def after_step(self) -> bool:
        """Count a step of the optimizer, and prune where it is time; whether the network was pruned."""
        self.step += 1
        return self.step in self.at and self._prune(self.at.index(self.step) + 1)

    def go_on(self, plans: list[PruningPlan], step: int) -> None:
        """Go on with a training that has taken `step` steps, and whose network `plans` made as thin as it is; those to
        come are added to them."""
        self.plans, self.step = plans, step
        if self.sparsity is not None and step >= self.at[-1]:
            self.sparsity.remove()

    def end(self) -> None:
        """End the penalty; warn where a training ends, early say, before the last prune."""
        if self.sparsity is not None:
            self.sparsity.remove()
        left = sum(at > self.step for at in self.at)
        if left:
            warnings.warn(
                f"the training ended after step {self.step}, before {left} of {len(self.at)} prunes (the last after "
                f"step {self.at[-1]}): the budget isn't reached; expected more steps, or prunes that end sooner",
                SlimWarning,
                stacklevel=2,
            )

    def _prune(self, number: int) -> bool:
        made = self._plan(1 - (1 - number / len(self.at)) ** 3)
        if made is not None:
            thin = made.apply(self.network)
            verify(self.network, thin, made, self.example_inputs)
            if self.images is not None:
                thin = recover(self.network, thin, made, self.images).model
            made.prune_optimizer(self.optimizer, self.network, thin)
            if self.sparsity is not None:
                self.sparsity.prune(made, self.network, thin)
            take_over(self.network, thin)
            self.plans.append(made)
        if number == len(self.at) and self.sparsity is not None:
            self.sparsity.remove()
        return made is not None

    def _plan(self, done: float) -> PruningPlan | None:
        """Return the plan for the share `done` of what the budget removes, None where that is nothing yet."""
        with evaluating(self.network), warnings.catch_warnings():
            warnings.simplefilter("ignore", SlimWarning)  # that γ say little: the penalty is at work
            if self._whole is None:
                first = self.plans[0] if self.plans else None
                first = first or plan(self.network, self.example_inputs, self.budget, **self.rules)
                self._whole = first.totals[self.budget.total or "channels"][0]
            try:
                made = plan(
                    self.network,
                    self.example_inputs,
                    self.budget.part(done, self._whole),
                    **self.rules,
                    after=self.plans,
                )
            except NothingToPrune:
                return None
        return made if made.removed else None
