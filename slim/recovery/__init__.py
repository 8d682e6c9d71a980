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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.errors import SlimError
from slim.planning import PruningPlan
from slim.rebuild import kept
from slim.recovery.lockstep import OutOfStep, side_by_side
from slim.recovery.regression import Fit, fit, fits
from slim.trace import call
from slim.trace.clone import clone, named_tensors
from slim.watch import TRANSPOSED, Layer, Watch, evaluating

LEAST_IMAGES = 8
CALIBRATION_PIXELS = 128 * 224**2  # all activations of all images are held at once: about 3 GB for a ResNet-50
BATCH = 256  # images at a time where networks are only compared


@dataclass
class Recovery:
    """What `recover` gives.

    `model` is the recovered network, a new one; `chosen` says how it was recovered: "regression", "recalibration" (of
    BatchNorm statistics alone), or "none" where neither came closer to the original. `distance` holds for each of these
    how far the outputs are from the original's on held-out images (see `recover`). `missed` gives for each refitted
    layer the share of its output's variance that was missed before and after. `folded` counts the removed channels that
    are constant for each layer that reads them; `at_borders` names those of these layers where zero padding makes the
    fold approximate at the borders. `left` says which layers were not refitted, and why.
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

    def __str__(self) -> str:
        before, after = self.distance["none"], self.distance[self.chosen]
        lines = [
            f"recovered by {self.chosen} on {self.images} images in {self.seconds:.0f} s: distance to the original's "
            f"outputs {before:.3g} → {after:.3g}"
            if self.chosen != "none"
            else f"nothing recovered on {self.images} images: the pruned network is as close as can be ({before:.3g})"
        ]
        if self.at_borders:
            lines.append(f"constants folded up to zero padding at the borders: {', '.join(self.at_borders)}")
        lines += [f"{name} is as it was: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def recover(model: nn.Module, thin: nn.Module, plan: PruningPlan, images: Any, *, held_out: float = 0.25) -> Recovery:
    """Bring `thin`, made by `plan.apply(model)`, closer to what `model` computes, without labels or training.

    `images`: a batch of what the networks take (a tensor [N, C, H, W], or a tuple or dict of tensors with N first),
    normalised as in training; a few hundred to a thousand training images. All but the share `held_out` go through
    both networks at once, so this needs the memory of such a batch's forward pass twice.

    Candidates are the network as it is, with recalibrated BatchNorm statistics, and refitted by regression. The one
    whose outputs are closest to the original's on the held-out images is kept: closest in the mean Kullback–Leibler
    divergence of class probabilities where outputs are [N, classes], else in the relative squared error.
    Neither network is changed; shapes, names and dtypes stay, so checkpoints load as before. A layer without a bias
    gets none: what its intercept would be goes into the statistics of the BatchNorm behind it.

    Raises SlimError where there are fewer than 8 images, or the networks can't run on them.
    """
    started = time.perf_counter()
    sizes = {t.shape[0] for t in tree_leaves(images) if isinstance(t, Tensor) and t.dim()}
    if len(sizes) != 1 or min(sizes) < LEAST_IMAGES:
        raise SlimError(f"recovery from {sorted(sizes)} images: expected one batch of at least {LEAST_IMAGES}")
    if not 0 < held_out < 1:
        raise SlimError(f"held_out {held_out!r} is out of range: expected a share between 0 and 1")
    count = sizes.pop()
    fitted = min(count - 2, max(4, round(count * (1 - held_out))))
    device = next(model.parameters()).device
    calibration, test = (_part(images, part, device) for part in (slice(fitted), slice(fitted, None)))
    result = Recovery(thin, "none", {}, 0.0, count)
    with evaluating(model):
        candidates = {"none": clone(thin, _copied).eval()}
        try:
            uses = _uses(candidates["none"], _part(calibration, slice(2)))
            for kind in ("recalibration", "regression"):
                candidates[kind] = clone(thin, _copied).eval()
                work = _Work(model, candidates[kind], plan, uses, kind == "regression", result)
                side_by_side(model, candidates[kind], calibration, work.visit)
        except OutOfStep as error:
            result.left["the network"] = f"both networks don't run the same layers ({error})"
            candidates = {"none": candidates["none"]}
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise SlimError(f"the networks can't run on these images: {' '.join(str(error).split())}") from error
        result.distance = {kind: _distance(model, found, test) for kind, found in candidates.items()}
    finite = {kind: d for kind, d in result.distance.items() if d == d}
    result.chosen = min(finite, key=lambda kind: finite[kind], default="none")
    result.model = candidates[result.chosen]
    for module, like in zip(result.model.modules(), thin.modules()):
        module.training = like.training
    result.seconds = time.perf_counter() - started
    return result


def calibration_count(images: int, image_size: Sequence[int]) -> int:
    """How many of the `images` asked for fit in memory."""
    return min(images, max(LEAST_IMAGES, CALIBRATION_PIXELS // math.prod(image_size)))


def _copied(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
    return tensor.detach().clone()


def _part(images: Any, part: slice, device: torch.device | None = None) -> Any:
    return tree_map_only(Tensor, lambda t: (t[part] if t.dim() else t).to(device), images)


# -- one pass ----------------------------------------------------------------------------------------------------------


@dataclass
class _Uses:
    """How often each weight is at work in a forward pass, and which layers' outputs go straight into a BatchNorm."""

    counts: dict[str, int] = field(default_factory=dict)
    before_norm: set[str] = field(default_factory=set)


