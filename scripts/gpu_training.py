"""How fast slim trains on a GPU: `bench_train.py --device cuda`.

CIFAR-10 (JPEG) on the device, for each network and batch size the ways in turn, round by round, in one process:

- slim: `slim.workbench.train.fit` with its defaults, each step a replayed CUDA graph;
- slim, without graph: the same with compute.graph false;
- slim, compiled: compute.compile, whose compiler's time is in the first epoch;
- paper: the authors' loop, with one worker and PIL, on fewer images.

slim's rate is that of all epochs but the first, in which steps are recorded; `waiting` is the share of their time in
which no images were there. The share of the peak counts three times the forward pass's multiply-adds, against a bf16
matrix product of 8,192 rows and columns on the same card.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from shared import RESULTS, add_row, ran_on, table, write
from torch import nn

from slim.trace.size import network_size
from slim.workbench import data, models, train
from slim.workbench.config import ComputeConfig, OptimConfig, SparsityConfig

CASES = [("slim:resnet20", 64), ("slim:resnet20", 128), ("slim:vgg19", 64), ("slim:vgg19", 128), ("slim:vgg19", 1024)]
EAGER = "slim, without graph"
SLIM: dict[str, dict[str, Any]] = {
    "slim": {},
    EAGER: {"graph": False},
    "slim, compiled": {"compile": True},
}
EPOCHS = 3  # of slim's ways, the first to warm up
PAPERS_LOOP_UP_TO = 128  # images in a batch: the loader is what takes the time
STEPS = 160  # of an epoch without a graph, and with the compiler
PAPERS_EPOCHS = 320  # 160 of sparse training, 160 of fine-tuning


def network(arch: str) -> nn.Module:
    torch.manual_seed(0)
    return models.build(arch, num_classes=10)


def seconds_of_slim(
    way: str, arch: str, batch: int, dataset: data.Dataset, recipe: OptimConfig, strength: float, device: str
) -> tuple[float, float]:
    """Return images per second, and the share of the time in which none were there."""
    model = network(arch)
    count = len(dataset.train) if way == "slim" else min(len(dataset.train), STEPS * batch)
    records = train.fit(
        model,
        replace(dataset, train=dataset.train[:count], batch_size=batch),
        replace(recipe, epochs=EPOCHS),
        compute=ComputeConfig(device=device, **SLIM[way]),  # type: ignore[arg-type]
        sparsity=SparsityConfig(strength=strength),
    )[1:]
    seconds = sum(record["training_seconds"] for record in records)
    waiting = sum(record["waiting_seconds"] for record in records)
    return sum(record["images"] for record in records) / seconds, waiting / seconds


def peak(device: str) -> float:
    """Return the floating-point operations per second of a large bf16 matrix product."""
    if device != "cuda":
        return float("nan")
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(15):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * 8192**3 / statistics.median(times[5:])


def measurements(
    args: argparse.Namespace, dataset: data.Dataset, recipe: OptimConfig, strength: float, loop: Callable
) -> Iterator[dict[str, Any]]:
    """Yield a row for each run, in the order in which they run; none begins after `args.minutes`."""
    until = time.monotonic() + 60 * args.minutes
    ways = [way for way in SLIM if args.compile or "compiled" not in way]
    for arch, batch in CASES:
        if args.archs and arch not in args.archs:
            continue
        here = [*ways, *(["paper"] if batch <= PAPERS_LOOP_UP_TO else [])]
        for number in range(args.rounds):
            for way in here[number % len(here) :] + here[: number % len(here)]:
                if time.monotonic() > until or (way == "slim, compiled" and number):
                    continue
                row = {"arch": arch, "batch": batch, "way": way, "round": number}
                if way == "paper":
                    rate, waiting = loop(network(arch), batch), None
                else:
                    rate, waiting = seconds_of_slim(way, arch, batch, dataset, recipe, strength, args.device)
                yield row | {"images_per_second": rate, "waiting": waiting}


def report(rows: list[dict[str, Any]], device: str, flops_per_second: float) -> str:
    """Return the page of these rows."""
    lines, hours = [], []
    cases = dict.fromkeys((row["arch"], row["batch"]) for row in rows)
    for arch, batch in cases:
        flops = network_size(network(arch), torch.zeros(1, 3, 32, 32)).flops
        of_case = [row for row in rows if (row["arch"], row["batch"]) == (arch, batch)]
        rates = {
            way: [row["images_per_second"] for row in of_case if row["way"] == way]
            for way in dict.fromkeys(row["way"] for row in of_case)
        }
        for way, found in rates.items():
            rate = statistics.median(found)
            against = [statistics.median(rates[other]) if other in rates else None for other in ("paper", EAGER)]
            waited = [row["waiting"] for row in of_case if row["way"] == way and row["waiting"] is not None]
            lines.append([
                arch, batch, way, f"{rate:,.0f}", f"{min(found):,.0f}–{max(found):,.0f}",
                *(f"{rate / other:.1f}" if other else "" for other in against),
                f"{statistics.median(waited):.1%}" if waited else "",
                f"{6 * flops * rate / flops_per_second:.1%}",
            ])  # fmt: skip
            if way == "slim" and batch == 64:
                minutes = PAPERS_EPOCHS * 50_000 / rate / 60
                hours.append(
                    f"{arch}: the paper's 160 + 160 epochs of 50,000 images at batch 64 take {minutes:.1f} min."
                )
    header = ["network", "batch", "way", "images/s", "min–max", "× paper", "× without graph", "waiting", "of bf16 peak"]
    precision = train.resolve_precision("auto", torch.device("cpu" if device == "cpu" else "cuda"))
    return (
        f"# How fast slim trains on a GPU\n\n{ran_on('torchvision', 'pillow')}\n\n"
        f"{device}, {precision}; a bf16 matrix product runs at {flops_per_second / 1e12:,.0f} TFLOP/s. "
        f"Medians over rounds.\n\n{table(header, lines)}\n\n" + "\n".join(hours)
    )


def speed_on_gpu(
    args: argparse.Namespace, dataset: data.Dataset, recipe: OptimConfig, strength: float, loop: Callable
) -> None:
    """Measure all ways; write each row as it comes, and the page at the end. `loop(model, batch)` trains an epoch as
    the paper does and returns images per second."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    highest = peak(args.device)
    rows = []
    for row in measurements(args, dataset, recipe, strength, loop):
        rows.append(row | {"device": device})
        add_row(RESULTS / "bench_train_gpu.jsonl", rows[-1])
        print(f"{row['arch']} {row['batch']}: {row['way']}: {row['images_per_second']:,.0f} images/s", flush=True)
    text = report(rows, device, highest)
    print(text)
    write("bench_train_gpu", text)
