"""What belongs to a network goes on with the thinner one: its optimizer's state, parameter by parameter."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.prune.rebuild import Cuts, thin_tensor
from slim.trace.copy import named_tensors


@dataclass(frozen=True)
class Replacement:
    """The tensor of the thin network in the place of one of the original, and what it lacks: dimension -> indices."""

    tensor: Tensor
    cuts: Mapping[int, list[int]]

    def stays(self, original: Tensor) -> Tensor:
        """Return which values of the original are left: bool, in its shape."""
        stays = torch.ones(original.shape, dtype=torch.bool, device=original.device)
        for dim, removed in self.cuts.items():
            stays.index_fill_(dim, torch.tensor(removed, device=original.device), False)
        return stays


def replacements(cuts: Cuts, model: nn.Module, thin: nn.Module) -> dict[int, Replacement]:
    """Return for each tensor of `model`, by its id, what takes its place in `thin`.

    Raises SlimError where `thin` lacks one of them.
    """
    thinner = dict(named_tensors(thin))
    found: dict[int, Replacement] = {}
    for name, tensor in named_tensors(model):
        if id(tensor) not in found or name in cuts:
            if name not in thinner:
                raise SlimError(f"the thin network doesn't come from this model: it has no {name}")
            found[id(tensor)] = Replacement(thinner[name], cuts.get(name, {}))
    return found


def migrate_optimizer(optimizer: torch.optim.Optimizer, found: Mapping[int, Replacement]) -> None:
    """Hand an optimizer over to the thin network, in place."""
    for group in optimizer.param_groups:
        group["params"] = [found[id(p)].tensor if id(p) in found else p for p in group["params"]]
    for parameter in [p for p in optimizer.state if id(p) in found]:
        replacement = found[id(parameter)]
        optimizer.state[replacement.tensor] = {
            key: thin_tensor(value, replacement.cuts)
            if isinstance(value, Tensor) and value.shape == parameter.shape
            else value
            for key, value in optimizer.state.pop(parameter).items()
        }