def _uses(model: nn.Module, images: Any) -> _Uses:
    found = _Uses()
    last: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that no other gets the id of one

    def visit(layer: Layer) -> Tensor:
        found.counts[layer.name] = found.counts.get(layer.name, 0) + 1
        if layer.kind == "norm" and id(layer.input) in last:
            found.before_norm.add(last[id(layer.input)][0])
        out = layer.run()
        last.clear()
        last[id(out)] = layer.name, out
        return out

    with Watch(model, visit):
        call(model, images)
    return found


class _Work:
    """What happens at each layer while both networks run side by side."""

    def __init__(
        self, model: nn.Module, thin: nn.Module, plan: PruningPlan, uses: _Uses, regress: bool, result: Recovery
    ) -> None:
        self.plan, self.uses, self.regress, self.result = plan, uses, regress, result
        self.original, self.thin = dict(named_tensors(model)), dict(named_tensors(thin))

    def visit(self, layer: Layer, before: Layer, wanted: Tensor) -> Tensor:
        if self.uses.counts[layer.name] == 1:  # one that is used twice can't suit both
            if layer.kind == "norm":
                self._match_statistics(layer, before)
            elif self.regress:
                self._refit(layer, before, wanted)
        elif self.regress:
            self.result.left[_owner(layer.name)] = "used more than once"
        return layer.run()

    def _kept(self, name: str, dim: int) -> Tensor:
        tensor = self.original[name]
        return kept(tensor.shape[dim], self.plan.cuts.get(name, {}).get(dim, []), tensor.device)

    def _match_statistics(self, layer: Layer, before: Layer) -> None:
        """Give a BatchNorm the statistics that make it treat its input as the original treats its own.

        The original's running statistics are right for the original's input. What changes is the difference that both
        inputs show on the same images, so that few images do. After a regression, the mean alone moves (this is the
        intercept): least squares give less variance on purpose.
        """
        name = layer.name.removesuffix("running_mean")
        mean, var = self.thin[name + "running_mean"], self.thin[name + "running_var"]
        index = self._kept(layer.name, 0)
        dims = [d for d in range(layer.input.dim()) if d != 1]
        now_var, now = torch.var_mean(layer.input, dims, correction=0)
        then_var, then = torch.var_mean(before.input.index_select(1, index), dims, correction=0)
        mean.copy_(self.original[name + "running_mean"][index] + now - then)
        if not self.regress:
            alive = (then_var > 0) & (now_var > 0)
            ratio = torch.where(alive, now_var / then_var, 1.0)
            var.copy_(self.original[name + "running_var"][index] * ratio)

    def _refit(self, layer: Layer, before: Layer, wanted: Tensor) -> None:
        name = _owner(layer.name)
        if not fits(layer):
            self.result.left[name] = "a form that isn't supported"
            return
        transposed, linear = layer.func in TRANSPOSED, layer.func is F.linear
        channels = wanted.dim() - 1 if linear else 1
        target = wanted.index_select(channels, self._kept(layer.name, 1 if transposed else 0))
        gone = self.plan.cuts.get(layer.name, {}).get(0 if transposed else 1, [])
        if not gone and layer.input.shape == before.input.shape and torch.equal(layer.input, before.input):
            return  # nothing changed before this layer
        self._count_constants(name, layer, before, gone)
        bias = layer.arguments.get("bias")
        made = fit(layer, target, intercept=bias is not None or layer.name in self.uses.before_norm)
        if made is None:
            return
        self._write(layer, bias, made)
        self.result.missed[name] = made.missed_before, made.missed

    def _write(self, layer: Layer, bias: Tensor | None, made: Fit) -> None:
        layer.arguments["weight"].copy_(made.weight)
        if bias is not None and made.bias is not None:
            bias.copy_(made.bias)

    def _count_constants(self, name: str, layer: Layer, before: Layer, gone: list[int]) -> None:
        groups = before.arguments.get("groups", 1)
        if not gone or groups > 1:
            return
        dim = before.input.dim() - 1 if layer.func is F.linear else 1
        lost = before.input.index_select(dim, torch.tensor(gone, device=before.input.device)).movedim(dim, 0).flatten(1)
        constant = (lost.amax(1) == lost.amin(1)) & (lost[:, 0] != 0)
        if constant.any():
            self.result.folded[name] = int(constant.sum())
            padding = layer.arguments.get("padding", 0)
            if padding == "same" or (padding != "valid" and any([padding] if isinstance(padding, int) else padding)):
                self.result.at_borders.append(name)


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0] or tensor


# -- how far from the original -----------------------------------------------------------------------------------------


def _distance(model: nn.Module, other: nn.Module, images: Any) -> float:
    """Mean KL divergence of class probabilities where the output is [N, classes], else the relative squared error."""
    count = next(t.shape[0] for t in tree_leaves(images) if isinstance(t, Tensor) and t.dim())
    total, scale = 0.0, 0.0
    for start in range(0, count, BATCH):
        batch = _part(images, slice(start, start + BATCH))
        expected, found = _outputs(model, batch), _outputs(other, batch)
        if len(expected) == 1 and expected[0].dim() == 2:
            wanted, had = expected[0].log_softmax(1), found[0].log_softmax(1)
            total += float(F.kl_div(had, wanted, reduction="sum", log_target=True))
            scale += len(wanted)
        else:
            total += sum(float((a - b).square().sum()) for a, b in zip(expected, found))
            scale += sum(float(a.square().sum()) for a in expected)
    return total / max(scale, 1e-300)


def _outputs(model: nn.Module, images: Any) -> list[Tensor]:
    leaves = tree_leaves(call(model, images))
    return [t.cpu().double() for t in leaves if isinstance(t, Tensor) and t.is_floating_point()]
