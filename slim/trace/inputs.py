"""What `forward` takes: a tensor, a tuple of positional arguments, or a dict of keyword arguments."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from slim.errors import SlimError
from slim.trace.copy import unwrapped
from slim.trace.meta import META
from slim.trace.outputs import find_tensors


def call(model: nn.Module, example_inputs: Any) -> Any:
    """Return `model(example_inputs)`: a tensor, a tuple of positional arguments, or a dict of keyword arguments. Lists
    and dicts among them are copies, which forward code may change."""
    model, example_inputs = unwrapped(model), tree_map(lambda leaf: leaf, example_inputs)
    if isinstance(example_inputs, dict):
        return model(**example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return model(*example_inputs)
    return model(example_inputs)


def as_meta(inputs: Any) -> Any:
    """Return the inputs without their data."""
    return tree_map_only(Tensor, lambda t: torch.empty_like(t, device=META), inputs)


def check_inputs(example_inputs: Any) -> None:
    """SlimError for inputs that hold no tensor, or none with an element: they would show nothing."""
    tensors = find_tensors(example_inputs, arrays=False).values()
    if not tensors and not isinstance(example_inputs, tuple | list | dict):
        raise SlimError(f"example_inputs is a {type(example_inputs).__name__}: expected a tensor, a tuple or a dict")
    if tensors and not any(tensor.numel() for tensor in tensors):
        raise SlimError("example_inputs is an empty batch: expected at least one sample")


def cannot_run(error: Exception) -> SlimError:
    """Say in one line that the model can't be run."""
    return SlimError(f"the model can't be run on example_inputs: {_told(error)}")


def cannot_follow(error: Exception) -> SlimError:
    """Say in one line that the model runs, but not while it is traced."""
    return SlimError(
        f"slim can't follow this model, which runs on example_inputs by itself: {_told(error)}; expected to trace any "
        "forward code, so please report it"
    )


def _told(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said if len(said) <= 300 else f'{said[:299]}…'}"
