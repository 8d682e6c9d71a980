"""What sparse training costs and what it is worth: six ways to the same share of the FLOPs, in the same steps.

    python scripts/sparse_training.py                                   # digits: minutes
    SLIM_DATA=… python scripts/sparse_training.py --data cifar10-jpeg   # ResNet-20: half an hour of one core

Each way trains a new network for --epochs, prunes it to --keep of the FLOPs, recovers it on --calibration images
without labels, and fine-tunes it for --finetune epochs, as slim-run does by default. They differ in the training:

    direct    no penalty; channels by `slim.Residual`
    paper     L1 by subgradient, λ = --paper-strength for all γ (Liu et al., 2017); channels by |γ|
    target    proximal L1 on the lowest γ, as many as direct's plan removes (`target=0.6`, say); channels by |γ|
    planned   proximal L1 on what a plan by `slim.Residual` would remove, once begun (`target=plan`); channels by |γ|
    earlier   as planned, but all of that is zero by half of the steps, not by seven tenths
    gradual   no penalty; pruned in eight steps on the way by `slim.Residual`

"In vain" is the share of exact zeros that the plan doesn't remove: pushed for nothing. Runs are appended to a
JSON-lines file under scripts/results/ as they end, and those in it aren't repeated. Test images choose nothing.
"""

import dataclasses
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from shared import NORMS, RESULTS, add_row, dataset, mean_and_spread, parser_of, ran_on, read_rows, table, write
from torch import Tensor, nn

import slim
from slim.errors import SlimWarning
from slim.sparsity.control import TargetPlan
from slim.workbench import data, models, train
from slim.workbench.config import OptimConfig, RunConfig, SparsityConfig, TrainConfig
from slim.workbench.run.finetuning import decided
from slim.workbench.train.gradual import Pruning

STAGES = ("sparse", "pruned", "recovered", "finetuned")


@dataclasses.dataclass(frozen=True)
class Setting:
    """All that a run depends on, apart from its way, keep and seed."""

    data: str
    arch: str
    images: int
    pixels: int
    epochs: int
    finetune: int
    batch_size: int
    calibration: int
    paper_strength: float


@dataclasses.dataclass
class Trained:
    """A network after the first training, λ at its end, and the plans by which it was pruned on the way."""

    model: nn.Module
    strength: float
    plans: list[slim.PruningPlan]


@dataclasses.dataclass(eq=False)
class Bench:
    """One setting and seed: data, and the trainings that several runs share."""

    setting: Setting
    loaded: data.Dataset
    seed: int

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, self.loaded.channels, *self.loaded.image_size)

    @cache  # noqa: B019 (as long as the script)
    def images(self) -> Tensor:
        count = min(self.setting.calibration, len(self.loaded.train))
        return next(data.batches(self.loaded.train, self.loaded, count, shuffle_seed=self.seed))[0]

    def fit(self, model: nn.Module, optim: OptimConfig, **more: Any) -> list[dict[str, Any]]:
        return train.fit(model, self.loaded, optim, seed=self.seed, **more)

    def trained(self, sparsity: SparsityConfig | None, pruning: Pruning | None = None) -> Trained:
        torch.manual_seed(self.seed)
        model = models.build(self.setting.arch, num_classes=len(self.loaded.classes), in_channels=self.loaded.channels)
        made: list[slim.PruningPlan] = []
        callbacks = train.Callbacks(on_prune=lambda step, plan: made.append(plan))
        records = self.fit(
            model, OptimConfig(epochs=self.setting.epochs), sparsity=sparsity, pruning=pruning, callbacks=callbacks
        )
        return Trained(model, records[-1]["strength"], made)

    @cache  # noqa: B019
    def dense(self) -> Trained:
        return self.trained(None)

    @cache  # noqa: B019
    def baseline(self) -> float:
        return self.accuracy(self.dense().model)

    @cache  # noqa: B019
    def paper(self) -> Trained:
        return self.trained(SparsityConfig(strength=self.setting.paper_strength))

    def by_residual(self, keep: float) -> Pruning:
        return Pruning(slim.Flops(keep), {"score": slim.Residual(self.images())})

    def accuracy(self, model: nn.Module) -> float:
        return train.evaluate(model, self.loaded.test, self.loaded)["accuracy"]


