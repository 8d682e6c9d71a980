"""Accuracy back without training: the thin network's layers are fitted to what the original's layers give.

    recovered = slim.recover(model, thin, plan, images)
    print(recovered)
    thin = recovered.model

What the removed channels carried is predicted from the kept ones by regression and folded into the weights of the
layers that read them, layer by layer, each on the input that the layers before it now give. A channel with γ = 0 still
passes the constant act(β): the intercept takes it up, exactly unless zero padding meets it at the borders. Needs
images, no labels, and about as long as a few forward passes.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slim.errors import SlimError, check_type
from slim.progress import progress
from slim.prune.calibration import drawn, part, running
from slim.prune.plan import PruningPlan
from slim.prune.rebuild import kept
from slim.prune.recovery import distance as distances
from slim.prune.recovery.distance import Distance, Measure
from slim.prune.recovery.lockstep import OutOfStep, side_by_side
from slim.prune.recovery.refine import refine
from slim.prune.recovery.regression import fit_layer, fits
from slim.tables import Shown
from slim.trace.copy import clone, named_tensors, unwrapped
from slim.trace.inputs import call
from slim.trace.intercept import TRANSPOSED, Intercept, LayerCall, evaluating

LEAST_IMAGES = 8
ENOUGH = 2  # places for each feature of a regression: each half of the images has as many as there are unknowns
TIE = 1e-12  # distances that differ by less differ by rounding


@dataclass(repr=False)
class Recovery(Shown):
    """What `recover` gives.

    `model` is the recovered network, a new one; `chosen` says how it was recovered: "regression", "recalibration" (of
    BatchNorm statistics alone), "refinement" (of the best of these, where steps were asked for), or "none" where none
    came closer to the original. `distance` holds for each of these how far the outputs are from the original's on
    held-out images (see `recover`). `missed` gives for each refitted layer the share of its output's variance that was
    missed before and after. `folded` counts the removed channels that are constant for each layer that reads them;
    `at_borders` names those of these layers where zero padding makes the fold approximate at the borders. `left` says
    which layers were not refitted, and why; `few` gives for layers with more features than these images have places
    how many images would be enough.
    """

    model: nn.Module
    chosen: str
    distance: dict[str, float]
    seconds: float
    images: int
    missed: dict[str, tuple[float, float]] = field(default_factory=dict)
    folded: dict[str, int] = field(default_factory=dict)
    at_borders: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    few: dict[str, int] = field(default_factory=dict)

    def headline(self) -> str:
        """Return one line: how, on how many images, how close to the original before and after."""
        before, after = self.distance["none"], self.distance[self.chosen]
        if self.chosen == "none":
            return f"nothing recovered on {self.images} images: the pruned network is as close as can be ({before:.3g})"
        return (
            f"recovered by {self.chosen} on {self.images} images in {self.seconds:.0f} s: distance to the original's "
            f"outputs {before:.3g} → {after:.3g}"
        )

    def __str__(self) -> str:
        lines = [self.headline()]
        if self.at_borders:
            lines.append(f"constants folded up to zero padding at the borders: {', '.join(self.at_borders)}")
        lines += [f"{name} is as it was: {why}" for name, why in self.left.items()]
        if self.few:
            lines.append(
                f"more features than places in {', '.join(self.few)}: about {max(self.few.values()):,} images would be "
                "enough"
            )
        return "\n".join(lines)


def recover(
    model: nn.Module,
    thin: nn.Module,
    plan: PruningPlan,
    images: Any,
    *,
    held_out: float = 0.25,
    distance: Measure = "auto",
    steps: int = 0,
) -> Recovery:
    """Bring `thin`, made by `plan.apply(model)`, closer to what `model` computes, without labels or training.

    `images`: a batch of what the networks take (a tensor [N, C, H, W], or a tuple or dict of tensors with N first), or
    batches (a DataLoader, a list), of which the first 1024 images are taken; normalised as in training; a few hundred
    to a thousand training images. All but the share `held_out`, chosen at random, go through both networks at once, so
    this needs the memory of such a batch's forward pass twice; where images are large only as many are used as fit (128
    of 224×224), drawn at random, too.

    Candidates are the network as it is, with recalibrated BatchNorm statistics, and refitted by regression. The one
    whose outputs are closest to the original's on the held-out images is kept, and none whose squared error is larger
    than before. `distance` says what is close (see `slim.prune.recovery.distance`): "auto" is the mean Kullback–Leibler
    divergence of class probabilities where outputs are [N, classes], else the relative squared error; "labels" suits
    independent sigmoids, "values" regression, or a function of two outputs. With `steps`, some hundred, the best of
    them is trained on by so many steps on the same images, without labels: seconds to minutes. Neither network is
    changed; shapes, names and dtypes stay, so checkpoints load as before. A layer without a bias gets none: what its
    intercept would be goes into the statistics of the BatchNorm behind it.

    Raises SlimError where there are fewer than 8 images, some aren't finite, the networks can't run on them, or `thin`
    isn't what the plan makes of the model.

    >>> thin = slim.recover(model, thin, plan, images).model
    """
    started = time.perf_counter()
    if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0 < held_out < 1:
        raise SlimError(f"held_out {held_out!r} is out of range: expected a share between 0 and 1")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise SlimError(f"steps {steps!r}: expected a whole number of steps of refinement, 0 for none")
    model, thin = unwrapped(model), unwrapped(thin)
    check_type("plan", plan, "what slim.plan returned", PruningPlan)
    _check_shapes(model, thin, plan)
    images, count = drawn(images, LEAST_IMAGES, "recovery")
    fitted = min(count - 2, max(4, round(count * (1 - held_out))))
    device = next(model.parameters()).device
    calibration, test = (part(images, some, device) for some in (slice(fitted), slice(fitted, None)))
    with evaluating(model):
        candidates, told = _candidates(model, thin, plan, calibration, count)
        with running("the networks"):
            apart = {kind: distances.distance(model, other, test, distance) for kind, other in candidates.items()}
        if steps:
            candidates["refinement"] = clone(candidates[_closest(apart)]).eval()
            refine(model, candidates["refinement"], plan, calibration, steps)
            apart["refinement"] = distances.distance(model, candidates["refinement"], test, distance)
    chosen = _closest(apart)
    if chosen not in ("regression", "refinement"):
        told = {"left": told["left"]}
    for module, like in zip(candidates[chosen].modules(), thin.modules()):
        module.training = like.training
    found = {kind: a.distance for kind, a in apart.items()}
    return Recovery(candidates[chosen], chosen, found, time.perf_counter() - started, count, **told)


def _candidates(
    model: nn.Module, thin: nn.Module, plan: PruningPlan, images: Any, count: int
) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """Return copies of `thin`: as it is, with recalibrated statistics, and refitted; and what was met on the way.
    `count`: how many images there are, held-out ones included."""
    candidates = {"none": clone(thin).eval()}
    try:
        with running("the networks"):
            uses = _uses(candidates["none"], part(images, slice(2)))
            with progress("recovering", 2 * sum(uses.counts.values())) as advance:
                for kind in ("recalibration", "regression"):
                    candidates[kind] = clone(thin).eval()
                    work = _Work(model, candidates[kind], plan, uses, kind == "regression", advance)
                    side_by_side(model, candidates[kind], images, work.visit)
    except OutOfStep as error:
        left = {"the network": f"both networks don't run the same layers ({error})"}
        return {"none": candidates["none"]}, {"left": left}
    told = {"missed": work.missed, "folded": work.folded, "at_borders": work.at_borders, "left": work.left}
    told["few"] = {name: math.ceil(share * count) for name, share in work.few.items()}
    return candidates, told


def _closest(apart: dict[str, Distance]) -> str:
    """Return the candidate that is closest to the original, of none whose squared error is larger than at first."""
    worst = apart["none"].squared_error
    better = {k: a.distance for k, a in apart.items() if math.isfinite(a.distance) and not a.squared_error > worst}
    closest = [kind for kind, distance in better.items() if distance <= min(better.values()) + TIE]
    return closest[-1] if closest and "none" not in closest else "none"  # the last one says the most


def _check_shapes(model: nn.Module, thin: nn.Module, plan: PruningPlan) -> None:
    """SlimError unless the tensors of `thin` have the shapes that the plan gives them."""
    had, has = dict(named_tensors(model)), dict(named_tensors(thin))
    for name in plan.shapes:  # not what lies in plain attributes, which a forward pass makes
        cuts = plan.cuts[name]
        if name not in had or list(had[name].shape) != plan.shapes[name]:
            found = list(had[name].shape) if name in had else "missing"
            raise SlimError(f"the plan isn't of this model: {name} is {found}: expected {plan.shapes[name]}")
        expected = [size - len(cuts.get(dim, ())) for dim, size in enumerate(plan.shapes[name])]
        found = list(has[name].shape) if name in has else "missing"
        if found != expected:
            raise SlimError(f"thin isn't what the plan makes of the model: {name} is {found}: expected {expected}")


# -- one pass ----------------------------------------------------------------------------------------------------------


@dataclass
class _Uses:
    """How often each weight is at work in a forward pass, and which layers' outputs go straight into a BatchNorm."""

    counts: dict[str, int] = field(default_factory=dict)
    before_norm: set[str] = field(default_factory=set)


