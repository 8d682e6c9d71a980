"""Does a latency budget hold? Plans for shares of five networks' time in ONNX Runtime, then measured once more.

    python scripts/bench_latency.py [--networks NAME …] [--budgets 0.7 0.5 0.3] [--threads 1] [--batch-size 1]

The networks are those of bench_deploy.py: torchvision's, 224×224, random weights and γ, BatchNorm statistics fitted to
random images. A plan for `slim.Latency` times operators (those that no earlier plan on this machine has timed), chooses
channels by value for time, and corrects until the exported network keeps the budget within 3 %. Then original and thin
network are exported again, and timed in turn in sessions of their own: that share is what counts here. A budget that
the plan itself says it can't meet, as a single step of the network's channels takes more than 3 %, is marked. A JSON
file beside the result keeps all figures of the day: what is measured again takes the place of what it was.
"""

import json
import time
from datetime import date
from typing import Any

import numpy as np
import torch
from bench_deploy import IMAGES, NETWORKS, fitted, network
from shared import RESULTS, parser_of, ran_on, table, write

import slim
from slim.deploy.cost.network import Network, in_turn, share_of
from slim.trace.size import network_size


def kept(name: str, budget: float, runtime: slim.Runtime) -> dict[str, Any]:
    """One budget: what the plan says, what a second measurement says, and how long planning took."""
    model, x = network(name), IMAGES[:1]
    started = time.perf_counter()
    plan = slim.plan(model, x, slim.Latency(budget, runtime))
    seconds = time.perf_counter() - started
    thin = fitted(plan.apply(model))
    again = in_turn([Network(model, x, runtime), Network(thin, x, runtime)])
    shares = again[:, -1] / again[:, 0]
    return {
        "network": name,
        "budget": budget,
        "seconds": seconds,
        "predicted": plan.timing["predicted_share"],
        "measured": plan.timing["share"],
        "again": share_of(again),
        "spread": [float(v) for v in np.percentile(shares, [10, 90])],
        "too_coarse": "unused" in plan.timing or bool(plan.shortfall),
        "flops": network_size(thin, x).flops / network_size(model, x).flops,
    }


def report(results: list[dict[str, Any]], runtime: slim.Runtime) -> str:
    rows = [
        [
            r["network"],
            f"{r['budget']:.1%}",
            f"{r['predicted']:.1%}",
            f"{r['measured']:.1%}{' (coarse steps)' if r['too_coarse'] else ''}",
            f"{r['again']:.1%} ({r['spread'][0]:.1%}–{r['spread'][1]:.1%})",
            f"{r['again'] / r['budget'] - 1:+.1%}",
            f"{r['flops']:.1%}",
            f"{r['seconds']:.0f}",
        ]
        for r in results
    ]
    off = [abs(r["again"] / r["budget"] - 1) for r in results]
    within = sum(each <= 0.03 for each in off)
    header = ["network", "budget", "predicted", "measured by the plan", "measured again", "off by", "FLOPs left", "s"]
    return (
        f"# Latency budgets\n\n{ran_on('onnxruntime', 'torchvision')}\n\n{runtime}; shares of the "
        "original's time, medians (10th–90th percentile) over calls in turn; off by: the second measurement against "
        f"the budget; s: seconds of planning, timing of operators included.\n\n{table(header, rows)}\n\n{within} of "
        f"{len(off)} within 3 % of the budget when measured again; median {np.median(off):.1%}, largest {max(off):.1%}."
    )


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.7, 0.5, 0.3], help="shares of the original's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runtime = slim.Runtime(slim.OnnxRuntime("cpu", args.threads), args.batch_size)
    raw = RESULTS / f"bench_latency-{date.today()}.json"
    known: dict[str, dict[str, Any]] = json.loads(raw.read_text()) if raw.exists() else {}
    for name in args.networks:
        for budget in args.budgets:
            key = f"{name} {budget} {args.batch_size} {args.threads}"
            known[key] = kept(name, budget, runtime)
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in known[key].items()}, flush=True)
            raw.write_text(json.dumps(known, indent=1) + "\n")
            same = [found for key, found in known.items() if key.endswith(f" {args.batch_size} {args.threads}")]
            write("bench_latency", report(same, runtime))


if __name__ == "__main__":
    main()
