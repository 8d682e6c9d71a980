"""Trained weights put into a network: names without prefixes, a last layer for other classes, and what doesn't fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError
from slim.workbench.models.weights import NAMED, Weights

PREFIXES = ("", "module.", "_orig_mod.", "model.", "net.", "ema.")  # of wrappers, the likeliest first
WRAPPERS = ("module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")  # of layers within a network


class Fitted(NamedTuple):
    """What came of putting weights into a network: what is worth telling, a line each, and the layers that are new."""

    notes: list[str]
    new: list[str]


def fit_weights(model: nn.Module, weights: Weights, num_classes: int | None) -> Fitted:
    """Put weights into a network, in place.

    A last layer for another number of classes keeps its new values. Raises SlimError for any other tensor that the
    weights lack, have too many or in another shape, and names the first ones.
    """
    own = model.state_dict()
    state, notes = _renamed(weights, own)
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # which older files lack
    missing = [name for name in own if name not in state and name not in counters]
    extra = [name for name in state if name not in own]
    other = [name for name in own if name in state and own[name].shape != state[name].shape]
    heads = [name for name in other if _is_head(own[name], state[name], num_classes)]
    wrong = [*missing, *extra, *(name for name in other if name not in heads)]
    if _are_fused(model, missing, extra):
        raise SlimError(
            f"weights {weights.source!r} are fused: their BatchNorms are folded into the convolutions; expected those "
            "from before model.fuse(), or a network without BatchNorms as model.arch, and another score than γ"
        )
    if wrong:
        what = "lack" if missing else "have too many tensors:" if extra else "have another shape of"
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise SlimError(f"weights {weights.source!r} don't fit: they {what} {', '.join(wrong[:NAMED])}{more}")
    if odd := [name for name in own if name in state and _is_odd(state[name])]:
        raise SlimError(
            f"weights {weights.source!r} have NaN, complex, sparse or quantised numbers, or none, in "
            f"{', '.join(odd[:NAMED])}: expected plain ones"
        )
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in heads}, strict=False)
    new = list(dict.fromkeys(name.rpartition(".")[0] for name in heads))
    replaced = [
        f"{layer}: made new for {num_classes} classes (the weights have {len(state[heads[0]])})" for layer in new
    ]
    return Fitted([*notes, *replaced], new)


def _are_fused(model: nn.Module, missing: Sequence[str], extra: Sequence[str]) -> bool:
    """Say whether the weights lack all of some BatchNorm and bring a bias for a layer that has none of its own."""
    modules = dict(model.named_modules())
    norms = any(isinstance(modules.get(name.rpartition(".")[0]), _BatchNorm) for name in missing)
    biased = [modules.get(name.removesuffix(".bias")) for name in extra if name.endswith(".bias")]
    return norms and any(layer is not None and getattr(layer, "bias", 0) is None for layer in biased)


def classes_of(model: nn.Module, weights: Weights) -> int | None:
    """Return the number of classes of the weights' last layer, where it is all that differs from the network's."""
    own = model.state_dict()
    state, _ = _renamed(weights, own)
    other = [(own[name], state[name]) for name in own if name in state and own[name].shape != state[name].shape]
    sizes = {len(theirs) for ours, theirs in other if ours.dim() and theirs.shape[1:] == ours.shape[1:]}
    return sizes.pop() if len(sizes) == 1 and len({len(ours) for ours, _ in other}) == 1 else None


def _is_odd(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and not (tensor.is_meta or tensor.is_quantized or tensor.is_complex())
    return not plain or bool(tensor.isnan().any())


def _is_head(own: Tensor, found: Tensor, num_classes: int | None) -> bool:
    return own.dim() > 0 and len(own) == num_classes and own.shape[1:] == found.shape[1:]


class _Reading(NamedTuple):
    """A set of tensors under the network's names, as far as they lead there."""

    key: str  # under which they lie in the file
    prefix: str  # that was taken off their names
    state: dict[str, Tensor]
    left: list[str]  # names without that prefix
    known: int  # names that the network has


def _renamed(weights: Weights, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the weights under the network's names, and what is worth telling of how they were found: in which of a
    file's sets of tensors, by which prefix, and what was left out."""
    readings = [
        _read(key, state, own) for key, found in weights.states.items() for state in (found, _without_wrappers(found))
    ]
    best = max(readings, key=lambda each: each.known)
    equal = dict.fromkeys(each.key for each in readings if each.known == best.known and each.key != best.key)
    notes = []
    if equal and best.known:
        other = next(iter(equal))
        notes.append(
            f"weights are those under {best.key!r} in {weights.source}, not those under {', '.join(map(repr, equal))}, "
            f"which {weights.source}:{other} names"
        )
    if best.left:
        more = f" and {len(best.left) - NAMED} more" if len(best.left) > NAMED else ""
        named = ", ".join(best.left[:NAMED])
        notes.append(f"weights are those whose names begin with {best.prefix!r}, without {named}{more}")
    return best.state, notes


def _read(key: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> _Reading:
    """Take off the prefix, or put on the one, with which most names are the network's."""
    off = Counter(name[:start] for name in state for start in _starts(name) if name[start:] in own)
    on = Counter(name[:start] for name in own for start in _starts(name)[1:] if name[start:] in state)
    prefix = max(off, key=lambda each: (off[each], -_rank(each)), default="")
    added = max(on, key=lambda each: on[each], default="")
    if on[added] > off[prefix] and 2 * on[added] >= len(own):  # the network is a wrapper of what was trained
        return _Reading(key, "", {added + name: each for name, each in state.items()}, [], on[added])
    if 2 * off[prefix] < len(own):
        prefix = ""
    here = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
    return _Reading(key, prefix, here, [name for name in state if not name.startswith(prefix)], off[prefix])


def _starts(name: str) -> list[int]:
    """Return where a name, and each of its parts behind a dot, begins."""
    return [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]


def _rank(prefix: str) -> int:
    return PREFIXES.index(prefix) if prefix in PREFIXES else len(PREFIXES)


def _without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the names of wrappers out of the middle of others: features.module.0.weight of an ImageNet script's VGG."""
    return {".".join(part for part in name.split(".") if part not in WRAPPERS): each for name, each in state.items()}
