"""Constants that removed channels leave behind, in the bias of what read them.

A channel that is masked where it is made may be a number other than zero where a layer reads it: log(x + ε) of a pool.
What it adds to each of the layer's outputs is a number, too, which goes into its bias, a new one where it has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slim.errors import SlimError
from slim.trace.readers import weight_of

Constants = Mapping[str, Sequence[float]]  # layer -> what each channel that it reads leaves behind, 0 for those kept


def fold(
    whole: Mapping[str, nn.Module],
    thin: Mapping[str, nn.Module],
    constants: Constants,
    cuts: Mapping[str, Mapping[int, list[int]]],
) -> None:
    """Give the layers of `thin`, what is left of those of `whole`, the biases that take up the constants.

    Worked out in float64, and rounded once to what the layer computes in. Raises SlimError where there's no such layer.
    """
    for name, numbers in constants.items():
        layer = whole.get(f"{name}.")
        part = None if layer is None else weight_of(layer)
        if layer is None or part is None:
            raise SlimError(
                f"the plan doesn't fit this model: {name!r} has no weight of its own to fold constants with"
            )
        bias = _bias(name, layer, numbers)
        gone = cuts.get(f"{name}.{part}", {}).get(0, [])
        stays = torch.ones(len(bias), dtype=torch.bool, device=bias.device)
        stays[gone] = False
        was = layer._parameters.get("bias")
        trained = (layer.get_parameter(part) if was is None else was).requires_grad
        thin[f"{name}."].bias = nn.Parameter(bias[stays], requires_grad=trained)


def _bias(name: str, layer: Any, numbers: Sequence[float]) -> Tensor:
    """Return a layer's bias with what it reads of the constants."""
    weight: Tensor = layer.weight.detach()
    groups = getattr(layer, "groups", 1)
    if len(numbers) != groups * weight.shape[1]:
        read = groups * weight.shape[1]
        raise SlimError(f"the plan doesn't fit this model: {name!r} reads {read} channels, expected {len(numbers)}")
    taps = _in_float64(weight).reshape(*weight.shape[:2], -1).sum(2)
    read = torch.tensor(numbers, dtype=torch.float64, device=taps.device).reshape(groups, -1)
    added = (taps * read.repeat_interleave(len(taps) // groups, 0)).sum(1)
    bias = added if layer.bias is None else added + _in_float64(layer.bias.detach())
    return bias.to(weight.device, weight.dtype)


def _in_float64(tensor: Tensor) -> Tensor:
    """Move numbers to the CPU, as some devices have no float64; what holds no data stays where it is."""
    return (tensor if tensor.is_meta else tensor.cpu()).double()
