"""What each group of layers is worth: the metric, or the distance to the original, against the share removed."""

import hashlib
import html
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from slim.errors import NothingToPrune, SlimError
from slim.files import replacing
from slim.progress import progress
from slim.prune.auto import Auto, choose_score
from slim.prune.budgets import Ratio
from slim.prune.calibration import drawn, part
from slim.prune.choosing import Ints
from slim.prune.groups import Groups
from slim.prune.loss import as_number
from slim.prune.plan import PruningPlan
from slim.prune.planner import Planner
from slim.prune.recovery.distance import Measure, distance
from slim.prune.recovery.recover import LEAST_IMAGES, recover
from slim.prune.rules import Rules
from slim.prune.scores import ranked
from slim.tables import FittingTable, Shown, render
from slim.trace.copy import all_tensors
from slim.trace.intercept import evaluating
from slim.trace.traced import trace

FORMAT = "slim-sensitivity"


@dataclass
class Sensitive:
    """A group of layers whose channels are coupled. `pruned` and `recovered` give, for each share of its channels
    removed, what was measured right after and with recovery; NaN where that share would remove nothing."""

    layers: list[str]
    channels: int
    pruned: list[float] = field(default_factory=list)
    recovered: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return the first layer, and how many go with it."""
        return self.layers[0] + (f" + {len(self.layers) - 1}" if len(self.layers) > 1 else "")


@dataclass(repr=False)
class Sensitivity(Shown):
    """What `sensitivity` gives: `groups`, in the order of the network, for the `shares` of their channels that went.

    `measure` is "metric" (what `evaluate` returned) or "distance" (to the original's outputs on held-out images);
    `baseline` that of the unpruned network. `complete` is False where the time limit came first: with a file the same
    call goes on. `print` shows a table; notebooks show one in colours.
    """

    measure: str
    baseline: float
    shares: list[float]
    groups: list[Sensitive]
    larger_is_better: bool = True
    complete: bool = True
    of: str = ""  # hash of the network

    def lost(self, value: float) -> float:
        """Return how much worse a value is than the baseline."""
        return self.baseline - value if self.larger_is_better else value - self.baseline

    def table(self) -> FittingTable:
        """Lay out the groups: what was measured at each share, right after and with recovery."""
        table = FittingTable(f"{self.measure} by share of a group's channels removed; unpruned {self.baseline:.4g}")
        table.add_column("layers", overflow="fold")
        table.add_column("channels", justify="right")
        for share in self.shares:
            table.add_column(f"−{share:.0%}", justify="right", no_wrap=True)
        for group in self.groups:
            table.add_row(group.name, f"{group.channels:,}", *self._cells(group))
        return table

    def _cells(self, group: Sensitive) -> Iterator[str]:
        for i in range(len(self.shares)):
            if i >= len(group.pruned):
                yield "…"
            elif math.isnan(group.pruned[i]):
                yield "–"
            else:
                after = f" → {group.recovered[i]:.4g}" if i < len(group.recovered) else ""
                yield f"{group.pruned[i]:.4g}{after}"

    def headline(self) -> str:
        """Return one line: what was measured, on how much of the network."""
        return f"{self.measure} of {len(self.groups)} groups of layers, each with {len(self.shares)} shares removed"

    def __str__(self) -> str:
        lines = [render(self.table(), 100)]
        if any(group.recovered for group in self.groups):
            lines.append("right after pruning → recovered")
        return "\n".join(lines + ([] if self.complete else ["… not measured yet: the time limit came first"]))

    def _repr_html_(self) -> str:
        """Return the table as HTML, redder where more is lost."""
        worst = max((self.lost(v) for g in self.groups for v in g.recovered or g.pruned if v == v), default=0.0)
        rows = []
        for group in self.groups:
            cells = [f"<th>{html.escape(group.name)}</th><td>{group.channels:,}</td>"]
            for i, text in enumerate(self._cells(group)):
                last = (group.recovered or group.pruned)[i : i + 1]
                share = max(0.0, self.lost(last[0])) / worst if last and last[0] == last[0] and worst > 0 else 0.0
                cells.append(f'<td style="background: rgba(214, 69, 65, {share:.2f})">{text}</td>')
            rows.append(f"<tr>{''.join(cells)}</tr>")
        head = "".join(f"<th>{name}</th>" for name in ("layers", "channels", *(f"−{s:.0%}" for s in self.shares)))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it; NaN is null."""
        record = {"format": FORMAT, **asdict(self)}
        for group in record["groups"]:
            for key in ("pruned", "recovered"):
                group[key] = [None if math.isnan(value) else value for value in group[key]]
        return record

    @classmethod
    def from_dict(cls, record: Any) -> "Sensitivity":
        """Return what `to_dict` gave. Raises SlimError where it isn't that."""
        try:
            if record["format"] != FORMAT:
                raise ValueError(record["format"])
            groups = [
                Sensitive(
                    [str(name) for name in group["layers"]],
                    int(group["channels"]),
                    *([math.nan if v is None else float(v) for v in group[key]] for key in ("pruned", "recovered")),
                )
                for group in record["groups"]
            ]
            shares = [float(share) for share in record["shares"]]
            flags = bool(record["larger_is_better"]), bool(record["complete"])
            return cls(str(record["measure"]), float(record["baseline"]), shares, groups, *flags, str(record["of"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SlimError(f"not a table of sensitivity: expected what Sensitivity.to_dict gives ({error})") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sensitivity":
        """Read what `save` wrote. Raises SlimError where the file is missing or holds something else."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except OSError as error:
            raise SlimError(f"can't read {os.fspath(path)!r}: {error.strerror}") from error
        except ValueError as error:
            raise SlimError(f"{os.fspath(path)!r} isn't a table of sensitivity: expected JSON ({error})") from error


def sensitivity(
    model: nn.Module,
    example_inputs: Any,
    evaluate: Callable[[nn.Module], float] | None = None,
    *,
    images: Any = None,
    shares: Sequence[float] = (0.25, 0.5, 0.75),
    score: Any = None,
    measure: Measure = "auto",
    larger_is_better: bool = True,
    time_limit: float = math.inf,
    file: str | os.PathLike[str] | None = None,
) -> Sensitivity:
    """Measure what each group of layers is worth: prune it alone, by each of `shares`, and look what is lost.

        print(slim.sensitivity(model, x, evaluate, images=images))

    `evaluate(network)`: returns the metric, larger where better unless `larger_is_better` is False. Without it, the
    distance of the outputs to the original's is measured, on a quarter of the images, by `measure` (see
    `slim.recover`).
    `images`: as `slim.recover` takes them: each thin network is measured once more after recovery. None: as pruned.
    `score`: which channels of a group go first: see `slim.plan` (default `slim.Auto(images)`).
    `time_limit`: seconds after which no other group is begun. `file`: where the table is kept while it grows; a call
    with the same network and shares goes on from there.

    The network is left as it is. Raises SlimError where there are neither `evaluate` nor images, for shares that aren't
    between 0 and 1, and where the file is of another network.
    """
    if evaluate is None and images is None:
        raise SlimError("nothing to measure: expected evaluate, or images to compare outputs on")
    if not (evaluate is None or callable(evaluate)):
        raise SlimError(f"evaluate is of type {type(evaluate).__name__}: expected a function of a network")
    if not shares or not all(isinstance(s, float) and 0 < s < 1 for s in shares):
        raise SlimError(f"shares {list(shares)}: expected shares of a group's channels between 0 and 1")
    deadline = time.monotonic() + time_limit
    calibration, evaluate, kind = _measured(model, evaluate, images, measure)
    better = larger_is_better and kind == "metric"
    planner = _OneGroup(model, example_inputs, Auto(images) if score is None else score)
    found = Sensitivity(
        kind, as_number(evaluate(model)), list(shares), planner.listed(), better, False, _hash_of(model)
    )
    found = _resumed(found, file)
    with progress("measuring sensitivity", sum(len(shares) - len(group.pruned) for group in found.groups)) as advance:
        for group in found.groups:
            for share in found.shares[len(group.pruned) :]:
                if time.monotonic() > deadline:
                    return found
                _measure(group, planner.plan_of(group, share), model, calibration, evaluate, measure)
                advance(1)
                if file is not None:
                    found.save(file)
    found.complete = True
    if file is not None:
        found.save(file)
    return found


Evaluate = Callable[[nn.Module], float]


def _measured(model: nn.Module, evaluate: Evaluate | None, images: Any, measure: Measure) -> tuple[Any, Evaluate, str]:
    """Return the images to recover on, what measures a network, and what that is."""
    if images is None or evaluate is not None:
        assert evaluate is not None
        return images, evaluate, "metric"
    images, count = drawn(images, 2 * LEAST_IMAGES, "sensitivity")
    held_out = count // 4
    device = next(model.parameters()).device
    test = part(images, slice(held_out), device)

    def apart(network: nn.Module) -> float:
        with evaluating(model), evaluating(network):
            return distance(model, network, test, measure).distance

    return part(images, slice(held_out, None)), apart, "distance"


def _measure(
    group: Sensitive, plan: PruningPlan | None, model: nn.Module, images: Any, evaluate: Evaluate, measure: Measure
) -> None:
    """Add to a group what its plan loses, right after and with recovery."""
    if plan is None:
        group.pruned.append(math.nan)
        if images is not None:
            group.recovered.append(math.nan)
        return
    thin = plan.apply(model)
    group.pruned.append(as_number(evaluate(thin)))
    if images is not None:
        group.recovered.append(as_number(evaluate(recover(model, thin, plan, images, distance=measure).model)))


def _resumed(new: Sensitivity, file: str | os.PathLike[str] | None) -> Sensitivity:
    """Return what the file holds of the same measurement, where there is one. Raises SlimError where it is another."""
    if file is None or not Path(file).exists():
        return new
    old = Sensitivity.load(file)
    for key in ("of", "measure", "shares"):
        if getattr(old, key) != getattr(new, key):
            what = "network" if key == "of" else key
            raise SlimError(f"{os.fspath(file)!r} holds the sensitivity of another {what}: expected another file")
    if [group.layers for group in old.groups] != [group.layers for group in new.groups]:
        raise SlimError(f"{os.fspath(file)!r} holds other groups of layers: expected another file")
    return replace(old, complete=False)


def _hash_of(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in all_tensors(model):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous()
    return flat.double().numpy().tobytes() if flat.is_floating_point() else flat.numpy().tobytes()


class _OneGroup(Planner):
    """Plans that prune one group of layers alone."""

    def __init__(self, model: nn.Module, example_inputs: Any, score: Any) -> None:
        traced = trace(model, example_inputs)
        chosen, _ = choose_score(score, model, traced)
        super().__init__(model, example_inputs, traced, chosen, Rules(floor=1, round_to=1))
        self.wanted: tuple[list[str], float] | None = None
        self.within(Ratio(0.5))  # what forward code can't do freezes or couples channels: the groups are what is left

    def listed(self) -> list[Sensitive]:
        """Return the groups whose channels can go, in the order of the network."""
        groups = Groups(self.traced, self.model, self.widths, ranked(self.score, self.traced))
        found: dict[int, Sensitive] = {}
        for layer, name in enumerate(groups.names):
            mine = groups.member[groups.layer == layer]
            for pattern in dict.fromkeys(groups.pattern[mine[~groups.frozen[mine]]].tolist()):
                found.setdefault(pattern, Sensitive([], int(groups.pattern_size[pattern]))).layers.append(name)
        return list(found.values())

    def plan_of(self, group: Sensitive, share: float) -> PruningPlan | None:
        """Return the plan that removes the share of this group's channels, None where that is none of them."""
        self.wanted = group.layers, share
        try:
            made, _ = self.within(Ratio(0.0))
        except NothingToPrune:
            return None
        return made if made.removed else None

    def fixed(self, groups: Groups) -> Ints:
        if self.wanted is None:
            return super().fixed(groups)
        layers, share = self.wanted
        sizes = groups.pattern_size.copy()
        for pattern, size in enumerate(groups.pattern_size):
            of = np.unique(groups.layer[groups.pattern[groups.member] == pattern])
            if {groups.names[i] for i in of} == set(layers) and not groups.frozen[groups.pattern == pattern].any():
                sizes[pattern] = size - math.floor(share * size + 1e-9)
        return sizes
