"""How the C library handles the memory of freed tensors."""

import ctypes
import sys
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees, for the next step, instead of giving it back to the system; for the rest of
    the process.

    A step of training on a CPU frees and asks for the same tensors again and again. By default glibc returns the larger
    ones at once, and the system then has to find and clear every page anew: with ResNet-20 and 64 CIFAR images 11,000
    pages, which took 12 % of the step. Nothing happens with other C libraries.
    """
    _of_glibc("mallopt", _M_TRIM_THRESHOLD, 1 << 30)
    _of_glibc("mallopt", _M_MMAP_THRESHOLD, 1 << 28)  # bytes; larger tensors are rare, and would tear holes


def give_back_freed_memory() -> None:
    """Let glibc give all that is free back to the system, for once.

    A batch of large images leaves holes where small objects have come in between, in which the next batch has no room:
    a pass over 80,000 images of 224×224 pixels grew by more than a gigabyte. Nothing happens with other C libraries.
    """
    _of_glibc("malloc_trim", 0)


def _of_glibc(function: str, *arguments: Any) -> None:
    if not sys.platform.startswith("linux"):
        return
    try:
        called = getattr(ctypes.CDLL(None), function)
    except (OSError, AttributeError):  # musl has none
        return
    called(*arguments)
