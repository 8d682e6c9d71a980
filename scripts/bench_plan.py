"""Time plan + rebuild against torch-pruning's graph + prune, side by side in one process.

    pip install torch-pruning
    python scripts/bench_plan.py [--rounds 7] [--models NAME …]

Both get the same randomly initialised torchvision network at 224×224 with random γ, and remove half of the channels by
|γ|: ours with slim.plan(...).apply(model), torch-pruning with BNScalePruner (global, ignoring the classifier), as its
documentation recommends. One thread; the two alternate; a fresh copy of the network each time, not timed. The median
of the ratios pair by pair is what counts. Verification is timed apart. Also shown: how our time grows with depth, and
how much memory planning takes beside the model (at most 1.3 times its size is promised).
"""

import copy
import gc
import json
import math
import multiprocessing as mp
import os
import statistics
import threading
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torchvision
from shared import RESULTS, parser_of, ran_on, table
from torch import nn

import slim

RIVALS = ["resnet50", "densenet121", "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf"]
LARGE = ["resnet50", "densenet201", "regnet_y_128gf"]
DEPTHS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "densenet121", "densenet169", "densenet201"]


def network(name: str) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None).eval()
    g = torch.Generator().manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.01, 1, generator=g)
    return model


def ours(model: nn.Module, x: torch.Tensor) -> nn.Module:
    return slim.plan(model, x, ratio=0.5).apply(model)


def theirs(model: nn.Module, x: torch.Tensor) -> nn.Module:
    import torch_pruning as tp

    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    pruner = tp.pruner.BNScalePruner(
        model,
        x,
        importance=tp.importance.BNScaleImportance(),
        pruning_ratio=0.5,
        global_pruning=True,
        ignored_layers=heads,
    )
    pruner.step()
    return model


def timed(task: Callable[[nn.Module, torch.Tensor], nn.Module], model: nn.Module, x: torch.Tensor) -> float:
    model = copy.deepcopy(model)
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    task(model, x)
    elapsed = time.perf_counter() - start
    gc.enable()
    return elapsed


def memory_of(name: str, queue: "mp.SimpleQueue[tuple[float, float, float]]") -> None:
    """The network's size in MB, seconds of planning, and the most memory that planning took beside it, in MB."""
    torch.set_num_threads(1)
    model, x = network(name), torch.randn(1, 3, 224, 224)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    slim.plan(torchvision.models.resnet18(), x, ratio=0.1)  # what is imported on first use isn't planning's
    most = before = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    slim.plan(model, x, ratio=0.5)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    queue.put((size / 1e6, seconds, (most - before) / 1e6))


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=RIVALS)
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_plan-{date.today()}.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.randn(1, 3, 224, 224)
    rows, raw, medians = [], {}, []
    for name in options.models:
        model = network(name)
        timed(ours, model, x), timed(theirs, model, x)  # warm up
        pairs = [(timed(ours, model, x), timed(theirs, model, x)) for _ in range(options.rounds)]
        a, b = map(list, zip(*pairs))
        ratios = [t / o for o, t in pairs]
        medians.append(statistics.median(ratios))
        raw[name] = {"ours_s": a, "torch_pruning_s": b}
        rows.append((name, spread(a), spread(b), spread(ratios)))
        print(rows[-1], flush=True)
    mean = math.exp(statistics.fmean(map(math.log, medians)))
    depth_rows = []
    for name in DEPTHS:
        model = network(name)
        timed(ours, model, x)
        times = [timed(ours, model, x) for _ in range(options.rounds)]
        layers = sum(isinstance(m, nn.Conv2d) for m in model.modules())
        per_layer = 1000 * statistics.median(times) / layers
        plan = slim.plan(model, x, ratio=0.5)
        thin = plan.apply(model)
        checks = []
        for _ in range(3):
            start = time.perf_counter()
            slim.verify(model, thin, plan, x)
            checks.append(time.perf_counter() - start)
        share = statistics.median(checks) / statistics.median(times)
        depth_rows.append((name, layers, spread(times), f"{per_layer:.2f}", spread(checks), f"{share:.1f}"))
        print(depth_rows[-1], flush=True)
    large_rows = []
    for name in LARGE if Path("/proc/self/statm").exists() else []:
        context = mp.get_context("spawn")
        queue = context.SimpleQueue()
        process = context.Process(target=memory_of, args=(name, queue))
        process.start()
        size, seconds, more = queue.get()
        process.join()
        large_rows.append((name, f"{size:,.0f}", f"{seconds:.2f}", f"{more:,.0f}", f"{more / size:.2f}"))
        print(large_rows[-1], flush=True)
    text = [
        "# Planning and rebuilding, against torch-pruning",
        "",
        ran_on("torchvision", "torch-pruning"),
        "",
        f"One thread. Seconds, median (min–max) of {options.rounds} rounds in turn.",
        "",
        table(
            ("network, 224×224", "slim: plan + apply", "torch-pruning: graph + prune", "times as fast"),
            [*rows, ("geometric mean", "", "", f"{mean:.2f}")],
        ),
        "",
        table(
            ("network", "convolutions", "slim: plan + apply, s", "ms per convolution", "verification, s", "times that"),
            depth_rows,
        ),
        "",
        table(("network", "its size, MB", "slim: plan, s", "memory beside it, MB", "of its size"), large_rows),
    ]
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text("\n".join(text) + "\n")
    options.out.with_suffix(".json").write_text(json.dumps(raw))
    print(f"geometric mean {mean:.2f}; wrote {options.out}")


if __name__ == "__main__":
    main()