def direct(bench: Bench, keep: float) -> Trained:
    return bench.dense()


def paper(bench: Bench, keep: float) -> Trained:
    return bench.paper()


def target(bench: Bench, keep: float) -> Trained:
    removed = bench.by_residual(keep).plan(bench.dense().model, bench.example).ratio_achieved
    return bench.trained(SparsityConfig(method="proximal", target=min(0.89, removed)))


def planned(bench: Bench, keep: float) -> Trained:
    return bench.trained(SparsityConfig(method="proximal", target="plan"), bench.by_residual(keep))


def earlier(bench: Bench, keep: float) -> Trained:
    with patch.object(TargetPlan, "END", 0.5):
        return planned(bench, keep)


def gradual(bench: Bench, keep: float) -> Trained:
    return bench.trained(SparsityConfig(strength=0.0, gradual=8), bench.by_residual(keep))


WAYS: dict[str, Callable[[Bench, float], Trained]] = {
    "direct": direct,
    "paper": paper,
    "target": target,
    "planned": planned,
    "earlier": earlier,
    "gradual": gradual,
}


def run(bench: Bench, way: str, keep: float) -> dict[str, Any]:
    """Train, prune, recover, fine-tune; measure after each."""
    trained = WAYS[way](bench, keep)
    model = trained.model
    row: dict[str, Any] = {"way": way, "keep": keep, "seed": bench.seed, "strength": trained.strength}
    row |= {"baseline": bench.baseline(), "sparse": bench.accuracy(model)}
    score = slim.Residual(bench.images()) if way in ("direct", "gradual") else slim.Gamma()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlimWarning)  # of γ that a weak penalty left large
        plan = slim.plan(model, bench.example, slim.Flops(keep), score=score, after=trained.plans)
    thin = plan.apply(model)
    slim.verify(model, thin, plan, bench.example)
    row |= {"digest": plan.digest, "flops": achieved(plan), "in_vain": in_vain(model, plan)}
    row["pruned"] = bench.accuracy(thin)
    recovered = slim.recover(model, thin, plan, bench.images()).model if plan.removed else thin
    row["recovered"] = bench.accuracy(recovered)
    settings = RunConfig(train=TrainConfig(epochs=bench.setting.epochs))
    bench.fit(recovered, dataclasses.replace(decided(settings), epochs=bench.setting.finetune))
    return row | {"finetuned": bench.accuracy(recovered)}


def achieved(plan: slim.PruningPlan) -> float:
    before, after = plan.totals["flops"]
    return after / before


def in_vain(model: nn.Module, plan: slim.PruningPlan) -> float | None:
    """Return the share of exact zeros among γ that the plan doesn't remove; None without zeros."""
    zeros = {name: norm.weight == 0 for name, norm in model.named_modules() if isinstance(norm, NORMS)}
    removed = sum(int(zero[plan.cuts.get(f"{name}.weight", {}).get(0, [])].sum()) for name, zero in zeros.items())
    count = sum(int(zero.sum()) for zero in zeros.values())
    return 1 - removed / count if count else None


