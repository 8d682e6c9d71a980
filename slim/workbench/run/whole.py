"""All stages of a run, in one pass or several."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from slim.checkpoint import STAGES
from slim.errors import SlimError
from slim.workbench import report, train
from slim.workbench.config import RunConfig
from slim.workbench.report import card
from slim.workbench.run import asked
from slim.workbench.run.deploying import bench_files, export_stage, int8_stage, report_stage, write_onnx
from slim.workbench.run.networks import open_network
from slim.workbench.run.pruning import prune_stage
from slim.workbench.run.records import ROOT, enter_latency, forget, read_records
from slim.workbench.run.resuming import is_done, times_pruned
from slim.workbench.run.training import finetune_stage, train_new, train_sparse

FLOOR_OF_A_PASS = 0.5  # share of each layer that stays in one of several passes, as in the paper


def run(
    settings: RunConfig,
    *,
    resume: bool = False,
    command: str | None = None,
    allow_code: str | Collection[str] = (),
    console: Console | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """All stages, after a baseline trained without a penalty, and the page that shows them. Returns the paths and the
    summary. `command` is the command line to name on the page.

    With several passes the sparse training, pruning and fine-tuning are repeated, each pass on the network of the one
    before; at most half of a layer goes in one (the paper's multi-pass scheme, section 4.5). All passes but the last
    have a folder of their own in the run's, pass-1 and so on, with the same files.
    """
    console = console or Console()
    asked.check(settings)  # a mistake there would show only after training
    folders = [ROOT / settings.name / f"pass-{number}" for number in range(1, settings.passes)]
    folders.append(ROOT / settings.name)
    if settings.passes > 1:
        floor = max(settings.prune.floor if settings.prune.floor < 1 else 0.0, FLOOR_OF_A_PASS)
        settings = replace(settings, prune=replace(settings.prune, floor=floor))
    with train.distributed_session(settings.compute):
        if train.is_rank_zero() and not resume:
            for folder in (ROOT / settings.name).glob("pass-*"):
                forget(folder)
        [baseline] = train_new("baseline", settings, None, allow_code, console, True, resume)
        wrote, source = [baseline], None
        for folder in folders:
            sparse = train_sparse(source, folder, settings, allow_code, console, resume)
            pruned, plan_path = sparse.with_name(STAGES["pruned"][0]), sparse.with_name("plan.json")
            if train.is_rank_zero() and not (resume and is_done(pruned, settings, console, times_pruned(sparse) + 1)):
                prune_stage(sparse, settings, allow_code=allow_code, console=console)
            train.wait_for_all()
            [finetuned] = finetune_stage(
                pruned,
                settings,
                teacher=baseline if settings.sparsity.gradual else None,
                resume=resume,
                allow_code=allow_code,
                console=console,
            )
            wrote += [sparse, pruned, plan_path, finetuned]
            source = finetuned
        first = train.is_rank_zero()
        if first:
            wrote += _export_and_measure(baseline, sparse, pruned, finetuned, settings, allow_code, console)
            if settings.passes > 1:
                console.print(report.pass_table([read_records(folder)[0] for folder in folders]))
    if first and settings.report.page:
        wrote += report_stage([baseline.parent], command=command, allow_code=allow_code, console=console)
        console.print(f"all of it as a page: {baseline.parent / 'report.html'}")
    summary, _ = read_records(baseline.parent)
    return wrote, summary


def _export_and_measure(
    baseline: Path,
    sparse: Path,
    pruned: Path,
    finetuned: Path,
    settings: RunConfig,
    allow_code: str | Collection[str],
    console: Console,
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
            write_onnx(open_network(path, settings, allow_code), before[stage], settings)
        made = bench_files(before | files, settings, console=console)
    summary_path = enter_latency(baseline.parent, made, settings)
    card.write(onnx[0])
    summary, _ = read_records(baseline.parent)
    console.print(report.stage_table(summary, f"{settings.name}, seed {settings.seed}"))
    console.print(
        f"{report.headline(summary['baseline'], summary['onnx'])} (latency: {report.conditions(made.to_dict())})"
    )
    return [*onnx, summary_path]
