"""The proof: a rebuilt network equals the original with the removed channels set to 0 where they are made.

Two things are checked. Every weight of the thin network must be the original's, bit for bit, less what the plan cuts.
And both networks must compute the same: in float64, on BatchNorm statistics fitted to the data that runs through (with
arbitrary statistics the outputs of many deep networks hardly depend on their input, and faults hide), comparing the
kept channels of what every layer gives, not only the outputs.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.errors import SlimError
from slim.progress import progress
from slim.prune.plan import PruningPlan
from slim.prune.plan_format import mismasked
from slim.prune.rebuild import kept, state_anew, thin_tensor
from slim.trace.classes import Classes
from slim.trace.copy import all_tensors, clone, named_modules, named_tensors, unwrapped
from slim.trace.intercept import Intercept, LayerCall
from slim.trace.labeller import Executed
from slim.trace.lengths import stated_anew
from slim.trace.op import Op
from slim.trace.outputs import find_tensors, output_tensors
from slim.trace.state import restored
from slim.trace.tracer import Trace, Tracer, as_meta, call, cannot_run, check_inputs, meta_copy, run_once

NORMS = nn.modules.batchnorm._BatchNorm
STATISTICS = ("running_mean", "running_var")
DTYPE = ("dtype", "scalar type", "Double", "type (double)")  # what errors say where forward code insists on its own
ENOUGH = 2**17  # elements of inputs
SIDES = (64, 128)  # of the part of an image that is enough where the model takes the same steps on it; of a volume less
LESS = 1.5  # times fewer elements: else it isn't worth looking for
_COMPUTED = "parametrizations.weight.original"
WEIGHTS = ("weight", _COMPUTED, f"{_COMPUTED}1", "weight_v", "weight_orig")  # where a layer keeps it, or what makes it
LEAST_SHARE = 0.5  # of the places that must be comparable: with fewer, nothing would be proved


class Proof(float):
    """The largest relative difference that `verify` found, and over how much: `layers` (outputs not counted),
    `compared` of `places`, a place being what a layer gives in one call, or an output."""

    layers: int
    places: int
    compared: int

    def __new__(cls, worst: float, layers: int, places: int, compared: int) -> "Proof":
        proof = super().__new__(cls, worst)
        proof.layers, proof.places, proof.compared = layers, places, compared
        return proof

    def __getnewargs__(self) -> tuple[float, int, int, int]:  # type: ignore[override]  # for pickle and copy
        return float(self), self.layers, self.places, self.compared

    def __repr__(self) -> str:
        return f"<Proof: {self}>"

    def __str__(self) -> str:
        return f"relative error {float(self):.1e} over {self.layers} layers, {self.compared} of {self.places} places"


def verify(
    model: nn.Module, thin: nn.Module, plan: PruningPlan, example_inputs: Any, *, tolerance: float | None = None
) -> Proof:
    """Return the largest relative difference between the masked original and the thin network, over all layers.

    `example_inputs` as for `slim.plan`. They are repeated to a larger batch where the model takes one, and mixed with
    noise, so that the BatchNorm statistics have something to be fitted to. Checked in float64 to a relative error of
    1e-10 (`tolerance` overrides); where a device has no float64, or forward code insists on another dtype, in the
    model's own dtype to 1e-4.
    What is ill-conditioned, so that it changes in the original, too, when its layers round otherwise, is left out, such
    as the order of detections with equal scores; the result says how many places were compared.

    Neither network is changed. Raises SlimError with the first layer that differs; where weights, inputs or outputs
    aren't finite; where less than half of all places can be compared.

    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 2, 1))
    >>> x = torch.randn(4, 3, 8, 8)
    >>> plan = slim.plan(net, x, ratio=0.5)
    >>> slim.verify(net, plan.apply(net), plan, x).compared
    4
    """
    model, thin = unwrapped(model), unwrapped(thin)
    _check_arguments(model, plan, example_inputs)
    _check_masks(plan)
    _same_weights(model, thin, plan)
    attempts: list[tuple[torch.dtype | None, float]] = [(torch.float64, 1e-10), (None, 1e-4)]
    if next(model.parameters()).device.type == "mps":  # which has no float64
        attempts = attempts[1:]
    for dtype, limit in attempts:
        try:
            limit = limit if tolerance is None else tolerance
            with progress("proving the thin network equal", 1):
                return _same_function(model, thin, plan, example_inputs, dtype, limit)
        except SlimError:
            raise
        except Exception as error:
            said = " ".join(str(error).split())
            if dtype is None or not any(word in said for word in DTYPE):
                raise cannot_run(error) from error
    raise AssertionError("the last attempt returns or raises")


def _check_arguments(model: nn.Module, plan: PruningPlan, example_inputs: Any) -> None:
    """SlimError where the plan is of another model, or a weight or an input isn't a number: nothing to compare."""
    if not isinstance(plan, PruningPlan):
        raise SlimError(f"plan is a {type(plan).__name__}: expected what slim.plan returned")
    named = dict(named_tensors(model))
    for name, shape in plan.shapes.items():
        found = list(named[name].shape) if name in named else "missing"
        if found != list(shape):
            raise SlimError(f"the plan isn't of this model: {name} is {found}, expected {list(shape)}")
    check_inputs(example_inputs)
    given = find_tensors(example_inputs, "example_inputs")
    for name, tensor in (*named_tensors(model), *given.items()):
        if not tensor.is_floating_point() and not tensor.is_complex():
            continue
        state = name not in given and not isinstance(tensor, nn.Parameter)  # masks of attention hold infinities
        if bool(tensor.isnan().any() if state else not tensor.isfinite().all()):
            raise SlimError(f"{name} has values that aren't finite: expected numbers")


