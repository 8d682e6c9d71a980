"""What a command was given: its arguments, its settings, and the run that follows from them."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim.errors import SlimError
from slim.workbench import config
from slim.workbench.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from slim.workbench.run.folder import Run

# Before torch loads OpenMP. Threads that spin while they wait for each other are fast on a quiet machine and hopeless
# beside other work: ResNet-20 on 2 cores trained at 630 images/s alone, at 19 beside one busy process; with no spinning
# at 460 and 255; with GNU's runtime told to spin for a short while at 600 and 240.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


@dataclass(frozen=True)
class ParsedCommand:
    """What a command was given: its own arguments, and the settings of --config and of the command line."""

    arguments: Namespace
    in_file: dict[str, Any]
    as_options: dict[str, Any]

    def settings(self, base: RunConfig | None = None) -> RunConfig:
        """Return the settings: options over --config over `base`, the defaults. Exits if they are to be shown."""
        settings = config.updated(config.updated(base or RunConfig(), self.in_file), self.as_options)
        if settings.name == config.AUTO:
            settings = replace(settings, name=config.run_name(settings.data, settings.model.arch))
        if self.arguments.print_config:
            print(config.to_yaml(settings), end="")
            sys.exit(0)
        return settings

    def _own(self, section: str) -> dict[str, Any]:
        """Return what the user's own words say about a section of the settings; "" holds those of none."""
        if not section:
            return self.in_file | self.as_options
        return self.in_file.get(section, {}) | self.as_options.get(section, {})

    @property
    def name(self) -> str | None:
        """Return the run that the user's own words name."""
        return self._own("").get("name")

    @property
    def allow_code(self) -> tuple[str, ...]:
        """Return the code that may be imported: what the user's own command line or --config names. It may lie in the
        working folder, as for `python -m`."""
        model = self._own("model")
        own = (model.get("arch"), model.get("example"), self._own("data").get("name"), self._own("").get("task"))
        named = (*self.arguments.allow_code, *(name for name in own if name))
        if named and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return named

    @property
    def console(self) -> "Console":
        """Return where the stages tell what they do: nowhere with --quiet, on stderr with --json, else on stdout."""
        from slim.tables import PlainConsole

        return PlainConsole(stderr=self.arguments.json, quiet=self.arguments.quiet)

    def run(self, settings: RunConfig, folder: Path | None = None) -> "Run":
        """Return the run in `folder`, by default the one that the settings name."""
        _load()
        from slim.workbench.run.folder import ROOT, Run

        resume = getattr(self.arguments, "resume", False)
        own_data = bool(self._own("data").keys() & {"name", "root"})
        return Run(folder or ROOT / settings.name, settings, self.console, self.allow_code, resume, own_data)

    def new_run(self, stages: Sequence[str], sections: Sequence[str], words: list[str]) -> "Run":
        """Return the run to begin, or with --resume the one to go on with, in which one of `stages` was interrupted.

        A run that is to begin gets a name of its own where a finished one of other `sections` of the settings has the
        one asked for; then `words`, which are to resume it, name it.
        """
        if not self.arguments.resume:
            run = self._vacant(self.run(self.settings()), sections)
            if run.settings.name != self.settings().name:
                words += ["--name", run.settings.name]
            return run
        from slim.workbench.run.resuming import unfinished

        name, stored = unfinished(self.settings().name, stages, numbered=self.name is None)
        settings = self.settings(config.without_permissions(replace(stored or RunConfig(), name=name)))
        settings = replace(settings, name=name)
        key = "weights" if settings.model.weights else "arch"
        if settings.model.trained and key not in self._own("model"):
            source = getattr(settings.model, key)
            raise SlimError(
                f"run {name!r} began with weights {source!r}, and no file decides what is read: expected "
                f"--model.{key} {source}, if that is so"
            )
        return self.run(settings)

    def _vacant(self, run: "Run", sections: Sequence[str]) -> "Run":
        """Return the run, under another name where a finished one of other settings has its own."""
        from slim.workbench.run.beginning import with_size_of_weights
        from slim.workbench.run.naming import vacant
        from slim.workbench.run.target import with_budget

        run = with_size_of_weights(run.replace(settings=with_budget(run.settings)))  # as its files will have it
        name = run.settings.name if self.arguments.overwrite else vacant(run, sections)
        if name == run.settings.name:
            return run
        run.console.print(
            f"{run.folder} holds a run of other settings: this one is {name} (--overwrite takes the place of that)"
        )
        return self.run(replace(run.settings, name=name))

    def run_of_network(self, arch: str, weights: str | None, example: str | None = None) -> "Run":
        """Return the run to begin with a network that the user named, named after it."""
        settings = self.settings()
        data = settings.data if self._own("data").keys() & {"name", "root"} else None
        name = self.name or config.run_name(data, arch)
        model = replace(settings.model, arch=arch, weights=weights, example=example or settings.model.example)
        run = self._vacant(self.run(replace(settings, model=model, name=name)), ("prune",))
        return run.replace(allow_code=(arch, *([example] if example else []), *run.allow_code))

    def run_after(self, stage: str) -> "tuple[Run, Path]":
        """Return the run of the file of a stage, with its settings, and that file: the one given, that of
        the folder given, the newest of the run given by --name, or the newest of all."""
        _load()
        from slim.workbench.run.stages import newest

        try:
            file = getattr(self.arguments, "file", None)
            path = Path(file) if file else newest(stage, run=self.name or "*")
            if path.is_dir():  # of a run
                path = newest(stage, path, ".")
            stored = self._stored(path)
        except SlimError:
            self.settings()  # which may be shown before there is a run
            raise
        base = config.without_permissions(replace(stored, name=path.resolve().parent.name))
        return self.run(self.settings(base), path.parent), path

    def _stored(self, path: Path) -> RunConfig:
        """Return the settings that a checkpoint holds, or that lie beside another file of a run; of a training to
        resume, those that it was begun with."""
        from slim import checkpoint
        from slim.workbench.run.resuming import begun

        if getattr(self.arguments, "resume", False):
            stored = begun(path.with_name("finetuned.state"))
            if stored is not None:
                return stored
        if path.suffix == ".safetensors":
            return config.updated(RunConfig(), checkpoint.read_metadata(path)["config"] or {})
        beside = path.with_name("config.yaml")
        return config.updated(RunConfig(), config.read(beside) if beside.exists() else {})

    def finish(self, wrote: Sequence[Path], following: str, **facts: Any) -> None:
        """Print the last line of a command: what it wrote, and which command comes next; with --json an object with
        both, with `facts`, and with the run's summary where a run was written to."""
        if self.arguments.json:
            summary = wrote[0].with_name("summary.json") if wrote else Path()
            if summary.is_file():
                facts["summary"] = json.loads(summary.read_text(encoding="utf-8"))
            print(json.dumps({"wrote": [str(path) for path in wrote], "next": following, **facts}, ensure_ascii=False))
        elif wrote and not self.arguments.quiet:
            print(closing(wrote, following))


def closing(wrote: Sequence[Path], following: str) -> str:
    """Return the last line of a command: what it wrote, and which command comes next."""
    names = [str(path) for path in wrote] if len(wrote) < 4 else [f"{len(wrote)} files in {wrote[0].parent}"]
    *others, last = names or ["nothing"]
    return f"wrote {', '.join(others) + ' and ' if others else ''}{last}; next: {following}"


def _load() -> None:
    """Import what is heavy, with a bar where that takes long."""
    from slim.progress import progress

    with progress("loading PyTorch", 1):
        import slim.workbench.run  # noqa: F401
