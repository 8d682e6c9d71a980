"""A penalty at work: hooks that put it into any training loop by one line.

Network Slimming (Liu et al., ICCV 2017, https://arxiv.org/abs/1708.06519, equation 1) trains on loss + λ·Σ|γ|. The
hooks sit on the optimizer: before each of its steps the subgradient joins the gradients, or after it the proximal
operator is applied. The loop itself stays as it is.

Penalised are all matching layers' weights that train. The penalty enters once per step of the optimizer, however
many backward passes came before it, and on each process of a distributed run after gradients were averaged, so it
needs no scaling for either. With `torch.amp.GradScaler` the gradients are already unscaled when an ordinary
optimizer steps; fused ones unscale inside the step, and the subgradient is multiplied by their scale to match. A
step that GradScaler skips is skipped here. With `optimizer.step(closure)` the subgradient enters after the closure
has computed the gradients. Clipping gradients before the step doesn't see the penalty; adaptive optimizers such
as Adam rescale a subgradient with the rest of the gradient, and not a proximal step.
"""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError, check_type, unknown
from slim.prune.migrate import Replacement, replacements
from slim.prune.plan import PruningPlan
from slim.sparsity.control import SCHEDULES, TargetPlan, TargetShare, scheduled
from slim.sparsity.penalties import METHODS, Penalty, check_strength
from slim.sparsity.steps import StepSizes, knows
from slim.sparsity.targets import Targets, Types, chosen
from slim.tables import Shown

ZeroTarget = float | PruningPlan | Callable[[], PruningPlan] | None

PATIENCE = 5  # updates of γ without a step of the optimizer before a warning
NEAR_ZERO = 1e-2
"""A γ below this counts as near zero. It is absolute, as the threshold that prunes compares γ across layers, and so
that the share doesn't move when only the largest γ does. It is 2 % of the paper's first value 0.5, and above the band
of about λ·lr/(1 − momentum), 1e-3 at most for usual settings, in which the subgradient step keeps swinging round 0."""


def sparsify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    penalty: Penalty,
    *,
    method: str = "subgradient",
    targets: Targets = "*",
    types: Types = "batchnorm",
    schedule: str = "constant",
    target: ZeroTarget = None,
    floor: float = 0.1,
    steps: int | None = None,
) -> "Sparsity":
    """Penalise the BatchNorm scales γ of `model` from now on; call `.remove()` on the result to stop.

    - `penalty`: such as `L1(1e-4)`. It is copied; change `.strength` of the result to change λ.
    - `method`: "subgradient" adds the penalty's subgradient to the gradients before each step of the optimizer.
      "proximal" applies its proximal operator after each step, with the step size that the optimizer really took, and
      so reaches exact zeros; it knows SGD, Adam and AdamW (see `slim.sparsity.steps`). "loss" leaves the optimizer
      alone: add `.loss()` of the result to your loss, once per step (with gradient accumulation, divided like the
      rest). "auto" is the proximal one where it knows the optimizer and the penalty, else the subgradient.
    - `targets`: a shell pattern for names in `model.named_modules()`, such as `"layer1.*"`; several in a list; or a
      mapping from patterns to strengths relative to λ, such as `{"layer1.*": 1, "layer2.*": 0.5}`, of which the first
      that matches counts. Values of different strengths are penalised apart: groups don't reach across.
    - `types`: which layers: "batchnorm", "conv", "linear", a module class, or several; with "bias" also their biases.
    - `schedule`: of λ, over `steps` steps of the optimizer: see `slim.sparsity.scheduled`.
    - `target`: the share of values to be exactly zero after `steps` steps. λ, which starts at the penalty's strength,
      is then adapted during training, only the lowest values are pushed, and each layer keeps the share `floor` of
      its values: see `slim.sparsity.control.TargetShare`. It needs method "proximal".
      Or a plan, or what makes one when it is time, such as `lambda: slim.plan(model, x, slim.Flops(0.5), score=…)`:
      then the values of the channels that it removes are pushed to zero, and no others: see `TargetPlan` there.

    `model` is the network itself: inside a DDP or compiled wrapper, names begin with the wrapper's prefix.

    Warns where the optimizer also decays what is penalised (`slim.parameter_groups` keeps the two apart), and where the
    parameters change while this optimizer takes no step: then another optimizer inside it does (SAM's). Raises
    `SlimError` when nothing matches, when the optimizer lacks what does or penalises it already, for an unknown method
    or one that the penalty hasn't got, and for values out of range.

    >>> sparsity = slim.sparsify(model, optimizer, slim.L1(1e-4))  # then train as you do
    >>> sparsity.remove()
    """
    _check_penalty(optimizer, penalty, method)
    if method == "auto":
        method = "proximal" if "proximal" in penalty.methods and knows(optimizer) else "subgradient"
    check_type("model", model, "sparsify(model, optimizer, penalty)", nn.Module)
    check_type("floor", floor, "a share", int, float)
    _check_control(penalty, method, schedule, target, steps)
    found = chosen(model, targets, types)
    _check_parameters(found, optimizer, targets)
    _check_alone(found, optimizer)
    return Sparsity(found, optimizer, penalty, method, schedule, target, floor, steps or 0)


