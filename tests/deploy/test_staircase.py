"""Stairs in measured times: their width, where to measure, and the surface between."""

import numpy as np
import pytest
from deploy.made_up import blocks
from numpy.typing import ArrayLike, NDArray

from slim.deploy.cost.staircase import Surface, levels, quantum


@pytest.mark.parametrize("width", [2, 4, 8, 16, 32])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_width_of_steps_is_found(width: int, noise: float) -> None:
    counts = np.arange(33, 98)
    random = np.random.default_rng(width)
    times = 0.1 + 0.05 * blocks(counts, width) * width
    times = times * (1 + noise * width / 16 * random.random(len(counts)))
    assert quantum(counts.tolist(), times) == width
    off = times * np.where(counts % 2, 1.4, 1.0)  # odd counts take another, slower kernel
    assert quantum(counts.tolist(), off) == width


def test_where_there_are_no_steps() -> None:
    counts = np.arange(33, 98)
    assert quantum(counts.tolist(), 0.1 * counts) <= 2  # a straight line: whatever is small
    assert quantum(counts.tolist(), np.full(65, 3.0)) == 1  # all the same


@pytest.mark.parametrize("size", [3, 16, 24, 100, 512, 2048])
def test_levels_end_steps_and_reach_the_size(size: int) -> None:
    found = levels(size, 16)
    assert found == sorted(set(found)) and found[-1] == size and all(n % 16 == 0 for n in found[:-1])
    assert len(found) <= 12
    assert size <= 16 or found[0] == 16


def test_surface_predicts_what_was_not_measured() -> None:
    def truth(i: ArrayLike, o: ArrayLike) -> NDArray[np.float64]:
        return 0.01 + 2e-4 * blocks(i) * blocks(o) + 1e-3 * blocks(o)

    reads, makes = levels(512, 16), levels(384, 16)
    surface = Surface(reads, makes, np.array([[truth(i, o) for o in makes] for i in reads]), (16, 16))
    i, o = np.meshgrid(np.arange(17, 513), np.arange(17, 385), indexing="ij")
    assert np.abs(surface(i, o) / truth(i, o) - 1).max() < 1e-9  # bilinear, as the truth is
    assert surface(0, 64) == 0 and surface(64, 0) == 0
    noisy = Surface(reads, makes, np.array([[truth(i, o) for o in makes] for i in reads]), (16, 16)).times
    noisy[3, 4] *= 0.5  # a measurement cut short: more channels never cost less
    repaired = Surface(reads, makes, noisy, (16, 16)).times
    assert (np.diff(repaired, axis=0) >= 0).all() and (np.diff(repaired, axis=1) >= 0).all()
