"""Prune networks of packages that slim has never seen, prove each one independently, and compare with torch-pruning.

    python scripts/wild_coverage.py [--only NAME …] [--parts slim onnx torch-pruning] [--ratio 0.5] [--out FILE]

`scripts/wild_networks.py` builds them (`uv sync --group wild` installs their packages). Each gets random γ ~ U(0.01,
1), β ~ N(0, 0.1) and BatchNorm statistics fitted to its input. Then, in a process of its own with a limit of processor
time:

- slim: plan, apply and `slim.verify`; every output tensor against the masked original in float64, by code that shares
  nothing with slim; one training step of the thin network.
- onnx: `slim.export_onnx` of the thin network, which compares it with onnxruntime; of the original where that fails.
- torch-pruning: the same request to torch-pruning as it comes (BatchNorm scales, or magnitudes without BatchNorm;
  global; nothing said by hand of heads or groups), held to its own masked original in the same way.

Results are appended to a file as they come, and a run that was stopped goes on where it was. `--again refused` repeats
what ended so, `--older` what another commit measured. The table of all that the file holds is written beside it.
"""

import copy
import importlib
import random
import re
import resource
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from shared import NORMS, RESULTS, add_row, parser_of, ran_on, randomise, read_rows, rows_of, table
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only
from wild_networks import NETWORKS, Network

import slim

Row = dict[str, Any]
PRODUCERS = (nn.modules.conv._ConvNd, nn.Linear)
LAYERS = (*PRODUCERS, NORMS, nn.LayerNorm, nn.GroupNorm)
STATUSES = ("ok", "short", "refused", "differs", "crashed", "timeout", "not built")
LIMITS = {"slim": 120, "onnx": 60, "torch-pruning": 30}  # seconds of processor time for one network


# -- networks ----------------------------------------------------------------------------------------------------------


def build(name: str) -> Network:
    """The network with random weights in eval mode, always the same ones, and example inputs."""
    _seed()
    model, inputs = NETWORKS[name]()
    training = model.training and name.endswith("-train")
    randomise(model, seed=1)
    return model.train(training), inputs