def _same_function(
    model: nn.Module, thin: nn.Module, plan: PruningPlan, example_inputs: Any, dtype: torch.dtype | None, limit: float
) -> Proof:
    device = next(model.parameters()).device
    masked, thinner = (_converted(network, dtype).eval() for network in (model, thin))
    state_anew(dict(named_modules(masked)), dict(named_modules(thinner)), plan.cuts, plan.masks)  # to this precision
    mask(masked, plan)
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        inputs, expected = _reference(masked, _candidates(model, example_inputs, device, dtype), plan)
        _copy_statistics(masked, thinner, plan)
        for name, tensor in expected:
            if not tensor.isfinite().all():
                raise SlimError(f"the masked original isn't finite in {name}: expected numbers to compare")
        found = _activations(thinner, inputs, None)
        ill_conditioned: set[int] = set()
        try:
            worst = _compare(expected, found, limit)
        except SlimError:
            perturbed = _activations(masked, inputs, plan, torch.Generator().manual_seed(1))
            ill_conditioned = _differing(expected, perturbed, limit)
            if not ill_conditioned:
                raise
            worst = _compare(expected, found, limit, ill_conditioned)
    places, compared = len(expected), len(expected) - len(ill_conditioned)
    if compared < LEAST_SHARE * places:
        raise SlimError(
            f"the thin network can't be proved equal: {places - compared} of {places} layers and outputs hang on how "
            "the original rounds, expected half of them at most"
        )
    modules = dict(masked.named_modules())
    return Proof(worst, len({name for name, _ in expected if name in modules}), places, compared)


def _candidates(model: nn.Module, example_inputs: Any, device: torch.device, dtype: torch.dtype | None) -> list[Any]:
    """Return what to run the networks on, the best first: many samples, none like another, if the model takes such."""
    sizes = [_repeated(example_inputs), example_inputs]
    if _elements(example_inputs) > ENOUGH:
        smaller = _smaller(model, example_inputs)
        # large images and volumes have enough places to fit statistics to
        sizes = [example_inputs, sizes[0]] if smaller is None else [_repeated(smaller), *sizes[::-1]]

    def converted(tensor: Tensor) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    plain = [tree_map_only(Tensor, converted, candidate) for candidate in sizes]
    return [tree_map_only(Tensor, _with_noise, candidate) for candidate in plain] + plain


def _elements(inputs: Any) -> int:
    return sum(tensor.numel() for tensor in find_tensors(inputs).values())


def _repeated(inputs: Any) -> Any:
    return tree_map_only(Tensor, lambda t: t.repeat(3, *[1] * (t.dim() - 1)) if t.dim() > 1 else t, inputs)


