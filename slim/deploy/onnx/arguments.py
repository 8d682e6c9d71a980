"""What a network's forward is called with, in batches of any size, and what it then returns."""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from slim.errors import SlimError


@dataclass(frozen=True)
class Arguments:
    """The arguments of one call of forward. The first dimension of every tensor is the batch."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_inputs: Any) -> "Arguments":
        """Return `example_inputs`, a tensor, or a tuple or dict of what forward takes, as its arguments."""
        if isinstance(example_inputs, dict):
            made = cls((), dict(example_inputs))
        else:
            made = cls(example_inputs if isinstance(example_inputs, tuple) else (example_inputs,), {})
        if not made.tensors or any(tensor.ndim < 2 or tensor.shape[0] == 0 for tensor in made.tensors):
            raise SlimError(
                "example_inputs: expected a tensor [N, C, H, W] of at least one image, or a tuple or dict of such"
            )
        return made

    @property
    def tensors(self) -> list[Tensor]:
        return tensors_in((self.args, self.kwargs))

    @property
    def batch_size(self) -> int:
        return self.tensors[0].shape[0]

    def map(self, function: Any) -> "Arguments":
        """Return the arguments with `function` applied to every tensor."""
        args, kwargs = pytree.tree_map_only(Tensor, function, (self.args, self.kwargs))
        return Arguments(args, kwargs)

    def batch(self, size: int, generator: torch.Generator | None = None) -> "Arguments":
        """Return a batch of `size`: standard normal where a tensor is float, any pixels where it is uint8, else rows of
        the example."""

        def resize(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                return torch.randn(size, *tensor.shape[1:], generator=generator)
            if tensor.dtype == torch.uint8:
                return torch.randint(256, (size, *tensor.shape[1:]), generator=generator, dtype=torch.uint8)
            return tensor.cpu()[torch.arange(size) % tensor.shape[0]]

        return self.map(resize)

    def in_dtype_of(self, net: nn.Module) -> "Arguments":
        """Return the arguments with floating-point tensors of the network's own type."""
        weights = itertools.chain(net.parameters(), net.buffers())
        dtype = next((tensor.dtype for tensor in weights if tensor.is_floating_point()), None)
        return self.map(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and dicts."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def run_forward(net: nn.Module, arguments: Arguments, like: str = "like the example") -> list[Tensor]:
    """Return the tensors that forward returns. Raises SlimError where it fails or returns none."""
    try:
        with torch.no_grad():
            outputs = tensors_in(net(*arguments.args, **arguments.kwargs))
    except Exception as error:
        size = arguments.batch_size
        raise SlimError(f"the network can't run a batch of {size} {like}: {root_cause(error)}") from error
    if not outputs:
        raise SlimError("the network returns no tensor: expected at least one, such as logits [N, K]")
    return outputs


def root_cause(error: BaseException) -> str:
    """Return the first line of the error at the bottom: the exporter wraps it in a page of advice."""
    error = bottom_of(error)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def bottom_of(error: BaseException) -> BaseException:
    """Return the error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
