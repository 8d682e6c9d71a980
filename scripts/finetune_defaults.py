"""How networks are best trained on: optimizer, learning rate and distillation, chosen on validation images.

    SLIM_DATA=… python scripts/finetune_defaults.py                            # in pieces: hours of one core
    python scripts/finetune_defaults.py --networks vgg7-given vgg7-pressed     # digits alone: minutes

vgg7, resnet20 and mobilenetv2 are trained without a penalty, pruned to a share of the FLOPs by `slim.Residual` and
recovered, as `slim-run --run.path direct` does, and then fine-tuned from each share of the training's highest learning
rate, with and without learning from the unpruned network.

"given" networks come from another training than slim's (AdamW, 0.001; of CIFAR on four times the images), as trained
weights do, and are pruned, recovered and fine-tuned from each rate. "pressed" ones come from there, are trained on with
an L1 penalty, pruned by |γ|, recovered and fine-tuned from half of the rate: `slim-run --run.path sparse`.
"new-head" ones learned half of the classes there, and are trained on with a new last layer for all of them.

The way with the lowest mean cross entropy on validation images (which no training sees) is the best; what test images
say stands beside it and chooses nothing. What `slim.workbench.run.finetuning` decides is marked. Runs are appended to a
JSON-lines file as they end, and those in it aren't repeated.
"""

import dataclasses
import itertools
from copy import deepcopy
from functools import cache
from math import isclose
from typing import Any, ClassVar, NamedTuple

import torch
from shared import RESULTS, add_row, dataset, mean_and_spread, parser_of, ran_on, read_rows, table, write
from sparse_training import Bench, Setting, Trained
from torch import nn

import slim
from slim.workbench import models, train
from slim.workbench.config import OptimConfig, SparsityConfig
from slim.workbench.run.finetuning import GIVEN, PEAK, USUAL


class Way(NamedTuple):
    """How a network is trained on: not at all where the rate is 0."""

    optimizer: str = "sgd"
    rate: float = 0.0  # the highest
    distillation: float = 0.0

    def optim(self, epochs: int, share: float = 1.0) -> OptimConfig:
        return OptimConfig(epochs=epochs, optimizer=self.optimizer, lr=share * self.rate)  # type: ignore[arg-type]


AS_IT_IS = Way()
SHARES = (1.0, 0.5, 0.2)  # of the training's highest learning rate
RATES = [Way("sgd", rate) for rate in (0.05, 0.02, 0.01, 0.005)] + [Way("adamw", rate) for rate in (1e-3, 5e-4, 2e-4)]
HIGHER = [Way("sgd", 0.1), *RATES]
WHOLE = 1.0  # nothing is pruned


class Own(Bench):
    """A network of slim's own training, pruned, recovered and fine-tuned."""

    RUNS: ClassVar = [
        (0.3, Way("sgd", share * USUAL["sgd"], weight)) for share, weight in itertools.product(SHARES, (0.0, 0.5))
    ]
    DEFAULTS: ClassVar = {"sgd": PEAK * USUAL["sgd"]}

    def made(self, keep: float, way: Way) -> nn.Module:
        """Return the network that came out of it."""
        whole, thin = self.dense().model, deepcopy(self.recovered(keep))
        teacher = {"distillation": train.Distillation(deepcopy(whole), way.distillation)} if way.distillation else {}
        if way.rate:
            self.fit(thin, way.optim(self.setting.finetune), **teacher)
        return thin

    @cache  # noqa: B019
    def recovered(self, keep: float) -> nn.Module:
        return self.pruned(self.dense().model, keep, slim.Residual(self.images()))

    def pruned(self, whole: nn.Module, keep: float, score: Any) -> nn.Module:
        """Return a network with a share of its FLOPs, recovered."""
        if keep == WHOLE:
            return whole
        plan = slim.plan(whole, self.example, slim.Flops(keep), score=score)
        return slim.recover(whole, plan.apply(whole), plan, self.images()).model


