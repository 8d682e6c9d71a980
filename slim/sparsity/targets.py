"""Which parameters a penalty acts on, which of them belong together, and which are left to weight decay."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from slim.errors import SlimError, check_type, unknown
from slim.trace.traced import trace

KINDS: dict[str, type[nn.Module]] = {"batchnorm": _BatchNorm, "conv": _ConvNd, "linear": nn.Linear}

BIAS = "bias"  # beside the types of layers: their biases, too

Targets = str | Sequence[str] | Mapping[str, float]
Types = str | type[nn.Module] | Sequence[str | type[nn.Module]]


def chosen(
    model: nn.Module, targets: Targets = "*", types: Types = "batchnorm"
) -> dict[str, tuple[nn.Parameter, float]]:
    """Return the parameters that match, by name, each with its relative strength.

    They are the trainable weights (and with "bias" among the `types` the biases) of the layers of the given `types`
    ("batchnorm", "conv", "linear", or module classes) whose names match `targets`: a shell pattern, several, or a
    mapping from patterns to strengths relative to λ, of which the first that matches counts. Tied parameters appear
    once. Raises SlimError for a type that isn't known, a strength below 0, and a pattern that nothing matches.
    """
    check_type("targets", targets, "a shell pattern, several, or strengths by pattern", str, list, tuple, set, Mapping)
    check_type("types", types, "a type of layers or several", str, type, list, tuple, set)
    strengths = {targets: 1.0} if isinstance(targets, str) else targets
    for pattern in strengths:
        check_type("a pattern of targets", pattern, "a shell pattern", str)
    if not isinstance(strengths, Mapping):
        strengths = dict.fromkeys(strengths, 1.0)
    if not strengths:
        raise SlimError("targets is empty: expected a shell pattern such as '*', which stands for all")
    for pattern, strength in strengths.items():
        if not (isinstance(strength, int | float) and 0 <= strength < math.inf):
            raise SlimError(f"the relative strength of {pattern!r} is {strength}: expected a number ≥ 0")
    kinds = [types] if isinstance(types, (str, type)) else list(types)
    keys = ("weight", "bias") if BIAS in kinds else ("weight",)
    classes = tuple(_kind(kind) for kind in kinds if kind != BIAS)

    found: dict[str, tuple[nn.Parameter, float]] = {}
    seen: set[int] = set()
    used: set[str] = set()
    for name, module in model.named_modules():
        matching = [pattern for pattern in strengths if fnmatchcase(name, pattern)]
        if not matching or not isinstance(module, classes):
            continue
        for key in keys:
            parameter = getattr(module, key, None)
            if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
                used.update(matching)
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    found[f"{name}.{key}" if name else key] = parameter, strengths[matching[0]]
    for pattern in strengths:
        if pattern not in used:
            raise _nothing(model, pattern, types if kinds != ["batchnorm"] else None)
    return found


def has_scales(model: nn.Module) -> bool:
    """Say whether any BatchNorm of the network has a scale γ."""
    return any(isinstance(module, _BatchNorm) and module.affine for module in model.modules())


def _nothing(model: nn.Module, pattern: str, types: Types | None) -> SlimError:
    """Return the error for a pattern that nothing to penalise matches, with what to do about it."""
    if types is not None:
        return SlimError(f"no trainable weight of {types} matches {pattern!r}: there is nothing to penalise")
    told = f"no BatchNorm layer with a trainable scale matches {pattern!r}: there is nothing to penalise"
    if any(type(module).__name__ == "FrozenBatchNorm2d" for module in model.modules()):
        return SlimError(f"{told}; FrozenBatchNorm2d keep γ untrained: expected nn.BatchNorm2d in their place")
    if not has_scales(model):
        return SlimError(f"{told}; without BatchNorms (fused ones are gone) expected run.path direct, and no penalty")
    if not any(isinstance(m, _BatchNorm) and m.affine and m.weight.requires_grad for m in model.modules()):
        return SlimError(f"{told}; their scales have requires_grad off: expected requires_grad_(True)")
    return SlimError(told)


def _kind(kind: str | type[nn.Module]) -> type[nn.Module]:
    if isinstance(kind, str):
        if kind not in KINDS:
            raise unknown("layer type", kind, KINDS)
        return KINDS[kind]
    return kind


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    decay_norm: bool = False,
    *,
    targets: Targets = "*",
    types: Types = "batchnorm",
) -> list[dict[str, Any]]:
    """Sort the trainable parameters into groups for an optimizer, with and without weight decay.

    Decayed are weights with two or more dimensions, which are those of convolutions and linear layers. Not decayed
    are vectors, which are biases and the scales and shifts of normalisation, and whatever `sparsify` penalises with
    the same `targets` and `types`: two pulls on one weight would blur λ. With `decay_norm` everything is
    decayed, as in the code of Network Slimming.
    """
    every = types == "batchnorm"  # their penalised parameters are vectors anyway
    penalised = {} if every else chosen(model, targets, types)
    kept_off = {id(parameter) for parameter, _ in penalised.values()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if decay_norm or (p.ndim >= 2 and id(p) not in kept_off)]
    taken = {id(parameter) for parameter in decayed}
    plain = [parameter for parameter in parameters if id(parameter) not in taken]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def coupled(model: nn.Module, example_inputs: Any) -> dict[str, list[int]]:
    """Say which channels are coupled, for `GroupLasso`: a label for each output channel of each parameter
    that has channels, by the parameter's name. Channels with the same label are one group; 0 means none.

    The model is traced as `slim.plan` does it. Raises SlimError where it can't be run on `example_inputs`.
    """
    traced = trace(model, example_inputs)
    rows = {name: traced.labels.get(name, {}).get(0) for name in traced.parameters}
    return {name: traced.classes.roots(labels).tolist() for name, labels in rows.items() if labels is not None}
