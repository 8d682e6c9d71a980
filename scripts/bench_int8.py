"""Pruning, INT8, and both: how much faster is each in ONNX Runtime?

    python scripts/bench_int8.py [--networks NAME …] [--keep 0.5] [--batch-sizes 1 8] [--threads 1 2] [--out FILE]

The networks are those of bench_deploy.py: torchvision's, 224×224, random weights and γ, BatchNorm statistics fitted to
random images. Each is pruned to a share of its FLOPs with round_to="auto", and both are quantised by
slim.quantize_onnx on random images. All four files run in turn in one process, in each setting. How well they predict
isn't the question here: the weights are random, and slim-export --int8 tells it of a network that is trained. What was
measured is in a JSON file beside the result, and isn't measured again (--fresh does).
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_deploy import IMAGES, auto, fitted, network
from shared import RESULTS, parser_of, ran_on, table

import slim

FILES = {"pruned": "pruned", "INT8": "int8", "both": "both"}


def measured(name: str, keep: float, batch_sizes: list[int], threads: list[int], runs: int) -> dict[str, Any]:
    """One network: the benchmark of its four files, in all settings."""
    model, x = network(name), IMAGES[:1]
    runtimes = [slim.Runtime(slim.OnnxRuntime("cpu", n), size) for n in threads for size in batch_sizes]
    thin = fitted(auto(model, x, keep, slim.Runtimes(runtimes)))
    with tempfile.TemporaryDirectory() as folder:
        paths = {file: Path(folder, f"{file}.onnx") for file in ("original", *FILES.values())}
        slim.export_onnx(model, x, paths["original"])
        slim.export_onnx(thin, x, paths["pruned"])
        images = [IMAGES.numpy()]
        for source, target in (("original", "int8"), ("pruned", "both")):
            slim.quantize_onnx(paths[source], paths[target], images, [(images[0], None)], max_loss=1.0)
        found = slim.benchmark(paths, batch_sizes=batch_sizes, threads=threads, provider="cpu", runs=runs, memory=False)
    return {"rows": found.to_dict()["rows"], "cautions": found.cautions}


def report(known: dict[str, Any]) -> str:
    rows = []
    for key, found in known.items():
        settings = list(dict.fromkeys((row["threads"], row["batch_size"]) for row in found["rows"]))
        for threads, batch_size in settings:
            mine = {r["model"]: r for r in found["rows"] if (r["threads"], r["batch_size"]) == (threads, batch_size)}
            cells = [
                f"{mine[file]['speedup']:.2f} ({mine[file]['speedup_low']:.2f}–{mine[file]['speedup_high']:.2f})"
                for file in FILES.values()
            ]
            rows.append([*key.split(), batch_size, threads, f"{mine['original']['median_ms']:.2f}", *cells])
    header = ["network, 224×224", "FLOPs kept", "batch", "threads", "original, ms", *FILES]
    cautions = dict.fromkeys(caution for found in known.values() for caution in found["cautions"])
    return "\n".join(
        [
            "# Speed-up of pruning, of INT8, and of both",
            "",
            ran_on("onnxruntime", "torchvision"),
            "",
            "Against the original in float32: ratio of medians over calls in turn, with its 95 % interval.",
            "",
            table(header, rows),
            *(f"\n{caution}" for caution in cautions),
        ]
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "mobilenet_v2", "vgg16_bn"], metavar="NAME")
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runs", type=int, default=20, help="of each file in each setting")
    parser.add_argument("--fresh", action="store_true", help="measure everything again")
    parser.add_argument("--out", type=Path, default=RESULTS / f"bench_int8-{time.strftime('%Y-%m-%d')}.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    raw = options.out.with_suffix(".json")
    raw.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(raw.read_text()) if raw.exists() and not options.fresh else {}
    for name in options.networks:
        key = f"{name} {options.keep}"
        if key not in known:
            known[key] = measured(name, options.keep, options.batch_sizes, options.threads, options.runs)
            raw.write_text(json.dumps(known))
        options.out.write_text(report(known) + "\n", encoding="utf-8")
        print(report({key: known[key]}), flush=True)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
