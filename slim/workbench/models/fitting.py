"""Trained weights put into a network: names without prefixes, a last layer for other classes, and what doesn't fit."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim.errors import SlimError
from slim.workbench.models.weights import NAMED, Weights

PREFIXES = ("module.", "_orig_mod.", "net.", "model.", "ema.")


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
    state = _without_prefixes(weights.state, own)
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
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in heads}, strict=False)
    new = list(dict.fromkeys(name.rpartition(".")[0] for name in heads))
    replaced = [
        f"{layer}: made new for {num_classes} classes (the weights have {len(state[heads[0]])})" for layer in new
    ]
    return Fitted([*weights.notes, *replaced], new)


def _are_fused(model: nn.Module, missing: Sequence[str], extra: Sequence[str]) -> bool:
    """Say whether the weights lack all of some BatchNorm and bring a bias for a layer that has none of its own."""
    modules = dict(model.named_modules())
    norms = any(isinstance(modules.get(name.rpartition(".")[0]), _BatchNorm) for name in missing)
    biased = [modules.get(name.removesuffix(".bias")) for name in extra if name.endswith(".bias")]
    return norms and any(layer is not None and getattr(layer, "bias", 0) is None for layer in biased)


def classes_of(model: nn.Module, weights: Weights) -> int | None:
    """Return the number of classes of the weights' last layer, where it is all that differs from the network's."""
    own = model.state_dict()
    state = _without_prefixes(weights.state, own)
    other = [(own[name], state[name]) for name in own if name in state and own[name].shape != state[name].shape]
    sizes = {len(theirs) for ours, theirs in other if ours.dim() and theirs.shape[1:] == ours.shape[1:]}
    return sizes.pop() if len(sizes) == 1 and len({len(ours) for ours, _ in other}) == 1 else None


def _is_head(own: Tensor, found: Tensor, num_classes: int | None) -> bool:
    return own.dim() > 0 and len(own) == num_classes and own.shape[1:] == found.shape[1:]


def _without_prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take wrappers' prefixes off names, as long as they come nearer to the network's."""
    state = dict(state)
    while not state.keys() & own.keys():
        prefix = next((p for p in PREFIXES if state and all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
