"""Prune every network in torchvision and one of every family in timm, with BatchNorm or without, and prove each one.

    python scripts/zoo_coverage.py [--ratios 0.2 0.5 0.8] [--seeds 2] [--only NAME …] [--limit SECONDS] [--out FILE]

Each network gets random γ ~ U(0.01, 1), β ~ N(0, 0.1) and random running statistics; `slim.plan` must succeed, reach
the ratio to within a point, and the thin network must equal the masked original in float64 (`slim.verify`). One
process a network, so that none can take the others down. Results are appended as they come: a run that was stopped
goes on where it was. timm is optional (`pip install timm`); from each of its families the smallest network is taken.
"""

import importlib.util
import platform
import re
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch
from shared import add_row, parser_of, randomise, read_rows, rows_of
from torch import nn

import slim

Row = dict[str, Any]
Case = tuple[float, int]  # ratio and seed
STATUSES = ("ok", "short", "refused", "differs", "crashed", "timeout", "not built")
VARIANTS = ("vit_b_16", "vit_l_16", "vit_l_32", "vit_h_14")  # of vit_b_32, but for their size
SIZES = r"(?:nano|tiny|pico|atto|femto|small|base|medium|large|xlarge|huge|giant|xxs|xs|s|m|l|xl|xxl|t|x|e|b)"


def torchvision_networks() -> list[str]:
    from torchvision import models

    names = [n for n in models.list_models() if not n.startswith("quantized") and n not in VARIANTS]
    return [f"torchvision:{n}" for n in names]


def timm_networks() -> list[str]:
    """One network of each family (a module and a name without sizes): the one with the shortest, smallest name."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm

    families: dict[tuple[str, str], list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            prefix = re.match(r"[a-z]*(?:_[a-z]+)*", name)[0]  # type: ignore[index]
            families.setdefault((module, re.sub(rf"(_{SIZES})+$", "", prefix)), []).append(name)
    large = ("large", "huge", "giant", "gigantic", "_xl", "_l")
    return [
        f"timm:{min(names, key=lambda n: (any(w in n for w in large), len(n), n))}"
        for (module, prefix), names in sorted(families.items())
        if not prefix.startswith("test_")
    ]


def create(name: str) -> tuple[nn.Module, object]:
    """The network and example inputs."""
    library, _, arch = name.partition(":")
    warnings.simplefilter("ignore")
    if library == "timm":
        import timm

        model = timm.create_model(arch)
        facts: Any = model.default_cfg
        size = facts.get("input_size", (3, 224, 224))
        if not facts.get("fixed_input_size") and size[1] <= 256:
            size = (size[0], 128, 128) if _runs(model, size) else size
        return model, torch.randn(1, *size)
    from torchvision import models

    kwargs: Row = {"weights": None}
    if arch in ("googlenet", "inception_v3"):
        kwargs["init_weights"] = False
    module = models.get_model_builder(arch).__module__
    if "detection" in module or "segmentation" in module:
        kwargs["weights_backbone"] = None
    if arch.startswith(("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos")):
        kwargs |= {"min_size": 160, "max_size": 192}  # they scale images up to 800 pixels otherwise
    model = models.get_model(arch, **kwargs)
    if "detection" in module:
        return model, ([torch.rand(3, 128, 160)],)
    if "optical_flow" in module:
        return model, (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if "video" in module:
        large = arch.startswith(("s3d", "mvit"))  # which take no other size
        return model, torch.randn(1, 3, 16, 224, 224) if large else torch.randn(1, 3, 8, 64, 64)
    side = {"inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224}.get(arch, 96)
    return model, torch.randn(1, 3, side, side)


def too_large(name: str) -> bool:
    """Whether it has over 200 million parameters; some of timm's transformers have billions."""
    library, _, arch = name.partition(":")
    if library != "timm":
        return False
    import timm

    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(arch).parameters()) > 200e6
    except Exception:  # what can't be built without data, or at all
        return False


