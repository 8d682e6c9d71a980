"""Intercept every convolution, linear layer and BatchNorm of a forward pass, whatever module or code calls it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slim.trace.copy import named_tensors
from slim.trace.state import restored

CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
TRANSPOSED = {torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d}
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_LINEAR = ("input", "weight", "bias")
_NORMS = {
    F.batch_norm: ("input", "running_mean", "running_var"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var"),
}


@dataclass
class LayerCall:
    """A call of a layer: a convolution or linear layer ("product"), or a BatchNorm with running statistics ("norm").

    `name` is the name of its weight, or of its running mean. `run()` computes its output.
    """

    kind: str
    name: str
    func: Any
    arguments: dict[str, Any]
    run: Callable[[], Tensor]

    @property
    def input(self) -> Tensor:
        found: Tensor = self.arguments["input"]
        return found


Visit = Callable[[LayerCall], Tensor]  # gives the layer's output


class Intercept(TorchFunctionMode):
    """Show every layer whose weight is a parameter of `model` to `visit`, whatever module or code calls it."""

    def __init__(self, model: nn.Module, visit: Visit) -> None:
        super().__init__()
        self.visit = visit
        self.names: dict[int, str] = {}
        for name, tensor in named_tensors(model):
            self.names.setdefault(id(tensor), name)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        signature: tuple[str, ...] = ()
        kind, key = "product", "weight"
        if func in CONVOLUTIONS:
            signature = _CONVOLUTION
        elif func is F.linear:
            signature = _LINEAR
        elif func in TRANSPOSED:
            signature = _TRANSPOSED
        elif func in _NORMS:
            kind, key, signature = "norm", "running_mean", _NORMS[func]
        if signature:
            arguments = {**dict(zip(signature, args)), **kwargs}
            name = self.names.get(id(arguments.get(key)))
            if name is not None:
                return self.visit(LayerCall(kind, name, func, arguments, lambda: func(*args, **kwargs)))
        return func(*args, **kwargs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, without gradients. What its modules hold, and random states, are restored after
    it."""
    modes = [(module, module.training) for module in model.modules()]
    with restored(model):
        try:
            model.eval()
            with torch.no_grad():
                yield
        finally:
            for module, mode in modes:  # some do more than note it
                module.training = mode
