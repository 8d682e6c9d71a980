"""What measured times depend on."""

from typing import Protocol


class Settings(Protocol):
    """Where and how networks run: see `slim.Runtime`."""

    @property
    def provider(self) -> str: ...

    @property
    def threads(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def identity(self) -> str: ...
