"""An average of the weights over the last steps, which often does better than the last weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The exponential moving average of a network's floating-point state, BatchNorm's statistics included.

    After step t (from 1) it is d·average + (1 − d)·state with d = min(`decay`, (1 + t)/(10 + t)): at first the decay
    is small, so that the random first weights are soon forgotten (as in TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weight: float | Tensor = 1.0  # of the state in the next average
        self._current = _floats(model)
        self.tensors = [t.clone() for t in self._current]

    def follow(self, model: nn.Module, averaged: nn.Module) -> None:
        """Go on with a thinner network, of which `averaged` holds the average so far."""
        self._current, self.tensors = _floats(model), _floats(averaged)

    def hold(self, device: torch.device) -> None:
        """Keep the weight in a tensor from now on, which a recorded step reads anew each time."""
        self.weight = torch.ones((), device=device)

    def weigh(self, step: int) -> None:
        """Say which step comes next."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        if isinstance(self.weight, Tensor):
            self.weight.fill_(weight)
        else:
            self.weight = weight

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's state after a step."""
        change = torch._foreach_sub(self._current, self.tensors)
        torch._foreach_mul_(change, self.weight)
        torch._foreach_add_(self.tensors, change)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the network's state, for a while."""
        before = [t.clone() for t in self._current]
        self.take_place()
        try:
            yield
        finally:
            _copy(before, self._current)

    def take_place(self) -> None:
        """Make the average the network's state."""
        _copy(self.tensors, self._current)

    def load(self, tensors: list[Tensor]) -> None:
        _copy(tensors, self.tensors)


def _floats(model: nn.Module) -> list[Tensor]:
    return [t for t in model.state_dict().values() if t.is_floating_point()]  # they share memory


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for a, b in zip(source, target, strict=True):
        b.copy_(a)
