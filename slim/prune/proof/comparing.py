"""How far what one network's layers give is from what another's do."""

import math
from collections.abc import Collection

import torch
from torch import Tensor

from slim.errors import SlimError


def compare(
    expected: list[tuple[str, Tensor]],
    found: list[tuple[str, Tensor]],
    limit: float,
    ill_conditioned: Collection[int] = (),
) -> float:
    """Return the largest relative difference, but for the `ill_conditioned` places. Raises at the first over the
    limit."""
    worst = 0.0
    there: dict[str, list[Tensor]] = {}
    for name, tensor in found:
        there.setdefault(name, []).append(tensor)
    turns: dict[str, int] = {}
    for place, (name, a) in enumerate(expected):
        turn = turns[name] = turns.get(name, -1) + 1
        b = there[name][turn] if turn < len(there.get(name, [])) else None
        if b is None:
            raise SlimError(f"the thin network differs from the masked original: {name} isn't used")
        if place in ill_conditioned:
            continue
        if a.shape != b.shape:
            raise SlimError(
                f"the thin network differs from the masked original: {name} gives {list(b.shape)}, "
                f"expected {list(a.shape)}"
            )
        error = _difference(a, b)
        if not error <= limit:
            raise SlimError(
                f"the thin network differs from the masked original first in {name}: relative error {error:.1e}, "
                f"expected at most {limit:.0e}"
            )
        worst = max(worst, error)
    return worst


def differing(expected: list[tuple[str, Tensor]], otherwise: list[tuple[str, Tensor]], limit: float) -> set[int]:
    """Return where the original differs from itself when its layers round otherwise: what follows from the order of
    equal numbers, as a detector's choice of boxes may, can't be compared."""
    differing = set(range(len(otherwise), len(expected)))
    for place, ((name, a), (other, b)) in enumerate(zip(expected, otherwise)):
        if name != other or a.shape != b.shape or not _difference(a, b) <= limit:
            differing.add(place)
    return differing


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite where integers differ."""
    if not a.numel() or not a.is_floating_point():
        return 0.0 if torch.equal(a, b) else math.inf
    scale = a.abs().max()
    return float((a - b).abs().max() / scale) if scale > 0 else float(b.abs().max())
