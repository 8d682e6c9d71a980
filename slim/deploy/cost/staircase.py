"""What a number of channels costs: stairs, found from measured times, and the surface between them.

A runtime works in blocks of channels (16 in onnxruntime's NCHWc kernels on a CPU with AVX-512, 8 on many GPUs), so time
climbs in steps: all counts of a step cost about the same, and only the highest of them is worth having.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
WIDTHS = (32, 16, 8, 4, 2)
AT_STEPS = 0.75  # of the climb: 1 for a perfect staircase; half the steps of one, or a straight line, at most half


def quantum(counts: Sequence[int], times: ArrayLike) -> int:
    """Return the width of the steps in which `times` climb with consecutive `counts` of channels; 1 without steps.

    A count costs at most what any higher one does, since channels can be padded, so the staircase is the lower envelope
    of the times. Of the widths 32, 16, 8, 4 and 2, the largest at whose multiples three quarters of the climb happen.
    """
    envelope = np.minimum.accumulate(np.asarray(times, float)[::-1])[::-1]
    climb = np.diff(envelope)  # climb[i]: what one channel more than counts[i] costs
    if climb.sum() <= 0.02 * envelope.mean():
        return 1  # flat: nothing to gain at any width
    below = np.asarray(counts)[:-1]
    return next((width for width in WIDTHS if climb[below % width == 0].sum() >= AT_STEPS * climb.sum()), 1)


def levels(size: int, width: int) -> list[int]:
    """Return the counts at which up to `size` channels are measured: ends of steps, from 1/32 on ever further apart."""
    unit = width * max(1, -(-size // (32 * width)))
    found = {width, size} if width < size else {size}
    factor = 1
    while factor * unit < size:
        found.add(factor * unit)
        factor += max(1, 2 ** (factor.bit_length() - 2)) if factor > 1 else 1
    return sorted(found)


@dataclass
class Surface:
    """Milliseconds over the numbers of channels read and made, bilinear between the ends of measured steps.

    `widths` are those of the steps along both axes. Noise is taken out as far as more channels can't cost less.
    """

    reads: list[int]
    makes: list[int]
    times: Floats  # [reads, makes]
    widths: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        for axis in (0, 1):
            up = np.maximum.accumulate(self.times, axis)
            down = np.flip(np.minimum.accumulate(np.flip(self.times, axis), axis), axis)
            self.times = (up + down) / 2

    def __call__(self, reads: ArrayLike, makes: ArrayLike) -> Floats:
        """Return the milliseconds for numbers of channels, which broadcast. No channels on either side: no time."""
        taken, made = np.broadcast_arrays(np.asarray(reads), np.asarray(makes))
        i, u = self._between(taken, self.reads, self.widths[0])
        j, v = self._between(made, self.makes, self.widths[1])
        i_next, j_next = np.minimum(i + 1, len(self.reads) - 1), np.minimum(j + 1, len(self.makes) - 1)
        low = self.times[i, j] * (1 - v) + self.times[i, j_next] * v
        high = self.times[i_next, j] * (1 - v) + self.times[i_next, j_next] * v
        out: Floats = np.where((taken > 0) & (made > 0), low * (1 - u) + high * u, 0.0)
        return out

    @staticmethod
    def _between(counts: NDArray[np.int64], measured: list[int], width: int) -> tuple[NDArray[np.int64], Floats]:
        """For each count the measured level below it, and how far it is from there to the next, 0 to 1."""
        ends = np.minimum(-(-counts // width) * width, measured[-1])
        at = np.asarray(measured)
        i = np.clip(np.searchsorted(at, ends, side="right") - 1, 0, max(0, len(at) - 2))
        gap = at[np.minimum(i + 1, len(at) - 1)] - at[i]
        return i, np.clip((ends - at[i]) / np.maximum(gap, 1), 0.0, 1.0)
