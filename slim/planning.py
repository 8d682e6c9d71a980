"""Which channels go: rank all groups of the network by |γ| against one global threshold, within floors and a budget.

    plan = slim.plan(model, example_inputs, ratio=0.5)
    thin = plan.apply(model)

A *group* is a set of channels that stand or fall together (see `slim.trace`). Its score is taken over the |γ| of every
BatchNorm that holds it. The groups with the lowest scores go, until the budget is met; each layer's best channels,
the floor's worth, always stay. Source: Network Slimming, Liu et al., ICCV 2017, section 3.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slim.errors import SlimError
from slim.files import replacing
from slim.rebuild import Change, rebuild, thin_tensor, thinned
from slim.runtime import Runtime, read_latency
from slim.scoring import residual_scores
from slim.trace import Trace, trace
from slim.trace.check import Counted, Misfit, count, find_misfit
from slim.trace.clone import named_tensors

if TYPE_CHECKING:
    from rich.table import Table

    from slim.runtime.model import LatencyModel

Score = Literal["mean", "max", "sum", "residual"]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
VERSION = 1


@dataclass
class Layer:
    """One BatchNorm of the plan: its channels before and after, and how many the floor or a tie held back."""

    name: str
    before: int
    after: int
    floor: int  # channels below the global threshold that stayed because of the floor
    frozen: int  # channels that can't be removed safely; the plan's `frozen` says why


@dataclass
class PruningPlan:
    """What to remove from a model; plain data that goes through JSON and back.

    `removed` maps each BatchNorm's name to the channels that go (indices of the original model). `cuts` spells out
    what that means for every parameter and buffer: tensor name -> dimension -> removed indices. `selects` are the
    BatchNorms that choose their own channels of a shared stream (mode "select"). `totals` holds (before, after) of
    channels, params and flops. `frozen` says what couldn't be touched: reason -> BatchNorm -> number of channels.
    `shortfall` is empty where the request was met to within a point, else one line on what held it back. `timing` is
    what was measured for a latency budget: runtime, milliseconds of the original and the thin network, and more.
    """

    requested: dict[str, float]
    achieved: dict[str, float]
    removed: dict[str, list[int]]
    cuts: dict[str, dict[int, list[int]]]
    shapes: dict[str, list[int]]
    selects: list[str] = field(default_factory=list)
    sizes: dict[str, Any] = field(default_factory=dict)
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    frozen: dict[str, dict[str, int]] = field(default_factory=dict)
    shortfall: str = ""
    timing: dict[str, Any] = field(default_factory=dict)

    # -- use -----------------------------------------------------------------------------------------------------------

    def apply(self, model: nn.Module) -> nn.Module:
        """A new, thinner model; `model` is untouched. Raises SlimError where the plan is for another model."""
        named = dict(named_tensors(model))
        for name, shape in self.shapes.items():
            found = list(named[name].shape) if name in named else "nothing"
            if found != list(shape):
                raise SlimError(f"the plan doesn't fit this model: {name} has shape {found}, expected {list(shape)}")
        return rebuild(model, self.change)

    @property
    def change(self) -> Change:
        """What the plan does to a model, for `slim.rebuild`."""
        chosen = {}
        for bn in self.selects:
            gone = set(self.removed.get(bn, []))
            chosen[bn] = [i for i in range(self.shapes[f"{bn}.weight"][0]) if i not in gone]
        return Change(self.cuts, self.sizes, chosen)

    def prune_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module, thin: nn.Module) -> None:
        """Hand an optimizer of `model` over to `thin`, in place: its parameters become the thinner ones, and what it
        keeps for each (momentum, Adam's moments) loses the removed channels. Parameters of neither stay.
        """
        thinner = dict(named_tensors(thin))
        successor: dict[int, tuple[Tensor, dict[int, list[int]]]] = {}
        for name, tensor in named_tensors(model):
            if id(tensor) not in successor or name in self.cuts:
                if name not in thinner:
                    raise SlimError(f"the thin network doesn't come from this model: it has no {name}")
                successor[id(tensor)] = thinner[name], self.cuts.get(name, {})
        for group in optimizer.param_groups:
            group["params"] = [successor[id(p)][0] if id(p) in successor else p for p in group["params"]]
        for parameter in list(optimizer.state):
            if id(parameter) in successor:
                heir, cuts = successor[id(parameter)]
                state = optimizer.state.pop(parameter)
                optimizer.state[heir] = {
                    key: thin_tensor(v, cuts) if isinstance(v, Tensor) and v.shape == parameter.shape else v
                    for key, v in state.items()
                }

    @property
    def ratio_requested(self) -> float | None:
        """The share of channels asked for, where a ratio was asked for."""
        return self.requested.get("ratio")

    @property
    def ratio_achieved(self) -> float:
        """The share of all BatchNorm channels that the plan removes, 0 to 1."""
        before, after = self.totals["channels"]
        return 1 - after / before

    # -- files ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. Index lists are long and many tensors share one, so each is stored once."""
        lists: dict[tuple[int, ...], int] = {}

        def number(indices: list[int]) -> int:
            return lists.setdefault(tuple(indices), len(lists))

        removed = {bn: number(gone) for bn, gone in self.removed.items()}
        cuts = {name: {str(d): number(gone) for d, gone in cut.items()} for name, cut in self.cuts.items()}
        return {
            "format": "slim-plan",
            "version": VERSION,
            "requested": self.requested,
            "achieved": self.achieved,
            "totals": {k: list(v) for k, v in self.totals.items()},
            "removed": removed,
            "cuts": cuts,
            "indices": [list(indices) for indices in lists],
            "shapes": self.shapes,
            "selects": self.selects,
            "sizes": self.sizes,
            "layers": [asdict(layer) for layer in self.layers],
            "frozen": self.frozen,
            "shortfall": self.shortfall,
            "timing": self.timing,
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "PruningPlan":
        """The plan that `to_dict` gave. Raises SlimError where it isn't one."""
        if d.get("format") != "slim-plan":
            raise SlimError("not a pruning plan: expected an object with 'format': 'slim-plan'")
        if d.get("version") != VERSION:
            raise SlimError(f"a pruning plan of version {d.get('version')!r}: this slim reads version {VERSION}")
        try:
            indices = [list(map(int, entry)) for entry in d["indices"]]
            return cls(
                requested=dict(d["requested"]),
                achieved=dict(d["achieved"]),
                removed={bn: indices[i] for bn, i in d["removed"].items()},
                cuts={name: {int(k): indices[i] for k, i in cut.items()} for name, cut in d["cuts"].items()},
                shapes={name: list(shape) for name, shape in d["shapes"].items()},
                selects=list(d["selects"]),
                sizes=dict(d["sizes"]),
                totals={k: (int(v[0]), int(v[1])) for k, v in d["totals"].items()},
                layers=[Layer(**layer) for layer in d["layers"]],
                frozen={reason: dict(where) for reason, where in d["frozen"].items()},
                shortfall=str(d["shortfall"]),
                timing=dict(d.get("timing", {})),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise SlimError(f"a broken pruning plan: {type(error).__name__}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON: to a temporary file first, then renamed."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PruningPlan":
        """Read a plan. Raises SlimError where the file is missing or isn't a plan."""
        try:
            content = json.loads(Path(path).read_text())
        except OSError as error:
            raise SlimError(f"can't read the plan {os.fspath(path)!r}: {error.strerror}") from error
        except ValueError as error:
            raise SlimError(f"{os.fspath(path)!r} isn't a plan: expected JSON ({error})") from error
        if not isinstance(content, dict):
            raise SlimError(f"{os.fspath(path)!r} isn't a plan: expected a JSON object")
        return cls.from_dict(content)

    @property
    def digest(self) -> str:
        """SHA-256 of what the plan removes, as hex: equal for equal prunings."""
        content = [self.removed, {n: {str(d): v for d, v in c.items()} for n, c in self.cuts.items()}, self.sizes]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    # -- words ---------------------------------------------------------------------------------------------------------

    def table(self) -> "Table":
        """A rich table by layer: channels before and after, a bar, what floors and ties held back."""
        from slim.report import plan_table

        return plan_table(self)

    def summary(self) -> str:
        """One line: channels, parameters and FLOPs, before and after."""
        said = []
        for kind, (before, after) in self.totals.items():
            said.append(f"{kind} {before:,} → {after:,} ({1 - after / max(before, 1):.1%} fewer)")
        if self.timing:
            said.append("measured {original_ms:.3g} → {ms:.3g} ms ({share:.1%} of it; {runtime})".format(**self.timing))
        return "; ".join(said)

    def __str__(self) -> str:
        from slim.report import render

        lines = [render(self.table()), self.summary()]
        if self.shortfall:
            lines.append(self.shortfall)
        return "\n".join(lines)


# -- from a trace to groups --------------------------------------------------------------------------------------------


class Vectors:
    """Many vectors of labels as one array, to count in all of them at once."""

    def __init__(self, vectors: Sequence[NDArray[np.int64]]) -> None:
        self.starts = np.cumsum([0] + [len(v) for v in vectors])
        self.all = np.concatenate([*vectors, np.zeros(0, np.int64)])

    def __getitem__(self, index: int | np.integer[Any]) -> NDArray[np.int64]:
        return self.all[self.starts[index] : self.starts[index + 1]]

    def where(self, true: Bools) -> Iterator[NDArray[np.int64]]:
        """In each vector, the places of the labels for which `true` (over all labels) holds."""
        found = np.flatnonzero(true[self.all])
        ends = np.searchsorted(found, self.starts)
        for start, low, high in zip(self.starts, ends, ends[1:]):
            yield found[low:high] - start

    def count(self, true: Bools) -> NDArray[np.int64]:
        """In each vector, the number of labels for which `true` (over all labels) holds."""
        return np.diff(np.r_[0, np.cumsum(true[self.all])][self.starts])


class Groups:
    """The groups of a traced model that hold a γ, in arrays: one entry per group.

    `roots` are their labels, `score` and `size` (number of γ) follow; `member` and `layer` list which group sits in
    which BatchNorm, once for each channel. A *pattern* is a set of layers that groups share: groups of one pattern are
    interchangeable but for their score.
    """

    def __init__(self, traced: Trace, gammas: Mapping[str, Floats], score: Score) -> None:
        self.traced = traced
        self.names = list(traced.norms)
        classes = traced.classes
        self.root_of = classes.roots(np.arange(len(classes)))
        self.vectors = Vectors([labels for dims in traced.labels.values() for labels in dims.values()])
        labels = np.concatenate([traced.norms[n] for n in self.names])
        self.layer = np.repeat(np.arange(len(self.names)), [len(traced.norms[n]) for n in self.names])
        self.widths = np.bincount(self.layer)
        gamma = np.concatenate([gammas[n] for n in self.names])
        self.roots, self.member = np.unique(classes.roots(labels), return_inverse=True)
        self.size = np.bincount(self.member)
        total = np.bincount(self.member, weights=gamma)
        self.score: Floats = (total if score == "sum" else total / self.size).astype(np.float64)
        if score == "max":
            np.maximum.at(self.score, self.member, gamma)
        self.frozen = classes.frozen(self.roots)
        salt = np.random.default_rng(0).integers(1, 2**62, len(self.names))
        signature = np.zeros(len(self.roots), np.int64)
        np.add.at(signature, self.member, salt[self.layer])
        signature[self.frozen] = 0
        _, self.pattern = np.unique(signature, return_inverse=True)
        # rank of each group within its pattern, best first; equal scores by label, so that plans don't depend on luck
        order = np.lexsort((self.roots, -self.score, self.pattern))
        self.rank = np.empty(len(order), np.int64)
        starts = np.r_[0, np.cumsum(np.bincount(self.pattern))]
        self.rank[order] = np.arange(len(order)) - starts[self.pattern[order]]
        self.pattern_size = np.bincount(self.pattern)
        # channels that one group of a pattern holds in one layer (2 where halves are tied)
        pairs, count = np.unique(self.member * len(self.names) + self.layer, return_counts=True)
        self.multiple = np.ones(len(self.pattern_size), np.int64)
        np.maximum.at(self.multiple, self.pattern[pairs // len(self.names)], count)

    def protected(self, floors: Sequence[int], members: Sequence[NDArray[np.int64]] = ()) -> Bools:
        """The groups that stay whatever the budget: each layer's best, the floor's worth, and the best of `members`."""
        safe = self.frozen.copy()
        order = np.lexsort((self.roots[self.member], -self.score[self.member], self.layer))
        place = np.arange(len(order)) - np.r_[0, np.cumsum(self.widths)][self.layer[order]]
        safe[self.member[order][place < np.asarray(floors)[self.layer[order]]]] = True
        for some in members:
            safe[some[np.lexsort((self.roots[some], -self.score[some]))[:1]]] = True
        return safe

    def emptied(self, gone: Bools) -> list[NDArray[np.int64]]:
        """Dimensions of tensors (part of a layer, say) that would lose all of their channels: the groups in each."""
        lost = np.full(len(self.traced.classes), -1)
        lost[self.roots[gone]] = np.flatnonzero(gone)
        found = {}
        for index in np.flatnonzero(self.vectors.count(lost[self.root_of] < 0) == 0):
            groups = lost[self.root_of[self.vectors[index]]]
            found[groups.tobytes()] = groups
        return list(found.values())


@dataclass
class Rules:
    """How channels are chosen, apart from how many."""

    floor: float = 0.1
    floor_count: int = 1
    round_to: int = 1  # or, with a cost model, whole steps of what it measured
    scope: Literal["global", "layer"] = "global"
    latency: "LatencyModel | None" = None
    by_flops: bool = False  # with a cost model: a budget of FLOPs, whose time is to shrink as they do


def _choose(groups: Groups, safe: Bools, rules: Rules, fixed: NDArray[np.int64]) -> tuple[int, Callable[[int], Bools]]:
    """How many steps there are, and for a number of steps which groups go.

    One step is one more group below the global threshold. `fixed[pattern]` is a number of groups to keep that the
    user set for the pattern's layers, or -1.
    """
    score = groups.score
    if rules.scope == "layer":  # every layer loses the same share
        score = (groups.pattern_size[groups.pattern] - groups.rank) / groups.pattern_size[groups.pattern]
    free = ~safe & (fixed[groups.pattern] < 0)
    order = np.flatnonzero(free)
    order = order[np.lexsort((groups.roots[order], score[order]))]
    if rules.latency is not None:
        return _by_value_for_cost(groups, safe, rules, fixed, score)
    unit = np.array([rules.round_to // math.gcd(rules.round_to, int(m)) for m in groups.multiple])
    least = np.bincount(groups.pattern, weights=safe).astype(np.int64)

    def gone(steps: int) -> Bools:
        taken = np.bincount(groups.pattern[order[:steps]], minlength=len(groups.pattern_size))
        keep = groups.pattern_size - taken
        keep = np.where(fixed >= 0, np.maximum(fixed, least), keep)
        if rules.round_to > 1:
            down = keep // unit * unit
            up = np.minimum(down + unit, groups.pattern_size)
            nearest = np.where((keep - down <= up - keep) & (down >= np.maximum(least, 1)), down, up)
            keep = np.where(keep % unit == 0, keep, nearest)
        out: Bools = (groups.rank >= keep[groups.pattern]) & ~safe
        return out

    return len(order), gone


def _by_value_for_cost(
    groups: Groups, safe: Bools, rules: Rules, fixed: NDArray[np.int64], score: Floats
) -> tuple[int, Callable[[int], Bools]]:
    """As `_choose`; one step is one step of the staircase of one pattern, in the order of value lost for time saved."""
    from slim.runtime.knapsack import by_value_for_cost, terms_of

    assert rules.latency is not None
    least = np.bincount(groups.pattern, weights=safe).astype(np.int64)
    start = np.where(fixed >= 0, np.maximum(fixed, least), groups.pattern_size)
    best_first = np.lexsort((groups.rank, groups.pattern))
    value = score if rules.by_flops else score * groups.size
    values = np.split(value[best_first], np.cumsum(groups.pattern_size)[:-1])
    worth = [np.r_[0.0, np.cumsum(each)] for each in values]
    terms, steps = terms_of(rules.latency, groups.traced.classes, groups.roots, groups.pattern, groups.pattern_size)
    order = by_value_for_cost(
        worth, start.tolist(), np.where(fixed >= 0, start, least).tolist(), steps, terms, rules.by_flops
    )

    def gone(taken: int) -> Bools:
        keep = start.copy()
        for pattern, left in order[:taken]:
            keep[pattern] = left
        out: Bools = (groups.rank >= keep[groups.pattern]) & ~safe
        return out

    return len(order), gone


# -- the plan ----------------------------------------------------------------------------------------------------------


def plan(
    model: nn.Module,
    example_inputs: Any,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    floor: float = 0.1,
    floor_count: int = 1,
    score: Score = "mean",
    scope: Literal["global", "layer"] = "global",
    mode: Literal["couple", "select"] = "couple",
    grouped: Literal["within", "whole"] = "within",
    round_to: int | Literal["auto"] = 1,
    latency: float | str | None = None,
    runtime: Runtime | None = None,
    keep: Sequence[str] | None = None,
    layer_ratios: Mapping[str, float] | None = None,
    images: Any = None,
) -> PruningPlan:
    """Plan which channels of `model` to remove. The model is left as it is.

    `example_inputs`: a tensor, a tuple or a dict of what `forward` takes.
    One budget: `ratio`, the share of all BatchNorm channels to remove, in [0, 1) (default 0.5); `flops` or `params`,
    what may stay of them: a share in (0, 1], or an absolute number above 1.
    `floor`: share of each layer's channels that always stays, at least `floor_count`.
    `score`: how a group's score follows from its |γ|; or "residual": not from γ, but from what the layers that read a
    channel miss once the others stand in for it (see `slim.scoring`), which needs `images`, a few hundred of training.
    `scope`: "global" ranks all channels together, as in the paper; "layer" takes the same share of each layer.
    `mode`: for BatchNorm before convolution, "couple" removes a channel of the shared stream when every reader drops
    it, "select" lets each reader choose its own channels through an index, as in the paper.
    `grouped`: a grouped convolution loses the same places "within" each of its groups, or "whole" groups, with all that
    they read and make.
    `round_to`: keep a multiple of this many channels in each layer, never none; "auto": what suits `runtime`.
    `latency`: a budget measured in onnxruntime, a share of the original's or a time such as "4.0ms" (or a number with
    its unit), on `runtime` (`slim.Runtime`; default: the best provider, all cores, batch 1). Channels go by the value
    |γ| that is lost for the time saved, in whole steps of what numbers of channels cost there; the thin network is
    exported, measured against the original, and the plan corrected until it meets the budget within 3 %. With
    round_to="auto" channels go in the same way until another budget is met, and whole networks aren't measured; under
    a budget of FLOPs, |γ| counts times the FLOPs, so that time shrinks as they do.
    `keep`: shell patterns of BatchNorms to leave whole. `layer_ratios`: pattern -> share to remove there.

    Raises SlimError for a value out of range, a model without BatchNorm, or a request that can remove nothing.
    """
    requested = _requested(ratio, flops, params, latency)
    if latency is not None and round_to not in (1, "auto"):
        raise SlimError(f"round_to {round_to!r}: expected 1 or auto with a latency, which chooses sizes by their cost")
    unit = 1 if round_to == "auto" else round_to
    numbers = (("floor", floor, 0, 1), ("floor_count", floor_count, 1, 10**9), ("round_to", unit, 1, 4096))
    for name, value, low, high in numbers:
        if not low <= _number(name, value) <= high:
            raise SlimError(f"{name} {value!r} is out of range: expected {low} to {high}")
    for name, choice, choices in (
        ("score", score, get_args(Score)),
        ("scope", scope, ("global", "layer")),
        ("mode", mode, ("couple", "select")),
        ("grouped", grouped, ("within", "whole")),
    ):
        if choice not in choices:
            raise SlimError(f"unknown {name} {choice!r}: expected one of {', '.join(choices)}")
    traced = trace(model, example_inputs, select=mode == "select", whole_groups=grouped == "whole")
    if not traced.norms:
        raise SlimError("nothing to prune: the network has no BatchNorm with a scale γ that forward uses")
    _freeze_kept(traced, keep or ())
    gammas = _gammas(model, traced)
    if score == "residual":
        if images is None:
            raise SlimError('score "residual" needs images: expected a batch of training images')
        gammas = residual_scores(model, traced, images)
    rules = Rules(floor, floor_count, unit, scope)
    stored: dict[str, Counted] = dict(traced.group_counts)
    refused: set[str] = set()

    def planned(requested: dict[str, float]) -> PruningPlan:
        for _ in range(100):
            made, kept = _plan(traced, gammas, requested, rules, score, layer_ratios or {})
            misfit = _follow_stored_sizes(traced, made, kept, stored, refused)
            if misfit is None:
                return made
            if traced.add_inference():  # the two modes run different code: both have their say
                continue
            if not len(misfit.labels):
                break
            traced.classes.freeze(misfit.labels, misfit.reason)
        raise SlimError(f"no plan found that this model's forward code can run: {misfit.reason if misfit else ''}")

    if round_to == "auto" or latency is not None:
        from slim.runtime.model import latency_model  # only a plan for a runtime needs onnxruntime

        rules.latency = latency_model(traced, runtime or Runtime())
        rules.by_flops = flops is not None
    if rules.latency is None or latency is None:
        return planned(requested)
    from slim.runtime.measure import keep_latency

    return keep_latency(model, example_inputs, requested, rules.latency, lambda share: planned({"latency": share}))


def _follow_stored_sizes(
    traced: Trace, made: PruningPlan, kept: Bools, stored: dict[str, Counted], refused: set[str]
) -> Misfit | None:
    """What keeps the thin network from running, once sizes that modules store follow their channels.

    Where an attribute holds a size that an operator was given, it is tried with the thin size, alone or with the others
    of its module; what brings the network further is kept in `stored`, what doesn't goes into `refused`.
    """

    def check() -> Misfit | None:
        return find_misfit(traced, lambda bones: thinned(bones, made.change), kept)

    made.sizes = {name: count(counted, kept) for name, counted in stored.items()}
    misfit = check()
    while misfit is not None:
        stale = {
            name: counted
            for name, counted in misfit.stored.items()
            if name not in stored and name not in refused and count(counted, kept) != count(counted, np.ones_like(kept))
        }
        modules = {name.rpartition(".")[0] for name in stale}
        together = [[name for name in stale if name.rpartition(".")[0] == module] for module in modules]
        for names in [[name] for name in stale] + [names for names in together if len(names) > 1]:
            tried = {name: stale[name] for name in names}
            made.sizes |= {name: count(counted, kept) for name, counted in tried.items()}
            after = check()
            if after is None or after.step > misfit.step:
                stored |= tried
                misfit = after
                break
            made.sizes = {name: size for name, size in made.sizes.items() if name not in tried}
        else:
            refused |= stale.keys()
            return misfit
    return None


def _requested(
    ratio: float | None, flops: float | None, params: float | None, latency: float | str | None
) -> dict[str, float]:
    given: dict[str, float] = {
        k: v for k, v in (("ratio", ratio), ("flops", flops), ("params", params)) if v is not None
    }
    if latency is not None:
        given |= read_latency(latency)
    if len(given) > 1:
        raise SlimError(f"one budget at a time: got {' and '.join(given)}")
    if not given:
        given = {"ratio": 0.5}
    kind, value = next(iter(given.items()))
    _number(kind, value)
    if kind == "ratio" and not 0 <= value < 1:
        raise SlimError(f"ratio {value!r} is out of range: expected 0 <= ratio < 1")
    if kind != "ratio" and not value > 0:
        raise SlimError(f"{kind} {value!r} is out of range: expected a share above 0, up to 1, or an absolute number")
    return given


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise SlimError(f"{name} {value!r} is not a number: expected one")
    return value


def _gammas(model: nn.Module, traced: Trace) -> dict[str, Floats]:
    named = dict(named_tensors(model))
    gammas = {}
    for name in traced.norms:
        gamma = named[f"{name}.weight"].detach().abs().double().cpu().numpy()
        if not np.isfinite(gamma).all():
            raise SlimError(f"γ of {name} has values that aren't finite: expected numbers")
        gammas[name] = gamma
    return gammas


def _freeze_kept(traced: Trace, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for bn in _matching(list(traced.norms), pattern, "keep"):
            traced.classes.freeze(traced.norms[bn], "kept on request")


def _matching(names: Sequence[str], pattern: str, setting: str) -> list[str]:
    """The BatchNorms that a shell pattern of a setting means."""
    found = [name for name in names if fnmatch(name, pattern)]
    if not found:
        raise SlimError(f"{setting} {pattern!r} matches no BatchNorm: expected a name such as {names[0]!r}")
    return found


def _plan(
    traced: Trace,
    gammas: Mapping[str, Floats],
    requested: dict[str, float],
    rules: Rules,
    score: Score,
    layer_ratios: Mapping[str, float],
) -> tuple[PruningPlan, Bools]:
    groups = Groups(traced, gammas, score)
    floors = [min(int(n), max(1, rules.floor_count, math.ceil(rules.floor * n - 1e-9))) for n in groups.widths]
    fixed = _fixed(groups, layer_ratios)
    costs = Costs(traced, groups, rules.latency)
    kind, asked = next(iter(requested.items()))
    whole = costs.of("channels" if kind == "ratio" else kind, np.zeros(len(groups.roots), bool))
    budget = asked * whole if kind == "ratio" or asked <= 1 else asked
    members: list[NDArray[np.int64]] = []
    while True:
        safe = groups.protected(floors, members)
        steps, gone = _choose(groups, safe, rules, fixed)
        taken = _steps_within(budget, kind, steps, gone, costs)
        out = gone(taken)
        emptied = groups.emptied(out)
        if not emptied:
            break
        members += emptied
    if not out.any() and not (kind == "ratio" and asked == 0) and not (kind != "ratio" and budget >= whole):
        raise SlimError(_nothing(groups, requested, safe, steps))
    return _write(traced, groups, costs, out, safe, requested, taken == steps), costs.kept(out)


def _steps_within(budget: float, kind: str, steps: int, gone: Callable[[int], Bools], costs: "Costs") -> int:
    """How many steps to take: as many as the ratio allows, or as few as bring the cost within the budget."""
    if kind == "ratio":
        return _last(steps, lambda k: costs.channels(gone(k)) <= budget + 1e-9)
    over = _last(steps, lambda k: costs.of(kind, gone(k)) > budget)
    return min(steps, over + 1) if costs.of(kind, gone(over)) > budget else over


def _last(steps: int, holds: Callable[[int], bool]) -> int:
    """The largest number of steps at which `holds`, which is true up to there and false after."""
    low, high = 0, steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _fixed(groups: Groups, layer_ratios: Mapping[str, float]) -> NDArray[np.int64]:
    """For each pattern the number of groups to keep that `layer_ratios` sets, or -1."""
    fixed = np.full(len(groups.pattern_size), -1, np.int64)
    for pattern, share in layer_ratios.items():
        layers = [groups.names.index(name) for name in _matching(groups.names, pattern, "layer_ratios")]
        if not 0 <= _number(f"layer_ratios {pattern!r}", share) < 1:
            raise SlimError(f"layer_ratios {pattern!r}: {share!r} is out of range: expected 0 <= ratio < 1")
        touched = np.unique(groups.pattern[groups.member[np.isin(groups.layer, layers)]])
        fixed[touched] = groups.pattern_size[touched] - np.floor(share * groups.pattern_size[touched] + 1e-9)
    return fixed


class Costs:
    """What a choice of groups costs, without rebuilding anything: sums of products of numbers of channels."""

    def __init__(self, traced: Trace, groups: Groups, latency: "LatencyModel | None" = None) -> None:
        self.groups = groups
        params = [(1, _dims_of(traced, name)) for name in traced.parameters]
        flops = [(2 * product.positions, [_labels_of(dim) for dim in product.dims]) for product in traced.products]
        self.sums: dict[str, Callable[[Bools], float]] = {
            "params": _SumOfProducts(params),
            "flops": _SumOfProducts(flops),
        }
        if latency is not None:
            self.sums["latency"] = latency.of

    def kept(self, gone: Bools) -> Bools:
        """For every label, whether it stays."""
        lost = np.zeros(len(self.groups.root_of), bool)
        lost[self.groups.roots[gone]] = True
        out: Bools = ~lost[self.groups.root_of]
        return out

    def channels(self, gone: Bools) -> int:
        """BatchNorm channels removed."""
        return int(self.groups.size[gone].sum())

    def of(self, kind: str, gone: Bools) -> float:
        """What stays of `kind`: channels, params, flops, or the latency in milliseconds that the model foretells."""
        if kind == "channels":
            return len(self.groups.member) - self.channels(gone)
        return self.sums[kind](self.kept(gone))


Dims = Sequence[int | NDArray[np.int64]]  # of each dimension its fixed size, or the labels along it


def _dims_of(traced: Trace, name: str) -> Dims:
    labels = traced.labels.get(name, {})
    return [labels.get(d, n) for d, n in enumerate(traced.shapes[name])]


def _labels_of(dim: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
    return dim if isinstance(dim, int) else dim >> 1


class _SumOfProducts:
    """Σ factor × Π (what stays along each dimension)."""

    def __init__(self, terms: Sequence[tuple[int, Dims]]) -> None:
        vectors = [(t, dim) for t, (_, dims) in enumerate(terms) for dim in dims if not isinstance(dim, int)]
        self.vectors = Vectors([labels for _, labels in vectors])
        self.term = np.array([t for t, _ in vectors], np.int64)
        self.fixed = [factor * math.prod(d for d in dims if isinstance(d, int)) for factor, dims in terms]

    def __call__(self, kept: Bools) -> int:
        value = np.array(self.fixed, np.int64)
        np.multiply.at(value, self.term, self.vectors.count(kept))
        return int(value.sum())


def _nothing(groups: Groups, requested: dict[str, float], safe: Bools, steps: int) -> str:
    kind, asked = next(iter(requested.items()))
    free = ~groups.frozen
    why = "every group of channels would empty a layer" if free.any() else "all channels are frozen"
    if (~safe).any():
        smallest = int(groups.size[~safe].min())
        why = f"the smallest group that may go holds {smallest} of {len(groups.member)} BatchNorm channels"
        why = why if steps else "no layer has a whole step of channels to spare on this runtime"
    elif not free.any():
        reasons = {groups.traced.classes.reason(int(r)) for r in groups.roots}
        why += f" ({'; '.join(sorted(r for r in reasons if r)[:3])})"
    return f"{kind} {asked:g} would remove nothing: {why}"


def _write(
    traced: Trace,
    groups: Groups,
    costs: Costs,
    out: Bools,
    safe: Bools,
    requested: dict[str, float],
    exhausted: bool,
) -> PruningPlan:
    kept = costs.kept(out)
    removed = {}
    layers = []
    frozen: dict[str, dict[str, int]] = {}
    threshold = groups.score[out].max() if out.any() else -1.0
    held = safe & ~groups.frozen & (groups.score <= threshold)
    for name, members in zip(groups.names, np.split(groups.member, np.cumsum(groups.widths)[:-1])):
        indices = np.flatnonzero(out[members]).tolist()
        if indices:
            removed[name] = indices
        stuck = groups.frozen[members]
        layers.append(
            Layer(name, len(members), len(members) - len(indices), int(held[members].sum()), int(stuck.sum()))
        )
        for group in np.unique(members[stuck]):
            reason = traced.classes.reason(int(groups.roots[group])) or "fixed size"
            where = frozen.setdefault(reason, {})
            where[name] = where.get(name, 0) + int((members == group).sum())
    cuts: dict[str, dict[int, list[int]]] = {}
    known: dict[bytes, list[int]] = {}  # many tensors lose the same channels: one list for all of them
    places = ((name, dim) for name, dims in traced.labels.items() for dim in dims)
    for (name, dim), gone in zip(places, groups.vectors.where(~kept)):
        if len(gone):
            cuts.setdefault(name, {})[dim] = known.setdefault(gone.tobytes(), gone.tolist())
    nothing = np.zeros_like(out)
    totals = {
        kind: (int(costs.of(kind, nothing)), int(costs.of(kind, out))) for kind in ("channels", "params", "flops")
    }
    kind, asked = next(iter(requested.items()))
    before, after = (costs.of("channels" if kind == "ratio" else kind, state) for state in (nothing, out))
    achieved = 1 - after / before if kind == "ratio" else after / before if asked <= 1 else float(after)
    return PruningPlan(
        requested=requested,
        achieved={kind: achieved},
        removed=removed,
        cuts=cuts,
        shapes={name: list(traced.shapes[name]) for name in cuts},
        selects=sorted(traced.selecting & removed.keys()),
        totals=totals,
        layers=layers,
        frozen=frozen,
        shortfall=_shortfall(kind, asked, achieved, layers, frozen, exhausted),
    )


def _shortfall(
    kind: str, asked: float, got: float, layers: list[Layer], frozen: Mapping[str, Mapping[str, int]], exhausted: bool
) -> str:
    missed = asked - got if kind == "ratio" else got / asked - 1
    if missed <= 0.01:
        return ""
    floors = sum(layer.floor for layer in layers)
    why = [] if exhausted else ["the next group of channels is too large"]
    why += [f"floors and ties hold {floors} channels"] if floors and exhausted else []
    why += [f"{sum(where.values())} channels are frozen ({reason})" for reason, where in frozen.items()]
    return f"asked for {kind} {asked:g}, reached {got:.4g}: {'; '.join(why)}"


def explain(model: nn.Module, example_inputs: Any) -> str:
    """The groups of a model: which BatchNorms stand or fall together, and what is frozen and why. One line each."""
    traced = trace(model, example_inputs)
    if not traced.norms:
        return "no BatchNorm with a scale γ that forward uses"
    groups = Groups(traced, {n: np.ones(len(v)) for n, v in traced.norms.items()}, "mean")
    lines = []
    for pattern, size in enumerate(groups.pattern_size):
        mine = groups.pattern == pattern
        names = [groups.names[i] for i in np.unique(groups.layer[mine[groups.member]])]
        if groups.frozen[mine].all():
            for root in np.unique(groups.roots[mine])[:1]:
                lines.append(f"frozen: {int(size)} groups in {', '.join(names)}: {traced.classes.reason(int(root))}")
        else:
            lines.append(f"{int(size)} groups: {', '.join(names)}")
    return "\n".join(lines)
