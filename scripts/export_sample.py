"""Export 30 unlike networks of torchvision and timm, whole and pruned, and compare each file with PyTorch.

    pip install timm
    python scripts/export_sample.py [--only NAME …] [--float32_only] [--limit SECONDS] [--out FILE.jsonl]

Each network gets random γ ~ U(0.5, 1.5), β ~ N(0, 0.1) and running statistics fitted to random images, is exported as
it is and with half of its channels removed by `slim.plan`, and is compared with PyTorch at batches of 1, 2 and 7 in
float32 (onnxruntime, the finished file); the whole network at batches of 1 and 3 in float64 too (the graph before
optimisation, in onnxruntime where it has the kernels, else in ONNX's reference evaluator, where that is complete). One
process an export, so that none can take the others down. Rows are appended as they come: a run that was stopped goes
on where it was. Detection is left out.
"""

import itertools
import json
import multiprocessing as mp
import queue as queues
import statistics
import tempfile
import time
import warnings
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import onnx
import torch
from shared import RESULTS, add_row, parser_of, ran_on, read_rows, table
from torch import nn

import slim

# One of each kind: plain, residual, grouped, dense, depthwise, squeeze-excite, shuffled, branched, re-parametrised,
# without BatchNorm, multi-resolution, hybrids with attention, segmentation, video.
SAMPLE = {
    "torchvision": [
        "alexnet", "vgg11_bn", "resnet18", "resnext50_32x4d", "densenet121", "mobilenet_v2", "mobilenet_v3_small",
        "efficientnet_b0", "regnet_y_400mf", "mnasnet0_5", "googlenet", "inception_v3", "shufflenet_v2_x0_5",
        "squeezenet1_1", "convnext_tiny", "swin_t", "lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large",
        "r3d_18",
    ],
    "timm": [
        "repvgg_a0", "ghostnet_050", "hrnet_w18_small", "dla34", "res2net50_14w_8s", "cspresnet50",
        "mobilevit_xxs", "levit_128s", "nfnet_l0", "tf_mixnet_s", "ese_vovnet19b_dw",
    ],
}  # fmt: skip
NORMS = nn.modules.batchnorm._BatchNorm


