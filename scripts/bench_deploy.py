"""Does a thinner network run faster? Speed-up ÷ FLOP reduction in ONNX Runtime, for three ways to choose sizes.

    pip install torch-pruning
    python scripts/bench_deploy.py [--networks NAME …] [--keep 0.5 0.3] [--batch-sizes 1 8 32] [--threads 1 2]

Each network, 224×224, gets random weights, random γ, and BatchNorm statistics fitted to random images (where they
don't fit, activations fade to denormal numbers, which are slow). It is pruned until a share of its FLOPs is left: by
slim with round_to="auto" (one plan, by measured cost in all settings), by slim to arbitrary sizes, and by torch-pruning
with BNScalePruner, global, round_to=16, the ratio found by bisection. Statistics are fitted anew to the thin networks,
as training on would. All are exported with slim.export_onnx and run in turn in one process, in each setting: a batch
size and a number of threads.

1.0 means that time shrinks as FLOPs do. Medians of the ratios round by round, with their 10th and 90th percentiles; and
the same by the processor's time, which on one thread hardly feels other work on the machine. What was measured is in a
JSON file beside the result, and isn't measured again when the script runs again (--fresh does): it can run in pieces, a
network at a time, with the same --batch-sizes and --threads.
"""

import gc
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from shared import RESULTS, parser_of, ran_on, table
from torch import nn

import slim
from slim.deploy.onnx.session import SESSION_SETTINGS, open_session
from slim.trace.size import network_size
from slim.workbench.models import build

