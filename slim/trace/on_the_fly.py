"""Classes made on the fly: that of a module, with a mixin before it, so that forward code finds the same object."""

from typing import Any

from torch import nn


class OnTheFly:
    """What such a mixin inherits: instances are pickled by what their class was made from."""

    @classmethod
    def of(cls, kind: type[nn.Module]) -> type[nn.Module]:
        """Return the subclass of a module's class with this mixin before it; the class itself where it has it."""
        if issubclass(kind, cls):
            return kind
        if (cls, kind) not in _made:
            _made[cls, kind] = type(f"{cls.__name__}{kind.__name__}", (cls, kind), {"__module__": cls.module_of(kind)})
        return _made[cls, kind]

    @classmethod
    def module_of(cls, kind: type[nn.Module]) -> str:
        """Return the module in which the subclass passes for defined: that of the class."""
        return kind.__module__

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, type(self).__bases__, self.__dict__  # the mixin and the class


_made: dict[tuple[type, type], type[nn.Module]] = {}


def _revive(mixin: type[OnTheFly], kind: type[nn.Module]) -> nn.Module:
    made = mixin.of(kind)
    return made.__new__(made)
