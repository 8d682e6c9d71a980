"""What is left of the accuracy right after pruning: as it is, recalibrated, and recovered; before any training.

    python scripts/recovery.py                    # digits: two minutes
    SLIM_DATA=… python scripts/recovery.py --data cifar10-jpeg [--images 20000] [--epochs 6]

ResNet-20 is trained with a penalty on γ in two ways, pruned by several shares of its channels, and measured on the test
images. The networks are kept under --cache and trained once. "recalibrated" means BatchNorm statistics estimated anew
on the calibration images, as others do it; "recovered" is `slim.recover`, for channels chosen by |γ| as in the paper
and, at the same FLOPs, by score=slim.Residual(images).
"""

import dataclasses
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from shared import dataset, parser_of, ran_on, table, write
from torch import nn

import slim
from slim import checkpoint
from slim.prune.rebuild import rebuild
from slim.workbench import data, models, train
from slim.workbench.config import OptimConfig, SparsityConfig


def trained(loaded: data.Dataset, facts: dict[str, Any], cache: Path) -> nn.Module:
    path = cache / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        kwargs: dict[str, Any] = {"num_classes": len(loaded.classes), "in_channels": loaded.channels}
        torch.manual_seed(facts["seed"])
        model = models.build(facts["arch"], **kwargs)
        optim, sparsity = OptimConfig(epochs=facts["epochs"]), SparsityConfig(**facts["sparsity"])
        train.fit(
            model,
            dataclasses.replace(loaded, batch_size=facts["batch_size"]),
            optim,
            seed=facts["seed"],
            sparsity=sparsity,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, model, arch=facts["arch"], arch_kwargs=kwargs, metrics=facts)
    return slim.load(path)


@torch.no_grad()
def recalibrated(thin: nn.Module, images: torch.Tensor) -> nn.Module:
    """BatchNorm statistics of these images, layer by layer in one pass of all of them."""
    out = rebuild(thin, slim.PruningPlan({}, {}, {}, {}, {}).change)
    for module in out.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
            module.train()
    out(images)
    return out.eval()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", choices=["digits", "cifar10-jpeg"], default="digits")
    parser.add_argument("--images", type=int, default=20000, help="of CIFAR's training images; 0: all")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--calibration", type=int, default=1024, help="images that recovery looks at")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "slim-data" / "networks")
    parser.add_argument(
        "--networks", nargs="+", choices=["subgradient", "proximal"], default=["subgradient", "proximal"]
    )
    args = parser.parse_args()
    digits = args.data == "digits"
    loaded = dataset(args.data, args.images)
    strengths = {"subgradient": 2e-3 if digits else 1e-4, "proximal": 2e-3 if digits else 5e-4}
    count = min(args.calibration, len(loaded.train))
    images = next(data.batches(loaded.train, loaded, count, shuffle_seed=1))[0]
    rows = []
    for method in args.networks:
        facts = {
            "data": args.data,
            "images": len(loaded.train),
            "arch": "slim:resnet20",
            "epochs": args.epochs or (30 if digits else 6),
            "batch_size": 64 if digits else 128,
            "seed": 0,
            "sparsity": {"method": method, "strength": strengths[method]},
        }
        model = trained(loaded, facts, args.cache)
        example = images[:1]

        def accuracy(network: nn.Module) -> float:
            return 100 * train.evaluate(network, loaded.test, loaded)["accuracy"]

        whole = accuracy(model)
        for ratio in args.ratios:
            by_gamma = slim.plan(model, example, ratio=ratio)
            kept = by_gamma.totals["flops"][1]  # the same FLOPs for both
            by_residual = slim.plan(model, example, slim.Flops(kept), score=slim.Residual(images))
            thin = by_gamma.apply(model)
            cells = [f"{accuracy(thin):.1f}", f"{accuracy(recalibrated(thin, images)):.1f}"]
            for plan in (by_gamma, by_residual):
                recovered = slim.recover(model, plan.apply(model), plan, images)
                seconds, left = recovered.seconds, plan.totals["flops"][1] / plan.totals["flops"][0]
                cells += [f"{accuracy(recovered.model):.1f}", f"{100 * left:.0f}"]
            network = f"{method}, λ {strengths[method]:g}"
            rows.append([network, f"{whole:.1f}", f"{ratio:.0%}", *cells, f"{seconds:.0f}"])
            print(rows[-1], flush=True)
    header = [
        "γ trained by",
        "unpruned %",
        "channels pruned",
        "as is %",
        "recalibrated %",
        "recovered %",
        "FLOPs left %",
    ]
    header += ["recovered, score residual %", "FLOPs left %", "seconds to recover"]
    text = (
        f"# Accuracy right after pruning: ResNet-20 on {args.data}\n\n"
        f"{ran_on()}\n\n"
        f"{len(loaded.train):,} training images, {args.epochs or (30 if digits else 6)} epochs (short runs, not the "
        f"accuracy that ResNet-20 can have), {len(loaded.test):,} test images, {count:,} calibration images without "
        "labels. No training after pruning. Seconds with other work on the machine.\n\n" + table(header, rows)
    )
    print(write(f"recovery_{args.data}", text).read_text())


if __name__ == "__main__":
    main()
