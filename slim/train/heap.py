"""How the C library handles the memory of freed tensors."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees, for the next step, instead of giving it back to the system; for the rest of
    the process.

    A step of training on a CPU frees and asks for the same tensors again and again. By default glibc returns the larger
    ones at once, and the system then has to find and clear every page anew: with ResNet-20 and 64 CIFAR images 11,000
    pages, which took 12 % of the step. Nothing happens with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return
    mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    mallopt(_M_MMAP_THRESHOLD, 1 << 28)  # bytes; larger tensors are rare, and would tear holes
