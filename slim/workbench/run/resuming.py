"""What of a run is done already, and where one that was interrupted goes on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from slim import checkpoint
from slim.errors import SlimError
from slim.workbench import config
from slim.workbench.config import DataConfig, RunConfig
from slim.workbench.run.records import ROOT, read_records
from slim.workbench.train import snapshots


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


def check_same(folder: Path, settings: RunConfig, prunes: bool, console: Console) -> None:
    """Raises SlimError where a training, one that `prunes` or not, can't go on, as it was begun with other settings."""
    before = begun(folder)
    if before is None:
        console.print(f"no state in {folder}: training starts from the beginning")
        return
    for name in ("seed", "task", "data", "model", "sparsity", *(["prune"] if prunes else [])):
        was, now = getattr(before, name), getattr(settings, name)
        if not _alike(was, now):
            raise SlimError(f"{name} is {now}: the training in {folder} was begun with {was}, so it can't go on")
    console.print(f"resuming from {folder}")


def is_done(path: Path, settings: RunConfig, console: Console, prunes: int) -> bool:
    """Whether the stage at `path` has been done with these settings on a network pruned so often by then (not counting
    the stage's own training), and still follows from those before it."""
    summary, _ = read_records(path.parent)
    last = "recovered" if path.stem == "pruned" and settings.prune.recover else path.stem  # of what the file becomes
    if last not in summary or not path.exists():
        return False
    about = checkpoint.read_metadata(path)
    if len(about["plans"]) - about["metrics"].get("prunes", 0) != prunes:  # it was another pass
        return False
    used = config.updated(RunConfig(), about["config"])
    sections = {"baseline": ["train"], "sparse": ["train", "sparsity"], "pruned": ["prune"], "finetuned": ["finetune"]}
    if path.stem == "sparse" and settings.sparsity.gradual:
        sections["sparse"].append("prune")
    if prunes > (path.stem in ("pruned", "finetuned")):  # what was pruned earlier follows from all stages before
        sections[path.stem] = ["train", "sparsity", "prune", "finetune"]
    named = ("seed", "task", "data", "model", *sections[path.stem])
    done = all(_alike(getattr(used, name), getattr(settings, name)) for name in named)
    if done:
        console.print(f"{path} is done already")
    return done


def _alike(was: Any, now: Any) -> bool:
    """Whether a section of the settings means the same. Where images lie and who decodes them changes no batch."""
    if isinstance(was, DataConfig):
        where = ("root", "download", "storage", "workers", "cache")
        return replace(was, **{name: getattr(now, name) for name in where}) == now
    return bool(was == now)


def times_pruned(path: Path) -> int:
    """How often the network in a file was pruned."""
    return len(checkpoint.read_metadata(path)["plans"])
