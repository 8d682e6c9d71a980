"""Accuracy against FLOPs: slim and five other ways to a smaller network, all on the same number of training images.

    python scripts/frontier.py --quick                  # digits, minutes on two cores: does everything work?
    SLIM_DATA=… python scripts/frontier.py              # CIFAR-10 (JPEG), ResNet-20: hours on two cores, in pieces
    SLIM_DATA=… python scripts/frontier.py --arch slim:vgg19 slim:resnet56 --epochs 160 --finetune 80 \\
        --keep 0.7 0.5 0.3 0.2 0.1                      # where a GPU is at hand

For each seed networks are trained once for all budgets; then each method brings them to a share of the FLOPs, and
fine-tunes. What is trained on the way:

    slim      proximal L1; channels by `score="residual"`; `slim.recover`; fine-tuning that learns from the unpruned
              network, too
    paper     Network Slimming as published: L1 by subgradient, one threshold for |γ|, fine-tuning (Liu et al., 2017)
    tp        torch-pruning's BNScalePruner: its regulariser, its pruner (global), fine-tuning
    l1        L1 norm of filters, the same share of each layer, on a network trained without a penalty (Li et al., 2017)
    random    random channels, the same share of each layer, on the same network
    scratch   the architecture that slim found, trained from new weights for all epochs (Liu et al., 2019)

Trained networks are kept under --cache by the hash of all that they depend on, and every result is appended to a
JSON-lines file as it comes: stop it at any time, the next run goes on. Recovery looks at --calibration images without
labels; its fine-tuning sees as many fewer, in whole batches, and `images` of each result counts all.
"""

import argparse
import contextlib
import copy
import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from shared import RESULTS, cifar10_jpeg, mean_and_spread, ran_on, save, table, write
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import slim
from slim import checkpoint, data, models, train
from slim.config import DataConfig, OptimConfig, SparsityConfig
from slim.size import measure

METHODS = ("slim", "paper", "tp", "l1", "random", "scratch")
NAMES = {
    "slim": "slim",
    "paper": "Network Slimming, as published",
    "tp": "torch-pruning BNScalePruner",
    "l1": "L1 norm of filters",
    "random": "random channels",
    "scratch": "slim's architecture from scratch",
}
CALIBRATION_PASSES = 3  # over the calibration images: scores, recalibration, regression


@dataclasses.dataclass
class Setting:
    """All that a result depends on, apart from method, keep and seed."""

    data: str
    arch: str
    images: int  # training images used
    epochs: int
    finetune: int
    lr: float
    finetune_lr: float
    batch_size: int
    strength: float  # λ of slim
    paper_strength: float
    tp_strength: float
    calibration: int
    device: str