def _runs(model: nn.Module, size: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            model.eval()(torch.randn(1, size[0], 128, 128))
        return True
    except Exception:
        return False


def examine(name: str, cases: list[Case], put: Callable[[Row], None]) -> None:
    """A row for each ratio and seed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ending = {"status": "too large"}
    model: nn.Module | None = None
    if not too_large(name):
        try:
            model, inputs = create(name)
        except Exception as error:
            ending = {"status": "not built", "why": f"{type(error).__name__}: {error}"[:300]}
    for ratio, seed in cases:
        row: Row = {"network": name, "ratio": ratio, "seed": seed}
        if model is not None:
            randomise(model, seed)
            examine_one(model.eval(), inputs, ratio, row)
        put(ending | row)


def examine_one(model: nn.Module, inputs: object, ratio: float, row: Row) -> None:
    try:
        start = time.perf_counter()
        plan = slim.plan(model, inputs, ratio=ratio)
        row["plan_s"] = round(time.perf_counter() - start, 3)
        start = time.perf_counter()
        thin = plan.apply(model)
        row["apply_s"] = round(time.perf_counter() - start, 3)
        row["achieved"] = round(plan.ratio_achieved, 4)
        row["params"] = round(1 - plan.totals["params"][1] / plan.totals["params"][0], 4)
        row["flops"] = round(1 - plan.totals["flops"][1] / max(plan.totals["flops"][0], 1), 4)
        row["frozen"] = sum(sum(w.values()) for w in plan.frozen.values())
        row["channels"] = plan.totals["channels"][0]
        row["why"] = plan.shortfall[:300]
        start = time.perf_counter()
        row["error"] = slim.verify(model, thin, plan, inputs)
        row["verify_s"] = round(time.perf_counter() - start, 3)
        row["status"] = "ok" if plan.ratio_achieved > ratio - 0.01 else "short"
        row["memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    except slim.SlimError as error:
        row["status"], row["why"] = "differs" if "differs" in str(error) else "refused", str(error)[:300]
    except Exception as error:
        row["status"], row["why"] = "crashed", f"{type(error).__name__}: {error}"[:300]


def run(name: str, cases: list[Case], limit: float) -> Iterator[Row]:
    """The rows of one network, as they come. What takes over `limit` seconds for each case is given up."""
    left = list(cases)
    for row in rows_of(examine, name, cases, seconds=int(limit * len(cases))):
        left.remove((row["ratio"], row["seed"]))
        yield row
    for ratio, seed in left:
        yield {"network": name, "ratio": ratio, "seed": seed, "status": "timeout", "why": f"over {limit:.0f} s"}


def table(rows: list[Row]) -> str:
    """Markdown: a summary by library and ratio, then every row."""
    rows = [r for r in rows if r["status"] not in ("no BatchNorm", "too large")]
    lines = [
        "# Coverage of torchvision and timm",
        "",
        f"{date.today()}, torch {torch.__version__}, {platform.machine()}, Python {platform.python_version()}, "
        "one thread. γ ~ U(0.01, 1), β ~ N(0, 0.1). `ok`: within a point of the ratio, thin ≡ masked in float64.",
        "",
        "| library | ratio | runs | " + " | ".join(STATUSES) + " | worst error |",
        "|" + "---|" * (len(STATUSES) + 4),
    ]
    for library in ("torchvision", "timm"):
        for ratio in sorted({r["ratio"] for r in rows}):
            mine = [r for r in rows if r["ratio"] == ratio and str(r["network"]).startswith(library)]
            if mine:
                count = [sum(r["status"] == s for r in mine) for s in STATUSES]
                worst = max((float(r["error"]) for r in mine if "error" in r), default=0.0)
                lines.append(
                    f"| {library} | {ratio} | {len(mine)} | " + " | ".join(map(str, count)) + f" | {worst:.1e} |"
                )
    lines += [
        "",
        "| network | ratio | seed | status | achieved | params | FLOPs | frozen | error | plan s | why |",
        "|" + "---|" * 11,
    ]
    for r in sorted(rows, key=lambda r: (str(r["network"]), r["ratio"], r["seed"])):
        error = f"{r['error']:.0e}" if "error" in r else ""
        frozen = f"{r['frozen']}/{r['channels']}" if r.get("frozen") else ""
        cells = [
            r["network"],
            r["ratio"],
            r["seed"],
            r["status"],
            r.get("achieved", ""),
            r.get("params", ""),
            r.get("flops", ""),
        ]
        why = r.get("why", "") if r["status"] != "ok" else ""
        lines.append("| " + " | ".join(str(c) for c in [*cells, frozen, error, r.get("plan_s", ""), why]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5, 0.8])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=None, help="networks such as torchvision:resnet50")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one network and ratio")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/zoo_coverage.jsonl")
    options = parser.parse_args()
    names = options.only or [*torchvision_networks(), *timm_networks()]
    rows = read_rows(options.out)
    done = {(r["network"], r["ratio"], r["seed"]) for r in rows}
    import torchvision  # noqa: F401  (once, before forking)

    if importlib.util.find_spec("timm"):
        import timm  # noqa: F401
    for name in names:
        cases = [(r, seed) for seed in range(options.seeds) for r in options.ratios if (name, r, seed) not in done]
        for row in run(name, cases, options.limit) if cases else []:
            rows.append(row)
            add_row(options.out, row)
            why = row.get("why", "") if row["status"] != "ok" else ""
            print(f"{row['status']:12} {name} {row['ratio']} {row.get('achieved', '')} {why}", flush=True)
    options.out.with_name(f"{options.out.stem}-{date.today()}.md").write_text(table(rows))


if __name__ == "__main__":
    main()