NETWORKS = [
    *("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "vgg16_bn", "mobilenet_v3_large"),
    "unet",  # slim's own: 16 to 128 channels, 21 classes
]
SECONDS = 8.0  # of timed runs for each setting, as far as ROUNDS allows
ROUNDS = (3, 200)
IMAGES = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def network(name: str) -> nn.Module:
    """A network with random weights and γ, whose statistics fit."""
    torch.manual_seed(0)
    model = build("slim:unet", num_classes=21) if name == "unet" else torchvision.models.get_model(name, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.01, 1)
            nn.init.normal_(module.bias, std=0.1)
    return fitted(model)


def fitted(model: nn.Module) -> nn.Module:
    """The model in eval mode, its BatchNorm statistics those of the random images."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(IMAGES)
    return model.eval()


def auto(model: nn.Module, x: torch.Tensor, keep: float, runtime: slim.Runtimes) -> nn.Module:
    return slim.plan(model, x, slim.Flops(keep), round_to=runtime).apply(model)


def unrounded(model: nn.Module, x: torch.Tensor, keep: float, runtime: slim.Runtimes) -> nn.Module:
    return slim.plan(model, x, slim.Flops(keep), round_to=1).apply(model)


def torch_pruning(model: nn.Module, x: torch.Tensor, keep: float, runtime: slim.Runtimes) -> nn.Module:
    import torch_pruning as tp

    whole = network_size(model, x).flops
    best, low, high = model, 0.0, 0.95
    for _ in range(7):
        ratio = (low + high) / 2
        thin = network_like(model)
        heads = [m for m in thin.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1:]
        importance = tp.importance.BNScaleImportance()
        tp.pruner.BNScalePruner(
            thin, x, importance, pruning_ratio=ratio, global_pruning=True, round_to=16, ignored_layers=heads
        ).step()
        if network_size(thin, x).flops <= keep * whole:
            best, high = thin, ratio
        else:
            low = ratio
    return best


def network_like(model: nn.Module) -> nn.Module:
    with tempfile.TemporaryFile() as file:  # deepcopy would keep hooks that torch-pruning leaves behind
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)


METHODS: dict[str, Callable[[nn.Module, torch.Tensor, float, slim.Runtimes], nn.Module]] = {
    "slim, auto": auto,
    "slim, unrounded": unrounded,
    "torch-pruning, round_to=16": torch_pruning,
}


Setting = tuple[int, int]  # batch size, threads


def measured(name: str, keep: float, planned_for: list[Setting], settings: list[Setting]) -> dict[Setting, Any]:
    """One network: in each setting and for each method its FLOPs and the milliseconds of every round."""
    each = [slim.Runtime(slim.OnnxRuntime("cpu", threads), batch_size) for batch_size, threads in planned_for]
    model, x = network(name), IMAGES[:1]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, prune in {"original": None, **METHODS}.items():
            start = time.process_time()
            thin = fitted(prune(model, x, keep, slim.Runtimes(each))) if prune else model
            size = network_size(thin, x)
            found[method] = {"flops": size.flops, "params": size.params, "planning_cpu_s": time.process_time() - start}
            slim.export_onnx(thin, x, Path(folder, f"{method}.onnx"))
        return {setting: timed(found, Path(folder), *setting) for setting in settings}


def timed(networks: dict[str, Any], folder: Path, batch_size: int, threads: int) -> dict[str, Any]:
    """What is known of each network, and the milliseconds of calls in turn in one setting."""
    sessions = {name: open_session(folder / f"{name}.onnx", "cpu", threads, SESSION_SETTINGS) for name in networks}
    images = IMAGES[torch.arange(batch_size) % len(IMAGES)].numpy()
    times: list[list[tuple[float, float]]] = []
    gc.disable()
    for session in sessions.values():
        session.run(None, {"images": images})
    start = time.perf_counter()
    while len(times) < ROUNDS[0] or (len(times) < ROUNDS[1] and time.perf_counter() - start < SECONDS):
        row = []
        for session in sessions.values():
            began, busy = time.perf_counter_ns(), time.process_time_ns()
            session.run(None, {"images": images})
            row.append(((time.perf_counter_ns() - began) / 1e6, (time.process_time_ns() - busy) / 1e6))
        times.append(row)
    gc.enable()
    clocks = {name: list(zip(*column)) for name, column in zip(sessions, zip(*times))}
    return {
        name: about | {clock: [round(ms, 3) for ms in each] for clock, each in zip(("ms", "cpu_ms"), clocks[name])}
        for name, about in networks.items()
    }


def ratios(found: dict[str, Any], method: str) -> tuple[float, float, float, float]:
    """Speed-up ÷ FLOP reduction: median, p10 and p90 over rounds, and the median by the processor's time."""
    reduction = found["original"]["flops"] / found[method]["flops"]
    wall, cpu = (np.array(found["original"][clock]) / found[method][clock] / reduction for clock in ("ms", "cpu_ms"))
    low, high = np.percentile(wall, [10, 90])
    return float(np.median(wall)), float(low), float(high), float(np.median(cpu))


def mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def report(settings: dict[str, Any]) -> str:
    rows = []
    for key, found in settings.items():
        name, keep, batch_size, threads = key.split()
        row = [name, batch_size, threads, keep, f"{np.median(found['original']['ms']):.1f}"]
        for method in METHODS:
            middle, low, high, cpu = ratios(found, method)
            row.append(f"{middle:.2f} ({low:.2f}–{high:.2f}), {cpu:.2f}")
        rows.append(row)
    summary = []
    for method in METHODS:
        medians = [ratios(found, method)[0] for found in settings.values()]
        processor = [ratios(found, method)[3] for found in settings.values()]
        summary.append([method, *(f"{of(values):.2f}" for values in (medians, processor) for of in (mean, min))])
    text = [
        "# Realised speed-up ÷ FLOP reduction",
        "",
        ran_on("onnxruntime", "torchvision", "torch-pruning"),
        "",
        "1.0: time shrinks as FLOPs do. Median (10th–90th percentile) over rounds in turn, then by processor time.",
        "`keep`: the share of the FLOPs that was asked for; what each method reached is in the JSON file.",
        "",
        table(["network, 224×224", "batch", "threads", "keep", "original, ms", *METHODS], rows),
        "",
        table(
            ["", "geometric mean", "lowest", "geometric mean, processor's time", "lowest, processor's time"], summary
        ),
    ]
    return "\n".join(text)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--keep", nargs="+", type=float, default=[0.5, 0.3])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_deploy-{time.strftime('%Y-%m-%d')}.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw = options.out.with_suffix(".json")
    raw.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(raw.read_text()) if raw.exists() and not options.fresh else {}
    settings = [(batch_size, threads) for threads in options.threads for batch_size in options.batch_sizes]
    for name in options.networks:
        for keep in options.keep:
            keys = {setting: f"{name} {keep} {setting[0]} {setting[1]}" for setting in settings}
            missing = [setting for setting, key in keys.items() if key not in known]
            for setting, found in measured(name, keep, settings, missing).items() if missing else ():
                known[keys[setting]] = found
            raw.write_text(json.dumps(known))
            for key in keys.values():
                print(
                    key, {method: [round(v, 2) for v in ratios(known[key], method)] for method in METHODS}, flush=True
                )
            options.out.write_text(report(known) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
