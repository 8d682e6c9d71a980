"""How a pruned network is best fine-tuned: learning rate and distillation, chosen on validation images, three networks.

    SLIM_DATA=… python scripts/finetune_defaults.py                      # in pieces: hours of one core
    python scripts/finetune_defaults.py --networks vgg7 --seeds 0 1 2    # digits alone: minutes

Each network is trained without a penalty, pruned to --keep of the FLOPs by `slim.Residual` and recovered, as
`slim-run --run.path direct` does, and then fine-tuned in each way: from each share of the training's highest learning
rate, with and without learning from the unpruned network. Networks that are "given" come from another training than
slim's (AdamW, 0.001), as trained weights do, and are fine-tuned from shares of the usual rate of slim's own optimizer.
The way with the lowest mean cross entropy on validation images (a tenth of the training images, which no training sees)
is the best; what test images say stands beside it and chooses nothing. What `slim.workbench.run.finetuning` decides is
marked. Runs are appended to a JSON-lines file as they end, and those in it aren't repeated.
"""

import dataclasses
import itertools
from copy import deepcopy
from functools import cache
from math import isclose
from typing import Any

import torch
from shared import RESULTS, add_row, dataset, mean_and_spread, parser_of, ran_on, read_rows, table, write
from sparse_training import Bench, Setting, Trained
from torch import nn

import slim
from slim.workbench import models, train
from slim.workbench.config import OptimConfig
from slim.workbench.run.finetuning import GIVEN, PEAK

NETWORKS = {
    "vgg7": Setting("digits", "slim:vgg7", 0, 8, 10, 5, 64, 1024, 0.0),
    "resnet20": Setting("cifar10-jpeg", "slim:resnet20", 5120, 16, 10, 5, 64, 1024, 0.0),
    "mobilenetv2": Setting("cifar10-jpeg", "torchvision:mobilenet_v2", 5120, 32, 10, 5, 64, 1024, 0.0),
    "resnet18-given": Setting("photos", "torchvision:resnet18", 0, 32, 2, 3, 64, 1024, 0.0),
    "mobilenetv3-given": Setting("cifar10-jpeg", "torchvision:mobilenet_v3_small", 2560, 32, 10, 3, 64, 1024, 0.0),
}
RATES = (1.0, 0.5, 0.2)  # of the training's highest learning rate
LOWER = (0.5, 0.2, 0.1, 0.05, 0.02)  # of the usual one, for weights of another training
WEIGHTS = (0.0, 0.5)  # of distillation
Way = tuple[float, float]


class Given(Bench):
    """A network whose weights come from a training that slim knows nothing of."""

    @cache  # noqa: B019
    def dense(self) -> Trained:
        torch.manual_seed(self.seed)
        model = models.build(self.setting.arch, num_classes=len(self.loaded.classes), in_channels=self.loaded.channels)
        self.fit(model, OptimConfig(epochs=self.setting.epochs, optimizer="adamw", lr=1e-3))
        return Trained(model, 0.0, [])


def is_given(name: str) -> bool:
    return name.endswith("given")


@cache
def recovered(bench: Bench, keep: float) -> nn.Module:
    whole = bench.dense().model
    plan = bench.by_residual(keep).plan(whole, bench.example)
    return slim.recover(whole, plan.apply(whole), plan, bench.images()).model


def measured(bench: Bench, keep: float, rate: float, weight: float) -> dict[str, Any]:
    """Fine-tune the recovered network in one way, or by rate 0 not at all; cross entropy and accuracy on validation and
    on test images."""
    whole, thin = bench.dense().model, deepcopy(recovered(bench, keep))
    if not rate:
        return evaluated(bench, thin)
    optim = OptimConfig(epochs=bench.setting.finetune, lr=rate * OptimConfig().lr)
    teacher = {"distillation": train.Distillation(deepcopy(whole), weight)} if weight else {}
    bench.fit(thin, optim, **teacher)
    return evaluated(bench, thin)


def evaluated(bench: Bench, thin: nn.Module) -> dict[str, Any]:
    found = {name: train.evaluate(thin, getattr(bench.loaded, name), bench.loaded) for name in ("val", "test")}
    return {f"{name}_{key}": value for name, values in found.items() for key, value in values.items()}


def told(name: str, setting: Setting, rows: list[dict[str, Any]]) -> str:
    """Return the table of a network's runs."""
    by_way: dict[Way, list[dict[str, Any]]] = {}
    for row in rows:
        by_way.setdefault((row["rate"], row["weight"]), []).append(row)
    losses = {way: sum(row["val_loss"] for row in runs) / len(runs) for way, runs in by_way.items()}
    chosen = GIVEN["sgd"] if is_given(name) else PEAK * OptimConfig().lr
    best = min(losses, key=lambda way: losses[way])
    lines = []
    for way, runs in by_way.items():
        rate, weight = way
        default = weight == 0 and isclose(rate * OptimConfig().lr, chosen)
        marks = ["best"] * (way == best) + ["the default"] * default
        line = [
            f"{rate:g}" if rate else "not fine-tuned",
            f"{weight:g}",
            len(runs),
            mean_and_spread([row["val_loss"] for row in runs], 3),
        ]
        line += [mean_and_spread([100 * row[f"{split}_accuracy"] for row in runs]) for split in ("val", "test")]
        lines.append([*line, ", ".join(marks)])
    header = ["of the highest rate", "distillation", "seeds", "validation cross entropy", "validation %", "test %", ""]
    about = f"{setting.arch} on {setting.data}, {setting.pixels} pixels, {setting.epochs} + {setting.finetune} epochs"
    return f"## {name}: {about}\n\n{table(header, lines)}\n"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--keep", type=float, default=0.3, help="share of the FLOPs")
    args = parser.parse_args()
    log, parts = RESULTS / "finetune_defaults.jsonl", []
    for name in args.networks:
        own, kind = NETWORKS[name], Given if is_given(name) else Bench
        ways = [(0.0, 0.0), *((rate, 0.0) for rate in LOWER)] if kind is Given else [*itertools.product(RATES, WEIGHTS)]
        for seed in args.seeds:
            split = seed if own.data == "digits" else 0
            loaded = dataset(own.data, own.images, seed=split, pixels=own.pixels)
            setting = dataclasses.replace(own, images=len(loaded.train))
            bench = kind(setting, dataclasses.replace(loaded, batch_size=setting.batch_size), seed)
            about = [dataclasses.asdict(setting), args.keep]
            for rate, weight in ways:
                key = [*about, seed, rate, weight]
                if all(row["key"] != key for row in read_rows(log)):
                    torch.manual_seed(seed)
                    row = {"key": key, "rate": rate, "weight": weight} | measured(bench, args.keep, rate, weight)
                    add_row(log, row)
                    print({"network": name, "seed": seed, **{k: row[k] for k in row if k != "key"}}, flush=True)
        parts.append(told(name, own, [row for row in read_rows(log) if row["key"][:2] == about]))
    intro = (
        f"# Fine-tuning a pruned network\n\n{ran_on()}\n\nAt {args.keep:.0%} of the FLOPs, pruned by residual and "
        "recovered; short trainings. Mean ± standard deviation over seeds. The best way is that of the lowest "
        "validation cross entropy.\n"
    )
    print(write("finetune_defaults", "\n".join([intro, *parts])).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