def _smaller(model: nn.Module, inputs: Any) -> Any | None:
    """Return a part of large images or volumes on which the model takes the same steps, none of them over a single
    place where it was over several; None where there is none."""
    images = [tensor for tensor in find_tensors(inputs).values() if tensor.dim() > 3]
    if len(images) != 1:
        return None
    whole = _steps(model, inputs)
    for side in SIDES if whole else ():
        axes = images[0].dim() - 2
        start = (..., *[slice(side >> (axes - 2))] * axes)
        part = tree_map_only(Tensor, partial(_cut, images[0], start), inputs)
        smaller = LESS * _elements(_repeated(part)) < _elements(inputs)
        if smaller and _same_steps(_steps(model, part), whole):
            return part
    return None


def _cut(image: Tensor, start: Any, tensor: Tensor) -> Tensor:
    """Return the start of what is the image; any other tensor as it is."""
    return tensor[start] if tensor is image else tensor


Steps = list[tuple[Any, list[int]]]  # an operator and how many places each of its results has


class _Recorder(Tracer):
    """Notes the operators of a forward pass."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced.classes, traced)
        self.steps: Steps = []

    def remember(self, executed: Executed, op: Op, sources: Sequence[object], result: Any) -> None:
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, Tensor)]
        self.steps.append((executed.func, [math.prod(tensor.shape[2:]) for tensor in made]))


def _steps(model: nn.Module, inputs: Any) -> Steps:
    """Return the steps that a model takes, without arithmetic; none where forward code looks at values."""
    traced = Trace(Classes(), meta_copy=meta_copy(model), inputs=as_meta(inputs))
    recorder = _Recorder(traced)
    try:
        with restored(traced.meta_copy, traced.state):
            run_once(traced.meta_copy, traced.inputs, recorder, traced.state, training=False)
    except Exception:
        return []
    return recorder.steps


def _same_steps(small: Steps, large: Steps) -> bool:
    alike = len(small) == len(large) and all(a[0] is b[0] for a, b in zip(small, large))
    return alike and all(n > 1 or n == m for a, b in zip(small, large) for n, m in zip(a[1], b[1]))


def _reference(masked: nn.Module, candidates: list[Any], plan: PruningPlan) -> tuple[Any, list[tuple[str, Tensor]]]:
    """Return the first inputs to which BatchNorm statistics can be fitted, or else that the model can run on; and what
    it gives."""
    before = _statistics(masked)
    for fitted in (True, False):
        for inputs in candidates:
            last = not fitted and inputs is candidates[-1]
            try:
                with _fitting(masked) if fitted else nullcontext():
                    seen = _activations(masked, inputs, plan, keep_statistics=fitted)
                if last or all(bool(tensor.isfinite().all()) for _, tensor in seen):
                    return inputs, seen
            except Exception as error:  # a fixed batch size, one value per channel, an index out of range
                if last or any(word in str(error) for word in DTYPE):
                    raise
            _set_statistics(masked, before)
    raise AssertionError("the last candidate returns or raises")


def _converted(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return a copy of the network in another dtype of floats, its complex numbers as precise. What is shared stays
    shared."""

    def converted(tensor: Tensor) -> Tensor:
        kind = tensor.dtype
        if tensor.is_complex():
            kind = torch.complex128 if dtype == torch.float64 else kind
        elif tensor.is_floating_point():
            kind = dtype or kind
        data = tensor.detach().to(kind, copy=True)
        return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data

    return clone(network, converted, converted)


def mask(model: nn.Module, plan: PruningPlan) -> None:
    """Set what makes the plan's removed channels to 0, in place: γ and β of norms, rows and biases of other layers."""
    tensors = dict(named_tensors(model))
    with torch.no_grad():
        for name in plan.masks.keys() & tensors.keys():
            for dim, pruned in plan.masks[name].items():
                tensors[name].index_fill_(dim, torch.tensor(pruned, device=tensors[name].device), 0)


def _check_masks(plan: PruningPlan) -> None:
    """Refuse a plan whose mask isn't what it says that it removes: the proof would be of another plan."""
    name = mismasked(plan.removed, plan.cuts, plan.masks)
    if name is not None:
        raise SlimError(f"the plan contradicts itself: the channels that it removes of {name} aren't those it masks")