def tell(setting: Setting, rows: list[dict[str, Any]], name: str) -> str:
    """Return the table of these runs, as it was written."""
    header = ["FLOPs kept", "way", "seeds", "baseline", *STAGES, "sparse − baseline", "fine-tuned − direct", "in vain"]
    lines = []
    for keep in sorted({row["keep"] for row in rows}, reverse=True):
        own = [row for row in rows if row["keep"] == keep]
        tuned = {row["seed"]: row["finetuned"] for row in own if row["way"] == "direct"}
        for way in WAYS:
            runs = [row for row in own if row["way"] == way]
            if not runs:
                continue
            line = [f"{keep:.0%}", way, len(runs)]
            line += [_percent([row[stage] for row in runs]) for stage in ("baseline", *STAGES)]
            line.append(_percent([row["sparse"] - row["baseline"] for row in runs]))
            line.append(_percent([row["finetuned"] - tuned[row["seed"]] for row in runs if row["seed"] in tuned]))
            lines.append([*line, _percent([row["in_vain"] for row in runs if row["in_vain"] is not None], digits=0)])
    told = (
        f"# Sparse training: {setting.arch} on {setting.data}\n\n{ran_on()}\n\n"
        f"{setting.images:,} training images of {setting.pixels} × {setting.pixels} pixels (a short run, not the "
        f"accuracy that the network can have), {setting.epochs} + {setting.finetune} epochs, batch "
        f"{setting.batch_size}, {setting.calibration:,} calibration images, λ of the paper "
        f"{setting.paper_strength:g}. Accuracy on test images, mean ± standard deviation over seeds, all in %; "
        "differences are of the same seed.\n\n"
    )
    return write(name, told + table(header, lines)).read_text(encoding="utf-8")


def _percent(values: list[float], digits: int = 2) -> str:
    return mean_and_spread([100 * value for value in values], digits) if values else ""


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", choices=["digits", "cifar10-jpeg"], default="digits")
    parser.add_argument("--arch", help="default: slim:vgg7 on digits, else slim:resnet20")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3], help="shares of the FLOPs")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--epochs", type=int, help="default: 30 on digits, else 10")
    parser.add_argument("--finetune", type=int, help="epochs; default: 20 on digits, else 5")
    parser.add_argument("--images", type=int, default=5120, help="of CIFAR's training images; 0: all")
    parser.add_argument("--pixels", type=int, default=16, help="CIFAR's images are scaled to; 32: as they are")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--calibration", type=int, default=1024, help="training images for scores and recovery")
    parser.add_argument("--paper-strength", type=float, help="default: 0.01 on digits, else 1e-4")
    parser.add_argument("--name", help="of the results' files")
    args = parser.parse_args()
    digits = args.data == "digits"
    seeds = args.seeds or (range(5) if digits else range(2))
    usual: dict[str, Any] = {"arch": "slim:vgg7", "epochs": 30, "finetune": 20, "paper_strength": 0.01, "pixels": 8}
    if not digits:
        usual = {
            "arch": "slim:resnet20",
            "epochs": 10,
            "finetune": 5,
            "paper_strength": 1e-4,
            "pixels": args.pixels,
        }
    given = {key: value for key, value in vars(args).items() if value is not None}
    name = args.name or f"sparse_training_{args.data}"
    log, rows = RESULTS / f"{name}.jsonl", []
    for seed in seeds:
        loaded = dataset(args.data, args.images, seed=seed if digits else 0, pixels=usual["pixels"])
        known = usual | given | {"images": len(loaded.train), "pixels": usual["pixels"]}
        setting = Setting(**{field.name: known[field.name] for field in dataclasses.fields(Setting)})
        facts = {"setting": dataclasses.asdict(setting)}
        bench = Bench(setting, dataclasses.replace(loaded, batch_size=setting.batch_size), seed)
        done = [line for line in read_rows(log) if line["setting"] == facts["setting"]]
        for way in args.ways:
            for keep in args.keep:
                row = next((r for r in done if (r["way"], r["keep"], r["seed"]) == (way, keep, seed)), None)
                if row is None:
                    row = facts | run(bench, way, keep)
                    add_row(log, row)
                    print({key: row[key] for key in ("way", "keep", "seed", *STAGES, "in_vain")}, flush=True)
                rows.append(row)
    print(tell(setting, rows, name))


if __name__ == "__main__":
    main()