def _check_penalty(optimizer: torch.optim.Optimizer, penalty: Penalty, method: str) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise SlimError(f"{type(optimizer).__name__} is no optimizer: expected one of torch.optim, then a penalty")
    if not isinstance(penalty, Penalty):
        raise SlimError(f"{penalty!r} is no penalty: expected one such as slim.L1(1e-4)")
    if method not in (*METHODS, "auto"):
        raise unknown("sparsity method", method, (*METHODS, "auto"))
    if method not in (*penalty.methods, "auto"):
        raise SlimError(
            f"method {method!r} can't act with {type(penalty).__name__}: expected {' or '.join(penalty.methods)}"
        )


def _check_control(penalty: Penalty, method: str, schedule: str, target: ZeroTarget, steps: int | None) -> None:
    check_type("steps", steps, "the number of steps to come", int, type(None))
    if not (callable(target) or isinstance(target, int | float | PruningPlan | None)):
        raise SlimError(f"target is of type {type(target).__name__}: expected a share of zeros, a plan, or None")
    if schedule not in SCHEDULES:
        raise unknown("schedule", schedule, SCHEDULES)
    if (schedule != "constant" or target is not None) and not (steps and steps > 0):
        raise SlimError(f"steps is {steps}: a schedule or a target needs the number of steps to come, at least 1")
    if target is not None and (method != "proximal" or schedule != "constant"):
        raise SlimError(
            f"a target can't go with method {method!r} and schedule {schedule!r}: expected 'proximal', which makes "
            "exact zeros to count, and 'constant', as λ is adapted"
        )
    if target is not None and penalty.strength == 0:
        raise SlimError("sparsity strength is 0: a target needs a λ above 0 to start from, such as 1e-4")


def _check_parameters(
    found: Mapping[str, tuple[nn.Parameter, float]], optimizer: torch.optim.Optimizer, targets: Targets
) -> None:
    """Refuse parameters that the optimizer lacks; warn of those that it decays, too."""
    numbers = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    for name, (parameter, _) in found.items():
        if id(parameter) not in numbers:
            raise SlimError(
                f"the optimizer lacks {name}: expected all {len(found)} parameters that match {targets!r}; give it "
                "the model's parameters, or narrow targets"
            )
    decayed = [n for n, (p, _) in found.items() if optimizer.param_groups[numbers[id(p)]].get("weight_decay")]
    if decayed:
        warnings.warn(
            f"weight decay acts on {len(decayed)} of the {len(found)} penalised parameters too, such as {decayed[0]}: "
            "build the optimizer from slim.parameter_groups(model, weight_decay) to keep it off them",
            stacklevel=3,
        )