class Given(Own):
    """A network whose weights come from a training that slim knows nothing of."""

    RUNS: ClassVar = [(WHOLE, AS_IT_IS), *itertools.product((0.8, 0.5, 0.3), (AS_IT_IS, *RATES))]
    DEFAULTS: ClassVar = GIVEN

    @cache  # noqa: B019
    def dense(self) -> Trained:
        return Trained(deepcopy(self.elsewhere(self.setting.data, self.setting.arch, self.seed)), 0.0, [])

    @staticmethod
    @cache
    def elsewhere(name: str, arch: str, seed: int, classes: int = 0) -> nn.Module:
        """Return a network trained without slim's defaults: on the first so many classes, 0: all, and on four times the
        images that it is trained on here, where there are more."""
        own = dataclasses.replace(ELSEWHERE[name], arch=arch)
        loaded = benched(Own, own, seed).loaded
        if classes:
            loaded = dataclasses.replace(loaded, train=loaded.train[loaded.train.labels < classes])
        torch.manual_seed(seed)
        model = models.build(arch, num_classes=len(loaded.classes), in_channels=loaded.channels)
        train.fit(model, loaded, OptimConfig(epochs=own.epochs, optimizer="adamw", lr=1e-3), seed=seed)
        return model


class Pressed(Given):
    """The same, trained on with a penalty before it is pruned."""

    RUNS: ClassVar = [(WHOLE, AS_IT_IS), *((keep, way) for way in HIGHER[:4] for keep in (WHOLE, 0.3))]

    def made(self, keep: float, way: Way) -> nn.Module:
        sparse = self.pressed(way)
        thin = deepcopy(self.pruned(sparse, keep, slim.Gamma()))
        if keep < WHOLE:
            self.fit(thin, way.optim(self.setting.finetune, PEAK))
        return thin

    @cache  # noqa: B019
    def pressed(self, way: Way) -> nn.Module:
        model = deepcopy(self.dense().model)
        if way.rate:
            penalty = SparsityConfig(strength=self.setting.paper_strength)
            self.fit(model, way.optim(self.setting.epochs), sparsity=penalty)
        return model


class NewHead(Given):
    """A network that learned half of the classes, and is to tell all of them."""

    RUNS: ClassVar = [(WHOLE, way) for way in HIGHER]
    DEFAULTS: ClassVar = USUAL

    @cache  # noqa: B019
    def dense(self) -> Trained:
        half = len(self.loaded.classes) // 2
        model = deepcopy(self.elsewhere(self.setting.data, self.setting.arch, self.seed, half))
        [m for m in model.modules() if isinstance(m, nn.Linear)][-1].reset_parameters()
        return Trained(model, 0.0, [])


VGG7 = Setting("digits", "slim:vgg7", 0, 8, 10, 5, 64, 1024, 0.0)
RESNET20 = Setting("cifar10-jpeg", "slim:resnet20", 5120, 16, 10, 5, 64, 1024, 0.0)
NETWORKS: dict[str, tuple[type[Own], Setting]] = {
    "vgg7": (Own, VGG7),
    "resnet20": (Own, RESNET20),
    "mobilenetv2": (Own, dataclasses.replace(RESNET20, arch="torchvision:mobilenet_v2", pixels=32)),
    "vgg7-given": (Given, dataclasses.replace(VGG7, epochs=30)),
    "vgg7-new-head": (NewHead, VGG7),
    "vgg7-pressed": (Pressed, dataclasses.replace(VGG7, epochs=15, paper_strength=0.01)),
    "resnet20-given": (Given, dataclasses.replace(RESNET20, images=2560, finetune=3)),
    "resnet20-pressed": (
        Pressed,
        dataclasses.replace(RESNET20, images=2560, epochs=6, finetune=3, paper_strength=1e-4),
    ),
    "resnet18-pressed": (Pressed, Setting("photos", "torchvision:resnet18", 0, 32, 3, 2, 64, 1024, 1e-4)),
    "resnet18-given": (Given, Setting("photos", "torchvision:resnet18", 0, 32, 2, 3, 64, 1024, 0.0)),
}
ELSEWHERE = {  # how given networks were trained, by data
    "digits": dataclasses.replace(VGG7, epochs=30),
    "cifar10-jpeg": dataclasses.replace(RESNET20, images=10240, epochs=6),
    "photos": Setting("photos", "torchvision:resnet18", 0, 32, 2, 3, 64, 1024, 0.0),
}
JUDGED = 1000  # validation and test images of the larger data


