"""What makes a network fast on a GPU: eager, compiled, channels_last, half precision, and channels in multiples of 8.

    python scripts/bench_gpu.py [--models resnet50 …] [--batch_size 64] [--runs 50] [--keep 0.5] [--device cuda]

For each network three widths: whole; pruned by `slim.plan` to arbitrary channel counts; the same, rounded to multiples
of 8. γ is drawn at random, which spreads the cuts as unevenly as training does. Each width runs in PyTorch eager and
compiled, in both memory layouts, in float32 (with and without TF32), float16 and bfloat16; where onnxruntime has CUDA,
the exported file too. The three widths of a variant run in turn, in one process; the result file gives medians and the
speed-up over the whole network in the same variant, with a 95 % interval.

Without a GPU it says so in one line. `--device cpu` tries the script out: its figures mean nothing for GPUs.
"""

import argparse
import copy
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from shared import RESULTS, parser_of, ran_on, table
from torch import nn
from torchvision import models

import slim
from slim.deploy.bench.runners import FileRunner
from slim.deploy.onnx.target import OnnxRuntime
from slim.deploy.timing import Rounds, samples, speedup_interval, time_in_turn

WIDTHS = ("whole", "arbitrary", "multiples of 8")
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Call = Callable[[], Any]


def widths(name: str, keep: float, side: int) -> dict[str, nn.Module]:
    """The network whole and pruned to the same share of FLOPs in two ways."""
    torch.manual_seed(0)
    model = models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.01, 1)
    example = torch.randn(1, 3, side, side)
    plans = {1: slim.plan(model, example, slim.Flops(keep)), 8: slim.plan(model, example, slim.Flops(keep), round_to=8)}
    return dict(zip(WIDTHS, [model, plans[1].apply(model), plans[8].apply(model)]))


def torch_call(model: nn.Module, images: torch.Tensor, precision: str, layout: str, compiled: bool) -> Call:
    """One batch through a copy of the network, on the device of the images, waited for."""
    dtype, device = PRECISIONS[precision], images.device
    memory = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    net: Any = copy.deepcopy(model).to(device, dtype).to(memory_format=memory)
    batch = images.to(dtype).contiguous(memory_format=memory)
    if compiled:
        net = torch.compile(net, dynamic=False)

    def call() -> None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        with torch.inference_mode():
            net(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    call()  # compiles, with TF32 as it will run
    return call


def variants(device: str, half: bool) -> Iterator[tuple[str, str, bool]]:
    """(precision, layout, compiled); TF32 exists on GPUs alone."""
    precisions = ["float32", *(["tf32"] if device == "cuda" else []), *(["float16", "bfloat16"] if half else [])]
    yield from itertools.product(precisions, ("channels_first", "channels_last"), (False, True))


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one network: each variant at each width."""
    networks = widths(name, options.keep, options.side)
    images = torch.randn(options.batch_size, 3, options.side, options.side, device=options.device)
    rows = []
    for precision, layout, compiled in variants(options.device, not options.float32_only):
        if compiled and options.eager_only:
            continue
        calls = {width: torch_call(net, images, precision, layout, compiled) for width, net in networks.items()}
        how = ("compiled" if compiled else "eager", precision, layout)
        rows += compare(name, how, calls, options)
        del calls
        torch.compiler.reset()
        if options.device == "cuda":
            torch.cuda.empty_cache()
    provider = "cuda" if options.device == "cuda" else "cpu"
    if provider == "cpu" or "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        with tempfile.TemporaryDirectory() as folder:
            calls = {}
            for width, net in networks.items():
                path = Path(folder, f"{width}.onnx")
                slim.export_onnx(net, images[:1].cpu(), path)
                calls[width] = FileRunner(width, path, OnnxRuntime(provider)).prepare(options.batch_size)
            rows += compare(name, ("onnxruntime", "float32", "channels_first"), calls, options)
    return rows


def compare(
    name: str, how: tuple[str, str, str], calls: dict[str, Call], options: argparse.Namespace
) -> list[dict[str, Any]]:
    times = time_in_turn(calls, Rounds(options.runs), options.warmup)
    whole, rows = times[WIDTHS[0]], []
    for width, each in times.items():
        median = float(np.median(each))
        low, high = speedup_interval(whole, each)
        row: dict[str, Any] = dict(zip(("engine", "precision", "layout"), how))
        row |= {"network": name, "width": width, "median_ms": median, "low": low, "high": high}
        row |= {"images_per_s": 1000 * options.batch_size / median, "samples_ms": samples(each)}
        rows.append(row | {"speedup": float(np.median(whole)) / median})
        print(f"{name} {' '.join(how)} {width}: {median:.2f} ms, {rows[-1]['speedup']:.2f}×", flush=True)
    return rows


def report(rows: list[dict[str, Any]], options: argparse.Namespace, device: str) -> str:
    lines = []
    for key, group in itertools.groupby(rows, lambda r: (r["network"], r["engine"], r["precision"], r["layout"])):
        whole, *thin = group
        cells = [f"{row['speedup']:.2f}× ({row['low']:.2f}–{row['high']:.2f})" for row in thin]
        lines.append([*key, f"{whole['median_ms']:.2f}", f"{whole['images_per_s']:,.0f}", *cells])
    header = [
        "network",
        "engine",
        "precision",
        "layout",
        "whole, ms",
        "images/s",
        *(f"{w}, speed-up" for w in WIDTHS[1:]),
    ]
    return "\n".join([
        "# Pruned networks on a GPU", "",
        ran_on("torchvision", "onnxruntime"), "",
        f"{device}, batch {options.batch_size} of 3×{options.side}×{options.side}, {options.keep:.0%} of FLOPs kept, "
        f"{options.runs} runs in turn after {options.warmup}; speed-up over the whole network in the same row, with a "
        "95 % interval.", "",
        table(header, lines),
    ])  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--side", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--keep", type=float, default=0.5, help="share of FLOPs that stays")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--eager_only", action="store_true", help="leave torch.compile out")
    parser.add_argument("--float32_only", action="store_true", help="leave half precision out")
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_gpu-{date.today()}.md")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_gpu: no GPU here that PyTorch sees; --device cpu tries the script out")
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU (a trial of the script)"
    rows: list[dict[str, Any]] = []
    for name in options.models:
        rows += measure(name, options)
        options.out.write_text(report(rows, options, device) + "\n")
        options.out.with_suffix(".json").write_text(json.dumps(rows))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