def _same_weights(model: nn.Module, thin: nn.Module, plan: PruningPlan) -> None:
    theirs = dict(thin.named_parameters(remove_duplicate=False)) | dict(thin.named_buffers(remove_duplicate=False))
    ours = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    aliases: dict[int, str] = {id(ours[name]): name for name in plan.cuts if name in ours}
    computed = stated_anew(named_modules(model))
    rebuilt = dict(named_tensors(plan.apply(model))) if computed & plan.cuts.keys() else {}
    for name, tensor in ours.items():
        if name in computed and name in rebuilt:
            expected = rebuilt[name].detach()
        else:
            expected = thin_tensor(tensor, plan.cuts.get(aliases.get(id(tensor), name), {}))
        if name not in theirs:
            raise SlimError(f"the thin network differs from the plan: it has no {name}")
        found = theirs[name]
        if found.shape != expected.shape:
            raise SlimError(
                f"the thin network differs from the plan: {name} has shape {list(found.shape)}, expected "
                f"{list(expected.shape)}"
            )
        if found.dtype != expected.dtype or not torch.equal(found.nan_to_num(), expected.to(found.device).nan_to_num()):
            raise SlimError(f"the thin network differs from the plan: {name} holds other values than the original's")


def _with_noise(tensor: Tensor) -> Tensor:
    """Return the input with noise, so that no two samples are alike."""
    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype).to(tensor.device)
    spread = tensor.std() if tensor.numel() > 1 and tensor.std() > 0 else torch.ones((), device=tensor.device)
    return tensor + 0.5 * spread * noise


def _perturb_rounding(tensor: Tensor, noise: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    change = torch.randn(tensor.shape, generator=noise, dtype=tensor.dtype).to(tensor.device)
    return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * change)


def _fitting(model: nn.Module) -> Intercept:
    """BatchNorms take the statistics of what they are first given, and normalise that with them; those that go by other
    names stay as they are."""
    fitted: set[str] = set()

    def fit(layer: LayerCall) -> Tensor:
        if layer.kind == "norm" and layer.name.endswith(STATISTICS) and layer.name not in fitted:
            fitted.add(layer.name)
            x, mean, var = (layer.arguments[key] for key in ("input", "running_mean", "running_var"))
            if x.numel() == x.shape[1]:
                raise ValueError("one value for each channel has no spread")
            spread, center = torch.var_mean(x, [d for d in range(x.dim()) if d != 1])
            mean.copy_(center)
            var.copy_(spread.clamp(min=1e-3))  # a map of one pixel has none: it would blow rounding up
        return layer.run()

    return Intercept(model, fit)