def _check_alone(found: Mapping[str, tuple[nn.Parameter, float]], optimizer: torch.optim.Optimizer) -> None:
    """Refuse parameters that are penalised already: two penalties would add up."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", None)
    if hooks is None:
        raise SlimError(
            f"{type(optimizer).__name__} has no hooks, as it leaves out what torch.optim.Optimizer does to begin with: "
            "expected the optimizer that it wraps"
        )
    at_work = [getattr(hook, "__self__", None) for hook in hooks.values()]
    taken = {id(p) for each in at_work if isinstance(each, Sparsity) for p in each.parameters.values()}
    for name, (parameter, _) in found.items():
        if id(parameter) in taken:
            raise SlimError(f"{name} is penalised already: expected .remove() of the earlier sparsify first")


class _Part:
    """Parameters that are penalised with one strength, laid end to end."""

    def __init__(self, penalty: Penalty, relative: float, parameters: dict[str, nn.Parameter]) -> None:
        self.penalty = copy.copy(penalty)
        self.relative = relative
        self.parameters = list(parameters.values())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.penalty.bind(parameters)
        self.strength = 0.0  # λ at present
        self.steps: StepSizes | None = None
        self.pushed: Tensor | None = None  # which values feel a proximal step; None: all

    def press(self, strength: float) -> None:
        """Go on with this λ."""
        self.strength = strength
        if isinstance(self.penalty.strength, Tensor):
            self.penalty.strength.fill_(strength)
        else:
            self.penalty.strength = strength

    def hold(self) -> None:
        """Keep what changes from step to step in tensors from now on, which a recorded step reads anew each time."""
        if not isinstance(self.penalty.strength, Tensor):
            held: Any = torch.tensor(float(self.strength), device=self.parameters[0].device)
            self.penalty.strength = held
        if self.steps is not None:
            self.steps.hold()

    def push(self, optimizer: Any) -> None:
        """Apply the proximal operator, with the step size that the optimizer took."""
        assert self.steps is not None
        step = self.steps.size(optimizer)
        if self.pushed is not None:
            step = self.pushed * step
        torch._foreach_copy_([*self.parameters], self.pieces(self.penalty.prox(self.flat(), step)))

    def flat(self) -> Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])

    def prune(self, found: Mapping[int, Replacement]) -> Tensor:
        """Go on with thinner parameters; return which of the values so far are left (bool [P])."""
        replaced = [found[id(parameter)] for parameter in self.parameters]
        stays = torch.cat([new.stays(old).reshape(-1) for new, old in zip(replaced, self.parameters)])
        self.parameters = [new.tensor for new in replaced]  # type: ignore[misc]
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.penalty.thin(stays)
        self.pushed = None if self.pushed is None else self.pushed[stays]
        if self.steps is not None:
            self.steps.follow(self.parameters)
        return stays

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Cut a flat tensor into what belongs to each parameter, in its shape."""
        return [piece.view(p.shape) for piece, p in zip(flat.split(self.sizes), self.parameters)]


