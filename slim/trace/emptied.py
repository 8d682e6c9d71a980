"""Modules of a residual branch that is gone: they compute nothing, and forward code around them runs as before."""

from torch import Tensor, nn

from slim.trace.on_the_fly import OnTheFly


class Emptied(OnTheFly):
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

    @classmethod
    def module_of(cls, kind: type[nn.Module]) -> str:
        return __name__  # no layer of torch's any more


def empty(module: nn.Module, dim: int, channels: int) -> None:
    """Make a module an `Emptied` one, in place. Its parameters and buffers stay."""
    module.__class__ = Emptied.of(type(module))
    vars(module).update(emptied_dim=dim, emptied_channels=channels)
