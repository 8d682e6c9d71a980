"""All stages of a run, in one pass or several."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from slim.errors import SlimError
from slim.prune.planner import check_prunable
from slim.sparsity.targets import chosen, has_scales
from slim.workbench import data, report, train
from slim.workbench.config import RunConfig
from slim.workbench.report import card
from slim.workbench.run import asked
from slim.workbench.run.beginning import with_size_of_weights
from slim.workbench.run.exporting import export_stage, int8_stage, show_slower, write_onnx
from slim.workbench.run.folder import Run
from slim.workbench.run.measuring import bench_files, bench_networks
from slim.workbench.run.networks import Trained, times_pruned
from slim.workbench.run.pruning import calibration_images, prune_stage
from slim.workbench.run.records import Records
from slim.workbench.run.reporting import report_stage
from slim.workbench.run.resuming import is_done
from slim.workbench.run.target import verdict, with_budget
from slim.workbench.run.training import evaluate_given, finetune_stage, first, train_new, train_sparse

FLOOR_OF_A_PASS = 0.5  # share of each layer that stays in one of several passes, as in the paper


def run_all(run: Run, *, command: str | None = None) -> list[Path]:
    """Do all stages, after a baseline, and make the page that shows them. Returns the paths.

    The baseline is trained without a penalty, or with `model.weights` it is the network as it came. From there
    `run.path` says how it goes on: see `path_of`.

    With several passes the training, pruning and fine-tuning are repeated, each pass on the network of the one
    before; at most half of a layer goes in one (the paper's multi-pass scheme, section 4.5). All passes but the last
    have a folder of their own in the run's, pass-1 and so on, with the same files.

    command: the command line to name on the page.
    """
    run = run.replace(settings=with_budget(run.settings))
    asked.check(run.settings)  # a mistake there would show only after training
    run = with_size_of_weights(run)
    if run.settings.passes > 1:
        own = run.settings.prune.floor
        floor = max(own if own < 1 else 0.0, FLOOR_OF_A_PASS)
        run = run.replace(settings=replace(run.settings, prune=replace(run.settings.prune, floor=floor)))
    with train.distributed_session(run.settings.compute), run.lock():
        network = first(run, "baseline")
        return _stages(_with_path(run, network), network, command)


def path_of(settings: RunConfig) -> str:
    """Return how a run goes on from its baseline: "sparse" (train with the penalty, prune, fine-tune), "direct" (prune,
    recover, fine-tune) or "none" (prune and recover). Left to slim it is direct for a network that came with trained
    weights, as penalising γ takes a training of its own, or that has no γ, and none for images without labels."""
    if settings.run.path != "auto":
        return settings.run.path
    if not data.is_labelled(settings.data.name):
        return "none"
    return "direct" if settings.model.trained else "sparse"


def _with_path(run: Run, network: Trained) -> Run:
    """Return the run with a path that the network can take, known before anything is trained: without γ it is direct
    where it is left to slim. Raises SlimError where there is nothing to prune, or nothing to penalise on the path that
    was asked for."""
    if path_of(run.settings) == "sparse":
        if run.settings.run.path == "auto" and not has_scales(network.model):
            run.console.print(
                "no BatchNorm has a scale γ to penalise: pruned straight from the baseline (run.path direct)"
            )
            run = run.replace(settings=replace(run.settings, run=replace(run.settings.run, path="direct")))
        else:
            chosen(network.model, run.settings.sparsity.targets)
    if isinstance(network.dataset, data.Loaders):
        calibration_images(network.dataset, run.settings.prune, run.settings.seed)  # which may not be of one size
    check_prunable(network.model, network.example, run.settings.prune.mode, run.settings.prune.grouped)
    return run


def last_stage(settings: RunConfig) -> str:
    """Return the stage that a run's result comes from."""
    return "pruned" if path_of(settings) == "none" else "finetuned"


def _stages(run: Run, network: Trained, command: str | None) -> list[Path]:
    first = train.is_rank_zero()
    in_a_pass = {"sparse": 3, "direct": 2, "none": 1}[path_of(run.settings)]
    begin = _counted(run, in_a_pass * run.settings.passes + 2 + run.settings.report.page)
    if first and not run.resume:
        for folder in run.folder.glob("pass-*"):
            Records(folder).forget()
    passes = [run.replace(folder=run.folder / f"pass-{number}") for number in range(1, run.settings.passes)] + [run]
    given = run.settings.model.trained
    begin("baseline")
    baseline = evaluate_given(run, network) if given else train_new(run, "baseline", None, network=network, fresh=True)
    wrote: list[Path] = [baseline]
    source = None if path_of(run.settings) == "sparse" and not given else baseline
    for each in passes:
        wrote += _one_pass(each, source, baseline, begin)
        source = each.path(last_stage(run.settings))
    if first:
        begin("export and measure")
        wrote += _export_and_measure(run)
        if len(passes) > 1:
            run.console.print(report.pass_table([each.records.summary() for each in passes]))
    if first and run.settings.report.page:
        begin("page")
        wrote += report_stage(run, [run.folder], command=command)
        run.console.print(f"all of it as a page: {run.folder / 'report.html'}")
    if first:
        show_slower(run)
    return wrote


def _counted(run: Run, total: int) -> Callable[[str], None]:
    """Return what says which stage begins: 3 of 6."""
    numbers = count(1)

    def begin(stage: str) -> None:
        if train.is_rank_zero():
            run.console.print(f"{next(numbers)} of {total}: {stage}", style="bold")

    return begin


def _one_pass(run: Run, source: Path | None, baseline: Path, begin: Callable[[str], None]) -> list[Path]:
    """Take the path of the settings from the network in `source`, or from a new one."""
    pruned, wrote = run.path("pruned"), []
    if source is None or path_of(run.settings) == "sparse":
        begin("sparse training")
        source = train_sparse(run, source)
        wrote.append(source)
    begin("prune")
    done = run.resume and is_done(run, "pruned", prunes=times_pruned(source) + 1)
    if train.is_rank_zero() and not done:
        prune_stage(run, source)
    train.wait_for_all()
    wrote += [pruned, run.folder / "plan.json"]
    if last_stage(run.settings) == "finetuned":
        begin("fine-tune")
        wrote.append(finetune_stage(run, pruned, teacher=baseline))
    return wrote


def _export_and_measure(run: Run) -> list[Path]:
    """Export the result and time it beside the networks before it; in PyTorch where no exporter can take it."""
    settings = run.settings
    try:
        written, files = _exported(run)
    except SlimError as refused:
        run.console.print(f"{refused}; measured in PyTorch instead")
        written = []
        made = bench_networks(run, {stage: run.path(stage) for stage in ("baseline", last_stage(settings))})
    else:
        with TemporaryDirectory() as folder:
            before = {"baseline": run.folder / "baseline.onnx"}
            for stage in ("sparse", "pruned") if path_of(settings) == "sparse" else ("pruned",):
                before[stage] = Path(folder, f"{stage}.onnx")
                write_onnx(run.open(run.path(stage)), before[stage], settings)
            made = bench_files(run, before | files)
    summary_path = run.records.enter_latency(made, settings)
    if written:
        card.write(run.path("onnx"))  # once more, with the latency
    summary = run.records.summary()
    run.console.print(report.stage_table(summary, f"{run.folder.name}, seed {settings.seed}"))
    *_, result = (record for stage, record in summary.items() if stage != "int8")
    told = report.conditions(made.to_dict())
    run.console.print(f"{report.headline(summary['baseline'], result)} (latency: {told})")
    if said := verdict(settings, summary["baseline"], result):
        run.console.print(said)
    return [*written, summary_path]


def _exported(run: Run) -> tuple[list[Path], dict[str, Path]]:
    """Write the result as ONNX files; return all that was written, and the files to time."""
    settings, last = run.settings, run.path(last_stage(run.settings))
    in_float = run.replace(settings=replace(settings, export=replace(settings.export, int8=False)))
    written = export_stage(in_float, last, unpruned=run.path("baseline"))
    files = {"onnx": run.path("onnx")}
    if settings.export.int8:
        try:
            files["int8"] = int8_stage(run, last)
            written.append(files["int8"])
        except SlimError as refused:  # the rest of the run is no worse for it
            run.console.print(str(refused))
    return written, files
