"""What a penalty costs in a training step, against the same loop without one and against the usual Python loop.

    python scripts/bench_sparsity.py [--rounds 7] [--device cpu] [--threads 2]

ResNet-50 (torchvision) at batch 32, 128×128, and ResNet-20 at batch 128, 32×32; SGD with momentum, random images. The
ways take turns, step by step, from a start that changes with the round. A step is long and the machine has other
work, so what a way adds is also timed by itself, as the mean of 200 calls (less the slowest 2 %) of what it runs at a
step, on gradients of zero; that over the median step without a penalty is the share that counts. "module loop" is how
the paper's code and its followers do it: for each BatchNorm, weight.grad.data.add_(s·sign(weight.data)).
`statistics()`, which the training loop calls once an epoch, is timed the same way, as if called at every step.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from shared import parser_of, ran_on, table, write
from torch import nn

from slim import L1, sparsify
from slim.workbench import models

CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "ResNet-50, batch 32, 128×128": (lambda: torchvision.models.resnet50(num_classes=100), 32, 128),
    "ResNet-20, batch 128, 32×32": (lambda: models.build("slim:resnet20", num_classes=10), 128, 32),
}
WAYS = ["none", "module loop", "subgradient", "proximal", "proximal, target", "loss"]
STEPS = 100000  # told to the target; it acts from the first tenth of them on


class Run:
    """A network in training, with one way to penalise its γ."""

    def __init__(self, build: Callable[[], nn.Module], way: str, images: torch.Tensor, labels: torch.Tensor) -> None:
        torch.manual_seed(0)
        self.way, self.images, self.labels = way, images, labels
        self.model = build().to(device=images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9)
        self.sparsity: Any = None
        if way not in ("none", "module loop"):
            settings: Any = {"target": 0.5, "steps": STEPS} if "target" in way else {}
            self.sparsity = sparsify(self.model, self.optimizer, L1(1e-4), method=way.split(",")[0], **settings)
            if settings:
                self.sparsity.load_state_dict(self.sparsity.state_dict() | {"step": STEPS // 2})

    def step(self) -> float:
        """Seconds of one training step."""
        _wait(self.images)
        started = time.perf_counter()
        loss = F.cross_entropy(self.model(self.images), self.labels)
        if self.way == "loss":
            loss = loss + self.sparsity.loss()
        loss.backward()
        if self.way == "module loop":
            self.loop()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        _wait(self.images)
        return time.perf_counter() - started

    def loop(self) -> None:
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.grad.data.add_(1e-4 * torch.sign(module.weight.data))  # type: ignore[union-attr]

    def alone(self, calls: int = 200) -> float:
        """Seconds of what this way adds to a step."""
        if self.way == "none":
            return 0.0
        optimizer = self.optimizer
        hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]

        def added() -> None:
            if self.way == "loss":
                self.sparsity.loss().backward()
            if self.way == "module loop":
                self.loop()
            for hook in hooks:
                hook(optimizer, (optimizer,), {})

        return timed(added, self.images, calls)


def timed(work: Callable[[], Any], place: torch.Tensor, calls: int = 200) -> float:
    times = []
    for _ in range(calls):
        _wait(place)
        started = time.perf_counter()
        work()
        _wait(place)
        times.append(time.perf_counter() - started)
    return statistics.mean(sorted(times)[: -calls // 50])  # not the median: a target looks only every tenth step


def _wait(place: torch.Tensor) -> None:
    if place.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = f"# What a penalty costs\n\n{ran_on('torchvision')}\n\n"
    for name, (build, batch, size) in CASES.items():
        images = torch.randn(batch, 3, size, size, device=args.device).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (batch,), device=args.device)
        runs = [Run(build, way, images, labels) for way in WAYS]
        for run in runs:
            run.step()
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(args.rounds):
            for run in runs[number % len(runs) :] + runs[: number % len(runs)]:
                times[run.way].append(run.step())
        base = statistics.median(times["none"])
        rows = []
        for run in runs:
            mine, added = times[run.way], run.alone()
            ratio = statistics.median(a / b for a, b in zip(mine, times["none"]))
            spread = f"{1000 * min(mine):.0f}–{1000 * max(mine):.0f}"
            step = f"{1000 * statistics.median(mine):.0f}"
            rows.append([run.way, step, spread, f"{ratio:.3f}", f"{1000 * added:.3f}", f"{100 * added / base:.3f}"])
        stats = timed(runs[2].sparsity.statistics, images)
        rows.append(["statistics()", "", "", "", f"{1000 * stats:.3f}", f"{100 * stats / base:.3f}"])
        header = ["way", "step, ms", "min–max", "÷ none, pair by pair", "added alone, ms", "share of a step, %"]
        norms = [m for m in runs[0].model.modules() if isinstance(m, nn.BatchNorm2d)]
        gammas = sum(m.num_features for m in norms)
        text += f"{name}: {len(norms)} BatchNorms, {gammas:,} γ, {args.rounds} rounds.\n\n{table(header, rows)}\n\n"
        print(text, flush=True)
    write("bench_sparsity", text)


if __name__ == "__main__":
    main()