def _uses(model: nn.Module, images: Any) -> _Uses:
    found = _Uses()
    last: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no other gets the id of one

    def visit(layer: LayerCall) -> Tensor:
        found.counts[layer.name] = found.counts.get(layer.name, 0) + 1
        if layer.kind == "norm" and id(layer.input) in last:
            found.before_norm.add(last[id(layer.input)][0])
        out = layer.run()
        last.clear()
        last[id(out)] = layer.name, out
        return out

    with Intercept(model, visit):
        call(model, images)
    return found


class _Work:
    """What happens at each layer while both networks run side by side."""

    def __init__(
        self,
        model: nn.Module,
        thin: nn.Module,
        plan: PruningPlan,
        uses: _Uses,
        regress: bool,
        advance: Callable[[int], None],
    ) -> None:
        self.plan, self.uses, self.regress, self.advance = plan, uses, regress, advance
        self.original = dict(named_tensors(model))
        self.few: dict[str, float] = {}  # how many times as many images would be enough
        self.missed: dict[str, tuple[float, float]] = {}  # these four as in Recovery
        self.folded: dict[str, int] = {}
        self.at_borders: list[str] = []
        self.left: dict[str, str] = {}

    def visit(self, layer: LayerCall, before: LayerCall, wanted: Tensor) -> Tensor:
        if layer.name not in self.uses.counts:
            raise OutOfStep(f"{layer.name} runs at times only")
        if self.uses.counts[layer.name] == 1:  # one that is used twice can't suit both
            if layer.kind == "norm":
                self._match_statistics(layer, before)
            elif self.regress:
                self._refit(layer, before, wanted)
        elif self.regress:
            self.left[_owner(layer.name)] = "used more than once"
        self.advance(1)
        return layer.run()

    def _kept(self, name: str, dim: int) -> Tensor:
        tensor = self.original[name]
        return kept(tensor.shape[dim], self.plan.cuts.get(name, {}).get(dim, []), tensor.device)

    def _match_statistics(self, layer: LayerCall, before: LayerCall) -> None:
        """Give a BatchNorm the statistics that make it treat its input as the original treats its own.

        The original's running statistics are right for the original's input. What changes is the difference that both
        inputs show on the same images, so that few images do. After a regression, the mean alone moves (this is the
        intercept): least squares give less variance on purpose.
        """
        mean, var = layer.arguments["running_mean"], layer.arguments["running_var"]
        index = self._kept(layer.name, 0)
        dims = [d for d in range(layer.input.dim()) if d != 1]
        now_var, now = torch.var_mean(layer.input.detach(), dims, correction=0)
        then_var, then = torch.var_mean(before.input.detach().index_select(1, index), dims, correction=0)
        mean.copy_(before.arguments["running_mean"][index] + now - then)
        if not self.regress:
            alive = (then_var > 0) & (now_var > 0)
            ratio = torch.where(alive, now_var / then_var, 1.0)
            var.copy_(before.arguments["running_var"][index] * ratio)

    def _refit(self, layer: LayerCall, before: LayerCall, wanted: Tensor) -> None:
        name = _owner(layer.name)
        if not fits(layer):
            self.left[name] = "a form that isn't supported"
            return
        transposed, linear = layer.func in TRANSPOSED, layer.func is F.linear
        channels = wanted.dim() - 1 if linear else 1
        target = wanted.index_select(channels, self._kept(layer.name, 1 if transposed else 0))
        gone = self.plan.cuts.get(layer.name, {}).get(0 if transposed else 1, [])
        if not gone and layer.input.shape == before.input.shape and torch.equal(layer.input, before.input):
            return  # nothing changed before this layer
        bias = layer.arguments.get("bias")
        intercept = bias is not None or layer.name in self.uses.before_norm
        made = fit_layer(layer, target, intercept)
        if made is None:
            self.left[name] = "its activations aren't finite"
            return
        layer.arguments["weight"].copy_(made.weight)
        if bias is not None and made.bias is not None:
            bias.copy_(made.bias)
        self.missed[name] = made.missed_before, made.missed
        if made.places < made.features:
            self.few[name] = ENOUGH * made.features / made.places
        if gone and intercept:
            self._count_constants(name, layer, before, gone)

    def _count_constants(self, name: str, layer: LayerCall, before: LayerCall, gone: list[int]) -> None:
        """Of the input channels that the layer no longer reads, `gone` of each group."""
        groups = before.arguments.get("groups", 1)
        dim = before.input.dim() - 1 if layer.func is F.linear else 1
        size, outputs = before.input.shape[dim] // groups, before.arguments["weight"].shape[0] // groups
        still = self._kept(layer.name, 0).div(outputs, rounding_mode="floor").unique() if groups > 1 else torch.zeros(1)
        every = [int(group) * size + channel for group in still for channel in gone]
        lost = before.input.index_select(dim, torch.tensor(every, device=before.input.device))
        lost = lost.movedim(dim, 0).flatten(1)
        constant = (lost.amax(1) == lost.amin(1)) & (lost[:, 0] != 0)
        if constant.any():
            self.folded[name] = int(constant.sum())
            padding = layer.arguments.get("padding", 0)
            if padding == "same" or (padding != "valid" and any([padding] if isinstance(padding, int) else padding)):
                self.at_borders.append(name)


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor
