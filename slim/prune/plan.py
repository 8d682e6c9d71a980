"""What to remove from a model, as data: applied, saved, printed."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slim.errors import SlimError, check_type
from slim.files import read_text, replacing
from slim.prune.migrate import migrate_optimizer, replacements
from slim.prune.plan_format import FORMAT, VERSION, check_record, hash_of
from slim.prune.rebuild import Change, rebuild
from slim.tables import FittingTable, Shown, render
from slim.trace.copy import named_modules, named_tensors

BAR = 20  # characters for a whole layer


@dataclass
class PlannedLayer:
    """One layer of the plan: its channels before and after, and how many the floor kept or couldn't be pruned."""

    name: str
    before: int
    after: int
    floor: int  # channels below the global threshold that stayed because of the floor
    frozen: int  # channels that can't be removed safely; the plan's `frozen` says why


@dataclass(repr=False)
class PruningPlan(Shown):
    """What to remove from a model; plain data that goes through JSON and back.

    `removed` maps each layer that makes channels which go, a BatchNorm say, to these (indices of the original model).
    `masks` says what is zero in the original where they are masked, `cuts` what every parameter and buffer loses, both
    as tensor name -> dimension -> indices. (`cuts` names tensors in plain attributes of modules, too; `shapes` doesn't,
    for a model that never ran may lack them.) `selects` are the BatchNorms that choose their own channels of a shared
    stream (mode "select"). `sizes` are the new values of sizes that modules keep: "module.attribute" -> number or list.
    `constants` are what removed channels leave behind where they are read, which goes into the bias of what reads them:
    layer -> a number for each channel that it reads, 0 for those that stay. They are of the model as it was planned:
    the proof tells where a learned number in them has changed since.
    `blocks` are the residual branches that go as a whole: name -> module that is emptied -> the dimension of its
    channels, and how many it still gives, all zero, to forward code around it.
    `kinds` says by what kinds of layers the channels that count are made: kind -> number.
    `totals` holds (before, after) of channels, params and flops. `frozen` says what couldn't be touched: reason ->
    layer -> number of channels. `shortfall` is empty where the request was met to within a point, else one line on what
    held it back. `score` names what ranked the channels, `reason` why auto chose it, `rounding` to what numbers of
    channels layers were kept.
    `timing` is what was measured for a latency budget: runtime, milliseconds of the original and the thin network, and
    more.
    """

    requested: dict[str, float]
    achieved: dict[str, float]
    removed: dict[str, list[int]]
    cuts: dict[str, dict[int, list[int]]]
    shapes: dict[str, list[int]]
    masks: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    selects: list[str] = field(default_factory=list)
    blocks: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, list[float]] = field(default_factory=dict)
    totals: dict[str, tuple[int, int]] = field(default_factory=dict)
    layers: list[PlannedLayer] = field(default_factory=list)
    frozen: dict[str, dict[str, int]] = field(default_factory=dict)
    shortfall: str = ""
    score: str = ""
    reason: str = ""
    rounding: str = ""
    timing: dict[str, Any] = field(default_factory=dict)

    # -- use -----------------------------------------------------------------------------------------------------------

    def apply(self, model: nn.Module) -> nn.Module:
        """Return a new, thinner model; `model` is untouched. Raises SlimError where the plan is for another model."""
        check_type("model", model, "a torch.nn.Module", nn.Module)
        self.check_fits(model)
        return rebuild(model, self.change)

    def check_fits(self, model: nn.Module) -> None:
        """Raise SlimError where a model isn't the one that was planned, or like it."""
        for said in self._misfits(model):
            inside = (name for name, module in named_modules(model) if name and not any(self._misfits(module)))
            inner = next(inside, None)  # as in an average of weights
            step = "" if inner is None else f": expected its {inner[:-1]!r}, which it fits"
            raise SlimError(f"the plan doesn't fit this model: {said}{step}")

    def _misfits(self, model: nn.Module) -> Iterator[str]:
        """Say of the tensors of a model what isn't as the plan expects it. Buffers may have grown, as caches do, where
        none of their channels go."""
        named = dict(named_tensors(model))
        for name, shape in self.shapes.items():
            tensor = named.get(name)
            if tensor is None:
                yield f"it has no {name}"
            elif list(tensor.shape) != list(shape):
                dims = [d for d in self.cuts[name] if 0 <= d < len(shape)]
                grown = not isinstance(tensor, nn.Parameter) and tensor.dim() == len(shape)
                if not grown or any(tensor.shape[d] != shape[d] for d in dims):
                    yield f"{name} has shape {list(tensor.shape)}, expected {list(shape)}"

    @property
    def change(self) -> Change:
        """Return what the plan does to a model, for `slim.prune.rebuild`."""
        chosen = {}
        for bn in self.selects:
            gone = set(self.removed.get(bn, []))
            chosen[bn] = [i for i in range(self.shapes[f"{bn}.weight"][0]) if i not in gone]
        emptied = {name: made for modules in self.blocks.values() for name, made in modules.items()}
        return Change(
            self.cuts, self.sizes, chosen, self.cuts.keys() - self.shapes.keys(), self.masks, emptied, self.constants
        )

    def prune_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module, thin: nn.Module) -> None:
        """Hand an optimizer of `model` over to `thin`, in place: its parameters become the thinner ones, and what it
        keeps for each (momentum, Adam's moments) loses the pruned channels. Parameters of neither stay.

        Raises SlimError where `thin` doesn't come from `model`.
        """
        migrate_optimizer(optimizer, replacements(self.cuts, model, thin))

    @property
    def ratio_requested(self) -> float | None:
        """Return the share of channels asked for, where a ratio was asked for."""
        return self.requested.get("ratio")

    @property
    def ratio_achieved(self) -> float:
        """Return the share of all channels that count (see `kinds`) that the plan removes, 0 to 1."""
        before, after = self.totals["channels"]
        return 1 - after / before

    # -- files ---------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON-able. Index lists are long and many tensors share one, so each is stored once."""
        lists: dict[tuple[int, ...], int] = {}

        def number(indices: list[int]) -> int:
            return lists.setdefault(tuple(indices), len(lists))

        removed = {bn: number(gone) for bn, gone in self.removed.items()}
        cuts, masks = (
            {name: {str(d): number(gone) for d, gone in each.items()} for name, each in places.items()}
            for places in (self.cuts, self.masks)
        )
        record = {
            "format": FORMAT,
            "version": VERSION,
            "requested": self.requested,
            "achieved": self.achieved,
            "totals": {k: list(v) for k, v in self.totals.items()},
            "removed": removed,
            "cuts": cuts,
            "masks": masks,
            "kinds": self.kinds,
            "indices": [list(indices) for indices in lists],
            "shapes": self.shapes,
            "selects": self.selects,
            "sizes": self.sizes,
            **({"constants": self.constants} if self.constants else {}),
            **({"blocks": self.blocks} if self.blocks else {}),
            "layers": [asdict(layer) for layer in self.layers],
            "frozen": self.frozen,
            "shortfall": self.shortfall,
            "score": self.score,
            "reason": self.reason,
            "rounding": self.rounding,
            "timing": self.timing,
        }
        return record | {"hash": hash_of(record)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "PruningPlan":
        """Return the plan that `to_dict` gave. Raises SlimError where it isn't one."""
        check_record(d)
        indices = [list(entry) for entry in d["indices"]]
        of_norms = {f"{bn}.{key}": {"0": i} for bn, i in d["removed"].items() for key in ("weight", "bias")}
        masks = d.get("masks", of_norms)  # older plans know BatchNorms alone
        return cls(
            requested=dict(d["requested"]),
            achieved=dict(d["achieved"]),
            removed={bn: indices[i] for bn, i in d["removed"].items()},
            cuts={name: {int(k): indices[i] for k, i in cut.items()} for name, cut in d["cuts"].items()},
            shapes={name: list(shape) for name, shape in d["shapes"].items()},
            masks={name: {int(k): indices[i] for k, i in mask.items()} for name, mask in masks.items()},
            kinds=dict(d.get("kinds", {"BatchNorm": d["totals"]["channels"][0]})),
            selects=list(d["selects"]),
            blocks={name: dict(modules) for name, modules in d.get("blocks", {}).items()},
            sizes=dict(d["sizes"]),
            constants={name: list(numbers) for name, numbers in d.get("constants", {}).items()},
            totals={k: (int(v[0]), int(v[1])) for k, v in d["totals"].items()},
            layers=[PlannedLayer(**layer) for layer in d["layers"]],
            frozen={reason: dict(where) for reason, where in d["frozen"].items()},
            shortfall=d["shortfall"],
            score=d.get("score", ""),
            reason=d.get("reason", ""),
            rounding=d.get("rounding", ""),
            timing=dict(d.get("timing", {})),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON: to a temporary file first, then renamed."""
        check_type("path", path, "the plan's file", str, os.PathLike)
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PruningPlan":
        """Read a plan. Raises SlimError where the file is missing or isn't a plan."""
        check_type("path", path, "the plan's file", str, os.PathLike)
        text = read_text("plan", os.fspath(path))
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SlimError(f"{os.fspath(path)!r} isn't a plan: expected JSON ({error})") from error
        if not isinstance(content, dict):
            raise SlimError(f"{os.fspath(path)!r} isn't a plan: expected a JSON object")
        return cls.from_dict(content)

    @property
    def digest(self) -> str:
        """Return SHA-256 of what the plan removes, as hex: equal for equal prunings."""
        cuts = {n: {str(d): v for d, v in c.items()} for n, c in self.cuts.items()}
        content = [self.removed, cuts, self.sizes, *([self.constants] if self.constants else [])]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    # -- words ---------------------------------------------------------------------------------------------------------

    def table(self) -> FittingTable:
        """Lay out the layers: channels before and after, the share that stays, what floors and ties held back."""
        table = FittingTable(
            f"pruning plan: {self.ratio_achieved:.1%} of all {' and '.join(self.kinds)} channels go",
            drops=["stays", "held by floor", "frozen"],
        )
        held = {
            "held by floor": [layer.floor for layer in self.layers],
            "frozen": [layer.frozen for layer in self.layers],
        }
        held = {name: numbers for name, numbers in held.items() if any(numbers)}
        table.add_column("layer", overflow="fold")
        for name in ("before", "after", *held):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("stays", no_wrap=True)
        for i, layer in enumerate(self.layers):
            bar = "█" * max(1, round(BAR * layer.after / layer.before)) if layer.after else ""
            holds = [f"{numbers[i]:,}" if numbers[i] else "" for numbers in held.values()]
            table.add_row(layer.name, f"{layer.before:,}", f"{layer.after:,}", *holds, bar.ljust(BAR, "░"))
        return table

    def summary(self) -> str:
        """Return one line: channels, parameters and FLOPs, before and after, what layers were rounded to, what was
        timed."""
        said = []
        for kind, (before, after) in self.totals.items():
            said.append(f"{kind} {before:,} → {after:,} ({(before - after) / max(before, 1):.1%} fewer)")
        if self.blocks:
            count = "1 whole block goes" if len(self.blocks) == 1 else f"{len(self.blocks)} whole blocks go"
            said.append(f"{count}: {', '.join(self.blocks)}")
        if self.constants:
            said.append(f"constants that are left of channels go into the bias of {', '.join(self.constants)}")
        if self.rounding:
            said.append(self.rounding)
        for each in self.timing.get("settings", [self.timing] if self.timing else []):
            said.append("measured {original_ms:.3g} → {ms:.3g} ms ({share:.1%} of it; {runtime})".format(**each))
        if "loss" in self.achieved:
            said.append("metric {baseline:.4g} → {metric:.4g} (loses {loss:.3g})".format(**self.achieved))
        if "unused" in self.timing:
            step = f"the next step of channels takes {self.timing['next_step']:.1%} of it"
            said.append(f"{self.timing['unused']:.1%} of the budget is left, and {step}")
        return "; ".join(said)

    @property
    def ranked_by(self) -> str:
        """Say by what score channels were ranked, and why where auto chose it."""
        return ": ".join(filter(None, (self.score and f"ranked by {self.score}", self.reason)))

    def headline(self) -> str:
        """Return one line: the share of channels that go, and what is left of parameters and FLOPs."""
        shares = {kind: 1 - (before - after) / max(before, 1) for kind, (before, after) in self.totals.items()}
        left = (f"{share:.1%} of the {kind} stay" for kind, share in shares.items())
        return f"{self.ratio_achieved:.1%} of all {' and '.join(self.kinds)} channels go; {', '.join(left)}"

    def __str__(self) -> str:
        return "\n".join([render(self.table()), self.summary(), *filter(None, (self.ranked_by, self.shortfall))])
