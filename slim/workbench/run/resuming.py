"""What of a run is done already, and where one that was interrupted goes on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from slim import checkpoint
from slim.errors import SlimError
from slim.workbench import config
from slim.workbench.config import DataConfig, RunConfig
from slim.workbench.run.finetuning import decided, training
from slim.workbench.run.folder import ROOT, Run
from slim.workbench.train import snapshots


def unfinished(name: str, stages: Sequence[str], *, numbered: bool) -> tuple[str, RunConfig | None]:
    """Return the run to go on with, and its settings: those with which the training of one of `stages` that was
    interrupted last was begun, else those last used; None where there is no such run.

    numbered: NAME-2, NAME-3, … are meant, too: of all of them the one that was interrupted last, or was last used.
    """
    folders = [ROOT / name, *(ROOT.glob(f"{name}-[0-9]*") if numbered else [])]
    places = [f"{within}{stage}.state" for stage in stages for within in ("", "pass-*/")]
    found = {path: f for f in folders for place in places for path in f.glob(f"{place}/step-*.safetensors")}
    if found:
        last = max(found, key=lambda path: path.stat().st_mtime_ns)
        return found[last].name, begun(last.parent)
    used = [folder / "config.yaml" for folder in folders if (folder / "config.yaml").exists()]
    if not used:
        return name, None
    file = max(used, key=lambda path: path.stat().st_mtime_ns)
    return file.parent.name, config.updated(RunConfig(), config.read(file))


def begun(folder: Path) -> RunConfig | None:
    """Return the settings of the training whose states to resume from are in `folder`; None without a state."""
    found = snapshots.newest(folder)
    return config.updated(RunConfig(), found[1]["about"]) if found else None


def check_same(run: Run, stage: str, *, plans: bool) -> None:
    """Raise SlimError where the training of a stage, one that `plans` or not, can't go on, as it was begun with other
    settings."""
    folder = run.records.states(stage)
    before = begun(folder)
    if before is None:
        run.console.print(f"no state of an interrupted training in {folder}: this one starts at its first epoch")
        return
    for name in ("seed", "task", "data", "model", "sparsity", *(["prune"] if plans else [])):
        was, now = getattr(before, name), getattr(run.settings, name)
        if not alike(was, now):
            raise SlimError(f"{name} is {now}: the training in {folder} was begun with {was}, so it can't go on")
    run.console.print(f"resuming from {folder}")


def is_done(run: Run, stage: str, *, prunes: int) -> bool:
    """Say whether a stage has been done with these settings on a network pruned so often by then (not counting the
    stage's own training), and still follows from those before it."""
    path, settings = run.path(stage), run.settings
    last = "recovered" if stage == "pruned" and settings.prune.recover else stage  # of what the file becomes
    if last not in run.records.summary() or not path.exists():
        return False
    about = checkpoint.read_metadata(path)
    if len(about["plans"]) - about["metrics"].get("prunes", 0) != prunes:  # it was another pass
        return False
    used = config.updated(RunConfig(), about["config"])
    used, settings = (replace(each, train=training(each)) for each in (used, settings))
    sections = {
        "baseline": ["train"],
        "sparse": ["train", "sparsity"],
        "pruned": ["run", "prune"],
        "finetuned": ["run", "finetune"],
    }
    if stage == "sparse" and settings.sparsity.plans:
        sections["sparse"].append("prune")
    if prunes > (stage in ("pruned", "finetuned")):  # what was pruned earlier follows from all stages before
        sections[stage] = ["run", "train", "sparsity", "prune", "finetune"]
    named = ("seed", "task", "data", "model", *sections[stage])
    done = all(alike(getattr(used, name), getattr(settings, name)) for name in named)
    if stage == "finetuned":
        done = done and decided(used) == decided(settings)
    if done:
        run.console.print(f"{path} is done already")
    return done


def alike(was: Any, now: Any) -> bool:
    """Say whether a section of the settings means the same. Where images lie and who decodes them changes no batch."""
    if isinstance(was, DataConfig):
        where = ("root", "download", "storage", "workers", "timeout", "max_pixels", "cache")
        return replace(was, **{name: getattr(now, name) for name in where}) == now
    return bool(was == now)
