"""Streaming a folder of JPEGs that needn't fit in memory: images per second by number of workers, and memory over time.

    python scripts/bench_stream.py [--images 100000] [--size 224] [--workers 0,1,2,4] [--epochs-of 12288] [--folder DIR]

Writes that many synthetic JPEGs (smooth random colours with noise, quality 85) in 100 classes to a temporary folder,
which is removed at the end; --folder keeps them in DIR, where a later call finds them. Then streams the whole folder
once, in shuffled and augmented batches of 64, with one worker per core, and notes the memory of this process and its
workers together (PSS: shared pages count by share) as it goes. Last, it streams --epochs-of images with each number of
workers, in turn, twice, beside a plain loop of torchvision's ImageFolder and DataLoader that decodes, resizes, crops,
flips and normalises the same images with PIL.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from shared import parser_of, ran_on, table, write
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from slim.workbench import data
from slim.workbench.config import DataConfig
from slim.workbench.data import Dataset

BATCH, CLASSES = 64, 100


def write_images(folder: Path, count: int, size: int) -> None:
    with ProcessPoolExecutor() as pool:
        jobs = [(folder, number, count, size) for number in range(CLASSES)]
        for _ in pool.map(_write_class, jobs):
            pass


def _write_class(job: tuple[Path, int, int, int]) -> None:
    folder, number, count, size = job
    place = folder / f"class{number:03}"
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    for index in range(number, count, CLASSES):
        path = place / f"{index:07}.jpg"
        if path.exists():
            continue
        coarse = Image.fromarray(rng.integers(256, size=(7, 7, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.int16)
        noisy = pixels + rng.integers(-12, 13, size=pixels.shape, dtype=np.int16)
        part = path.with_suffix(".part")  # a run that is stopped leaves no broken image
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(part, "JPEG", quality=85)
        part.rename(path)


def memory() -> float:
    """MB of this process and its children, shared pages counted by share. Linux."""
    family = [os.getpid()]
    for pid in family:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            family += map(int, task.read_text().split())
    total = 0
    for pid in family:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def stream(dataset: Dataset, images: int, seed: int = 0, watch: bool = False) -> tuple[float, list[tuple[int, float]]]:
    """Images per second, and, if it is to `watch`, (images so far, MB) at every fiftieth of the way."""
    split = dataset.train[:images] if images < len(dataset.train) else dataset.train
    steps = data.steps_per_epoch(len(split), BATCH)
    watched = []
    started = time.perf_counter()
    for step, (batch, _) in enumerate(data.batches(split, dataset, BATCH, shuffle_seed=seed, augment=True)):
        if watch and step % max(1, steps // 50) == 0:
            watched.append((step * BATCH, memory()))
        assert batch.shape[1] == 3
    return steps * BATCH / (time.perf_counter() - started), watched


def plain(folder: Path, images: int, size: int, workers: int) -> float:
    """Images per second of torchvision's ImageFolder and a DataLoader."""
    steps = [
        transforms.Resize((size, size)),
        transforms.RandomCrop(size, size // 8),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.25] * 3),
    ]
    whole = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(Subset(whole, range(images)), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    started = time.perf_counter()
    count = sum(len(labels) for _, labels in loader)
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=224, help="pixels, height = width")
    parser.add_argument("--workers", default="0,1,2,4", help="numbers to compare")
    parser.add_argument("--epochs-of", type=int, default=12288, help="images for the comparison of workers")
    parser.add_argument("--folder", type=Path, help="keep the images here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="slim-stream-"))
    try:
        measure(folder, args)
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, args: argparse.Namespace) -> None:
    started = time.perf_counter()
    write_images(folder, args.images, args.size)
    print(f"{args.images:,} images are there after {time.perf_counter() - started:.0f} s", flush=True)

    def load(workers: int | None) -> Dataset:
        cfg = DataConfig(
            name="imagefolder",
            root=str(folder),
            storage="stream",
            workers=workers,
            val_fraction=0.0,
            augment="crop+flip",
        )
        return data.load(cfg, 0)

    started = time.perf_counter()
    dataset = load(None)
    seconds = time.perf_counter() - started
    rate, watched = stream(dataset, len(dataset.train), watch=True)
    settled = [mb for count, mb in watched if count >= watched[-1][0] / 10]
    growth = statistics.mean(settled[-5:]) / statistics.mean(settled[:5]) - 1
    text = f"whole: {rate:.0f} images/s; memory {settled[0]:.0f} MB → {settled[-1]:.0f} MB ({growth:+.1%})"
    print(text, flush=True)
    every = max(1, len(watched) // 8)
    over_time = [[f"{count:,}", f"{mb:.0f}"] for count, mb in [*watched[::every], watched[-1]]]

    workers = [int(number) for number in args.workers.split(",")]
    rates: dict[tuple[str, int], list[float]] = {}
    for turn in range(2):
        for number in workers if turn == 0 else workers[::-1]:
            rates.setdefault(("slim", number), []).append(stream(load(number), args.epochs_of, turn)[0])
            rates.setdefault(("plain", number), []).append(plain(folder, args.epochs_of, args.size, number))
            latest = ", ".join(f"{way} {rates[way, number][-1]:.0f}" for way in ("slim", "plain"))
            print(f"{number} workers: {latest} images/s", flush=True)
    best = {key: statistics.mean(values) for key, values in rates.items()}
    rows = []
    for number in workers:
        ours, theirs = best["slim", number], best["plain", number]
        rows.append([number, f"{ours:.0f}", f"{theirs:.0f}", f"{ours / theirs:.2f}"])
    megabytes = sum(path.stat().st_size for path in folder.rglob("*.jpg")) / 1e6
    decoded = args.images * 3 * args.size**2 / 1e6
    text = (
        f"# Streaming a folder\n\n{ran_on('torchvision', 'pillow')}\n\n"
        f"{args.images:,} JPEGs of {args.size}×{args.size} in {CLASSES} classes: {megabytes:,.0f} MB, decoded "
        f"{decoded:,.0f} MB. Listing them and the statistics of a sample took {seconds:.1f} s; one pass over the "
        f"{len(dataset.train):,} training images, with one worker per core, ran at {rate:.0f} images/s. Memory of all "
        f"processes on the way, {growth:+.1%} from the first tenth on:\n\n{table(['images', 'MB'], over_time)}\n\n"
        f"Images per second by number of workers, over {args.epochs_of:,} images (mean of two turns), beside "
        f"torchvision's ImageFolder with PIL transforms in a DataLoader:\n\n"
        f"{table(['workers', 'slim', 'plain', 'slim ÷ plain'], rows)}\n"
    )
    print(text)
    write("bench_stream", text)


if __name__ == "__main__":
    main()
