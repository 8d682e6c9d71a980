"""A name for a run that begins, under which no finished one of other settings lies."""

from collections.abc import Sequence
from itertools import count

from slim.errors import SlimError
from slim.workbench import config
from slim.workbench.config import RunConfig
from slim.workbench.run.folder import ROOT, Run
from slim.workbench.run.resuming import alike


def vacant(run: Run, sections: Sequence[str]) -> str:
    """Return the run's name, or the first of NAME-2, NAME-3, … whose folder holds nothing, or a run whose `sections` of
    the settings are the same."""
    name = run.settings.name
    for number in count(2):
        if not _holds_another(run.replace(folder=ROOT / name), sections):
            break
        name = f"{run.settings.name}-{number}"
    return name


def _holds_another(run: Run, sections: Sequence[str]) -> bool:
    try:
        if not run.records.summary():
            return False
        used = config.updated(RunConfig(), config.read(run.folder / "config.yaml"))
    except SlimError:  # not readable: whoever begins a run has no say in what becomes of it
        return True
    named = ("seed", "task", "data", "model", *sections)
    return not all(alike(getattr(used, name), getattr(run.settings, name)) for name in named)
