"""What can be said of a device before torch is imported, which takes seconds."""

import sys
from ctypes import CDLL
from pathlib import Path

from slim.errors import SlimError


def check_device(device: str) -> None:
    """Raise SlimError for a device that this machine can't have: torch says later whether it is there."""
    possible = {"cuda": _has_gpu_driver, "mps": lambda: sys.platform == "darwin"}.get(device, lambda: True)
    if not possible():
        raise SlimError(f"device {device!r} isn't available: this machine has no driver for it; expected auto or cpu")


def _has_gpu_driver() -> bool:
    try:
        CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD's, which torch calls CUDA, too
    return True