class Sparsity(Shown):
    """A penalty at work. `parameters` maps the names of the penalised parameters to them."""

    def __init__(
        self,
        found: Mapping[str, tuple[nn.Parameter, float]],
        optimizer: torch.optim.Optimizer,
        penalty: Penalty,
        method: str,
        schedule: str,
        target: ZeroTarget,
        floor: float,
        steps: int,
    ) -> None:
        self.method, self.schedule, self.steps = method, schedule, steps
        self.step = 0  # of the optimizer since this began
        self.recording = False
        numbers = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._parts = [
            _Part(penalty, relative, {name: p for name, (p, own) in found.items() if own == relative})
            for relative in sorted({relative for _, relative in found.values()})
        ]
        if method == "proximal":
            for part in self._parts:
                part.steps = StepSizes(optimizer, part.parameters, [numbers[id(p)] for p in part.parameters])
        order = {id(p): i for i, p in enumerate(p for part in self._parts for p in part.parameters)}
        by_place = sorted(found.items(), key=lambda item: order[id(item[1][0])])
        self.parameters = {name: parameter for name, (parameter, _) in by_place}
        sizes = torch.tensor([parameter.numel() for parameter in self.parameters.values()])
        self._layers = torch.arange(len(sizes)).repeat_interleave(sizes)  # the number of each value's parameter
        self._target: TargetShare | None = None
        if isinstance(target, int | float):
            self._target = TargetShare(target, floor, steps, self._layers)
        elif target is not None:
            self._target = TargetPlan(target, steps, self._layers, self.parameters)
        self._aimed = False  # whether a target has chosen what is pushed; until then nothing is
        if self._target is not None:
            for part in self._parts:
                part.pushed = torch.zeros(sum(part.sizes), dtype=torch.bool, device=part.parameters[0].device)
        self.strength = penalty.strength  # checks it
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        self._unseen = 0  # updates of the parameters since a step of the optimizer was seen
        self._watch()

    @property
    def strength(self) -> float:
        """Return λ of the last step. It may be changed at any time and acts from the next step on; a schedule goes on
        from the new value as its highest, a target adapts it further."""
        return self._now

    @strength.setter
    def strength(self, value: float) -> None:
        check_strength(value)
        self._peak = value
        self._set(value)

    def headline(self) -> str:
        """Return one line: the penalty, on how much, how far it is, what it has reached."""
        penalty = self._parts[0].penalty
        on = f"{sum(p.numel() for p in self.parameters.values()):,} values of {len(self.parameters)} layers"
        at = f"step {self.step}" + f" of {self.steps}" * bool(self.steps)
        return f"{penalty} by {self.method} on {on}, {at}: {self.near_zero():.1%} near zero"

    def __str__(self) -> str:
        return self.headline()

    def remove(self) -> None:
        """Take the penalty off the optimizer. A second call does nothing."""
        for hook in self._hooks:
            hook.remove()

    def _watch(self) -> None:
        """Warn, once, if the parameters are updated again and again and the optimizer's `step` is never called."""
        parameter = next(iter(self.parameters.values()))
        version = parameter._version

        def seen(parameter: Tensor) -> None:
            nonlocal version
            self._unseen += parameter._version != version
            version = parameter._version
            if self._unseen == PATIENCE:
                self._unseen += 1
                warnings.warn(
                    f"the penalised parameters changed {PATIENCE} times, and the optimizer given to sparsify took no "
                    "step: the penalty doesn't act. Give it the one whose step() is called",
                    stacklevel=2,
                )

        if self.method != "loss":  # which needs no step
            self._hooks.append(parameter.register_post_accumulate_grad_hook(seen))

    @torch.no_grad()
    def prune(self, plan: PruningPlan, model: nn.Module, thin: nn.Module) -> None:
        """Go on with `thin`, which `plan` made of `model`, in place; call `plan.prune_optimizer` for the optimizer too.

        λ, its schedule and what a proximal step knows go on; for a target share of zeros, what was pruned counts as
        zero. Raises SlimError where `thin` doesn't come from `model`.
        """
        found = replacements(plan.cuts, model, thin)
        left = torch.cat([part.prune(found) for part in self._parts])
        self.parameters = dict(zip(self.parameters, (p for part in self._parts for p in part.parameters)))
        self._layers = self._layers.to(left.device)[left]
        self._watch()
        if self._target is not None:
            self._target.follow(left, self.parameters)

    @torch.no_grad()
    def value(self) -> float:
        """Return the penalty's part of the loss at present, λ·Σ|γ| for `L1`."""
        return sum(float(part.penalty.value(part.flat())) for part in self._parts)

    def loss(self) -> Tensor:
        """Return the penalty as a term for a loss of your own, for method "loss"; its gradient is the subgradient."""
        if self.method != "loss":
            raise SlimError(f"loss() with method {self.method!r} would count the penalty twice: expected method 'loss'")
        self._schedule()
        terms = [
            _Value.apply(torch.cat([p.reshape(-1) for p in part.parameters]), part.penalty) for part in self._parts
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def zero(self) -> float:
        """Return the share, 0 to 1, of penalised values that are exactly 0."""
        return _share(self._flat() == 0)

    @torch.no_grad()
    def near_zero(self, threshold: float = NEAR_ZERO) -> float:
        """Return the share, 0 to 1, of penalised values with |x| < threshold."""
        return _share(self._flat().abs() < threshold)

    @torch.no_grad()
    def statistics(self, threshold: float = NEAR_ZERO, bins: int = 40) -> dict[str, Any]:
        """Describe where the penalised values stand, as plain numbers for a log.

        `zero` and `near_zero`: shares of exact zeros and of |x| < threshold; `layers`: the same pair of shares for
        each parameter, by name; `histogram`: `counts` of |x| in equal bins from 0 to `max`.
        """
        size = self._flat().abs()
        counts = torch.bincount(self._layers).tolist()
        self._layers = self._layers.to(size.device)
        zeros = self._layers.bincount(weights=(size == 0).float(), minlength=len(counts))
        near = self._layers.bincount(weights=(size < threshold).float(), minlength=len(counts))
        top = size.max()
        bin_of = (size / top.clamp(min=torch.finfo(size.dtype).tiny) * bins).nan_to_num().long().clamp(max=bins - 1)
        found = torch.cat([zeros, near, bin_of.bincount(minlength=bins), top[None]]).tolist()
        zero, near_zero, histogram = found[: len(counts)], found[len(counts) : 2 * len(counts)], found[-bins - 1 : -1]
        return {
            "zero": sum(zero) / len(size),
            "near_zero": sum(near_zero) / len(size),
            "layers": {name: [a / n, b / n] for name, a, b, n in zip(self.parameters, zero, near_zero, counts)},
            "histogram": {"max": found[-1], "counts": [int(count) for count in histogram]},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs, as plain numbers: the step, λ, the weights of the momentum so far, and with a
        target the numbers of the values that are pushed until it looks again."""
        sums = [list(part.steps.sums) if part.steps else [] for part in self._parts]
        pushed = [
            part.pushed.nonzero()[:, 0].tolist() if self._aimed and part.pushed is not None else None
            for part in self._parts
        ]
        return {"step": self.step, "strength": self._now, "peak": self._peak, "sums": sums, "pushed": pushed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, on the same model and settings (its values must be loaded already)."""
        self.step, self._peak = state["step"], state["peak"]
        self._set(state["strength"])
        for part, sums, pushed in zip(self._parts, state["sums"], state["pushed"]):
            if part.steps:
                part.steps.sums = list(sums)
            if pushed is not None and part.pushed is not None:
                part.pushed.zero_()[pushed] = True
        self._aimed = any(pushed is not None for pushed in state["pushed"])
        if self._target is not None and self._aimed:
            self._target.resume(torch.cat([part.pushed for part in self._parts if part.pushed is not None]))

    def _flat(self) -> Tensor:
        return torch.cat([part.flat() for part in self._parts])

    def hold(self) -> None:
        """Let a step be recorded and replayed, as a CUDA graph is: what changes from step to step goes into tensors."""
        for part in self._parts:
            part.hold()

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While a step is recorded, which does nothing yet: count none."""
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    @contextmanager
    def replayed(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """While a recorded step is replayed, which calls no hook: do what they do beside it."""
        self._prepare(optimizer)
        for part in self._parts:
            if part.steps is not None:
                part.steps.count(optimizer)
        yield
        self._count()

    def _set(self, strength: float) -> None:
        self._now = strength
        waiting = self._target is not None and not self._target.acts(self.step)
        for part in self._parts:
            part.press(0.0 if waiting else strength * part.relative)

    def _schedule(self) -> None:
        constant = self.schedule == "constant"
        self._set(self._now if constant else scheduled(self.schedule, self._peak, self.step, self.steps))

    def _prepare(self, optimizer: Any) -> None:
        """Make the numbers of the next step."""
        self._schedule()
        for part in self._parts:
            if part.steps is not None:
                part.steps.before_step(optimizer)

    @torch.no_grad()
    def _before_step(self, optimizer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._unseen = -(10**9)  # LBFGS changes the parameters many times in one step
        if not self.recording:
            self._prepare(optimizer)
        if self.method != "subgradient":
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            self._add_subgradient(optimizer)
            return None

        def penalised(closure: Callable[[], Any] = closure) -> Any:
            loss = closure()
            self._add_subgradient(optimizer)
            return loss

        return args[:1], {**kwargs, "closure": penalised}

    @torch.no_grad()
    def _add_subgradient(self, optimizer: Any) -> None:
        scale = getattr(optimizer, "grad_scale", None)  # from GradScaler, where the step itself unscales
        for part in self._parts:
            if not part.strength and not self.recording:
                continue
            # One flat tensor: a few calls instead of two for each layer, and a penalty may look at all values.
            added = part.penalty.subgradient(part.flat())
            if scale is not None:
                added = added * scale.to(added.device)
            pairs = [(p.grad, piece) for p, piece in zip(part.parameters, part.pieces(added)) if p.grad is not None]
            if pairs:
                torch._foreach_add_([gradient for gradient, _ in pairs], [piece for _, piece in pairs])

    @torch.no_grad()
    def _after_step(self, optimizer: Any, args: tuple, kwargs: dict) -> None:
        self._unseen = 0
        for part in self._parts:
            if part.steps is None:
                continue
            part.steps.look()
            if not self.recording:
                part.steps.count(optimizer)  # even while λ is 0
            if part.strength or self.recording:
                part.push(optimizer)
        if not self.recording:
            self._count()

    @torch.no_grad()
    def _count(self) -> None:
        """Go on by a step; a target looks where it stands in each few."""
        self.step += 1
        target = self._target
        if target is not None and target.acts(self.step) and (self.step % target.every == 0 or not self._aimed):
            self._aim(target)
            zeros = int((self._flat() == 0).sum())
            self._set(target.next(self._now, self.step, target.share_of(zeros)))

    def _aim(self, target: TargetShare) -> None:
        """Choose the values to push."""
        magnitude = torch.cat([part.penalty.magnitude(part.flat()) for part in self._parts])
        chosen = target.pushed(magnitude).split([sum(part.sizes) for part in self._parts])
        for part, mask in zip(self._parts, chosen):
            assert part.pushed is not None
            part.pushed.copy_(mask)  # in place: a recorded step reads it
        self._aimed = True


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / len(flags)


class _Value(torch.autograd.Function):
    """A penalty's value whose gradient is its subgradient, also where autograd would find none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, penalty: Penalty) -> Tensor:
        ctx.save_for_backward(penalty.subgradient(x))
        return penalty.value(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (subgradient,) = ctx.saved_tensors
        return subgradient * gradients[0], None
