"""How important a channel group is: the door for importance scores, and the plain ones.

A score is any function of the groups that returns one number for each, larger where the group is more important:

    def largest_bias(groups):
        tensors = groups.tensors()
        return groups.reduce({name: tensors[f"{name}.bias"].abs() for name in groups.names}, "max")

    slim.plan(model, x, ratio=0.5, score=largest_bias)

Values that lie ready need no function: a mapping from layer names to one value for each channel is a score, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, get_args

import numpy as np
from torch import nn

from slim.errors import SlimError
from slim.prune.groups import Floats, Groups, Reduce, as_array
from slim.trace.classes import Ints
from slim.trace.traced import KEPT, Trace


class Score(Protocol):
    """Says how important each group is: one number for each, larger for what should stay."""

    def __call__(self, groups: Groups) -> Any: ...


@dataclass(frozen=True)
class Gamma:
    """|γ| of the BatchNorms, the score of Network Slimming (Liu et al., ICCV 2017, section 3).

    `reduce`: over the channels of a group, "mean" (default), "max" or "sum". Groups that no BatchNorm scales aren't
    pruned; with `rest` they are, too, and count, by their magnitude (`Magnitude`) in units of the mean |γ|.
    """

    reduce: Reduce = "mean"
    rest: bool = False

    @property
    def ranks_all(self) -> bool:
        return self.rest

    def __post_init__(self) -> None:
        if self.reduce not in get_args(Reduce):
            raise SlimError(f"unknown reduce {self.reduce!r} of Gamma: expected one of {', '.join(get_args(Reduce))}")

    def __call__(self, groups: Groups) -> Floats:
        tensors = groups.tensors()
        gammas = {}
        for name in groups.traced.norms:
            gamma = tensors[next(iter(groups.traced.made[name].tensors))].detach().abs().double().cpu().numpy()
            if not np.isfinite(gamma).all():
                raise SlimError(f"γ of {name} has values that aren't finite: expected numbers")
            gammas[name] = gamma
        if groups.names == list(gammas):
            return groups.reduce(gammas, self.reduce)
        if not gammas:
            return Magnitude()(groups)
        scaled = Groups(groups.traced, groups.model)
        found = Magnitude()(groups) * np.concatenate([*gammas.values(), np.ones(0)]).mean()
        ranked_too = np.isin(scaled.roots, groups.roots)
        place = np.searchsorted(groups.roots, scaled.roots[ranked_too])
        found[place] = scaled.reduce(gammas, self.reduce)[ranked_too]
        return found


@dataclass(frozen=True)
class Magnitude:
    """The size of the weights that make a channel: the p-norm of its filter in every convolution or linear layer.

    Each norm is divided by the mean over the layer's filters, so that layers of different scales compare; a group has
    the mean over all filters that make its channels, and the mean importance, 1, where nothing but a BatchNorm does.
    Source: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, with p = 1.
    """

    p: float = 2
    ranks_all: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.p, bool) or not isinstance(self.p, (int, float)) or not self.p > 0:
            raise SlimError(f"p {self.p!r} of Magnitude: expected a number above 0")

    def __call__(self, groups: Groups) -> Floats:
        modules = dict(groups.model.named_modules(remove_duplicate=False))
        total, filters = np.zeros((2, len(groups.root_of)))
        for name, tensor in groups.tensors().items():
            module = modules.get(name.rpartition(".")[0])
            if tensor.dim() < 2 or not isinstance(tensor, nn.Parameter):
                continue
            table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
            dim = 1 if table or getattr(module, "transposed", False) else 0
            labels = groups.traced.labels.get(name, {}).get(dim)
            if labels is None or len(labels) != tensor.shape[dim]:
                continue
            rows = tensor.detach().abs().double().movedim(dim, 0).flatten(1).norm(self.p, dim=1).cpu().numpy()
            np.add.at(total, groups.root_of[labels], rows / max(rows.mean(), 1e-30))
            np.add.at(filters, groups.root_of[labels], 1)
        total, filters = total[groups.roots], filters[groups.roots]
        return np.where(filters > 0, total / np.maximum(filters, 1), 1.0)


@dataclass(frozen=True)
class Random:
    """A random number for each group, the same for the same `seed`: what any score must beat."""

    seed: int = 0
    ranks_all: ClassVar[bool] = True

    def __call__(self, groups: Groups) -> Floats:
        return np.random.default_rng(self.seed).random(len(groups.roots))


@dataclass(frozen=True)
class GivenValues:
    """Values that lie ready: layer name -> one for each channel. The layers that they name are ranked."""

    values: Mapping[str, Any]

    def __call__(self, groups: Groups) -> Floats:
        return groups.reduce(self.values)


def ranked(score: Score, traced: Trace) -> dict[str, Ints]:
    """Return the layers whose channels are ranked and counted, with the labels of these.

    The BatchNorms, where there are any; all that makes channels where there are none, or where the score has
    `ranks_all`; what a mapping names, where it names others.
    """
    norms = traced.norms
    others = isinstance(score, GivenValues) and not score.values.keys() <= norms.keys()
    if norms and not others and not getattr(score, "ranks_all", False):
        return norms
    everything = {name: producer.labels for name, producer in traced.producers.items()}
    if not isinstance(score, GivenValues):  # BatchNorms all of whose channels stay would only count against the ratio
        everything = {
            name: labels for name, labels in everything.items() if _share_free(traced, [labels])
        } or everything
    if isinstance(score, GivenValues) and others:
        return {name: labels for name, labels in everything.items() if name in score.values} or everything
    return everything


def _share_free(traced: Trace, layers: Iterable[Ints]) -> float:
    """Return the share of these layers' channels that can go, as far as is known, or that are kept on request."""
    labels = np.concatenate([*layers, np.zeros(0, np.int64)])
    stays = traced.classes.frozen(labels)
    asked = [traced.classes.reason(int(label)) == KEPT for label in labels[stays]]
    return 1 - (stays.sum() - sum(asked)) / max(len(labels), 1)


def as_score(given: Any, traced: Trace) -> Score:
    """Return a score: the one that was given, or that looks up the values of a mapping. For None it is `Gamma()`, with
    the rest where less than half of the BatchNorms' channels can go, or `Magnitude()` where the network has no γ."""
    if given is None:
        norms = traced.norms
        rest = _share_free(traced, norms.values()) < 0.5 and any(name not in norms for name in traced.producers)
        return Gamma(rest=rest) if norms else Magnitude()
    if isinstance(given, Mapping):
        return GivenValues(given)
    if not callable(given) or isinstance(given, type | nn.Module):
        raise SlimError(
            f"score {given!r}: expected slim.Gamma(), slim.Magnitude(), slim.Residual(images), slim.Taylor(batches, "
            "loss), slim.Random(), 'auto', a function of the groups, or a mapping from layer names to values"
        )
    return given


def scored(score: Score, groups: Groups) -> Floats:
    """Return what a score gives. Raises SlimError where that isn't one finite number for each group."""
    given = as_array(score(groups))
    if given.shape != groups.roots.shape or not np.isfinite(given).all():
        raise SlimError(
            f"score {score!r} gave an array of shape {list(given.shape)}: expected a finite number for each of "
            f"{len(groups.roots)} groups"
        )
    return given


def name_of_score(score: Score) -> str:
    """Return what plans call a score."""
    return "given values" if isinstance(score, GivenValues) else getattr(score, "__name__", type(score).__name__)
