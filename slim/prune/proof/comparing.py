"""How far what one network's layers give is from what another's do."""

import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from slim.errors import SlimError


def compare(
    expected: list[tuple[str, Tensor]],
    found: list[tuple[str, Tensor]],
    limit: float,
    left_out: Collection[int] = (),
) -> float:
    """Return the largest relative difference, but for the places that are `left_out`. Raises at the first over the
    limit."""
    worst = 0.0
    for place, name, a, b in _paired(expected, found):
        if b is None:
            raise SlimError(f"the thin network differs from the masked original: {name} isn't used")
        if place in left_out:
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


def resized(expected: list[tuple[str, Tensor]], found: list[tuple[str, Tensor]], layers: Collection[str]) -> set[int]:
    """Return the places of layers that run over less in the thin network, and can't be compared: heads that are folded
    into the batch, where whole heads are gone. What reads them is compared."""
    return {
        place
        for place, name, a, b in _paired(expected, found)
        if name in layers and b is not None and a.shape[1:] == b.shape[1:] and len(b) < len(a)
    }


def _paired(
    expected: list[tuple[str, Tensor]], found: list[tuple[str, Tensor]]
) -> Iterator[tuple[int, str, Tensor, Tensor | None]]:
    """Yield each place with what both networks give there in the same call of the layer; None where one has none."""
    there: dict[str, list[Tensor]] = {}
    for name, tensor in found:
        there.setdefault(name, []).append(tensor)
    turns: dict[str, int] = {}
    for place, (name, a) in enumerate(expected):
        turn = turns[name] = turns.get(name, -1) + 1
        yield place, name, a, there[name][turn] if turn < len(there.get(name, [])) else None


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