def _seed(seed: int = 0) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Every tensor that the model returns, wherever in it."""
    _seed()
    inputs = tree_map(lambda leaf: leaf, inputs)  # forward code may change the lists that it is given
    # dropout that stays on in eval mode would draw differently for fewer channels
    with mock.patch("torch.nn.functional.dropout", lambda x, *_, **__: x):
        if isinstance(inputs, dict):
            return tensors(model(**inputs))
        return tensors(model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs))


def tensors(value: Any, seen: set[int] | None = None) -> list[Tensor]:
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        return [value]
    if id(value) in seen or isinstance(value, (str, bytes, int, float, nn.Module, type(None), type)):
        return []
    seen.add(id(value))
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    else:
        slots = [slot for kind in type(value).__mro__ for slot in getattr(kind, "__slots__", ())]
        parts = [*getattr(value, "__dict__", {}).values(), *(getattr(value, slot, None) for slot in slots)]
    return [tensor for part in parts for tensor in tensors(part, seen)]


# -- the independent check ---------------------------------------------------------------------------------------------


def noisy(inputs: Any, copies: int, dtype: torch.dtype) -> Any:
    """A batch of different inputs like the example."""
    generator = torch.Generator().manual_seed(2)

    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.repeat(copies, *[1] * (tensor.dim() - 1)) if tensor.dim() else tensor
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(dtype) + 0.5 * torch.randn(tensor.shape, generator=generator, dtype=dtype)

    return tree_map_only(Tensor, change, inputs)


@contextmanager
def fitting(model: nn.Module) -> Iterator[None]:
    """BatchNorms take the statistics of the next batch."""
    norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
    before = [(m.momentum, m.training) for m in norms]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    try:
        yield
    finally:
        for norm, (momentum, training) in zip(norms, before):
            norm.momentum, norm.training = momentum, training
            norm.get_buffer("running_var").clamp_(min=1e-3)  # of a map of one pixel, which would blow rounding up


@torch.no_grad()
def fit(model: nn.Module, inputs: Any) -> Any:
    """Fit the BatchNorm statistics to a batch that the network takes, and return the batch."""
    dtype = next(model.parameters()).dtype
    training = model.training
    for copies in (3, 1):
        batch = noisy(inputs, copies, dtype)
        try:
            with fitting(model.eval()):
                call(model, batch)
            return batch
        except Exception:
            if copies == 1:
                call(model, batch)  # a network of one pixel keeps the statistics that it has
                return batch
        finally:
            model.train(training)


Masks = dict[str, dict[int, list[int]]]  # tensor -> dimension -> indices


def masks_of(model: nn.Module, removed: dict[str, list[int]]) -> Masks:
    """What makes the removed channels of each layer: γ and β of a norm, rows and bias of another layer."""
    masks: Masks = {}
    for name, channels in removed.items():
        module = model.get_submodule(name)
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        masks[f"{name}.weight"] = {int(transposed): channels}
        if getattr(module, "bias", None) is not None:
            masks[f"{name}.bias"] = {0: channels}
    return masks


@torch.no_grad()
def mask(model: nn.Module, masks: Masks) -> None:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, axes in masks.items():
        sources = (name, f"{name}_orig", re.sub(r"\.(\w+)$", r".parametrizations.\1.original", name))
        source = next(tensors[name] for name in sources if name in tensors)  # a weight may be computed from another
        for axis, indices in axes.items():
            source.index_fill_(axis, torch.tensor(indices), 0)


@torch.no_grad()
def difference(masked: nn.Module, thin: nn.Module, batch: Any) -> tuple[float, float]:
    """The largest relative difference over all outputs, and the one that rounding otherwise makes."""
    expected, found = call(masked.eval(), batch), call(thin.eval(), batch)
    assert expected, "no tensor in the output"
    error = _distance(expected, found)
    if error < 1e-10:
        return error, 0.0
    generator = torch.Generator().manual_seed(3)
    for parameter in masked.parameters():
        if parameter.is_floating_point():
            eps = 4 * torch.finfo(parameter.dtype).eps
            parameter.mul_(1 + eps * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    return error, _distance(expected, call(masked, batch))


def _distance(expected: list[Tensor], found: list[Tensor]) -> float:
    if [t.shape for t in expected] != [t.shape for t in found]:
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, found):
        a, b = (t.to(torch.complex128 if t.is_complex() else torch.float64).nan_to_num() for t in (a, b))
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)))
    return worst


def in_float64(check: Callable[[torch.dtype], tuple[float, float]]) -> Row:
    """The check in float64, or in float32 where forward code insists on that."""
    try:
        error, rounding = check(torch.float64)
        limit = 1e-10
    except (RuntimeError, TypeError, NotImplementedError) as failure:
        if not any(word in str(failure) for word in ("dtype", "type", "Double")):
            raise
        error, rounding = check(torch.float32)
        limit = 1e-4
    return {"error": error, "exact": error < max(limit, 100 * rounding)}


# -- the parts ---------------------------------------------------------------------------------------------------------


def ratio_of(plan: Any) -> float:
    return round(plan.ratio_achieved, 4)


def pruned(name: str, ratio: float, row: Row) -> tuple[nn.Module, nn.Module, Any, Any]:
    """The network, the thin one, the plan and the inputs; what it took goes into the row."""
    original, inputs = build(name)
    row["stage"] = "fit"
    fit(original, inputs)
    row["stage"], start = "plan", time.process_time()
    plan = slim.plan(original, inputs, ratio=ratio)
    row["plan_s"] = round(time.process_time() - start, 2)
    row["ratio"], row["says"] = ratio_of(plan), plan.shortfall[:400]
    row["stage"], start = "apply", time.process_time()
    thin = plan.apply(original)
    row["apply_s"] = round(time.process_time() - start, 2)
    return original, thin, plan, inputs


def memory() -> int:
    """The most that this process has held so far, in megabytes."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def part_slim(name: str, ratio: float, row: Row) -> None:
    before = memory()
    original, thin, plan, inputs = pruned(name, ratio, row)
    row["stage"] = "check"

    def check(dtype: torch.dtype) -> tuple[float, float]:
        masked, _ = build(name)
        masked.load_state_dict(original.state_dict())
        masked.to(dtype)
        mask(masked, getattr(plan, "masks", None) or masks_of(masked, plan.removed))
        batch = fit(masked, inputs)
        fitted, _ = build(name)
        fitted.to(dtype).load_state_dict(
            {k: v for k, v in masked.state_dict().items() if k.endswith(("running_mean", "running_var"))}
            | {k: v for k, v in original.state_dict().items() if not k.endswith(("running_mean", "running_var"))}
        )
        return difference(masked, plan.apply(fitted), batch)

    row |= in_float64(check)
    row["status"] = "differs" if not row["exact"] else "ok" if row["ratio"] > ratio - 0.01 else "short"
    row["stage"], start = "verify", time.process_time()
    try:
        row["verify"] = float(slim.verify(original, thin, plan, inputs))
    except slim.SlimError as error:
        row["verify"] = str(error)[:300]
    row["verify_s"] = round(time.process_time() - start, 2)
    row["memory_mb"] = memory() - before
    row["stage"] = "train"
    row["trains"] = either(lambda model: training_step(model, inputs), thin, original)
    row["stage"] = "done"


