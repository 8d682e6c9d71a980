"""The stages of a run: each reads the file of the stage before it and writes its own, whole or not at all.

A run is a folder, checkpoints/NAME/. Beside the files of its stages lie `config.yaml` (its settings as last
used), `metrics.jsonl` (a line for each epoch) and `summary.json` (an object for each stage). When a stage is
done again, what later stages had entered in these two is taken out, because it no longer follows.

Every stage prints to `console` (a new one by default) and returns the paths that it wrote.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slim import checkpoint, config, data, export, models, report, train
from slim.checkpoint import STAGES
from slim.config import OptimConfig, RunConfig, SparsityConfig
from slim.data import Dataset
from slim.errors import SlimError
from slim.files import replacing
from slim.planning import PruningPlan, plan
from slim.recovery import Recovery, calibration_count, recover
from slim.report import card, page
from slim.runtime import Runtime
from slim.size import measure
from slim.train import snapshots
from slim.verification import verify

if TYPE_CHECKING:
    from slim.bench import BenchReport

ROOT = Path("checkpoints")
FLOOR_OF_A_PASS = 0.5  # share of each layer that stays in one of several passes, as in the paper


@dataclass(frozen=True)
class Trained:
    """A network with all that its file says of it."""

    stage: str
    model: nn.Module
    plans: list[PruningPlan]
    metrics: dict[str, Any]
    facts: dict[str, Any]  # arch, arch_kwargs, classes, mean, std, input_shape: as checkpoint.save takes them
    dataset: Dataset | None  # None for a network that wasn't trained by slim

    @property
    def example(self) -> Tensor:
        return _example(self.facts["input_shape"])


def train_stage(
    settings: RunConfig, *, resume: bool = False, allow_code: bool = False, console: Console | None = None
) -> list[Path]:
    """Train a new network with the penalty on γ. It starts a new run: earlier entries of its folder go.

    With `resume` an interrupted training goes on, and one that is done with these settings isn't done again; so it
    is with the other stages that train."""
    with _together(settings):
        return _train_new("sparse", settings, settings.sparsity, allow_code, console or Console(), True, resume)


def prune_stage(
    source: Path,
    settings: RunConfig,
    *,
    dry_run: bool = False,
    allow_code: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Prune the network in `source`, and check what the thin one computes. A dry run writes nothing."""
    console = console or Console()
    _read_records(source.parent)
    before = _open(source, settings, allow_code)
    images = _calibration_images(before.dataset, settings) if before.dataset else None
    made = plan(before.model, before.example, images=images, **_rules(settings))
    _tell(made, console)
    if dry_run:
        return []
    thin = made.apply(before.model)
    error = verify(before.model, thin, made, before.example)
    path, plan_path = source.with_name(STAGES["pruned"][0]), source.with_name("plan.json")
    plans = [*before.plans, made]
    records = {before.stage: before.metrics}
    made.save(plan_path)  # before the stage counts as done
    records["pruned"] = _save(path, thin, plans, before.facts, settings, before.dataset)
    if settings.tensorboard:
        board = train.TensorBoard(path.parent / "tensorboard")
        board.text("plan", f"{report.render(made.table())}\n{made.summary()}")
        board.close()
    recovered = None
    if settings.prune.recover and images is not None:
        recovered = _recover(before.model, thin, made, images, settings)
        records["recovered"] = _save(
            path, recovered.model, plans, before.facts, settings, before.dataset, stage="recovered"
        )
    console.print(report.stage_table(records, "pruning"))
    console.print(f"equals the network with those channels set to zero, to {error:.0e} (relative)")
    if recovered:
        console.print(str(recovered))
    return [path, plan_path]


def _rules(settings: RunConfig) -> dict[str, Any]:
    """How `slim.plan` is to choose. Latency is that of the benchmark's first batch size."""
    recovery = ("recover", "calibration_images")
    rules = {key: value for key, value in asdict(settings.prune).items() if key not in recovery}
    if settings.prune.latency is not None or settings.prune.round_to == "auto":
        bench = settings.bench
        rules["runtime"] = Runtime(bench.provider, bench.threads, bench.batch_sizes[0])
    return rules