def create(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network and one example of its input."""
    library, _, arch = name.partition(":")
    sides = {"swin_t": 224, "levit_128s": 224, "mobilevit_xxs": 256}
    side = sides.get(arch, 128)
    shape = (1, 3, 8, 64, 64) if arch == "r3d_18" else (1, 3, side, side)
    if library == "timm":
        import timm

        return timm.create_model(arch), torch.randn(shape)
    from torchvision import models

    kwargs: dict[str, Any] = {"weights": None}
    if arch in ("googlenet", "inception_v3"):  # in evaluation, the auxiliary heads are off
        kwargs |= {"init_weights": True, "aux_logits": False}
    if arch.startswith(("lraspp", "deeplab")):
        kwargs["weights_backbone"] = None
    return models.get_model(arch, **kwargs), torch.randn(shape)


def settle(model: nn.Module, example: torch.Tensor) -> int:
    """Scales, shifts and statistics as a trained network might have them. Returns the number of BatchNorms."""
    norms = [module for module in model.modules() if isinstance(module, NORMS) and module.affine]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5)
        norm.bias.data.normal_(0, 0.1)
        norm.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, *example.shape[1:]))
    model.eval()
    return len(norms)


def examine(model: nn.Module, example: torch.Tensor, float64: bool) -> dict[str, Any]:
    """What `slim.export_onnx` makes of a network."""
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        start = time.perf_counter()
        try:
            made = slim.export_onnx(model, example, path, float64=float64)
        except slim.SlimError as error:
            return {"status": "refused", "why": str(error)}
        row["seconds"] = round(time.perf_counter() - start, 1)
        ops = Counter(node.op_type for node in onnx.load(path).graph.node)
    row |= {"float32": made.max_relative_error, "float64": made.float64_error, "float64 in": made.float64_engine}
    return {"status": "ok", **row, "nodes": ops.total(), "BatchNormalization": ops["BatchNormalization"]}


def work(name: str, which: str, float64: bool, queue: "mp.Queue[Any]") -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    try:
        model, example = create(name)
        norms = settle(model, example)
        row: dict[str, Any] = {"network": name, "which": which, "norms": norms}
        if which == "whole":
            queue.put(row | examine(model, example, float64))
        elif norms:
            plan = slim.plan(model, example, ratio=0.5)
            queue.put(row | {"ratio": plan.ratio_achieved} | examine(plan.apply(model), example, float64=False))
        else:
            queue.put(row | {"status": "no BatchNorm"})
    except Exception as error:
        queue.put({"network": name, "which": which, "status": "crashed", "why": f"{type(error).__name__}: {error}"})


def run(name: str, which: str, float64: bool, limit: float) -> dict[str, Any]:
    """The row of one export, from a process of its own."""
    context = mp.get_context("fork")
    queue: mp.Queue[Any] = context.Queue()
    process = context.Process(target=work, args=(name, which, float64, queue))
    process.start()
    try:
        row: dict[str, Any] = queue.get(timeout=limit)
    except queues.Empty:
        row = {"network": name, "which": which, "status": "timeout", "why": f"over {limit:.0f} s"}
    process.kill()
    process.join()
    return row


def report(rows: list[dict[str, Any]]) -> str:
    def cell(row: dict[str, Any], key: str) -> str:
        value = row.get(key)
        return (
            "" if value is None else f"{value:.1e}" if key.startswith("float") and key != "float64 in" else str(value)
        )

    columns = ["float32", "float64", "float64 in", "nodes", "BatchNormalization", "seconds"]
    rows = [row for row in rows if row["status"] != "no BatchNorm"]
    good = [row for row in rows if row["status"] == "ok"]
    in_float64 = [row["float64"] for row in good if row.get("float64") is not None]
    untried = sum(row.get("float64 in") is None for row in good)
    large = [f"{row['network']} ({row['float32']:.0e})" for row in good if row["float32"] > 1e-4]
    float64 = f"at most {max(in_float64):.1e}, median {statistics.median(in_float64):.0e}" if in_float64 else "none"
    lines = [
        f"{len({row['network'] for row in rows})} networks of {sum(map(len, SAMPLE.values()))}, {len(rows)} exports: "
        f"{len(good)} ok. Relative difference in float32: at most 1e-4, but for {', '.join(large) or 'none'}, where "
        "PyTorch's own float32 is as far from float64 (random scales saturate attention, which magnifies rounding). In "
        f"float64: {float64}, of {len(in_float64)} graphs; "
        f"{len(good) - untried - len(in_float64)} that ONNX's evaluator can't run; {untried} not tried.",
        "",
        table(
            ["network", "", "status", *columns],
            [[r["network"], r["which"], r.get("why") or r["status"], *(cell(r, key) for key in columns)] for r in rows],
        ),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="networks such as timm:dla34")
    parser.add_argument("--float32_only", action="store_true", help="leave the slow comparison in float64 out")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one export")
    parser.add_argument("--out", type=Path, default=RESULTS / f"export_sample-{date.today()}.jsonl")
    options = parser.parse_args()
    import timm
    import torchvision  # noqa: F401  (once, before forking)

    del timm
    rows = read_rows(options.out)
    names = options.only or [f"{library}:{arch}" for library, archs in SAMPLE.items() for arch in archs]
    for which, name in itertools.product(("whole", "pruned"), names):
        if any((row["network"], row["which"]) == (name, which) for row in rows):
            continue
        row = run(name, which, not options.float32_only, options.limit)
        rows.append(row)
        add_row(options.out, row)
        print(json.dumps(row), flush=True)
    head = f"# Exports compared with PyTorch\n\n{ran_on('onnx', 'onnxruntime')}\n\n"
    options.out.with_suffix(".md").write_text(head + report(rows) + "\n")


if __name__ == "__main__":
    main()
