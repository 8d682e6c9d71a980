"""How far a network's outputs are from another's on the same images, as suits what the outputs mean."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slim.errors import SlimError, unknown
from slim.prune.calibration import part
from slim.trace.inputs import call
from slim.trace.outputs import output_tensors

BATCH = 256  # images at a time

Kind = Literal["auto", "classes", "labels", "values", "squared"]
Measure = Kind | Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Distance:
    """How far a network's outputs are from the original's: `distance` as was asked for, and the relative squared error
    in any case."""

    distance: float
    squared_error: float


def distance(model: nn.Module, other: nn.Module, images: Any, measure: Measure = "auto") -> Distance:
    """Compare what `other` returns with what `model` does, in the mean over `images`, one batch of any size.

    `measure`: "classes", the Kullback–Leibler divergence of class probabilities, softmax along dimension 1; "labels",
    that of independent labels, each a sigmoid (binary), summed over labels; "values", the squared error in units of
    each target's variance over the images, averaged over targets (dimension 1), for regression; "squared", the squared
    error relative to the squares of the outputs. "auto" is "classes" where the network returns one tensor [N, classes],
    else "squared". A function gets both outputs of a batch and returns a number, less where they are closer.

    Raises SlimError where outputs aren't finite, have other shapes, or hold no floating-point numbers.
    """
    if not callable(measure) and measure not in get_args(Kind):
        raise unknown("distance", str(measure), get_args(Kind))
    count = next(t.shape[0] for t in tree_leaves(images) if isinstance(t, Tensor) and t.dim())
    sums = _Sums(measure)
    for start in range(0, count, BATCH):
        batch = part(images, slice(start, start + BATCH))
        sums.add(call(model, batch), call(other, batch), min(BATCH, count - start))
    error = sums.error / max(sums.scale, 1e-300)
    found = {"squared": error, "values": sums.error_by_spread()} if not callable(measure) else {}
    return Distance(found.get(sums.measure, sums.total / count), error)  # type: ignore[arg-type]


class _Sums:
    """What is added up over batches: the measure itself, squared errors, and the moments of each target."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.total, self.error, self.scale, self.count = 0.0, 0.0, 0.0, 0
        self.moments: list[Tensor] = []  # of each output [3, targets]: sums of squared errors, values, squared values
        self.places: list[int] = []  # values of each target so far

    def add(self, wanted: Any, given: Any, count: int) -> None:
        expected, found = _outputs(wanted), _outputs(given)
        if not all(t.isfinite().all() for t in expected):
            raise SlimError("the model's outputs on these images aren't finite: expected numbers")
        if [t.shape for t in expected] != [t.shape for t in found]:
            raise SlimError("thin isn't what the plan makes of the model: its outputs have other shapes")
        if self.measure == "auto":
            classes = len(expected) == 1 and expected[0].dim() == 2 and expected[0].shape[1] > 1
            self.measure = "classes" if classes else "squared"
        self.error += sum(float((a - b).square().sum()) for a, b in zip(expected, found))
        self.scale += sum(float(a.square().sum()) for a in expected)
        if callable(self.measure):
            self.total += count * float(self.measure(wanted, given))
        elif self.measure == "classes":
            self.total += sum(_of_classes(a, b) for a, b in zip(expected, found))
        elif self.measure == "labels":
            self.total += sum(_of_labels(a, b) for a, b in zip(expected, found))
        elif self.measure == "values":
            self._add_moments(expected, found)

    def _add_moments(self, expected: list[Tensor], found: list[Tensor]) -> None:
        by_target = [(_by_target(a), _by_target(b)) for a, b in zip(expected, found)]
        new = [torch.stack([(a - b).square().sum(1), a.sum(1), a.square().sum(1)]) for a, b in by_target]
        self.moments = [m + n for m, n in zip(self.moments, new)] if self.moments else new
        places = [a.shape[1] for a, _ in by_target]
        self.places = [p + n for p, n in zip(self.places, places)] if self.places else places

    def error_by_spread(self) -> float:
        """Return the mean over targets of the squared error in units of their variance."""
        if not self.moments:
            return math.nan
        ratios = []
        for (error, values, squares), places in zip(self.moments, self.places):
            spread = squares - values**2 / places
            ratios.append(error / spread.clamp(min=1e-30 + 1e-12 * float(squares.max())))
        return float(torch.cat(ratios).mean())


def _outputs(returned: Any) -> list[Tensor]:
    outputs = output_tensors(returned)
    found = [t.cpu().double() for t in outputs.values() if t.is_floating_point()]
    if not found:
        raise SlimError(f"recovery compares floating-point outputs: the model returns {', '.join(outputs)} as integers")
    return found


def _by_target(tensor: Tensor) -> Tensor:
    """[targets, values]: dimension 1 counts targets, where there is one."""
    return tensor.movedim(1, 0).flatten(1) if tensor.dim() > 1 else tensor.reshape(1, -1)


def _of_classes(expected: Tensor, found: Tensor) -> float:
    """KL divergence of softmax along dimension 1, averaged over places of a map, summed over images."""
    places = max(1, expected[0, 0].numel()) if expected.dim() > 2 else 1
    wanted, had = expected.log_softmax(1), found.log_softmax(1)
    return float(F.kl_div(had, wanted, reduction="sum", log_target=True)) / places


def _of_labels(expected: Tensor, found: Tensor) -> float:
    """KL divergence of sigmoids, averaged over places of a map, summed over labels and images."""
    places = max(1, expected[0, 0].numel()) if expected.dim() > 2 else 1
    chance = expected.sigmoid()
    on = chance * (F.logsigmoid(expected) - F.logsigmoid(found))
    off = (1 - chance) * (F.logsigmoid(-expected) - F.logsigmoid(-found))
    return float((on + off).sum()) / places
