"""Modules of a residual branch that is gone: they compute nothing, and forward code around them runs as before."""

from typing import Any

from torch import Tensor, nn


class Emptied:
    """A module that gives `emptied_channels` channels along `emptied_dim`, all of them zero, whatever it is given.

    The last one of a branch gives as many as the stream has that the branch is added to, those before it none, so that
    what forward code does to their results costs nothing either.
    """

    emptied_dim: int
    emptied_channels: int

    def forward(self, x: Tensor) -> Tensor:
        sizes = list(x.shape)
        sizes[self.emptied_dim] = self.emptied_channels
        return x.new_zeros(sizes)

    def __reduce__(self) -> tuple[Any, ...]:  # the class is made on the fly, so pickle by what it was made from
        return _revive, (type(self).__mro__[2],), self.__dict__


_emptied: dict[type, type] = {}


def _emptied_kind(kind: type[nn.Module]) -> type[nn.Module]:
    if issubclass(kind, Emptied):
        return kind
    if kind not in _emptied:
        _emptied[kind] = type(f"Emptied{kind.__name__}", (Emptied, kind), {"__module__": __name__})
    return _emptied[kind]


def _revive(kind: type[nn.Module]) -> nn.Module:
    made = _emptied_kind(kind)
    return made.__new__(made)


def empty(module: nn.Module, dim: int, channels: int) -> None:
    """Make a module an `Emptied` one, in place. Its parameters and buffers stay."""
    module.__class__ = _emptied_kind(type(module))
    vars(module).update(emptied_dim=dim, emptied_channels=channels)
