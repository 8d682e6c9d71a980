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
        i, u = between(taken, self.reads, self.widths[0])
        j, v = between(made, self.makes, self.widths[1])
        i_next, j_next = np.minimum(i + 1, len(self.reads) - 1), np.minimum(j + 1, len(self.makes) - 1)
        low = self.times[i, j] * (1 - v) + self.times[i, j_next] * v
        high = self.times[i_next, j] * (1 - v) + self.times[i_next, j_next] * v
        out: Floats = np.where((taken > 0) & (made > 0), low * (1 - u) + high * u, 0.0)
        return out


def between(counts: NDArray[np.int64], measured: list[int], width: int) -> tuple[NDArray[np.int64], Floats]:
    """For each count the measured level below it, and how far it is from there to the next, 0 to 1."""
    ends = np.minimum(-(-counts // width) * width, measured[-1])
    at = np.asarray(measured)
    i = np.clip(np.searchsorted(at, ends, side="right") - 1, 0, max(0, len(at) - 2))
    gap = at[np.minimum(i + 1, len(at) - 1)] - at[i]
    return i, np.clip((ends - at[i]) / np.maximum(gap, 1), 0.0, 1.0)


def mean_surface(surfaces: Sequence[Surface], factors: Sequence[float]) -> Surface:
    """Return the sum of surfaces, each times its factor, on the counts of all of them and with their widest steps."""
    reads, makes = (sorted(set().union(*each)) for each in zip(*((one.reads, one.makes) for one in surfaces)))
    times = sum(factor * one(np.array(reads)[:, None], makes) for one, factor in zip(surfaces, factors))
    widest = max(one.widths[0] for one in surfaces), max(one.widths[1] for one in surfaces)
    return Surface(reads, makes, np.asarray(times), widest)


class Total:
    """The sum of many surfaces, each at its own numbers of channels, from tables: plans ask for it thousands of times.

    `Surface.__call__` is what it adds up; here each count up to the largest measured one is looked up along each axis:
    the level below it, and how far it is from there to the next.
    """

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        self.times = np.concatenate([*(one.times.ravel() for one in surfaces), np.zeros(0)])
        sizes = np.array([one.times.shape for one in surfaces], np.int64).reshape(-1, 2)
        self.rows, self.columns = sizes.T
        self.start = np.cumsum([0, *(self.rows * self.columns)])[:-1]
        self.axes = [
            Axis([one.reads for one in surfaces], [one.widths[0] for one in surfaces]),
            Axis([one.makes for one in surfaces], [one.widths[1] for one in surfaces]),
        ]

    def __call__(self, reads: NDArray[np.int64], makes: NDArray[np.int64]) -> float:
        """Return the sum where each surface has these numbers of channels; none on either side: no time."""
        (i, u), (j, v) = (axis(counts) for axis, counts in zip(self.axes, (reads, makes)))
        i_next, j_next = np.minimum(i + 1, self.rows - 1), np.minimum(j + 1, self.columns - 1)
        row, next_row = (self.start + self.columns * each for each in (i, i_next))
        low = self.times[row + j] * (1 - v) + self.times[row + j_next] * v
        high = self.times[next_row + j] * (1 - v) + self.times[next_row + j_next] * v
        return float(np.where((reads > 0) & (makes > 0), low * (1 - u) + high * u, 0.0).sum())


class Axis:
    """Where counts lie between measured ones, along one axis of many surfaces."""

    def __init__(self, measured: Sequence[list[int]], widths: Sequence[int]) -> None:
        places = [between(np.arange(levels[-1] + 1), levels, width) for levels, width in zip(measured, widths)]
        self.largest = np.array([levels[-1] for levels in measured], np.int64)
        self.start = np.cumsum([0, *(self.largest + 1)])[:-1]
        self.below = np.concatenate([*(below for below, _ in places), np.zeros(0, np.int64)])
        self.towards = np.concatenate([*(towards for _, towards in places), np.zeros(0)])

    def __call__(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
        """Return for each surface the measured level below its count, and how far it is to the next, 0 to 1."""
        at = self.start + np.minimum(counts, self.largest)
        return self.below[at], self.towards[at]