def evaluated(bench: Bench, thin: nn.Module) -> dict[str, Any]:
    """Return cross entropy and accuracy on validation and on test images."""
    found = {name: train.evaluate(thin, getattr(bench.loaded, name), bench.loaded) for name in ("val", "test")}
    return {f"{name}_{key}": value for name, values in found.items() for key, value in values.items()}


def told(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the table of a network's runs."""
    kind, setting = NETWORKS[name]
    runs: dict[tuple[float, Way], list[dict[str, Any]]] = {}
    for row in rows:
        runs.setdefault((row["keep"], Way(*row["way"])), []).append(row)
    losses = {run: sum(row["val_loss"] for row in found) / len(found) for run, found in runs.items()}
    lines = []
    for (keep, way), found in sorted(runs.items(), key=lambda run: -run[0][0]):
        tuned = {other: loss for (kept, other), loss in losses.items() if kept == keep and other.rate}
        default = not way.distillation and isclose(way.rate, kind.DEFAULTS.get(way.optimizer, 0.0))
        marks = ["best"] * (way.rate > 0 and way == min(tuned, key=lambda way: tuned[way])) + ["the default"] * default
        line = [f"{keep:.0%}", way.optimizer if way.rate else "as it is", f"{way.rate:g}" if way.rate else ""]
        line += [f"{way.distillation:g}", str(len(found)), mean_and_spread([row["val_loss"] for row in found], 3)]
        line += [mean_and_spread([100 * row[f"{split}_accuracy"] for row in found]) for split in ("val", "test")]
        lines.append([*line, ", ".join(marks)])
    header = ["FLOPs", "optimizer", "highest rate", "distillation", "seeds", "validation cross entropy"]
    about = f"{setting.arch} on {setting.data}, {setting.pixels} pixels, {setting.epochs} + {setting.finetune} epochs"
    return f"## {name}: {about}\n\n{table([*header, 'validation %', 'test %', ''], lines)}\n"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="none: tells what was run")
    args = parser.parse_args()
    log, parts = RESULTS / "finetune_defaults.jsonl", []
    for name in args.networks:
        kind, own = NETWORKS[name]
        about = [name, dataclasses.asdict(own)]
        for seed in args.seeds:
            bench = None
            for keep, way in kind.RUNS:
                key = [*about, keep, seed, list(way)]
                if all(row["key"] != key for row in read_rows(log)):
                    bench = bench or benched(kind, own, seed)
                    torch.manual_seed(seed)
                    row = {"key": key, "keep": keep, "way": way} | evaluated(bench, bench.made(keep, way))
                    add_row(log, row)
                    print({"network": name, "seed": seed, **{k: row[k] for k in row if k != "key"}}, flush=True)
        if rows := [row for row in read_rows(log) if row["key"][:2] == about]:
            parts.append(told(name, rows))
    intro = (
        f"# Training networks on\n\n{ran_on()}\n\nShort trainings; given networks are pruned by residual, pressed ones "
        "by |γ|. Mean ± standard deviation over seeds. The best way at each share of the FLOPs is that of the lowest "
        "validation cross entropy.\n"
    )
    print(write("finetune_defaults", "\n".join([intro, *parts])).read_text(encoding="utf-8"))


def benched(kind: type[Own], setting: Setting, seed: int) -> Own:
    split = seed if setting.data == "digits" else 0
    loaded = dataset(setting.data, setting.images, seed=split, pixels=setting.pixels)
    few = {name: getattr(loaded, name)[:: max(1, len(getattr(loaded, name)) // JUDGED)] for name in ("val", "test")}
    loaded = dataclasses.replace(loaded, batch_size=setting.batch_size, **few)
    return kind(dataclasses.replace(setting, images=len(loaded.train)), loaded, seed)


if __name__ == "__main__":
    main()
