"""Whole residual blocks under tight budgets of time: each budget with and without them.

    SLIM_DATA=… python scripts/bench_blocks.py [--networks resnet50 resnet56] [--budgets 0.3] [--images 64]

Batch 1 on one thread of ONNX Runtime; channels, and blocks, by slim.Residual; recovered on images, no training after.
resnet50 is torchvision's at 224×224 as in bench_deploy.py: random weights with fitted statistics, as no trained ones
are at hand. Scores, recovery and errors are from CIFAR-10 (JPEG) at 128×128: the squared error of its outputs on images
that nothing else saw, as a share of their variance. resnet56 is slim's for 32×32, trained on the digits (8×8) first:
there it is the share of the test images that it gets wrong. The time is measured once more after the plan, in turn with
the original's. What was measured is in a JSON-lines file beside the result, and isn't measured again (--fresh does).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bench_deploy import network
from shared import RESULTS, add_row, cifar10_jpeg, dataset, parser_of, ran_on, read_rows, table, write
from torch import Tensor, nn

import slim
from slim.deploy.cost.network import Network, in_turn, share_of
from slim.prune.groups import Groups
from slim.prune.residual import Residual
from slim.workbench import data, models, train
from slim.workbench.config import OptimConfig

Measure = Callable[[nn.Module], float]
HELD_OUT = 128  # images of CIFAR that the errors are taken on


class Once:
    """`slim.Residual` for plans of one network, worked out once for all of them."""

    ranks_all = True

    def __init__(self, images: Tensor) -> None:
        self.score = Residual(images)
        self.known: dict[bytes, Any] = {}

    def __call__(self, groups: Groups) -> Any:
        key = groups.roots.tobytes() + groups.savings.tobytes()
        if key not in self.known:
            self.known[key] = self.score(groups)
        return self.known[key]

    def missed_without(self, groups: Groups, branches: Any) -> list[float]:
        return self.score.missed_without(groups, branches)


def imagenet_like(images: int) -> tuple[nn.Module, Tensor, Tensor, str, Measure]:
    """ResNet-50, an example at its size, images to plan and recover on, and the error of its outputs."""
    model = network("resnet50")
    if cifar10_jpeg() is None:
        raise SystemExit("resnet50 needs CIFAR-10 (JPEG): set SLIM_DATA to the folder that holds cifar10-jpeg")
    loaded = dataset("cifar10-jpeg", images)
    some, held_out = (
        F.interpolate(next(data.batches(part, loaded, count, shuffle_seed=1))[0], size=(128, 128), mode="bilinear")
        for part, count in ((loaded.train, images), (loaded.test, HELD_OUT))
    )
    wanted = outputs(model, held_out)

    def error(thin: nn.Module) -> float:
        return float((outputs(thin, held_out) - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum())

    return model, torch.randn(1, 3, 224, 224), some, "error of outputs", error


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(32)])


def trained(images: int) -> tuple[nn.Module, Tensor, Tensor, str, Measure]:
    """ResNet-56 on the digits, and the share of the test images that it gets wrong."""
    loaded = dataset("digits")
    torch.manual_seed(0)
    model = models.build("slim:resnet56", num_classes=len(loaded.classes), in_channels=loaded.channels)
    train.fit(model, loaded, OptimConfig(epochs=20), seed=0)
    some = next(data.batches(loaded.train, loaded, min(1024, len(loaded.train)), shuffle_seed=1))[0]

    def error(thin: nn.Module) -> float:
        return 1 - float(train.evaluate(thin, loaded.test, loaded)["accuracy"])

    return model.eval(), some[:1], some, "error on test images", error


NETWORKS = {"resnet50": imagenet_like, "resnet56": trained}


def measured(
    name: str, made: tuple[nn.Module, Tensor, Tensor, str, Measure], score: Once, budget: float, *, blocks: bool
) -> dict[str, Any]:
    """One budget, with or without blocks."""
    model, x, images, what, error = made
    runtime = slim.Runtime(slim.OnnxRuntime("cpu", 1), 1)
    plan = slim.plan(model, x, slim.Latency(budget, runtime), score=score, blocks=blocks)
    thin = plan.apply(model)
    proof = slim.verify(model, thin, plan, x)
    recovery = slim.recover(model, thin, plan, images)
    again = in_turn([Network(model, x, runtime), Network(recovery.model, x, runtime)])
    return {
        "network": name,
        "budget": budget,
        "blocks": blocks,
        "gone": list(plan.blocks),
        "time": share_of(again),
        "shortfall": plan.shortfall,
        "flops": plan.totals["flops"][1] / plan.totals["flops"][0],
        "params": plan.totals["params"][1] / plan.totals["params"][0],
        "proof": float(proof),
        "what": what,
        "whole": error(model),
        "pruned": error(thin),
        "recovered": error(recovery.model),
    }


def report(rows: list[dict[str, Any]]) -> str:
    header = ["network", "budget", "blocks", "blocks that go", "time left", "FLOPs left", "parameters left"]
    header += ["what is compared", "unpruned", "pruned", "recovered", "proved to"]
    cells = [
        [
            row["network"],
            f"{row['budget']:.0%}",
            "with" if row["blocks"] else "without",
            len(row["gone"]),
            f"{row['time']:.1%}{' (no plan reaches it)' if row['shortfall'] else ''}",
            f"{row['flops']:.1%}",
            f"{row['params']:.1%}",
            row["what"],
            *(f"{row[stage]:.2%}" for stage in ("whole", "pruned", "recovered")),
            f"{row['proof']:.0e}",
        ]
        for row in rows
    ]
    return f"# Budgets of time with and without whole blocks\n\n{ran_on('onnxruntime', 'torchvision')}\n\n" + table(
        header, cells
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.3])
    parser.add_argument("--images", type=int, default=64, help="to score and recover resnet50 on")
    parser.add_argument("--fresh", action="store_true")
    args = parser.parse_args()
    path = RESULTS / "bench_blocks.jsonl"
    if args.fresh:
        path.unlink(missing_ok=True)
    for name in args.networks:
        done = {(row["network"], row["budget"], row["blocks"]) for row in read_rows(path)}
        todo = [(b, blocks) for b in args.budgets for blocks in (False, True) if (name, b, blocks) not in done]
        if todo:
            made = NETWORKS[name](args.images)
            score = Once(made[2])
            for budget, blocks in todo:
                add_row(path, row := measured(name, made, score, budget, blocks=blocks))
                print(row, flush=True)
    print(write("bench_blocks", report(read_rows(path))).read_text())


if __name__ == "__main__":
    main()
