"""How fast slim trains, against the loops that people start from: images per second of whole epochs, data included.

    python scripts/bench_train.py [--images 5120] [--rounds 3] [--threads 2] [--device cpu] [--compile]
    python scripts/bench_train.py --device cuda [--rounds 3] [--minutes 5] [--archs slim:vgg19 …] [--compile]
    python scripts/bench_train.py --accuracy [--images 8192] [--epochs 8] [--seeds 3]

CIFAR-10 (JPEG) of $SLIM_DATA, ResNet-20, batch 64, SGD with momentum, the L1 penalty on γ. In each round every way
trains one epoch on the same images, in a process of its own; the order turns with the rounds. The ways:

- slim: `slim.workbench.train.fit` with its defaults: decoded images on the device, channels_last, a penalty in one
  call;
- slim, compiled: the same with compile=True; the compiler's time, before the first round, is given apart;
- paper: the loop of the paper's authors: torchvision's ImageFolder, a DataLoader with one worker and PIL transforms,
  fp32, NCHW, and a Python loop over all BatchNorms for the penalty;
- paper, slim's threads: the same with the environment that the slim commands set, so that OpenMP's threads hardly
  spin (all slim ways have it; the other ways run as they come);
- paper, arrays: the same on images that are decoded already, as torchvision keeps the original CIFAR-10;
- lightning: the paper's data and penalty in Lightning's Trainer as it comes (no checkpoints, no logger, no bar);
- slim, pruned / pruned to multiples of 8 or 16: slim on what `slim.plan` leaves of ResNet-20 at half its FLOPs.

On a GPU other networks, batch sizes and ways are measured: see gpu_training.py.

--accuracy trains slim and paper from the same weights with the same recipe and compares accuracies on the test images
over the seeds; epochs are a multiple of 4, so that both divide the learning rate at the same steps. It goes on where it
was stopped: finished trainings are read from scripts/results/.
"""

import argparse
import copy
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, get_args

import torch
import torch.nn.functional as F
from gpu_training import speed_on_gpu
from PIL import Image
from shared import RESULTS, Device, cifar10_jpeg, mean_and_spread, parser_of, ran_on, table, write
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

import slim
from slim.trace.size import network_size
from slim.workbench import data, models, train
from slim.workbench.config import ComputeConfig, DataConfig, OptimConfig, SparsityConfig
from slim.workbench.data import Split

THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}  # what the slim commands set, before OpenMP loads
BATCH, LAMBDA = 64, 1e-4
RECIPE = OptimConfig(lr=0.1, nesterov=False, schedule="step", warmup=0.0, decay_norm=True)  # the authors'


class Arrays(Dataset):
    """Decoded images that become PIL images one by one, as in torchvision.datasets.CIFAR10."""

    def __init__(self, split: Split, transform: Callable) -> None:
        self.images = split.decoded().permute(0, 2, 3, 1).contiguous().numpy()
        self.labels, self.transform = split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[number])), self.labels[number]


class Material:
    """The same images for everyone."""

    def __init__(self, images: int) -> None:
        root = cifar10_jpeg()
        if root is None:
            raise SystemExit("no cifar10-jpeg under $SLIM_DATA: see scripts/shared.py")
        started = time.perf_counter()
        whole = data.load(DataConfig(name="imagefolder", root=str(root), val_fraction=0.0), 0)
        self.seconds_to_load = time.perf_counter() - started
        chosen = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(0))[:images].sort().values
        nothing = whole.train[:0]
        self.dataset = data.Dataset(
            "CIFAR-10 (JPEG)",
            whole.spec,
            whole.train[chosen],
            nothing,
            whole.test,
            "crop+flip",
        )
        self.transform = transforms.Compose(
            [
                transforms.Pad(4),
                transforms.RandomCrop(32),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(whole.spec.mean, whole.spec.std),
            ]
        )
        files = datasets.ImageFolder(str(root / "train"), self.transform)
        self.files = Subset(files, chosen.tolist())  # both list the files in the same order
        self.arrays = Arrays(self.dataset.train, self.transform)

    def loader(self, source: Dataset, batch: int = BATCH) -> DataLoader:
        return DataLoader(source, batch, shuffle=True, num_workers=1, pin_memory=torch.cuda.is_available())


def with_slim(
    model: nn.Module, material: Material, device: Device, epochs: int = 1, seed: int = 0, compile: bool = False
) -> None:
    train.fit(
        model,
        replace(material.dataset, batch_size=BATCH),
        replace(RECIPE, epochs=epochs),
        compute=ComputeConfig(device=device, compile=compile),
        seed=seed,
        sparsity=SparsityConfig(strength=LAMBDA),
    )


