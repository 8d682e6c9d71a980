"""What a proof runs both networks on: the user's inputs with noise, more of them, or parts that are enough."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slim.trace.classes import Classes
from slim.trace.inputs import as_meta
from slim.trace.labeller import Executed
from slim.trace.meta_copy import meta_copy
from slim.trace.op import Op
from slim.trace.outputs import find_tensors
from slim.trace.state import restored
from slim.trace.traced import Trace
from slim.trace.tracer import Tracer, run_once

ENOUGH = 2**17  # elements of inputs
SIDES = (64, 128)  # of the part of an image that is enough where the model takes the same steps on it; of a volume less
LESS = 1.5  # times fewer elements: else it isn't worth looking for
Steps = list[tuple[Any, list[int]]]  # an operator and how many places each of its results has


def candidates(model: nn.Module, example_inputs: Any, device: torch.device, dtype: torch.dtype | None) -> list[Any]:
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


class _Recorder(Tracer):
    """Notes the operators of a forward pass."""

    def __init__(self, traced: Trace) -> None:
        super().__init__(traced.classes, traced.options)
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


def _with_noise(tensor: Tensor) -> Tensor:
    """Return the input with noise, so that no two samples are alike."""
    if not tensor.is_floating_point():
        return tensor
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype).to(tensor.device)
    spread = tensor.std() if tensor.numel() > 1 and tensor.std() > 0 else torch.ones((), device=tensor.device)
    return tensor + 0.5 * spread * noise