def _calibration_images(dataset: Dataset, settings: RunConfig) -> Tensor:
    """Training images without augmentation, as many as the settings and memory allow."""
    count = calibration_count(settings.prune.calibration_images, dataset.image_size)
    images, _ = next(data.batches(dataset.train, dataset, count, shuffle_seed=settings.seed))
    return images


def _recover(model: nn.Module, thin: nn.Module, made: PruningPlan, images: Tensor, settings: RunConfig) -> Recovery:
    """The thin network, recovered on the device that trains."""
    device = train.resolve_device(settings.device)
    try:
        recovered = recover(model.to(device), thin.to(device), made, images)
    finally:
        model.cpu()
        thin.cpu()
    recovered.model.cpu()
    return recovered


def dry_run(arch: str, settings: RunConfig, *, console: Console | None = None) -> None:
    """Print the plan for an untrained network on images of 3 channels and `data.image_size` pixels (224, for
    slim's own 32). Equal γ would have no order, so they are drawn at random."""
    console = console or Console()
    pixels = settings.data.image_size or (32 if arch.startswith("slim:") else 224)
    arguments = {"num_classes": 1000, **_image_size(arch, pixels), **settings.model.kwargs}
    torch.manual_seed(settings.seed)
    model = models.build(arch, allow_code=True, **arguments).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            nn.init.uniform_(module.weight)
    _tell(plan(model, _example([3, pixels, pixels]), **_rules(settings)), console)
    console.print(f"{arch}, untrained, γ drawn at random, 3×{pixels}×{pixels} pixels; nothing was written")


def _tell(made: PruningPlan, console: Console) -> None:
    console.print(made.table())
    console.print(made.summary())
    if made.shortfall:
        console.print(made.shortfall)


