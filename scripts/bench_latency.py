"""Does a latency budget hold? Plans for shares of five networks' time in ONNX Runtime, then measured once more.

    python scripts/bench_latency.py [--networks NAME …] [--budgets 0.7 0.5 0.3] [--threads 1 2] [--batch-sizes 1 8 32]

The networks are those of bench_deploy.py: torchvision's, 224×224, random weights and γ, BatchNorm statistics fitted to
random images. A plan for `slim.Latency` times operators (those that no earlier plan on this machine has timed), chooses
channels by value for time, and corrects until the exported network keeps the budget within 3 %. Then original and thin
network are exported again, and timed in turn in sessions of their own: that share is what counts here. A budget that
the plan itself says it can't meet, as a single step of the network's channels takes more than 3 %, is marked. A JSON
file beside the result keeps all figures of the day, and what is in it isn't measured again (--fresh does): the script
can run in pieces, a network at a time. Planning is timed by the clock and by the processor's time.
"""

import json
import time
from datetime import date
from itertools import product
from typing import Any

import numpy as np
import torch
from bench_deploy import IMAGES, NETWORKS, fitted, network
from shared import RESULTS, parser_of, ran_on, table, write

import slim
from slim.deploy.cost.network import Network, in_turn, share_of
from slim.trace.size import network_size


def kept(name: str, budget: float, batch_size: int, threads: int) -> dict[str, Any]:
    """One budget: what the plan says, what a second measurement says, and how long planning took."""
    model, x = network(name), IMAGES[:1]
    runtime = slim.Runtime(slim.OnnxRuntime("cpu", threads), batch_size)
    started, busy = time.perf_counter(), time.process_time()
    plan = slim.plan(model, x, slim.Latency(budget, runtime))
    seconds, processor = time.perf_counter() - started, time.process_time() - busy
    thin = fitted(plan.apply(model))
    again = in_turn([Network(model, x, runtime), Network(thin, x, runtime)])
    shares = again[:, -1] / again[:, 0]
    return {
        "network": name,
        "budget": budget,
        "batch": batch_size,
        "threads": threads,
        "seconds": seconds,
        "cpu_seconds": processor,
        "predicted": plan.timing["predicted_share"],
        "measured": plan.timing["share"],
        "again": share_of(again),
        "spread": [float(v) for v in np.percentile(shares, [10, 90])],
        "too_coarse": "unused" in plan.timing or bool(plan.shortfall),
        "flops": network_size(thin, x).flops / network_size(model, x).flops,
    }


def report(results: list[dict[str, Any]]) -> str:
    rows = [
        [
            r["network"],
            r["batch"],
            r["threads"],
            f"{r['budget']:.1%}",
            f"{r['predicted']:.1%}",
            f"{r['measured']:.1%}{' (coarse steps)' if r['too_coarse'] else ''}",
            f"{r['again']:.1%} ({r['spread'][0]:.1%}–{r['spread'][1]:.1%})",
            f"{r['again'] / r['budget'] - 1:+.1%}",
            f"{r['flops']:.1%}",
            f"{r['seconds']:.0f} ({r['cpu_seconds']:.0f})",
        ]
        for r in results
    ]
    off = [abs(r["again"] / r["budget"] - 1) for r in results]
    within = sum(each <= 0.03 for each in off)
    header = ["network", "batch", "threads", "budget", "predicted", "measured by the plan", "measured again"]
    header += ["off by", "FLOPs left", "s"]
    return (
        f"# Latency budgets\n\n{ran_on('onnxruntime', 'torchvision')}\n\nShares of the "
        "original's time, medians (10th–90th percentile) over calls in turn; off by: the second measurement against "
        "the budget; s: seconds of planning (the processor's), timing of operators included."
        f"\n\n{table(header, rows)}\n\n{within} of {len(off)} within 3 % of the budget when measured again; "
        f"median {np.median(off):.1%}, largest {max(off):.1%}."
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.7, 0.5, 0.3], help="shares of the original's")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--fresh", action="store_true", help="measure again what is known")
    args = parser.parse_args()
    torch.set_num_threads(1)
    raw = RESULTS / f"bench_latency-{date.today()}.json"
    known: dict[str, dict[str, Any]] = json.loads(raw.read_text()) if raw.exists() else {}
    for name, threads, batch_size, budget in product(args.networks, args.threads, args.batch_sizes, args.budgets):
        key = f"{name} {budget} {batch_size} {threads}"
        if key in known and not args.fresh:
            continue
        known[key] = kept(name, budget, batch_size, threads)
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in known[key].items()}, flush=True)
        raw.write_text(json.dumps(known, indent=1) + "\n")
        write("bench_latency", report(list(known.values())))


if __name__ == "__main__":
    main()