def with_papers_loop(model: nn.Module, loader: DataLoader, device: Device, epochs: int = 1) -> None:
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RECIPE.lr, momentum=0.9, weight_decay=RECIPE.weight_decay)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.lr * 0.1 ** ((epoch >= epochs * 0.5) + (epoch >= epochs * 0.75))
        total, right = 0.0, 0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            output = model(images)
            loss = F.cross_entropy(output, labels)
            total += loss.item()
            right += int(output.max(1)[1].eq(labels).sum())
            loss.backward()
            add_penalty(model)
            optimizer.step()
    model.eval()


def add_penalty(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.grad.data.add_(LAMBDA * torch.sign(module.weight.data))  # type: ignore[union-attr]


def with_lightning(model: nn.Module, loader: DataLoader, device: str) -> None:
    import logging
    import warnings

    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            images, labels = batch
            return F.cross_entropy(self.network(images), labels)

        def on_after_backward(self) -> None:
            add_penalty(self.network)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            parameters = self.network.parameters()
            return torch.optim.SGD(parameters, lr=RECIPE.lr, momentum=0.9, weight_decay=RECIPE.weight_decay)

    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu" if device == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return models.build("slim:resnet20", num_classes=10)


def pruned(round_to: int) -> nn.Module:
    """ResNet-20 at half its FLOPs; untrained, so γ is drawn at random."""
    model = resnet20().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    example = torch.zeros(1, 3, 32, 32)
    return slim.plan(model, example, slim.Flops(0.5), round_to=round_to).apply(model)


WAYS = [
    "paper",
    "slim",
    "paper, slim's threads",
    "paper, arrays",
    "lightning",
    "slim, pruned",
    "slim, pruned to multiples of 8",
    "slim, pruned to multiples of 16",
    "slim, compiled",
]


def network_of(name: str) -> nn.Module:
    if "pruned" not in name:
        return resnet20()
    return pruned(int(name.rpartition(" of ")[2]) if "multiples" in name else 1)


def way_of(name: str, material: Material, device: Device) -> Callable[[], None]:
    """What trains an epoch, once its first steps are done."""
    model = network_of(name)
    if name == "lightning" or name.startswith("paper"):
        source = material.arrays if "arrays" in name else material.files
        train_epoch = with_lightning if name == "lightning" else with_papers_loop
        train_epoch(model, material.loader(Subset(source, range(2 * BATCH))), device)
        return partial(train_epoch, model, material.loader(source), device)
    settings = {"compile": True} if "compiled" in name else {}
    few = copy.copy(material)
    few.dataset = replace(material.dataset, train=material.dataset.train[: 2 * BATCH])
    with_slim(model, few, device, **settings)
    return partial(with_slim, model, material, device, **settings)


def serve(pipe: Connection, name: str, args: argparse.Namespace) -> None:
    """A process of its own for each way, as slim changes how memory is kept. Trains an epoch whenever it is asked, and
    answers with the seconds on the clock and those of all processors."""
    torch.set_num_threads(args.threads)
    if "fork" in multiprocessing.get_all_start_methods():  # for the workers of DataLoaders, as in a program of its own
        multiprocessing.set_start_method("fork", force=True)
    material = Material(args.images)
    started = time.perf_counter()
    way = way_of(name, material, args.device)
    pipe.send((material.seconds_to_load, time.perf_counter() - started))
    while pipe.recv():
        started, used = time.perf_counter(), processor_seconds()
        way()
        if args.device == "cuda":
            torch.cuda.synchronize()
        pipe.send((time.perf_counter() - started, processor_seconds() - used))


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def speed(args: argparse.Namespace) -> None:
    device = args.device
    names = args.ways.split(";") if args.ways else [name for name in WAYS if args.compile or "compiled" not in name]
    notes = []
    pipes = {}
    context = multiprocessing.get_context("spawn")
    for name in names:
        pipes[name], other = context.Pipe()
        for variable, value in THREADS.items():
            os.environ.pop(variable, None)
            if "slim" in name:
                os.environ[variable] = value
        context.Process(target=serve, args=(other, name, args), daemon=False).start()
        to_load, to_start = pipes[name].recv()
        if "compiled" in name:
            notes.append(f"Compiling took {to_start:.0f} s.")
    times: dict[str, list[float]] = {name: [] for name in names}
    work: dict[str, list[float]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            pipes[name].send(True)
            seconds, used = pipes[name].recv()
            times[name].append(seconds)
            work[name].append(1000 * used / args.images)
            print(f"round {number + 1}: {name}: {args.images / seconds:.0f} images/s", flush=True)
    for pipe in pipes.values():
        pipe.send(False)

    flops = {name: network_size(network_of(name), torch.zeros(1, 3, 32, 32)).flops for name in names}
    rows = []
    for name, took in times.items():
        rates = [args.images / seconds for seconds in took]
        against = [f"{_ratio(times[other], took):.2f}" if other in times else "" for other in ("paper", "lightning")]
        spent = statistics.median(work[name])
        less_work = f"{_ratio(work['paper'], work[name]):.2f}" if "paper" in work else ""
        spread = f"{min(rates):.0f}–{max(rates):.0f}"
        rows.append([name, f"{statistics.median(rates):.0f}", spread, *against, f"{spent:.2f}", less_work])
    header = ["way", "images/s", "min–max", "× paper", "× lightning", "CPU ms per image", "paper's ÷ its"]
    for name in names:
        if "pruned" in name and "slim" in names:
            less = 1 - flops[name] / flops["slim"]
            saved, spared = (1 - 1 / _ratio(spent["slim"], spent[name]) for spent in (times, work))
            notes.append(
                f"{name}: {less:.1%} fewer FLOPs; an epoch takes {saved:.1%} less time ({saved / less:.0%} of the "
                f"reduction) and {spared:.1%} less of the processors ({spared / less:.0%})."
            )
    precision = train.resolve_precision("auto", torch.device(device))
    text = (
        f"# How fast slim trains\n\n{ran_on('torchvision', 'lightning', 'pillow')}\n\n"
        f"ResNet-20, CIFAR-10 (JPEG), {args.images:,} images in an epoch, batch {BATCH}, {args.rounds} rounds, "
        f"{precision}; ratios are medians over the rounds. CPU time is that of all processes. slim's ways run with "
        f"{' '.join(f'{key}={value}' for key, value in THREADS.items())}, as the slim commands do. Before that, "
        f"loading all 60,000 images took slim {to_load:.1f} s.\n\n{table(header, rows)}\n\n" + "\n\n".join(notes)
    )
    print(text)
    write("bench_train", text)


def on_gpu(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    material = Material(50_000)
    some = Subset(material.files, range(args.images))

    def loop(model: nn.Module, batch: int) -> float:
        with_papers_loop(model, material.loader(Subset(some, range(2 * batch)), batch), args.device)
        started = time.perf_counter()
        with_papers_loop(model, material.loader(some, batch), args.device)
        return args.images / (time.perf_counter() - started)

    speed_on_gpu(args, material.dataset, RECIPE, LAMBDA, loop)


def _ratio(a: list[float], b: list[float]) -> float:
    """The median of a/b, round by round."""
    return statistics.median(x / y for x, y in zip(a, b))


def accuracy(args: argparse.Namespace) -> None:
    if args.epochs % 4:
        raise SystemExit(
            f"--epochs {args.epochs}: expected a multiple of 4, as the rate falls at a half and at three quarters"
        )
    torch.set_num_threads(args.threads)
    material = Material(args.images)
    name = f"bench_train_accuracy-{args.images}x{args.epochs}.json"
    path = RESULTS / name
    done: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(args.seeds):
        for way in ("slim", "paper"):
            key = f"{way} {seed}"
            if key in done:
                continue
            torch.manual_seed(seed)
            model = models.build("slim:resnet20", num_classes=10)
            torch.manual_seed(1000 + seed)  # the order of the paper's loader
            if way == "slim":
                with_slim(model, material, args.device, args.epochs, seed)
            else:
                with_papers_loop(model, material.loader(material.files), args.device, args.epochs)
            done[key] = train.evaluate(model, material.dataset.test, material.dataset)["accuracy"]
            print(f"{key}: {done[key]:.2%}", flush=True)
            path.write_text(json.dumps(done, indent=1) + "\n")
    scores = {way: [100 * done[f"{way} {seed}"] for seed in range(args.seeds)] for way in ("slim", "paper")}
    differences = [a - b for a, b in zip(*scores.values())]
    rows = [[way, *(f"{value:.2f}" for value in values), mean_and_spread(values)] for way, values in scores.items()]
    rows.append(["difference", *(f"{value:+.2f}" for value in differences), mean_and_spread(differences)])
    text = (
        f"# Speed costs no accuracy\n\n{ran_on('torchvision', 'pillow')}\n\n"
        f"ResNet-20 on {args.images:,} training images of CIFAR-10 (JPEG), {args.epochs} epochs, batch {BATCH}, the "
        f"authors' recipe; accuracy on all 10,000 test images, %.\n\n"
        f"{table(['loop', *(f'seed {seed}' for seed in range(args.seeds)), 'mean ± SD'], rows)}\n"
    )
    print(text)
    write("bench_train_accuracy", text)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, help="training images: 5120, or 8192 with --accuracy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=get_args(Device))
    parser.add_argument("--minutes", type=float, default=5.0, help="limit on a GPU")
    parser.add_argument("--archs", nargs="*", help="on a GPU only these networks, of slim:resnet20 and slim:vgg19")
    parser.add_argument("--compile", action="store_true", help="also slim with torch.compile")
    parser.add_argument("--ways", help="only these, separated by ;")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    args.images = args.images or (8192 if args.accuracy else 5120)
    if args.accuracy:
        os.environ.update(THREADS)
        process = multiprocessing.get_context("spawn").Process(target=accuracy, args=(args,))
        process.start()
        process.join()
        raise SystemExit(process.exitcode)
    (on_gpu if args.device == "cuda" else speed)(args)


if __name__ == "__main__":
    main()