def finetune_stage(
    source: Path,
    settings: RunConfig,
    *,
    teacher: Path | None = None,
    resume: bool = False,
    allow_code: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Train the network in `source` on, without a penalty. With `finetune.distill` it also learns from `teacher`, by
    default the sparse.safetensors beside it."""
    console = console or Console()
    path = source.with_name(STAGES["finetuned"][0])
    with _together(settings):
        if resume and _is_done(path, settings, console, _prunes(source)):
            return [path]
        _read_records(source.parent)
        before = _open(source, settings, allow_code)
        dataset = before.dataset or data.load(settings.data, settings.seed)
        unpruned = None
        if settings.finetune.distill:
            unpruned = _open(teacher or source.with_name(STAGES["sparse"][0]), settings, allow_code).model
        records = _fit(path, before.model, dataset, settings, settings.finetune, console, unpruned, resume=resume)
        facts = before.facts | _facts_of(dataset)
        record = _save(path, before.model, before.plans, facts, settings, dataset, records)
        train.wait_for_all()  # for the file
        console.print(report.stage_table({before.stage: before.metrics, "finetuned": record}, "fine-tuning"))
        console.print(report.effort(records))
        return [path]


def export_stage(
    source: Path,
    settings: RunConfig,
    *,
    unpruned: Path | None = None,
    allow_code: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Write the network in `source` as model.onnx and, if it exists, `unpruned` as baseline.onnx; by default
    that is sparse.safetensors beside `source`."""
    console = console or Console()
    _read_records(source.parent)
    before = _open(source, settings, allow_code)
    unpruned = unpruned or source.with_name(STAGES["sparse"][0])
    whole = _open(unpruned, settings, allow_code) if unpruned.exists() else None  # both are sound before one is written
    path = source.with_name(STAGES["onnx"][0])
    made, written = _export(before, path, settings), [path]
    if whole is not None:
        written.append(source.with_name("baseline.onnx"))
        _export(whole, written[-1], settings)
    record = before.metrics | {"file_size": made.file_size, "max_relative_error": made.max_relative_error}
    if before.dataset:
        record["accuracy"] = _onnx_accuracy(path, before.dataset)
    _enter(path.parent, "onnx", record, settings)
    console.print(report.stage_table({before.stage: before.metrics, "onnx": record}, "export"))
    console.print(f"the ONNX file equals PyTorch's network to {made.max_relative_error:.0e} (relative)")
    if made.float64_engine:
        reached = "not compared" if made.float64_error is None else f"equal to {made.float64_error:.0e}"
        console.print(f"in float64, before optimisation: {reached} ({made.float64_engine})")
    if settings.export.int8:
        written.append(int8_stage(source, settings, allow_code=allow_code, console=console))
    return [*written, card.write(path)]


def int8_stage(source: Path, settings: RunConfig, *, allow_code: bool = False, console: Console | None = None) -> Path:
    """Quantise the model.onnx beside `source`, the network that it was exported from, as model.int8.onnx: on training
    images, and only if the test images say that it is as good. SlimError where it isn't."""
    from slim.bench import benchmark  # imports onnxruntime

    console = console or Console()
    before = _open(source, settings, allow_code)
    dataset = before.dataset or data.load(settings.data, settings.seed)
    shape = list(dataset.test.images.shape[1:])
    if shape != before.facts["input_shape"] or len(dataset.classes) != len(before.facts["classes"] or dataset.classes):
        raise SlimError(
            f"data.name is {settings.data.name!r}, with {len(dataset.classes)} classes of images {shape}: INT8 needs "
            f"images like those that {source} was trained on, {before.facts['input_shape']}"
        )
    files = {stage: source.with_name(STAGES[stage][0]) for stage in ("onnx", "int8")}
    net = export.OnnxModel(files["onnx"])
    size = 32
    batches = data.batches(dataset.train, dataset, size, shuffle_seed=settings.seed)
    calibration = (_as_taken(net, images, dataset) for images, _ in batches)
    made = export.quantize_onnx(
        files["onnx"],
        files["int8"],
        islice(calibration, math.ceil(settings.export.calibration_images / size)),
        _test_batches(net, dataset),
        max_loss=settings.export.max_loss,
        method=settings.export.calibration,
        reduce_range=settings.export.reduce_range,
    )
    summary, _ = _read_records(source.parent)
    was = summary["onnx"]
    record = was | {"accuracy": made.accuracy, "file_size": made.file_size}
    for key in ("latency_ms", "speedup", "bench", "max_relative_error"):
        record.pop(key, None)
    _enter(source.parent, "int8", record, settings)
    timed = replace(settings.bench, batch_sizes=settings.bench.batch_sizes[:1], memory=False, profile=0)
    timing = benchmark(files, **asdict(timed))
    rows = {row.model: {"latency_ms": row.median_ms} for row in timing.rows}
    console.print(report.stage_table({"onnx": was | rows["onnx"], "int8": record | rows["int8"]}, "INT8"))
    return files["int8"]


def bench_stage(
    source: Path, settings: RunConfig, *, console: Console | None = None
) -> "tuple[list[Path], BenchReport]":
    """Measure `source`, a run's model.onnx, against the baseline.onnx beside it."""
    files = {"baseline": source.with_name("baseline.onnx"), "onnx": source}
    if "int8" in _read_records(source.parent)[0]:
        files["int8"] = source.with_name(STAGES["int8"][0])
    made = bench_files({name: path for name, path in files.items() if path.exists()}, settings, console=console)
    return [_enter_latency(source.parent, made, settings), card.write(source)], made


def bench_files(
    files: Mapping[str, Path], settings: RunConfig, *, allow_code: bool = False, console: Console | None = None
) -> "BenchReport":
    """Measure ONNX files and checkpoints against the first of them."""
    from slim.bench import benchmark  # imports onnxruntime

    console = console or Console()
    made = benchmark(files, **asdict(settings.bench), allow_code=allow_code)
    console.print(made.table())
    if made.profiles:
        console.print(made.profile_table())
    return made


def report_stage(
    folders: Sequence[Path],
    page_path: Path | None = None,
    *,
    measure: bool = True,
    seconds: float | None = None,
    command: str | None = None,
    allow_code: bool = False,
    console: Console | None = None,
) -> list[Path]:
    """Make the page of a run, report.html in its folder, or of several, comparison.html beside the first. Before that,
    `measure` what they show and the runs didn't record (the sweep over ratios for `seconds`, by default as the run's
    settings say). `command` is the command line that made the run."""
    console = console or Console()
    for folder in folders:
        report.collect(folder)  # a folder that is no run says so before anything is measured
    written = []
    if measure:
        from slim.report.evidence import gather  # imports onnxruntime

        for folder in folders:
            written.append(gather(folder, allow_code=allow_code, command=command, seconds=seconds, say=console.print))
    home = folders[0] / "report.html" if len(folders) == 1 else folders[0].parent / "comparison.html"
    return [page.write([report.collect(folder) for folder in folders], page_path or home), *written]


def run(
    settings: RunConfig,
    *,
    resume: bool = False,
    command: str | None = None,
    allow_code: bool = False,
    console: Console | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """All stages, after a baseline trained without a penalty, and the page that shows them. Returns the paths and the
    summary. `command` is the command line to name on the page.

    With several passes the sparse training, pruning and fine-tuning are repeated, each pass on the network of the one
    before; at most half of a layer goes in one (the paper's multi-pass scheme, section 4.5). All passes but the last
    have a folder of their own in the run's, pass-1 and so on, with the same files.
    """
    console = console or Console()
    folders = [ROOT / settings.name / f"pass-{number}" for number in range(1, settings.passes)]
    folders.append(ROOT / settings.name)
    if settings.passes > 1:
        floor = max(settings.prune.floor, FLOOR_OF_A_PASS)
        settings = replace(settings, prune=replace(settings.prune, floor=floor))
    with _together(settings):
        if train.is_first() and not resume:
            for folder in (ROOT / settings.name).glob("pass-*"):
                _forget(folder)
        [baseline] = _train_new("baseline", settings, None, allow_code, console, True, resume)
        wrote, source = [baseline], None
        for number, folder in enumerate(folders):
            sparse = _train_sparse(source, folder, settings, allow_code, console, resume)
            pruned, plan_path = sparse.with_name(STAGES["pruned"][0]), sparse.with_name("plan.json")
            if train.is_first() and not (resume and _is_done(pruned, settings, console, number + 1)):
                prune_stage(sparse, settings, allow_code=allow_code, console=console)
            train.wait_for_all()
            [finetuned] = finetune_stage(pruned, settings, resume=resume, allow_code=allow_code, console=console)
            wrote += [sparse, pruned, plan_path, finetuned]
            source = finetuned
        first = train.is_first()
        if first:
            wrote += _export_and_measure(baseline, sparse, pruned, finetuned, settings, allow_code, console)
            if settings.passes > 1:
                console.print(report.pass_table([_read_records(folder)[0] for folder in folders]))
    if first and settings.report.page:
        wrote += report_stage([baseline.parent], command=command, allow_code=allow_code, console=console)
        console.print(f"all of it as a page: {baseline.parent / 'report.html'}")
    summary, _ = _read_records(baseline.parent)
    return wrote, summary


def _export_and_measure(
    baseline: Path, sparse: Path, pruned: Path, finetuned: Path, settings: RunConfig, allow_code: bool, console: Console
) -> list[Path]:
    in_float = replace(settings, export=replace(settings.export, int8=False))
    onnx = export_stage(finetuned, in_float, unpruned=baseline, allow_code=allow_code, console=console)
    files = {"onnx": onnx[0]}
    if settings.export.int8:
        try:
            files["int8"] = int8_stage(finetuned, settings, allow_code=allow_code, console=console)
            onnx.append(files["int8"])
        except SlimError as refused:  # the rest of the run is no worse for it
            console.print(str(refused))
    with TemporaryDirectory() as folder:
        before = {
            "baseline": onnx[1],
            "sparse": Path(folder, "sparse.onnx"),
            "pruned": Path(folder, "pruned.onnx"),
        }
        for stage, path in (("sparse", sparse), ("pruned", pruned)):
            _export(_open(path, settings, allow_code), before[stage], settings)
        made = bench_files(before | files, settings, console=console)
    summary_path = _enter_latency(baseline.parent, made, settings)
    card.write(onnx[0])
    summary, _ = _read_records(baseline.parent)
    console.print(report.stage_table(summary, f"{settings.name}, seed {settings.seed}"))
    console.print(f"{report.headline(summary['baseline'], summary['onnx'])} (latency: {report.conditions(made)})")
    return [*onnx, summary_path]


def unfinished(name: str, stages: Sequence[str]) -> RunConfig | None:
    """The settings of the run `name`: those with which the training of one of `stages` that was interrupted last was
    begun, else those last used; None where there is no such run."""
    places = [f"{within}{stage}.state" for stage in stages for within in ("", "pass-*/")]
    states = [path for place in places for path in (ROOT / name).glob(f"{place}/step-*.safetensors")]
    if states:
        return begun(max(states, key=lambda path: path.stat().st_mtime_ns).parent)
    file = ROOT / name / "config.yaml"
    return config.updated(RunConfig(), config.read(file)) if file.exists() else None


def begun(folder: Path) -> RunConfig | None:
    """The settings of the training whose states to resume from are in `folder`; None without a state."""
    found = snapshots.newest(folder)
    return config.updated(RunConfig(), found[1]["about"]) if found else None


def _train_new(
    stage: str,
    settings: RunConfig,
    sparsity: SparsityConfig | None,
    allow_code: bool,
    console: Console,
    fresh: bool,
    resume: bool,
    folder: Path | None = None,
) -> list[Path]:
    path = (folder or ROOT / settings.name) / STAGES[stage][0]
    if resume and _is_done(path, settings, console, 0):
        return [path]
    dataset = data.load(settings.data, settings.seed)
    facts = _facts_of(dataset)
    facts["arch"] = settings.model.arch
    facts["arch_kwargs"] = {
        "num_classes": len(dataset.classes),
        "in_channels": dataset.channels,
        "gamma": settings.model.gamma,
        **_image_size(settings.model.arch, dataset.image_size),
        **settings.model.kwargs,
    }
    torch.manual_seed(settings.seed)
    model = models.build(facts["arch"], allow_code=allow_code, **facts["arch_kwargs"])
    if not any(isinstance(module, _BatchNorm) and module.affine for module in model.modules()):
        raise SlimError(f"{facts['arch']} has no BatchNorm with a scale γ: there is nothing to prune")
    _read_records(path.parent)  # before the work, so that a broken file costs none of it
    records = _fit(path, model, dataset, settings, settings.train, console, None, sparsity, fresh, resume)
    record = _save(path, model, [], facts, settings, dataset, records, fresh)
    train.wait_for_all()  # for the file
    console.print(report.stage_table({stage: record}, "training"))
    console.print(report.effort(records))
    return [path]


def _train_sparse(
    source: Path | None, folder: Path, settings: RunConfig, allow_code: bool, console: Console, resume: bool
) -> Path:
    """The first stage of a pass: train with the penalty, from the network in `source`, or a new one without."""
    if source is None:
        return _train_new("sparse", settings, settings.sparsity, allow_code, console, False, resume, folder)[0]
    path = folder / STAGES["sparse"][0]
    if resume and _is_done(path, settings, console, _prunes(source)):
        return path
    _read_records(folder)
    before = _open(source, settings, allow_code)
    dataset = before.dataset or data.load(settings.data, settings.seed)
    records = _fit(
        path, before.model, dataset, settings, settings.train, console, None, settings.sparsity, False, resume
    )
    record = _save(path, before.model, before.plans, before.facts | _facts_of(dataset), settings, dataset, records)
    train.wait_for_all()  # for the file
    console.print(report.stage_table({before.stage: before.metrics, "sparse": record}, "training"))
    console.print(report.effort(records))
    return path


def _image_size(arch: str, pixels: int | tuple[int, int]) -> dict[str, Any]:
    """The argument image_size for the networks whose layers depend on it."""
    return {"image_size": pixels} if "image_size" in models.arguments(arch) else {}


def _fit(
    path: Path,
    model: nn.Module,
    dataset: Dataset,
    settings: RunConfig,
    optim: OptimConfig,
    console: Console,
    teacher: nn.Module | None = None,
    sparsity: SparsityConfig | None = None,
    fresh: bool = False,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Train the network whose stage will be saved at `path`. Its epochs are entered in the run's metrics as they
    come, and states to resume from are saved in a folder beside it until the stage is."""
    states = train.Snapshots(
        _states_of(path), asdict(settings), keep=settings.keep_states, minutes=settings.save_minutes
    )
    if resume:
        _check_same(states.folder, settings, console)
    board = None
    if settings.tensorboard and train.is_first():
        board = train.TensorBoard(path.parent / "tensorboard" / path.stem)
    title = "fine-tuning" if path.stem == "finetuned" else path.stem
    with report.training(console, title, optim.epochs) as (on_step, show_epoch):

        def on_epoch(record: dict[str, Any]) -> None:
            show_epoch(record)
            if train.is_first():
                _enter_epochs(path.parent, path.stem, [record], fresh)
            if board:
                board.epoch(record, model)

        records = train.fit(
            model,
            dataset,
            optim,
            batch_size=settings.data.batch_size,
            seed=settings.seed,
            device=settings.device,
            precision=settings.precision,
            channels_last=settings.channels_last,
            compile=settings.compile,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            sync_batchnorm=settings.sync_batchnorm,
            accumulate=settings.accumulate,
            sparsity=sparsity,
            teacher=teacher,
            distill=settings.finetune.distill,
            temperature=settings.finetune.temperature,
            snapshots=states,
            resume=resume,
            on_step=on_step,
            on_epoch=on_epoch,
        )
    if board:
        board.close()
    return records


def _together(settings: RunConfig) -> AbstractContextManager[None]:
    return train.together(settings.device, settings.precision, settings.devices, settings.num_nodes)


def _states_of(path: Path) -> Path:
    return path.with_suffix(".state")


def _check_same(folder: Path, settings: RunConfig, console: Console) -> None:
    """Raises SlimError where a training can't go on, as it was begun with other settings."""
    before = begun(folder)
    if before is None:
        console.print(f"no state in {folder}: training starts from the beginning")
        return
    for name in ("seed", "data", "model", "sparsity"):
        was, now = getattr(before, name), getattr(settings, name)
        if was != now:
            raise SlimError(f"{name} is {now}: the training in {folder} was begun with {was}, so it can't go on")
    console.print(f"resuming from {folder}")


def _prunes(path: Path) -> int:
    """How often the network in a file was pruned."""
    return len(checkpoint.read_metadata(path)["plans"])


def _forget(folder: Path) -> None:
    """Take the stages of an earlier run out of a folder's records, so that no `resume` takes them for done."""
    for name in ("summary.json", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for file, _ in STAGES.values():
        train.Snapshots(_states_of(folder / file), {}).clear()


def _is_done(path: Path, settings: RunConfig, console: Console, prunes: int) -> bool:
    """Whether the stage at `path` has been done with these settings on a network pruned so often by then, and still
    follows from those before it."""
    summary, _ = _read_records(path.parent)
    last = "recovered" if path.stem == "pruned" and settings.prune.recover else path.stem  # of what the file becomes
    if last not in summary or not path.exists():
        return False
    if _prunes(path) != prunes:  # it was another pass
        return False
    used = config.updated(RunConfig(), checkpoint.read_metadata(path)["config"])
    sections = {"baseline": ["train"], "sparse": ["train", "sparsity"], "pruned": ["prune"], "finetuned": ["finetune"]}
    if prunes > (path.stem in ("pruned", "finetuned")):  # a later pass follows from all stages of the first
        sections[path.stem] = ["train", "sparsity", "prune", "finetune"]
    done = all(getattr(used, s) == getattr(settings, s) for s in ("seed", "data", "model", *sections[path.stem]))
    if done:
        console.print(f"{path} is done already")
    return done


def _facts_of(dataset: Dataset) -> dict[str, Any]:
    shape = list(dataset.test.images.shape[1:])
    return {"classes": dataset.classes, "mean": dataset.mean, "std": dataset.std, "input_shape": shape}


def _example(shape: Sequence[int]) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def _open(path: Path, settings: RunConfig, allow_code: bool) -> Trained:
    """The network in a file, with the data set of its run.

    Settings that it was trained with can't change after that: another seed would draw other test images, of
    which the network has seen many.
    """
    about = checkpoint.read_metadata(path)
    dataset = None
    if about["config"] is not None:
        trained = config.updated(RunConfig(), about["config"])
        for name in ("seed", "model"):
            was, now = getattr(trained, name), getattr(settings, name)
            if was != now:
                raise SlimError(f"{name} is {now}: {path} was trained with {was}, which can't change any more")
        dataset = data.load(settings.data, settings.seed)
        if dataset.classes != about["classes"]:
            raise SlimError(f"data.name is {settings.data.name!r}: {path} was trained on {trained.data.name!r}")
    if about["input_shape"] is None:
        raise SlimError(f"{path} doesn't say how large its images are: expected input_shape in slim.save")
    return Trained(
        stage=about["stage"] or path.stem,
        model=checkpoint.load(path, allow_code=allow_code),
        plans=[PruningPlan.from_dict(p) for p in about["plans"]],
        metrics=about["metrics"] | {"file_size": path.stat().st_size},
        facts={key: about[key] for key in ("arch", "arch_kwargs", "classes", "mean", "std", "input_shape")},
        dataset=dataset,
    )


def _save(
    path: Path,
    model: nn.Module,
    plans: list[PruningPlan],
    facts: dict[str, Any],
    settings: RunConfig,
    dataset: Dataset | None,
    epochs: Sequence[dict[str, Any]] = (),
    fresh: bool = False,
    stage: str = "",
) -> dict[str, Any]:
    """Measure a network and save it as a stage, the one that its file is named after. Returns its summary, which is
    empty on other processes than the first."""
    if not train.is_first():
        return {}
    stage = stage or path.stem
    record: dict[str, Any] = asdict(measure(model, _example(facts["input_shape"])))
    if dataset:
        record["accuracy"] = train.evaluate(
            model, dataset.test, dataset, device=settings.device, channels_last=settings.channels_last
        )["accuracy"]
    if epochs:
        record["training"] = report.totals(epochs)
    checkpoint.save(path, model, plans, stage=stage, metrics=record, config=settings, **facts)
    record["file_size"] = path.stat().st_size
    _enter(path.parent, stage, record, settings, epochs, fresh)
    return record


def _enter(
    folder: Path,
    stage: str,
    record: dict[str, Any],
    settings: RunConfig,
    epochs: Sequence[dict[str, Any]] = (),
    fresh: bool = False,
) -> None:
    """Enter a stage in the run's summary, metrics and settings. What later stages entered goes, as do states that they
    would resume from; everything goes if `fresh`."""
    earlier = [] if fresh else list(STAGES)[: list(STAGES).index(stage)]
    summary, _ = _read_records(folder)
    summary = {key: value for key, value in summary.items() if key in earlier}
    _enter_epochs(folder, stage, epochs, fresh)
    _write(folder / "summary.json", json.dumps(summary | {stage: record}, indent=2))
    _write(folder / "config.yaml", config.to_yaml(settings))
    for other, (file, _) in STAGES.items():
        if other not in earlier:
            train.Snapshots(_states_of(folder / file), {}).clear()


def _enter_epochs(folder: Path, stage: str, epochs: Sequence[dict[str, Any]], fresh: bool) -> None:
    """Enter epochs of a stage in the run's metrics, after its earlier ones."""
    earlier = [] if fresh else list(STAGES)[: list(STAGES).index(stage)]
    first = epochs[0]["epoch"] if epochs else 1
    _, entries = _read_records(folder)
    kept = [e for e in entries if e["stage"] in earlier or (e["stage"] == stage and e["epoch"] < first)]
    added = [{"stage": stage, **epoch} for epoch in epochs]
    _write(folder / "metrics.jsonl", "\n".join(json.dumps(entry) for entry in [*kept, *added]))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n" if text else "", encoding="utf-8")


def _read_records(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run's summary and the lines of its metrics, empty where there are none yet."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not isinstance(summary, dict) or not all(isinstance(stage, dict) for stage in summary.values()):
            raise ValueError
        path = folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        metrics = [json.loads(line) for line in lines]
        if not all(isinstance(line, dict) and "stage" in line for line in metrics):
            raise ValueError
    except ValueError:
        raise SlimError(f"{str(path)!r} is broken: expected what slim wrote there; move it away to go on") from None
    return summary, metrics


def _export(trained: Trained, path: Path, settings: RunConfig) -> "export.ExportReport":
    facts = {key: trained.facts[key] for key in ("classes", "mean", "std")}
    digest = trained.plans[-1].digest if trained.plans else None
    return export.export_onnx(
        trained.model,
        trained.example,
        path,
        opset=settings.export.opset,
        dynamic_size=settings.export.dynamic_size,
        preprocess=settings.export.preprocess,
        float64=settings.export.float64,
        plan_digest=digest,
        **facts,
    )


def _onnx_accuracy(path: Path, dataset: Dataset) -> float:
    """Accuracy on the test images, run in onnxruntime."""
    net = export.OnnxModel(path)
    right = sum(int((net(images).argmax(1) == labels.numpy()).sum()) for images, labels in _test_batches(net, dataset))
    return right / len(dataset.test)


def _test_batches(net: "export.OnnxModel", dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
    """The test images as a file takes them, with their labels."""
    for images, labels in data.batches(dataset.test, dataset, 256):
        yield _as_taken(net, images, dataset), labels


def _as_taken(net: "export.OnnxModel", images: Tensor, dataset: Dataset) -> Tensor:
    """Normalised images [N, C, H, W] as they are, or as the pixels that they were where the file normalises."""
    if not net.raw:
        return images
    mean, std = (torch.tensor(values).reshape(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return ((images * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _enter_latency(folder: Path, made: "BenchReport", settings: RunConfig) -> Path:
    """Enter latencies (ms for a batch of the first size) in the summary. The fine-tuned network's is its
    export's, and the recovered one's that of the pruned one."""
    same = {"onnx": ["onnx", "finetuned"], "pruned": ["pruned", "recovered"]}
    summary, _ = _read_records(folder)
    batch = settings.bench.batch_sizes[0]
    for row in made.rows:
        if row.batch_size == batch:
            for stage in same.get(row.model, [row.model]):
                if stage in summary:
                    summary[stage] |= {"latency_ms": row.median_ms, "speedup": row.speedup}
    if "onnx" in summary:
        summary["onnx"]["bench"] = made.to_dict()
    _write(folder / "summary.json", json.dumps(summary, indent=2))
    return folder / "summary.json"
