"""How strong a penalty is over time: by a schedule, or by a controller that finds λ for a requested share of zeros."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slim.errors import SlimError, check_type, unknown
from slim.prune.plan import PruningPlan

SCHEDULES = ("constant", "warmup", "ramp", "decay")
WARMUP = 0.1  # share of the steps over which "warmup" rises


def scheduled(schedule: str, strength: float, step: int, steps: int) -> float:
    """Return λ of step 0 … steps − 1.

    "constant" is `strength` throughout; "warmup" rises linearly over the first tenth of the steps and stays; "ramp"
    rises linearly to `strength` at the last step; "decay" falls linearly from it, to `strength`/steps at the last.
    """
    match schedule:
        case "constant":
            return strength
        case "warmup":
            return strength * min(1.0, (step + 1) / max(1, round(WARMUP * steps)))
        case "ramp":
            return strength * min(1.0, (step + 1) / steps)
        case "decay":
            return strength * max(0.0, 1 - step / steps)
    raise unknown("schedule", schedule, SCHEDULES)


class TargetShare:
    """Finds λ so that the share `target` of all values is exactly zero at the end of `steps` steps.

    Only the values that are to go are pushed, the share `target` with the lowest magnitudes at present; so there can
    never be more zeros than asked for, and the others keep their full size. Each layer's best `floor` of its channels
    (at least one) are never pushed, so no layer runs empty.

    For the first tenth of the steps λ is 0: scales that all began with the same value have to differ first. From then
    until seven tenths of the steps the share of zeros follows s(u) = target·(1 − (1 − u)³), the curve of gradual
    pruning (Zhu and Gupta, https://arxiv.org/abs/1710.01878, equation 1), and stays at the target after that. An
    integral controller on log λ keeps it there: with t the share of steps done,

        d log λ / dt = GAIN · log((target − zeros + SLACK) / (target − s + SLACK)),

    so λ grows where more zeros are still missing than should be, and falls where fewer are. The ratio, rather than
    the difference, makes it finish: at the end the last few zeros are the hardest, and the learning rate is small.
    """

    START, END = 0.1, 0.7  # shares of the steps
    GAIN = 40.0
    SLACK = 0.02  # below this share missing, the controller slows down
    LIMIT = 1e6  # of λ: where a penalty makes no zeros (DeadZoneL1), it must not overflow

    def __init__(self, target: float, floor: float, steps: int, layers: Tensor) -> None:
        """Begin without zeros; `layers` int64 [P] is the number of the layer that each value belongs to."""
        if not 0 < target < 1:
            raise SlimError(f"sparsity target is {target}: expected a share of zeros in (0, 1)")
        if not 0 <= floor < 1:
            raise SlimError(f"sparsity floor is {floor}: expected a share of each layer in [0, 1)")
        self.target, self.steps, self.layers = target, steps, layers
        self.whole = len(layers)  # values before any was pruned
        self.every = max(1, min(10, steps // 100))  # steps between two looks
        self.count = round(target * len(layers))  # of zeros at the end
        sizes = layers.bincount()
        self.kept = (floor * sizes).ceil().long().clamp(min=1)  # of each layer
        self.ends = sizes.cumsum(0)  # of each layer, where values are sorted by layer
        room = 1 - int(self.kept.sum()) / len(layers)
        if target > room:
            raise SlimError(f"sparsity target is {target}: expected at most {room:.3f} with a floor of {floor:.0%}")

    def follow(self, stays: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Go on with the values (bool [P]) that pruning left, which these parameters hold. What is gone counts as zero,
        and a layer keeps as many as before."""
        layers = self.layers[stays.to(self.layers.device)]
        self.count = max(0, self.count - (len(self.layers) - len(layers)))
        self.layers, self.ends = layers, layers.bincount().cumsum(0)

    def resume(self, pushed: Tensor) -> None:
        """Go on with these values [P] pushed, until it looks again."""

    def share_of(self, zeros: int) -> float:
        """Return the share of zeros where so many of the values that are left are zero."""
        return (zeros + self.whole - len(self.layers)) / self.whole

    def share(self, step: int) -> float:
        """Return the share of zeros to have after `step` steps."""
        u = (step / self.steps - self.START) / (self.END - self.START)
        return self.target * (1 - (1 - min(1.0, max(0.0, u))) ** 3)

    def acts(self, step: int) -> bool:
        return step >= self.START * self.steps

    def next(self, strength: float, step: int, zeros: float) -> float:
        """Return λ from here on, when after `step` steps it is `strength` and `zeros` is the share of zeros."""
        missing, planned = max(0.0, self.target - zeros), self.target - self.share(step)
        factor = ((missing + self.SLACK) / (planned + self.SLACK)) ** (self.GAIN * self.every / self.steps)
        return min(strength * factor, self.LIMIT)

    def pushed(self, magnitude: Tensor) -> Tensor:
        """Mark the values [P] to push: the lowest `count` of those that no floor protects."""
        self.layers, self.kept, self.ends = (t.to(magnitude.device) for t in (self.layers, self.kept, self.ends))
        order = magnitude.argsort(stable=True)
        by_layer = order[self.layers[order].argsort(stable=True)]  # the lowest first in each layer
        from_top = torch.empty_like(order)
        from_top[by_layer] = self.ends[self.layers[by_layer]] - torch.arange(len(order), device=order.device)
        free = from_top > self.kept[self.layers]
        mask = torch.zeros_like(free)
        mask[order[free[order]][: self.count]] = True
        return mask


class TargetPlan(TargetShare):
    """As `TargetShare`, for what a plan removes: the values of its channels are pushed, all of them, and no others.

    The lowest values are the wrong ones to push where they belong to channels that stay: of coupled channels, those
    of a residual stream say, all must go or none, and a budget of FLOPs takes other channels than a share of all. The
    plan is asked for once, when the push begins; what it keeps never feels a penalty.
    """

    START = 0.3  # what is worth keeping shows later than what is small

    def __init__(
        self,
        make: PruningPlan | Callable[[], PruningPlan],
        steps: int,
        layers: Tensor,
        parameters: Mapping[str, Tensor],
    ) -> None:
        """Begin without a plan. `parameters` are the penalised ones by name, laid end to end in the values."""
        self.make, self.steps, self.layers, self.parameters = make, steps, layers, parameters
        self.whole, self.every = len(layers), max(1, min(10, steps // 100))
        self.mask: Tensor | None = None

    def follow(self, stays: Tensor, parameters: Mapping[str, Tensor]) -> None:
        self.layers, self.parameters = self.layers[stays.to(self.layers.device)], parameters
        self.mask = None if self.mask is None else self.mask[stays]

    def resume(self, pushed: Tensor) -> None:
        self.mask, self.target = pushed, self.share_of(int(pushed.sum()))

    def pushed(self, magnitude: Tensor) -> Tensor:
        if self.mask is None:
            with torch.enable_grad():  # this is within a step of the optimizer, and scores may want gradients
                plan = self.make if isinstance(self.make, PruningPlan) else self.make()
            check_type("target()", plan, "what slim.plan returned", PruningPlan)
            self.resume(removed_by(plan, self.parameters).to(magnitude.device))
        assert self.mask is not None
        return self.mask


def removed_by(plan: PruningPlan, parameters: Mapping[str, Tensor]) -> Tensor:
    """Mark which values of these parameters, laid end to end, a plan removes: bool [P].

    Raises SlimError where the plan is for other parameters, or removes none of them.
    """
    marks = []
    for name, parameter in parameters.items():
        shape = list(parameter.shape)
        if plan.shapes.get(name, shape) != shape:
            raise SlimError(f"the target's plan isn't of this model: {name} is {shape}: expected {plan.shapes[name]}")
        mark = torch.zeros(parameter.shape, dtype=torch.bool)
        for dim, removed in plan.cuts.get(name, {}).items():
            mark.index_fill_(dim, torch.tensor(removed, dtype=torch.int64), True)
        marks.append(mark.reshape(-1))
    found = torch.cat(marks)
    if not found.any():
        raise SlimError("the target's plan removes none of the penalised values: expected one that removes channels")
    return found