def _statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the statistics of all BatchNorms, copied."""
    return {n: b.clone() for n, b in named_tensors(model) if n.endswith(STATISTICS)}


def _set_statistics(model: nn.Module, statistics: dict[str, Tensor]) -> None:
    own = dict(named_tensors(model))
    for name, value in statistics.items():
        own[name].copy_(value)


def _copy_statistics(masked: nn.Module, thinner: nn.Module, plan: PruningPlan) -> None:
    theirs = dict(named_tensors(thinner))
    cuts = _cuts_by_tensor(masked, plan)
    for name, buffer in named_tensors(masked):
        if name.endswith(STATISTICS) and name in theirs:
            theirs[name].copy_(thin_tensor(buffer, cuts.get(id(buffer), {})))


def _cuts_by_tensor(model: nn.Module, plan: PruningPlan) -> dict[int, Mapping[int, list[int]]]:
    """Return what the plan cuts of each tensor, which may have several names, by its id."""
    return {id(tensor): plan.cuts[name] for name, tensor in all_tensors(model) if name in plan.cuts}


def _activations(
    model: nn.Module,
    inputs: Any,
    plan: PruningPlan | None,
    noise: torch.Generator | None = None,
    *,
    keep_statistics: bool = False,
) -> list[tuple[str, Tensor]]:
    """Return what every layer with weights gives, in order, then the outputs; with a plan, its kept channels only. With
    `noise` every layer rounds otherwise. The model's state is put back, but for `keep_statistics` of its BatchNorms."""
    seen: list[tuple[str, Tensor]] = []

    def record(name: str, keep: Tensor | None) -> Callable[..., Tensor | None]:
        def hook(module: nn.Module, args: Any, out: Any) -> Tensor | None:
            if not isinstance(out, Tensor):
                return None
            if noise is not None:
                out = _perturb_rounding(out, noise)
            kept_of_it = out.clone() if keep is None else out.index_select(_channel_dim(module, out), keep)
            seen.append((name, kept_of_it))
            return out if noise is not None else None

        return hook

    cuts = {} if plan is None else _cuts_by_tensor(model, plan)
    named = dict(named_tensors(model))
    hooks = []
    with restored(model):
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, NORMS)) or weight is None:
                continue
            dim = 1 if getattr(module, "transposed", False) else 0
            sources = [named[source] for suffix in WEIGHTS if (source := f"{name}.{suffix}".lstrip(".")) in named]
            same_shape = [cuts.get(id(tensor), {}) for tensor in sources if tensor.shape == weight.shape]
            cut, groups = same_shape[0] if same_shape else {}, module.groups if dim else 1
            if not weight.numel() or any(len(gone) == weight.shape[d] for d, gone in cut.items()):
                continue  # of a block that goes: what it is added to is compared
            if groups != 1 and cut:
                continue  # grouped transposed convolutions interleave their channels; what reads them is compared
            keep = kept(weight.shape[dim], cut[dim], weight.device) if cut.get(dim) else None
            hooks.append(module.register_forward_hook(record(name, keep)))
        try:
            outputs = output_tensors(call(model, inputs))
        finally:
            for hook in hooks:
                hook.remove()
        statistics = _statistics(model) if keep_statistics else {}
    _set_statistics(model, statistics)
    return seen + list(outputs.items())


def _channel_dim(layer: nn.Module, out: Tensor) -> int:
    if isinstance(layer, nn.Linear):
        return out.dim() - 1
    # 0 for one sample without a batch
    return out.dim() - 1 - len(layer.kernel_size) if isinstance(layer, nn.modules.conv._ConvNd) else 1


def _compare(
    expected: list[tuple[str, Tensor]],
    found: list[tuple[str, Tensor]],
    limit: float,
    ill_conditioned: Collection[int] = (),
) -> float:
    """Return the largest relative difference, but for the `ill_conditioned` places. Raises at the first over the
    limit."""
    worst = 0.0
    there: dict[str, list[Tensor]] = {}
    for name, tensor in found:
        there.setdefault(name, []).append(tensor)
    turns: dict[str, int] = {}
    for place, (name, a) in enumerate(expected):
        turn = turns[name] = turns.get(name, -1) + 1
        b = there[name][turn] if turn < len(there.get(name, [])) else None
        if b is None:
            raise SlimError(f"the thin network differs from the masked original: {name} isn't used")
        if place in ill_conditioned:
            continue
        if a.shape != b.shape:
            raise SlimError(
                f"the thin network differs from the masked original: {name} gives {list(b.shape)}, "
                f"expected {list(a.shape)}"
            )
        error = _difference(a, b)
        if not error <= limit:
            raise SlimError(
                f"the thin network differs from the masked original first in {name}: relative error {error:.1e}, "
                f"expected at most {limit:.0e}"
            )
        worst = max(worst, error)
    return worst


def _differing(expected: list[tuple[str, Tensor]], otherwise: list[tuple[str, Tensor]], limit: float) -> set[int]:
    """Return where the original differs from itself when its layers round otherwise: what follows from the order of
    equal numbers, as a detector's choice of boxes may, can't be compared."""
    differing = set(range(len(otherwise), len(expected)))
    for place, ((name, a), (other, b)) in enumerate(zip(expected, otherwise)):
        if name != other or a.shape != b.shape or not _difference(a, b) <= limit:
            differing.add(place)
    return differing


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite where integers differ."""
    if not a.numel() or not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    scale = a.abs().max()
    return float((a - b).abs().max() / scale) if scale > 0 else float(b.abs().max())
