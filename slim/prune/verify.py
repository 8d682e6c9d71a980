"""The proof: a rebuilt network equals the original with the removed channels set to 0 where they are made.

Two things are checked. Every weight of the thin network must be the original's, bit for bit, less what the plan cuts.
And both networks must compute the same: in float64, on BatchNorm statistics fitted to the data that runs through (with
arbitrary statistics the outputs of many deep networks hardly depend on their input, and faults hide), comparing the
kept channels of what every layer gives, not only the outputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.progress import progress
from slim.prune.plan import PruningPlan
from slim.prune.plan_format import mismasked
from slim.prune.proof.comparing import compare, differing, resized
from slim.prune.proof.inputs import candidates
from slim.prune.proof.layers import activations, copy_statistics, fitting, set_statistics, statistics_of
from slim.prune.rebuild import state_anew, thin_tensor
from slim.trace.copy import clone, named_modules, named_tensors, unwrapped
from slim.trace.inputs import cannot_run, check_inputs
from slim.trace.lengths import stated_anew
from slim.trace.outputs import find_tensors

DTYPE = ("dtype", "scalar type", "Double", "type (double)")  # what errors say where forward code insists on its own
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
    as the order of detections with equal scores; and so are layers to which heads are samples, of which there are fewer
    now. The result says how many places were compared.

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
    plan.check_fits(model)
    check_inputs(example_inputs)
    given = find_tensors(example_inputs, "example_inputs")
    for name, tensor in (*named_tensors(model), *given.items()):
        if not tensor.is_floating_point() and not tensor.is_complex():
            continue
        state = name not in given and not isinstance(tensor, nn.Parameter)  # masks of attention hold infinities
        values = tensor.detach()
        if bool(values.isnan().any() if state else not values.isfinite().all()):
            raise SlimError(f"{name} has values that aren't finite: expected numbers")


def _same_function(
    model: nn.Module, thin: nn.Module, plan: PruningPlan, example_inputs: Any, dtype: torch.dtype | None, limit: float
) -> Proof:
    device = next(model.parameters()).device
    masked, thinner = (converted(network, dtype).eval() for network in (model, thin))
    state_anew(dict(named_modules(masked)), dict(named_modules(thinner)), plan.change)  # to this precision
    mask(masked, plan)
    drawing = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with torch.no_grad(), drawing, _in_full_precision():
        inputs, expected = _reference(masked, candidates(model, example_inputs, device, dtype), plan)
        copy_statistics(masked, thinner, plan)
        for name, tensor in expected:
            if not tensor.isfinite().all():
                raise SlimError(f"the masked original isn't finite in {name}: expected numbers to compare")
        found = activations(thinner, inputs, None)
        left_out = resized(expected, found, {n for n, _ in masked.named_modules() if not n.startswith("output")})
        try:
            worst = compare(expected, found, limit, left_out)
        except SlimError:
            perturbed = activations(masked, inputs, plan, torch.Generator().manual_seed(1))
            ill_conditioned = differing(expected, perturbed, limit)
            if not ill_conditioned:
                raise
            left_out |= ill_conditioned
            worst = compare(expected, found, limit, left_out)
    places, compared = len(expected), len(expected) - len(left_out)
    if compared < LEAST_SHARE * places:
        raise SlimError(
            f"the thin network can't be proved equal: {places - compared} of {places} layers and outputs hang on how "
            "the original rounds, or run over fewer heads, expected half of them at most"
        )
    modules = dict(masked.named_modules())
    return Proof(worst, len({name for name, _ in expected if name in modules}), places, compared)


@contextmanager
def _in_full_precision() -> Iterator[None]:
    """Compute products of float32 as such: GPUs keep ten bits of their factors by default (TensorFloat-32)."""
    matmul = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def _reference(masked: nn.Module, candidates: list[Any], plan: PruningPlan) -> tuple[Any, list[tuple[str, Tensor]]]:
    """Return the first inputs to which BatchNorm statistics can be fitted, or else that the model can run on; and what
    it gives."""
    before = statistics_of(masked)
    for fitted in (True, False):
        for inputs in candidates:
            last = not fitted and inputs is candidates[-1]
            try:
                with fitting(masked) if fitted else nullcontext():
                    seen = activations(masked, inputs, plan, keep_statistics=fitted)
                if last or all(bool(tensor.isfinite().all()) for _, tensor in seen):
                    return inputs, seen
            except Exception as error:  # a fixed batch size, one value per channel, an index out of range
                if last or any(word in str(error) for word in DTYPE):
                    raise
            set_statistics(masked, before)
    raise AssertionError("the last candidate returns or raises")


def converted(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
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
                tensors[name].index_fill_(dim, torch.tensor(pruned, dtype=torch.int64, device=tensors[name].device), 0)


def _check_masks(plan: PruningPlan) -> None:
    """Refuse a plan whose mask isn't what it says that it removes: the proof would be of another plan."""
    name = mismasked(plan.removed, plan.cuts, plan.masks, plan.shapes)
    if name is not None:
        raise SlimError(f"the plan contradicts itself: the channels that it removes of {name} aren't those it masks")


def _same_weights(model: nn.Module, thin: nn.Module, plan: PruningPlan) -> None:
    theirs = dict(thin.named_parameters(remove_duplicate=False)) | dict(thin.named_buffers(remove_duplicate=False))
    ours = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    aliases: dict[int, str] = {id(ours[name]): name for name in plan.cuts if name in ours}
    folded = {f"{name}.bias" for name in plan.constants}
    computed = stated_anew(named_modules(model)) | folded
    rebuilt = dict(named_tensors(plan.apply(model))) if computed & (plan.cuts.keys() | folded) else {}
    for name in {**ours, **dict.fromkeys(folded)}:
        if name in computed and name in rebuilt:
            expected = rebuilt[name].detach()
        else:
            expected = thin_tensor(ours[name], plan.cuts.get(aliases.get(id(ours[name]), name), {}))
        if name not in theirs:
            raise SlimError(f"the thin network differs from the plan: it has no {name}")
        found = theirs[name]
        if found.shape != expected.shape:
            raise SlimError(
                f"the thin network differs from the plan: {name} has shape {list(found.shape)}, expected "
                f"{list(expected.shape)}"
            )
        both = found.detach(), expected.detach().to(found.device)
        values, wanted = (t.to_dense() if t.layout != torch.strided else t for t in both)
        if found.dtype != expected.dtype or not torch.equal(values.nan_to_num(), wanted.nan_to_num()):
            raise SlimError(f"the thin network differs from the plan: {name} holds other values than the original's")