@dataclasses.dataclass
class Bench:
    """One architecture and seed: data, and networks that are trained when asked for, once."""

    setting: Setting
    loaded: data.Dataset
    seed: int
    cache: Path

    @property
    def example(self) -> Tensor:
        return torch.zeros(1, self.loaded.channels, *self.loaded.image_size)

    @property
    def arguments(self) -> dict[str, Any]:
        size = {"image_size": self.loaded.image_size} if "image_size" in models.arguments(self.setting.arch) else {}
        return {"num_classes": len(self.loaded.classes), "in_channels": self.loaded.channels, **size}

    def new(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return models.build(self.setting.arch, **self.arguments)

    def images(self) -> Tensor:
        """The calibration images."""
        count = min(self.setting.calibration, len(self.loaded.train))
        return next(data.batches(self.loaded.train, self.loaded, count, shuffle_seed=self.seed))[0]

    def fit(self, model: nn.Module, epochs: int, lr: float, fewer: int = 0, **more: Any) -> int:
        """Train in place on the training images, `fewer` of them in all; how many images were seen."""
        optim = OptimConfig(epochs=epochs, lr=lr)
        batch = self.setting.batch_size
        count = len(self.loaded.train) - -(-fewer // (epochs * batch)) * batch  # whole batches less in each epoch
        chosen = torch.randperm(len(self.loaded.train), generator=torch.Generator().manual_seed(self.seed))[:count]
        loaded = dataclasses.replace(self.loaded, train=self.loaded.train[chosen])
        train.fit(model, loaded, optim, batch_size=batch, seed=self.seed, device=self.setting.device, **more)
        model.eval()
        return epochs * (count // batch) * batch

    def accuracy(self, model: nn.Module) -> float:
        return train.evaluate(model, self.loaded.test, self.loaded, device=self.setting.device)["accuracy"]

    def trained(self, kind: str) -> nn.Module:
        """The network that a method starts from: "slim", "paper", "tp" or "dense"."""
        s = self.setting
        strength = {"slim": s.strength, "paper": s.paper_strength, "tp": s.tp_strength, "dense": 0.0}[kind]
        facts = [s.data, s.arch, s.images, s.epochs, s.lr, s.batch_size, strength, kind, self.seed]
        path = self.cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.safetensors"
        if not path.exists():
            model = self.new()
            how = {
                "slim": SparsityConfig(method="proximal", strength=strength),
                "paper": SparsityConfig(method="subgradient", strength=strength),
            }.get(kind)
            with (
                torch_prunings_regulariser(model, self.example, strength) if kind == "tp" else contextlib.nullcontext()
            ):
                self.fit(model, s.epochs, s.lr, sparsity=how)
            path.parent.mkdir(parents=True, exist_ok=True)
            metrics = {"kind": kind, "facts": facts, "accuracy": self.accuracy(model)}
            checkpoint.save(path, model, arch=s.arch, arch_kwargs=self.arguments, metrics=metrics)
        return checkpoint.load(path)


# -- torch-pruning -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torch_prunings_regulariser(model: nn.Module, example: Tensor, strength: float) -> Iterator[None]:
    """Its own term on the gradients of γ, before every optimizer step."""
    import torch_pruning as tp

    importance = tp.importance.BNScaleImportance()
    pruner = tp.pruner.BNScalePruner(model, example, importance, reg=strength, ignored_layers=classifiers(model))
    handle = register_optimizer_step_pre_hook(lambda *_: pruner.regularize(model))
    try:
        yield
    finally:
        handle.remove()


def classifiers(model: nn.Module) -> list[nn.Module]:
    return [list(m for m in model.modules() if isinstance(m, nn.Linear))[-1]]


def by_torch_pruning(model: nn.Module, example: Tensor, keep: float, kind: str, seed: int) -> nn.Module:
    """Pruned to at most `keep` of the FLOPs, and as close to that as its ratio gets."""
    import torch_pruning as tp

    def at(ratio: float) -> nn.Module:
        thin = copy.deepcopy(model)
        torch.manual_seed(seed)
        importance = {
            "tp": tp.importance.BNScaleImportance,
            "l1": lambda: tp.importance.MagnitudeImportance(p=1),
            "random": tp.importance.RandomImportance,
        }[kind]()
        cls = tp.pruner.BNScalePruner if kind == "tp" else tp.pruner.MagnitudePruner
        cls(
            thin,
            example,
            importance,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            global_pruning=kind == "tp",
            ignored_layers=classifiers(thin),
        ).step()
        return thin

    budget = keep * measure(model, example).flops
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(at(middle), example).flops <= budget else (middle, high)
    return at(high)


# -- methods -----------------------------------------------------------------------------------------------------------


def one_result(bench: Bench, method: str, keep: float) -> dict[str, Any]:
    """Prune to `keep` of the FLOPs, fine-tune, measure."""
    s = bench.setting
    started = time.perf_counter()
    whole = bench.trained({"slim": "slim", "paper": "paper", "tp": "tp", "scratch": "slim"}.get(method, "dense"))
    extra = 0  # images that recovery looks at
    teacher = None
    result: dict[str, Any] = {"method": method, "keep": keep, "seed": bench.seed}
    if method in ("slim", "scratch"):
        images = bench.images()
        plan = slim.plan(whole, bench.example, flops=keep, score="residual", images=images)
        thin = plan.apply(bench.new() if method == "scratch" else whole)
        if method == "slim":
            extra, teacher = CALIBRATION_PASSES * len(images), whole
            result["as_is"] = bench.accuracy(thin)
            recovered = slim.recover(whole, thin, plan, images)
            thin, result["recovery_seconds"] = recovered.model, recovered.seconds
    elif method == "paper":
        thin = slim.plan(whole, bench.example, flops=keep).apply(whole)
    else:
        thin = by_torch_pruning(whole, bench.example, keep, method, bench.seed)
    pruned = None if method == "scratch" else bench.accuracy(thin)
    seen = extra + (0 if method == "scratch" else s.epochs * (len(bench.loaded.train) // s.batch_size) * s.batch_size)
    if method == "scratch":
        seen += bench.fit(thin, s.epochs + s.finetune, s.lr)
    else:
        seen += bench.fit(thin, s.finetune, s.finetune_lr, fewer=extra, teacher=teacher)
    before, after = measure(whole, bench.example), measure(thin, bench.example)
    return result | {
        "unpruned": None if method == "scratch" else bench.accuracy(whole),
        "pruned": pruned,
        "finetuned": bench.accuracy(thin),
        "flops": after.flops / before.flops,
        "params": after.params / before.params,
        "images": seen,
        "seconds": time.perf_counter() - started,
        "date": str(date.today()),
    }


# -- what comes of it --------------------------------------------------------------------------------------------------


def tell(setting: Setting, results: list[dict[str, Any]], command: str, name: str) -> None:
    """The table and the picture of all results so far."""
    rows, lines = [], []
    for keep in sorted({r["keep"] for r in results}, reverse=True):
        for method in METHODS:
            runs = [r for r in results if r["keep"] == keep and r["method"] == method]
            if not runs:
                continue

            def shown(key: str, runs: list[dict[str, Any]] = runs, digits: int = 2) -> str:
                values = [100 * r[key] for r in runs if r.get(key) is not None]
                return mean_and_spread(values, digits) if values else ""

            row = [f"{keep:.0%}", NAMES[method], len(runs), shown("flops", digits=1), shown("params", digits=1)]
            rows.append([*row, shown("unpruned"), shown("as_is"), shown("pruned"), shown("finetuned")])
    header = ["FLOPs asked %", "method", "seeds", "FLOPs %", "parameters %", "unpruned %"]
    header += ["pruned, before recovery %", "right after pruning %", "fine-tuned %"]
    lines.append(f"# Accuracy against FLOPs: {setting.arch} on {setting.data}\n\n{ran_on(command, 'torch-pruning')}\n")
    lines.append(
        f"{setting.images:,} training images, {setting.epochs} epochs (shared by all budgets), {setting.finetune} of "
        f"fine-tuning, batch {setting.batch_size}; from scratch {setting.epochs + setting.finetune} epochs. "
        f"{setting.calibration:,} calibration images of them for slim. Mean ± standard deviation over seeds, test "
        "accuracy.\n"
    )
    lines.append(table(header, rows))
    print(write(name, "\n".join(lines)).read_text())
    print(save(name, *figures(setting, results)))


def figures(setting: Setting, results: list[dict[str, Any]]) -> list[Any]:
    import plotly.graph_objects as go

    made = []
    for key, title in (("pruned", "right after pruning"), ("finetuned", "after fine-tuning")):
        figure = go.Figure()
        for method in METHODS:
            keeps = sorted({r["keep"] for r in results if r["method"] == method and r.get(key) is not None})
            runs = [[r for r in results if r["method"] == method and r["keep"] == keep] for keep in keeps]
            means = [sum(100 * r[key] for r in group) / len(group) for group in runs]
            spreads = [
                torch.tensor([100 * r[key] for r in group]).std(correction=len(group) > 1).item() for group in runs
            ]
            flops = [sum(100 * r["flops"] for r in group) / len(group) for group in runs]
            bars = {"type": "data", "array": spreads}
            if keeps:
                figure.add_scatter(x=flops, y=means, error_y=bars, mode="lines+markers", name=NAMES[method])
        figure.update_layout(
            title=f"{setting.arch} on {setting.data}, {title}",
            xaxis_title="FLOPs kept, %",
            yaxis_title="test accuracy, %",
            template="plotly_white",
        )
        made.append(figure)
    return made


def dataset(name: str, images: int) -> data.Dataset:
    if name == "digits":
        loaded = data.load(DataConfig(), 0)
    else:
        folder = cifar10_jpeg()
        if folder is None:
            raise SystemExit("CIFAR-10 (JPEG) isn't at hand: set SLIM_DATA to the folder that holds cifar10-jpeg")
        loaded = data.load(DataConfig(name="imagefolder", root=str(folder), val_fraction=0.0), 0)
    if images and images < len(loaded.train):
        chosen = torch.randperm(len(loaded.train), generator=torch.Generator().manual_seed(0))[:images]
        loaded = dataclasses.replace(loaded, train=loaded.train[chosen])
    return loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, 3 + 2 epochs, one seed: to see that it works")
    parser.add_argument("--arch", nargs="+", default=["slim:resnet20"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3, 0.15], help="shares of the FLOPs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of (sparse) training")
    parser.add_argument("--finetune", type=int, default=5, help="epochs of fine-tuning")
    parser.add_argument("--images", type=int, default=0, help="training images; 0: all")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--finetune-lr", type=float, default=0.05)
    parser.add_argument("--strength", type=float, default=5e-4, help="λ of slim (proximal)")
    parser.add_argument("--paper-strength", type=float, default=1e-4, help="λ of the paper (subgradient)")
    parser.add_argument("--tp-strength", type=float, default=1e-4, help="torch-pruning's reg")
    parser.add_argument("--calibration", type=int, default=1024, help="images that recovery looks at")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "slim-data" / "networks")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so long")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.epochs, args.finetune, args.keep, args.calibration = [0], 6, 3, [0.5, 0.2], 512
        args.strength, args.paper_strength, args.batch_size = 2e-3, 2e-3, 64
    source = "digits" if args.quick else "CIFAR-10 (JPEG)"
    loaded = dataset(source, args.images)
    started = time.perf_counter()
    for arch in args.arch:
        setting = Setting(
            data=source,
            arch=arch,
            images=len(loaded.train),
            calibration=min(args.calibration, len(loaded.train)),
            **{f.name: getattr(args, f.name) for f in dataclasses.fields(Setting) if f.name in FROM_ARGUMENTS},
        )
        label = source.split()[0].lower().replace("-", "")
        name = f"frontier_{label}_{arch.partition(':')[2]}" + ("_quick" if args.quick else "")
        log = RESULTS / f"{name}.jsonl"  # not dated: it grows over days
        facts = dataclasses.asdict(setting)
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        results = [line["result"] for line in lines if line["setting"] == facts]
        done = {(r["method"], r["keep"], r["seed"]) for r in results}
        for seed in args.seeds:
            bench = Bench(setting, loaded, seed, args.cache)
            for keep in args.keep:
                for method in args.methods:
                    if (method, keep, seed) in done or time.perf_counter() - started > 60 * args.minutes:
                        continue
                    result = one_result(bench, method, keep)
                    results.append(result)
                    log.parent.mkdir(exist_ok=True)
                    with log.open("a") as file:
                        file.write(json.dumps({"setting": facts, "result": result}) + "\n")
                    print({key: result[key] for key in SAID}, flush=True)
        if results:
            tell(setting, results, "python scripts/frontier.py" + (" --quick" if args.quick else ""), name)


FROM_ARGUMENTS = (
    *("epochs", "finetune", "lr", "finetune_lr", "batch_size", "strength", "paper_strength", "tp_strength", "device"),
)
SAID = ("method", "keep", "seed", "pruned", "finetuned", "flops", "images", "seconds")


if __name__ == "__main__":
    main()