def training_step(model: nn.Module, inputs: Any) -> None:
    model.train()
    batch = noisy(inputs, 3, next(model.parameters()).dtype)
    outputs = [t for t in call(model, batch) if t.requires_grad]
    sum(t.abs().square().mean() for t in outputs).backward()  # type: ignore[union-attr]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.shape == p.shape for p in model.parameters() if (g := p.grad) is not None)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()


def either(action: Callable[[nn.Module], object], thin: nn.Module, original: nn.Module) -> str:
    """What became of an action on the thin network: "yes", or why not, and whether the original can do it."""
    try:
        action(thin)
        return "yes"
    except Exception as error:
        try:
            action(original)
        except Exception as own:
            return f"the original can't either: {type(own).__name__}: {own}"[:300]
        return f"no: {type(error).__name__}: {error}"[:300]


def part_onnx(name: str, ratio: float, row: Row) -> None:
    original, thin, _, inputs = pruned(name, ratio, row)
    row["stage"], start = "export", time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        row["onnx"] = either(
            lambda model: slim.export_onnx(model.eval(), inputs, Path(folder) / "model.onnx"), thin, original
        )
    row["export_s"] = round(time.process_time() - start, 2)
    row["status"] = "ok" if row["onnx"] == "yes" else "failed" if row["onnx"].startswith("no") else "original fails"


def part_torch_pruning(name: str, ratio: float, row: Row) -> None:
    import torch_pruning

    def prune(dtype: torch.dtype) -> tuple[float, float]:
        thin, inputs = build(name)
        fit(thin, inputs)
        thin.to(dtype)
        masked = copy.deepcopy(thin)
        start = time.process_time()
        row["stage"] = "prune"
        removed, (gone, total) = torch_pruned(torch_pruning, thin, noisy(inputs, 1, dtype), ratio)
        row["plan_s"], row["ratio"] = round(time.process_time() - start, 2), round(gone / total, 4)
        mask(masked, masks_of(masked, removed))
        return difference(masked, thin, noisy(inputs, 3, dtype))

    row |= in_float64(prune)
    row["status"] = "differs" if not row["exact"] else "ok" if row["ratio"] > ratio - 0.01 else "short"


def torch_pruned(
    library: Any, model: nn.Module, inputs: Any, ratio: float
) -> tuple[dict[str, list[int]], tuple[int, int]]:
    """Prune in place; which channels of which layer went, and (removed, all) channels of the BatchNorms.

    Without BatchNorm the channels of convolutions and linear layers count. What makes the model's output stays.
    """
    names = {module: name for name, module in model.named_modules()}
    scales = any(isinstance(module, NORMS) for module in names)
    counted = NORMS if scales else PRODUCERS
    left = {m: list(range(len(m.weight))) for m in names if isinstance(m, (*PRODUCERS, NORMS)) and m.weight is not None}
    for module in left:
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            left[module] = list(range(module.out_channels))
    before = {m: len(channels) for m, channels in left.items()}
    pruner = library.BasePruner(
        model,
        inputs,
        importance=library.importance.BNScaleImportance() if scales else library.importance.MagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=output_layers(model, inputs),
    )
    outward = ("prune_out_channels",)
    for group in pruner.step(interactive=True):
        for dependency, indices in group:
            module = dependency.target.module
            if module in left and dependency.handler.__name__ in outward:
                gone = set(indices)
                left[module] = [c for i, c in enumerate(left[module]) if i not in gone]
        group.prune()
    removed = {names[m]: sorted(set(range(before[m])) - set(left[m])) for m in left if len(left[m]) < before[m]}
    mine = [m for m in left if isinstance(m, counted)]
    total = sum(before[m] for m in mine)
    return removed, (total - sum(len(left[m]) for m in mine), total)


