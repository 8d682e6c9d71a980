"""Accuracy against FLOPs: slim in two ways beside five other methods, all on the same number of training images.

    python scripts/frontier.py --quick                  # digits, minutes on two cores: does everything work?
    SLIM_DATA=… python scripts/frontier.py              # CIFAR-10 (JPEG), ResNet-20: hours on two cores, in pieces
    SLIM_DATA=… python scripts/frontier.py --arch slim:vgg19 slim:resnet56 --epochs 160 --finetune 80 \\
        --keep 0.7 0.5 0.3 0.2 0.1                      # where a GPU is at hand

For each seed networks are trained once for all budgets; then each method brings them to a share of the FLOPs, and
fine-tunes. What is trained on the way:

    slim      proximal L1; channels by `slim.Residual`; `slim.recover`; fine-tuning that may learn from the unpruned
              network, too
    direct    the same on a network trained without a penalty, as pretrained ones are: what `run.path: direct` does
    paper     Network Slimming as published: L1 by subgradient, one threshold for |γ|, channel selection before
              pre-activation blocks, fine-tuning (Liu et al., 2017); but no layer is emptied
    tp        torch-pruning's BNScalePruner: its regulariser, its pruner (global), fine-tuning
    l1        L1 norm of filters, the same share of each layer, on a network trained without a penalty (Li et al.,
              2017), by torch-pruning
    random    random channels, the same share of each layer, on the same network
    scratch   the architecture that slim found, trained from new weights for all epochs (Liu et al., 2019)

All train by the same recipe (SGD with Nesterov, warm-up and a cosine), not each by its paper's own.

The learning rate of fine-tuning is each method's own best, so that none is favoured: on the first --tuning-seeds seeds
every method is fine-tuned at each --finetune-lr, for each budget, and the rate with the lowest cross entropy on
validation images (a tenth of the training images, which no training sees) is the one that counts, for all seeds. Test
images choose nothing. From scratch the networks learn at --lr, as all unpruned ones do. How much slim's fine-tuning
learns from the unpruned network (--distill) is chosen in the same way: a teacher helps networks that stay behind it,
and holds back those that overtake it, which after a short training many do.

Trained networks are kept under --cache by the hash of all that they depend on, and every result is appended to a
JSON-lines file as it comes, with a digest of the channels that the method kept. --check prunes each trained network
that is at hand once more: where other channels stay now than in a result, that result is stale, named, and measured
anew. Stop it at any time, by --minutes, Ctrl-C or a kill: the next run goes on, within a
training too. Recovery looks at --calibration images without labels; its fine-tuning sees as many fewer, in whole
batches, and `images` of each result counts all.
"""

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import math
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, get_args

import torch
from shared import RESULTS, Device, add_row, dataset, mean_and_spread, parser_of, ran_on, read_rows, save, table, write
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import slim
from slim import checkpoint
from slim.errors import Interrupted
from slim.trace.size import network_size
from slim.workbench import data, models, train
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig

METHODS = ("slim", "direct", "paper", "tp", "l1", "random", "scratch")
NAMES = {
    "slim": "slim",
    "direct": "slim, without sparse training",
    "paper": "Network Slimming, as published",
    "tp": "torch-pruning BNScalePruner",
    "l1": "L1 norm of filters",
    "random": "random channels",
    "scratch": "slim's architecture from scratch",
}
Way = tuple[float, float]  # of fine-tuning: learning rate, and weight of learning from the unpruned network
BY_RESIDUAL = ("slim", "direct", "scratch")  # methods whose channels slim chooses so
RECOVERED = ("slim", "direct")  # … and that look at calibration images before they are fine-tuned
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
    batch_size: int
    strength: float  # λ of slim
    paper_strength: float
    tp_strength: float
    calibration: int
    device: Device


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
    def compute(self) -> ComputeConfig:
        return ComputeConfig(device=self.setting.device)

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

    def fit(self, model: nn.Module, epochs: int, lr: float, states: Path, fewer: int = 0, **more: Any) -> int:
        """Train in place on the training images, `fewer` of them in all; how many images were seen. It goes on from
        what an interrupted training left in the folder `states`."""
        optim = OptimConfig(epochs=epochs, lr=lr)
        batch = self.setting.batch_size
        count = len(self.loaded.train) - -(-fewer // (epochs * batch)) * batch  # whole batches less in each epoch
        chosen = torch.randperm(len(self.loaded.train), generator=torch.Generator().manual_seed(self.seed))[:count]
        loaded = dataclasses.replace(self.loaded, train=self.loaded.train[chosen], batch_size=batch)
        snapshots = train.Snapshots(states, {}, minutes=1, resume=True)
        train.fit(model, loaded, optim, **more, seed=self.seed, compute=self.compute, snapshots=snapshots)
        return epochs * (count // batch) * batch

    def measured(self, model: nn.Module, split: data.Split) -> dict[str, float]:
        """Accuracy and cross entropy."""
        return train.evaluate(model, split, self.loaded, compute=self.compute)

    def accuracy(self, model: nn.Module) -> float:
        return self.measured(model, self.loaded.test)["accuracy"]

    def file(self, *facts: Any, ending: str) -> Path:
        """Where the cache keeps what follows from these facts."""
        return self.cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}{ending}"

    def facts(self, kind: str) -> list[Any]:
        """All that a trained network follows from; the strength of its penalty is the seventh."""
        s = self.setting
        strength = {"slim": s.strength, "paper": s.paper_strength, "tp": s.tp_strength, "dense": 0.0}[kind]
        return [s.data, s.arch, s.images, s.epochs, s.lr, s.batch_size, strength, kind, self.seed]

    def network(self, kind: str) -> Path:
        """The file of a trained network, once it is there."""
        return self.file(*self.facts(kind), ending=".safetensors")

    def trained(self, kind: str) -> nn.Module:
        """The network that a method starts from: "slim", "paper", "tp" or "dense"."""
        s, facts, path = self.setting, self.facts(kind), self.network(kind)
        strength, states = facts[6], self.file(*facts, ending=".state")
        if not path.exists():
            model = self.new()
            how = {
                "slim": SparsityConfig(method="proximal", strength=strength),
                "paper": SparsityConfig(method="subgradient", strength=strength),
            }.get(kind)
            with (
                torch_prunings_regulariser(model, self.example, strength) if kind == "tp" else contextlib.nullcontext()
            ):
                self.fit(model, s.epochs, s.lr, states, sparsity=how)
            path.parent.mkdir(parents=True, exist_ok=True)
            metrics = {"kind": kind, "facts": facts, "accuracy": self.accuracy(model)}
            checkpoint.save(path, model, arch=s.arch, arch_kwargs=self.arguments, metrics=metrics)
            train.Snapshots(states, {}).clear()
        return slim.load(path)


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
            "l1": lambda: tp.importance.MagnitudeImportance(p=1, normalizer=None, group_reduction="first"),
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

    budget = keep * network_size(model, example).flops
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if network_size(at(middle), example).flops <= budget else (middle, high)
    return at(high)


# -- methods -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Thinned:
    """A trained network, and the thin one that a method makes of it, by a plan if the method is slim's."""

    whole: nn.Module
    thin: nn.Module
    plan: slim.PruningPlan | None = None

    @property
    def digest(self) -> str:
        """Of the channels that are left: which, where a plan says so, and how many of each layer."""
        shapes = {name: list(tensor.shape) for name, tensor in self.thin.state_dict().items()}
        facts = [shapes, self.plan and self.plan.digest]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def kind_of(method: str) -> str:
    """The training that a method starts from."""
    return {"slim": "slim", "paper": "paper", "tp": "tp", "scratch": "slim"}.get(method, "dense")


def thinned(bench: Bench, method: str, keep: float) -> Thinned:
    """Prune the method's trained network to `keep` of the FLOPs."""
    whole = bench.trained(kind_of(method))
    if method in BY_RESIDUAL:
        plan = slim.plan(whole, bench.example, slim.Flops(keep), score=slim.Residual(bench.images()))
        return Thinned(whole, plan.apply(bench.new() if method == "scratch" else whole), plan)
    if method == "paper":
        plan = slim.plan(whole, bench.example, slim.Flops(keep), floor=0, mode="select")
        return Thinned(whole, plan.apply(whole), plan)
    return Thinned(whole, by_torch_pruning(whole, bench.example, keep, method, bench.seed))


def are_stale(bench: Bench, results: Sequence[dict[str, Any]]) -> bool:
    """Say whether these results, of one method and budget, are of other channels than would be kept now. Where the
    trained network isn't at hand nobody knows: then they aren't."""
    if not results or not bench.network(kind_of(results[0]["method"])).exists():
        return False
    digest = thinned(bench, results[0]["method"], results[0]["keep"]).digest
    return any(result.get("digest") != digest for result in results)


def results_of(bench: Bench, method: str, keep: float, ways: Sequence[Way]) -> Iterator[dict[str, Any]]:
    """Prune to `keep` of the FLOPs; then fine-tune in each of these ways, and measure."""
    s = bench.setting
    made = thinned(bench, method, keep)
    whole, thin = made.whole, made.thin
    extra = 0  # images that recovery looks at
    pruned: dict[str, Any] = {"method": method, "keep": keep, "seed": bench.seed, "digest": made.digest}
    if method in RECOVERED and made.plan is not None:
        images = bench.images()
        extra = CALIBRATION_PASSES * len(images)
        pruned["as_is"] = bench.accuracy(thin)
        recovered = slim.recover(whole, thin, made.plan, images)
        thin, pruned["recovery_seconds"] = recovered.model, recovered.seconds
    before, after = network_size(whole, bench.example), network_size(thin, bench.example)
    pruned |= {"flops": after.flops / before.flops, "params": after.params / before.params}
    seen = s.epochs * (len(bench.loaded.train) // s.batch_size) * s.batch_size
    if method != "scratch":
        pruned |= {"unpruned": bench.accuracy(whole), "pruned": bench.accuracy(thin)}
    for lr, distill in ways:
        started = time.perf_counter()
        states = bench.file(dataclasses.asdict(s), method, keep, bench.seed, lr, distill, digest(thin), ending=".state")
        tuned = copy.deepcopy(thin)
        if method == "scratch":
            count = bench.fit(tuned, s.epochs + s.finetune, lr, states)
        else:
            taught = {"distillation": train.Distillation(whole, distill)} if distill else {}
            count = seen + extra + bench.fit(tuned, s.finetune, lr, states, fewer=extra, **taught)
        test = bench.measured(tuned, bench.loaded.test)
        yield pruned | {
            "lr": lr,
            "distill": distill,
            "validation_loss": bench.measured(tuned, bench.loaded.val)["loss"],
            "finetuned": test["accuracy"],
            "loss": test["loss"],
            "images": count,
            "seconds": time.perf_counter() - started,
            "date": str(date.today()),
        }
        train.Snapshots(states, {}).clear()  # now that the result is kept


def digest(model: nn.Module) -> str:
    """Of all its tensors: a fine-tuning goes on only from the very network that it began with."""
    found = hashlib.sha256()
    for tensor in model.state_dict().values():
        found.update(tensor.cpu().numpy().tobytes())
    return found.hexdigest()


def best_ways(results: Sequence[dict[str, Any]], seeds: Sequence[int]) -> dict[tuple[str, float], Way]:
    """For each method and keep the way of fine-tuning that does best on validation images, in the mean of `seeds`."""
    losses: dict[tuple[str, float], dict[Way, list[float]]] = {}
    for r in results:
        if r["seed"] in seeds:
            losses.setdefault((r["method"], r["keep"]), {}).setdefault(way(r), []).append(r["validation_loss"])
    best = {}
    for key, ways in losses.items():
        most = max(len(values) for values in ways.values())  # while a seed isn't done, some ways lack it
        best[key] = min((sum(values) / most, some) for some, values in ways.items() if len(values) == most)[1]
    return best


def way(result: dict[str, Any]) -> Way:
    return result["lr"], result["distill"]


# -- what comes of it --------------------------------------------------------------------------------------------------


def tell(setting: Setting, results: list[dict[str, Any]], name: str) -> None:
    """The table and the picture of these results."""
    rows, lines = [], []
    for keep in sorted({r["keep"] for r in results}, reverse=True):
        for method in METHODS:
            runs = [r for r in results if r["keep"] == keep and r["method"] == method]
            if not runs:
                continue

            def shown(key: str, runs: list[dict[str, Any]] = runs, digits: int = 2, unit: float = 100) -> str:
                values = [unit * r[key] for r in runs if r.get(key) is not None]
                return mean_and_spread(values, digits) if values else ""

            kept = ", ".join(r.get("digest", "unknown")[:7] for r in runs)
            row = [f"{keep:.0%}", NAMES[method], len(runs), shown("flops", digits=1), shown("params", digits=1)]
            row += [shown("unpruned"), shown("as_is"), shown("pruned"), shown("finetuned")]
            rows.append([*row, shown("loss", digits=3, unit=1), f"{runs[0]['lr']:g}", f"{runs[0]['distill']:g}", kept])
    header = ["FLOPs asked %", "method", "seeds", "FLOPs %", "parameters %", "unpruned %"]
    header += [
        "pruned, before recovery %",
        "right after pruning %",
        "fine-tuned %",
        "cross entropy",
        "learning rate",
        "distillation",
        "digests of what was kept",
    ]
    lines.append(f"# Accuracy against FLOPs: {setting.arch} on {setting.data}\n\n{ran_on('torch-pruning')}\n")
    lines.append(
        f"{setting.images:,} training images, {setting.epochs} epochs (shared by all budgets), {setting.finetune} of "
        f"fine-tuning, batch {setting.batch_size}; from scratch {setting.epochs + setting.finetune} epochs. "
        f"{setting.calibration:,} calibration images of them for slim. Mean ± standard deviation over seeds, on "
        "test images; the learning rate of fine-tuning, and slim's weight of distillation, are the best on validation "
        "images.\n"
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


def logged(log: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a setting that stand in the log; of a method, budget and seed those of the channels that were kept
    last."""
    results = [line["result"] for line in read_rows(log) if line["setting"] == facts]
    last = {place(r): r.get("digest") for r in results}
    return [r for r in results if r.get("digest") == last[place(r)]]


def place(result: dict[str, Any]) -> tuple[str, float, int]:
    return result["method"], result["keep"], result["seed"]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--quick", action="store_true", help="digits, 6 + 3 epochs, one seed: to see that it works")
    parser.add_argument("--data", choices=["cifar10-jpeg", "digits"], default="cifar10-jpeg")
    parser.add_argument("--arch", nargs="+", default=["slim:resnet20"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3, 0.15], help="shares of the FLOPs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10, help="of (sparse) training")
    parser.add_argument("--finetune", type=int, default=5, help="epochs of fine-tuning")
    parser.add_argument("--images", type=int, default=0, help="training images; 0: all")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--finetune-lr", type=float, nargs="+", default=[0.1, 0.03, 0.01])
    parser.add_argument("--tuning-seeds", type=int, default=1, help="how many seeds choose the learning rates")
    parser.add_argument("--distill", type=float, nargs="+", default=[0.5, 0.0], help="weights of slim's distillation")
    parser.add_argument("--strength", type=float, default=1e-4, help="λ of slim (proximal)")
    parser.add_argument("--paper-strength", type=float, default=1e-4, help="λ of the paper (subgradient)")
    parser.add_argument("--tp-strength", type=float, default=1e-4, help="torch-pruning's reg")
    parser.add_argument("--calibration", type=int, default=1024, help="images that recovery looks at")
    parser.add_argument("--device", default="auto", choices=get_args(Device))
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "slim-data" / "networks")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so long, in a training too")
    parser.add_argument("--check", action="store_true", help="measure anew where other channels would be kept now")
    parser.add_argument("--name", help="of the results' files")
    args = parser.parse_args()
    if args.quick:
        args.data = "digits"
        args.seeds, args.epochs, args.finetune, args.keep, args.calibration = [0], 6, 3, [0.5, 0.2], 512
        args.strength, args.paper_strength, args.batch_size = 2e-3, 2e-3, 64
    if args.tuning_seeds < 1:
        parser.error(f"--tuning-seeds {args.tuning_seeds}: expected at least 1, to choose the learning rates")
    started = time.perf_counter()
    loaded = dataset(args.data, args.images)
    signal.signal(signal.SIGTERM, interrupted)  # between trainings, which save a state first
    if 0 < args.minutes < math.inf:  # of 0 minutes only the table comes
        timer = threading.Timer(60 * args.minutes, signal.raise_signal, [signal.SIGTERM])
        timer.daemon = True
        timer.start()
    tuning = args.seeds[: args.tuning_seeds]
    for arch in args.arch:
        calibration = min(args.calibration, len(loaded.train))
        given = vars(args) | {"arch": arch, "images": len(loaded.train), "calibration": calibration}
        setting = Setting(**{f.name: given[f.name] for f in dataclasses.fields(Setting)})
        name = args.name or f"frontier_{args.data}_{arch.partition(':')[2]}" + ("_quick" if args.quick else "")
        log = RESULTS / f"{name}.jsonl"  # not dated: it grows over days
        facts = dataclasses.asdict(setting)
        results = logged(log, facts)
        try:
            for seed in args.seeds:
                bench = Bench(setting, loaded, seed, args.cache)
                best = best_ways(results, tuning)
                for keep, method in itertools.product(args.keep, args.methods):
                    if time.perf_counter() - started > 60 * args.minutes:
                        raise Interrupted("no time left", signal.SIGTERM)
                    if method == "scratch":
                        ways = [(args.lr, 0.0)]
                    elif seed in tuning:
                        ways = list(itertools.product(args.finetune_lr, args.distill if method in RECOVERED else [0.0]))
                    else:
                        ways = [best[method, keep]]
                    own = [r for r in results if place(r) == (method, keep, seed)]
                    if args.check and are_stale(bench, own):
                        print(f"stale: {method} at {keep:g}, seed {seed}, keeps other channels now", flush=True)
                        results, own = [r for r in results if r not in own], []
                    done = {way(r) for r in own}
                    missing = [some for some in ways if some not in done]
                    for result in results_of(bench, method, keep, missing) if missing else ():
                        results.append(result)
                        log.parent.mkdir(exist_ok=True)
                        add_row(log, {"setting": facts, "result": result})
                        print({key: result.get(key) for key in SAID}, flush=True)
        except (Interrupted, KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the table comes first
            print("stopped: the same command goes on")
            break
        finally:
            best = best_ways(results, tuning)
            chosen = [r for r in results if r["seed"] in args.seeds and way(r) == best.get((r["method"], r["keep"]))]
            if chosen:
                tell(setting, chosen, name)


def interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted("stopped", number)


SAID = ("method", "keep", "seed", "lr", "distill", "pruned", "finetuned", "loss", "flops", "images", "seconds")


if __name__ == "__main__":
    main()
