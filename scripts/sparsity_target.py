"""Does `target=` land where it was asked to? Over several seeds, on digits and on CIFAR-10 with ResNet-20.

    python scripts/sparsity_target.py                       # digits: 3 targets × 3 seeds, about a minute
    SLIM_DATA=… python scripts/sparsity_target.py --data cifar10-jpeg [--images 10000] [--epochs 10]

Each run trains from the paper's γ = 0.5 with method="proximal" and target=…, λ starting at 1e-4, and is compared with a
run without a penalty, of the same seed. Runs are appended to a JSON-lines file under scripts/results/ as they end,
and runs that are in it already aren't repeated; the table is made from it. λ is known to nobody in advance: the last
column says what the controller found.
"""

import dataclasses
import time
from datetime import date
from typing import Any

import torch
from shared import RESULTS, add_row, dataset, mean_and_spread, parser_of, ran_on, read_rows, table, write

from slim.workbench import data, models, train
from slim.workbench.config import OptimConfig, SparsityConfig

Runs = dict[tuple[float, int], dict[str, Any]]


def one_run(loaded: data.Dataset, arch: str, target: float, seed: int, epochs: int, batch_size: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = models.build(arch, num_classes=len(loaded.classes), in_channels=loaded.channels)
    sparsity = SparsityConfig(method="proximal", target=target) if target else SparsityConfig(strength=0.0)
    started = time.perf_counter()
    records = train.fit(
        model,
        dataclasses.replace(loaded, batch_size=batch_size),
        OptimConfig(epochs=epochs),
        seed=seed,
        sparsity=sparsity,
    )
    shares = records[-1]["gamma"]["layers"].values()
    return {
        "target": target,
        "seed": seed,
        "zero": records[-1]["zero"],
        "fullest": max(zero for zero, _ in shares),
        "strength": records[-1]["strength"],
        "accuracy": train.evaluate(model, loaded.test, loaded)["accuracy"],
        "zeros": [round(record["zero"], 4) for record in records],
        "strengths": [record["strength"] for record in records],
        "seconds": time.perf_counter() - started,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", choices=["digits", "cifar10-jpeg"], default="digits")
    parser.add_argument("--targets", type=float, nargs="+", help="shares of zeros; 0: no penalty")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--images", type=int, default=10000, help="of CIFAR's training images; 0: all")
    args = parser.parse_args()
    digits = args.data == "digits"
    arch, batch_size = ("slim:vgg7", 64) if digits else ("slim:resnet20", 128)
    epochs = args.epochs or (30 if digits else 10)
    targets = args.targets or ([0.0, 0.4, 0.6, 0.8] if digits else [0.6, 0.0])
    name = f"sparsity_target_{args.data}"

    log = RESULTS / f"{name}-{date.today()}.jsonl"
    done: Runs = {(run["target"], run["seed"]): run for run in read_rows(log)}
    loaded = None
    for target in targets:
        for seed in args.seeds:
            if (target, seed) not in done:
                if digits or loaded is None:
                    loaded = dataset(args.data, args.images, val_fraction=0.02, seed=seed)
                run = one_run(loaded, arch, target, seed, epochs, batch_size)
                done[target, seed] = run
                add_row(log, run)
                print({key: run[key] for key in ("target", "seed", "zero", "accuracy", "seconds")}, flush=True)

    header = ["target %", "seed", "zeros %", "off by, points", "fullest layer's zeros %", "accuracy %", "λ at the end"]
    rows = [
        [
            f"{target:.0%}" if target else "none",
            seed,
            f"{100 * run['zero']:.2f}",
            f"{100 * (run['zero'] - target):+.2f}" if target else "",
            f"{100 * run['fullest']:.1f}",
            f"{100 * run['accuracy']:.2f}",
            f"{run['strength']:.2g}" if target else "0",
        ]
        for (target, seed), run in sorted(done.items())
    ]
    summary = []
    for target in sorted({target for target, _ in done}):
        runs = [run for (own, _), run in done.items() if own == target]
        shares = mean_and_spread([100 * run["zero"] for run in runs])
        accuracy = mean_and_spread([100 * run["accuracy"] for run in runs])
        summary.append([f"{target:.0%}" if target else "none", len(runs), shares, accuracy])
    setting = (
        "UCI digits (1,797 images; the test set is a fifth of them)"
        if digits
        else (
            f"CIFAR-10 (JPEG), {args.images or 'all'} of its training images (a short run, not the accuracy that "
            "ResNet-20 can have), all 10,000 test images"
        )
    )
    path = write(
        name,
        f"# Landing on a target: {args.data}\n\n{ran_on()}\n\n"
        f"{setting}; {arch}, {epochs} epochs, batch {batch_size}, SGD 0.1 with momentum, cosine. "
        "Proximal L1, λ from 1e-4, floor 10 %.\n\n"
        + table(header, rows)
        + "\n\nMean ± standard deviation over seeds:\n\n"
        + table(["target", "seeds", "zeros %", "accuracy %"], summary),
    )
    print(path.read_text())


if __name__ == "__main__":
    main()