def output_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """The layers whose output the model returns."""
    made: dict[int, nn.Module] = {}
    kept: list[Any] = []  # so that no address is used twice

    def note(module: nn.Module, _: Any, output: Any) -> None:
        kept.append(output)
        made[output.untyped_storage().data_ptr()] = module

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, LAYERS)]
    with torch.no_grad():
        outputs = call(model, inputs)
    for hook in hooks:
        hook.remove()
    pointers = {t.untyped_storage().data_ptr() for t in outputs}
    return [module for pointer, module in made.items() if pointer in pointers]


PARTS: dict[str, Callable[[str, float, Row], None]] = {
    "slim": part_slim,
    "onnx": part_onnx,
    "torch-pruning": part_torch_pruning,
}


def examine(name: str, part: str, ratio: float, put: Callable[[Row], None]) -> None:
    """The row, as far as it is known, at the start of every stage; the last one says how it ended."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    class Told(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, value)
            if key == "stage":
                put(dict(self))

    row = Told(network=name, part=part, torch=torch.__version__, code=commit())
    row["stage"] = "build"
    try:
        build(name)
        PARTS[part](name, ratio, row)
    except slim.SlimError as error:
        row["status"], row["says"] = "refused", str(error)[:400]
    except Exception as error:
        row["status"] = "not built" if row["stage"] == "build" else "crashed"
        row["says"] = f"in {row['stage']}: {type(error).__name__}: {error}"[:400]
    put(dict(row))


def commit() -> str:
    """The commit that this is run from."""
    asked = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=7", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or "unknown"


def import_all(name: str) -> None:
    """Import what the network's package and slim need, once for all the processes that are forked after it."""
    # seconds, which the first plan and the first export of a process would seem to take
    for module in ("torch._dynamo", "onnxruntime"):
        importlib.import_module(module)
    small, image = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)), torch.randn(1, 3, 8, 8)
    try:
        slim.plan(small, image, ratio=0.5)
        with tempfile.TemporaryDirectory() as folder:
            slim.export_onnx(small.eval(), image, Path(folder) / "model.onnx")
        build(name)
    except Exception as error:  # the network's own process says it again
        print(f"{name}: {type(error).__name__}: {error}"[:200])


def result(name: str, part: str, ratio: float, seconds: int) -> Row:
    """The last row that its process told."""
    *_, row = ({}, *rows_of(examine, name, part, ratio, seconds=seconds))
    if "status" not in row:
        row |= {"status": "timeout", "says": f"in {row.get('stage')}: over {seconds} s of processor time, or killed"}
    return row


# -- the table ---------------------------------------------------------------------------------------------------------


def report(rows: list[Row], ratio: float) -> str:
    parts = {part: {r["network"]: r for r in rows if r["part"] == part} for part in PARTS}
    mine = parts["slim"]
    built = [r for r in mine.values() if r["status"] != "not built"]
    packages = {r["network"].partition(":")[0] for r in built}
    lines = [
        "# Networks of packages that slim had never seen",
        "",
        ran_on("torch-pruning"),
        "",
        f"{len(built)} networks of {len(packages)} packages, from the packages' own constructors with "
        f"random weights; asked for ratio {ratio}. γ ~ U(0.01, 1), β ~ N(0, 0.1), statistics fitted. "
        "`ok`: every output tensor equals the masked original's in float64, to 1e-10 (checked by code of its own), and "
        "the ratio is reached to within a point; `short`: equal, but less was removed. Seconds are of one core's "
        f"processor time, of which a network gets {LIMITS['slim']} for slim, {LIMITS['onnx']} for its export and "
        f'{LIMITS["torch-pruning"]} for torch-pruning. "the original can\'t either": what fails on the thin network '
        "fails on the original as well.",
        "",
        "Commits that measured slim's rows: "
        + ", ".join(f"{n} by {code}" for code, n in Counter(r.get("code", "?") for r in mine.values()).most_common())
        + ".",
        "",
        table(("", *STATUSES), [counts(part, list(parts[part].values())) for part in ("slim", "torch-pruning")]),
        "",
        *targets(built, parts),
        "",
    ]
    lines.append(table(COLUMNS, [cells(name, parts) for name in sorted(mine)]))
    return "\n".join(lines) + "\n"


def counts(part: str, rows: list[Row]) -> list[Any]:
    return [part, *(sum(r["status"] == status for r in rows) for status in STATUSES)]


def targets(built: list[Row], parts: dict[str, dict[str, Row]]) -> Iterator[str]:
    """How many networks meet what is aimed at."""
    total = len(built) or 1

    def share(count: int, whole: int = total) -> str:
        return f"{count} of {whole} ({count / max(whole, 1):.0%})"

    slow = [
        r["network"] for r in built if r.get("plan_s", 0) > 20 or (r["status"] == "timeout" and "plan" in r["says"])
    ]
    exports = [r for r in parts["onnx"].values() if r["status"] in ("ok", "failed")]
    yield f"- planned and exact: {share(sum(r['status'] in ('ok', 'short') for r in built))}"
    yield f"- wrong: {sum(r['status'] == 'differs' for r in built)}"
    yield f"- within a point of the request: {share(sum(r['status'] == 'ok' for r in built))}"
    yield f"- plans over 20 s: {len(slow)} {', '.join(slow)}"
    yield f"- accepted by `slim.verify`, of those that were planned: {share(*_verified(built))}"
    yield f"- exported and equal in onnxruntime, of those whose original can be: {share(*_passed(exports, 'onnx'))}"
    yield f"- train a step, of those whose original does: {share(*_passed(built, 'trains'))}"


def _verified(rows: list[Row]) -> tuple[int, int]:
    planned = [r for r in rows if "error" in r]
    return sum(isinstance(r.get("verify"), float) for r in planned), len(planned)


def _passed(rows: list[Row], key: str) -> tuple[int, int]:
    asked = [r[key] for r in rows if key in r and "original" not in r[key]]
    return sum(answer == "yes" for answer in asked), len(asked)


COLUMNS = (
    *("network", "slim", "ratio", "error", "plan s", "apply s", "verify s", "MB", "trains", "onnx", "what it says"),
    *("torch-pruning", "ratio"),
)


def cells(name: str, parts: dict[str, dict[str, Row]]) -> list[Any]:
    row, export, peer = (parts[part].get(name, {}) for part in PARTS)
    says = row.get("says", "") if row["status"] != "ok" else ""
    if isinstance(row.get("verify"), str):
        says = f"verify: {row['verify']} {says}"
    error = f"{row['error']:.0e}" if "error" in row else ""
    times = [row.get(key, "") for key in ("plan_s", "apply_s", "verify_s", "memory_mb")]
    tail = [row.get("trains", ""), export.get("onnx", export.get("status", "")), says]
    plain = [
        name,
        row["status"],
        row.get("ratio", ""),
        error,
        *times,
        *tail,
        peer.get("status", ""),
        peer.get("ratio", ""),
    ]
    return [str(cell).replace("|", "\\|").replace("\n", " ")[:200] for cell in plain]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", default=[""], help="networks, or how their names begin: timm: monai:UNet")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--again", nargs="+", default=[], choices=STATUSES, help="repeat what ended so")
    parser.add_argument("--older", action="store_true", help="repeat what another commit measured")
    parser.add_argument("--out", type=Path, default=RESULTS / f"wild_coverage-{date.today()}.jsonl")
    options = parser.parse_args()
    rows = read_rows(options.out)
    now, packages = commit(), set()
    done = {(r["network"], r["part"]): r["status"] for r in rows if not options.older or r.get("code") == now}
    for name in (n for n in NETWORKS if n.startswith(tuple(options.only))):
        for part in options.parts:
            if done.get((name, part), "none") not in ("none", *options.again):
                continue
            if (package := name.partition(":")[0]) not in packages:
                packages.add(package)
                import_all(name)
            row = result(name, part, options.ratio, LIMITS[part])
            add_row(options.out, row)
            rows.append(row)
            print(f"{part:13} {row['status']:9} {name} {row.get('ratio', '')} {row.get('says', '')}", flush=True)
    options.out.with_suffix(".md").write_text(report(rows, options.ratio))


if __name__ == "__main__":
    main()
