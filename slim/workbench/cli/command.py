"""What the commands share: options made from the settings, help, and mistakes told in one line."""

import argparse
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from slim.errors import Interrupted, SlimError
from slim.version import __version__
from slim.workbench import config
from slim.workbench.config import RunConfig, Setting

if TYPE_CHECKING:
    from rich.console import Console

# Before torch loads OpenMP. Threads that spin while they wait for each other are fast on a quiet machine and hopeless
# beside other work: ResNet-20 on 2 cores trained at 630 images/s alone, at 19 beside one busy process; with no spinning
# at 460 and 255; with GNU's runtime told to spin for a short while at 600 and 240.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

SWITCH = "true|false"  # the metavar of a setting that is on or off


@dataclass(frozen=True)
class Given:
    """What a command was given: its own arguments, and the settings of --config and of the command line."""

    arguments: argparse.Namespace
    in_file: dict[str, Any]
    as_options: dict[str, Any]

    def settings(self, base: RunConfig | None = None) -> RunConfig:
        """The settings: options over --config over `base`, the defaults. Exits if they are to be shown."""
        settings = config.updated(config.updated(base or RunConfig(), self.in_file), self.as_options)
        if self.arguments.print_config:
            print(config.to_yaml(settings), end="")
            sys.exit(0)
        return settings

    @property
    def console(self) -> "Console | None":
        """Where the stages tell what they do: nowhere with --quiet, on stderr with --json, else None for stdout."""
        if not self.arguments.quiet and not self.arguments.json:
            return None
        from rich.console import Console

        return Console(stderr=self.arguments.json, quiet=self.arguments.quiet)

    @property
    def allow_code(self) -> tuple[str, ...]:
        """The architectures, tasks and data that may be imported: those that the user's own command line or --config
        names. They may lie in the working folder, as for `python -m`."""
        written = [
            (self.in_file.get(section) or {}) | (self.as_options.get(section) or {}) for section in ("model", "data")
        ]
        values = [
            *(found.get(key) for found, key in zip(written, ("arch", "name"))),
            (self.in_file | self.as_options).get("task"),
        ]
        named = (*self.arguments.allow_code, *(value for value in values if value))
        if named and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return named

    def close(self, wrote: Sequence[Path], following: str, **facts: Any) -> None:
        """The last word of a command: what it wrote, and which command comes next; with --json an object with both,
        with `facts`, and with the run's summary where a run was written to."""
        if self.arguments.json:
            summary = wrote[0].with_name("summary.json") if wrote else Path()
            if summary.is_file():
                facts["summary"] = json.loads(summary.read_text(encoding="utf-8"))
            print(json.dumps({"wrote": [str(path) for path in wrote], "next": following, **facts}, ensure_ascii=False))
        elif wrote and not self.arguments.quiet:
            from slim.workbench.report import closing

            print(closing(wrote, following))

    def resumed(self, *stages: str) -> RunConfig:
        """The settings over those of the run to resume, of which one of `stages` was interrupted; those of a new run
        without --resume. Either way, the same words mean the same run."""
        if not self.arguments.resume:
            return self.settings()
        from slim.workbench import run as pipeline

        name = self.as_options.get("name", self.in_file.get("name", RunConfig().name))
        return self.settings(pipeline.unfinished(name, stages))

    def after(self, stage: str) -> tuple[Path, RunConfig]:
        """The file of the stage before, and the settings over those of its run.

        The file is the one given, or the newest of the run given by --name, or the newest of all.
        """
        from slim import checkpoint

        name = self.as_options.get("name", self.in_file.get("name", "*"))
        try:
            file = getattr(self.arguments, "file", None)
            path = Path(file) if file else checkpoint.newest(stage, run=name)
            base = config.updated(RunConfig(), _settings_of(path))
            if getattr(self.arguments, "resume", False):
                from slim.workbench import run as pipeline

                base = pipeline.begun(path.with_name("finetuned.state")) or base
        except SlimError:
            self.settings()  # which may be shown before there is a run
            raise
        return path, self.settings(replace(base, name=path.resolve().parent.name))


def _settings_of(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint holds, or that lie beside another file of a run."""
    from slim import checkpoint

    if path.suffix == ".safetensors":
        return checkpoint.read_metadata(path)["config"] or {}
    beside = path.with_name("config.yaml")
    return config.read(beside) if beside.exists() else {}


class PlainParser(argparse.ArgumentParser):
    """argparse, with mistakes raised as SlimError that names the nearest option."""

    def __init__(self, program: str, about: str | None, epilog: str | None = None) -> None:
        super().__init__(
            prog=program,
            description=about,
            epilog=epilog,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        arguments, rest = self.parse_known_args(self._joined(sys.argv[1:] if args is None else args))
        for word in rest:
            raise (self._unknown(word.partition("=")[0]) if word.startswith("-") else SlimError(f"what is {word!r}?"))
        return arguments

    def _joined(self, args: Sequence[str]) -> list[str]:
        """What argparse would take apart: a switch alone means true (--int8 FILE is --int8=true FILE, and --int8 false
        stays), and what looks like a number below zero is a value (--latency -2ms), for which it has the last word."""
        switches = {o for a in self._actions if a.metavar == SWITCH for o in a.option_strings}
        valued = {o for a in self._actions if a.metavar and a.metavar != SWITCH for o in a.option_strings}
        words: list[str] = []
        for word in args:
            before = words[-1] if words else ""
            if before in valued and re.match(r"-\.?\d", word):
                words[-1] = f"{before}={word}"
            else:
                words.append(word)
        following = [*words[1:], ""]
        return [
            f"{word}=true" if word in switches and then.lower() not in ("true", "false") else word
            for word, then in zip(words, following)
        ]

    def error(self, message: str) -> Any:
        raise SlimError(message)

    def _unknown(self, option: str) -> SlimError:
        known = [o for a in self._actions for o in a.option_strings]
        near = [o for o in known if o.endswith(f".{option.lstrip('-')}")]
        near = near or get_close_matches(option, known, n=1, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one that {self.prog} --help names"
        return SlimError(f"unknown option {option!r}: {hint}")


class Parser(PlainParser):
    """The options of a command that takes settings.

    Every setting is an option by its dotted key. Those of the section `bare` also go by their own name
    (--ratio for --prune.ratio). The help lists them, those of the sections `shown`, and those of none.
    """

    def __init__(self, program: str, about: str | None, bare: str = "", shown: Sequence[str] = ()) -> None:
        more = f"Any setting can be given, such as --data.batch_size 128.\n{program} --print-config shows them all."
        super().__init__(program, about, more)
        self.add_argument("--config", metavar="FILE", help="settings in YAML; options override them")
        self.add_argument("--print-config", action="store_true", help="show all settings as YAML, and stop")
        add_allow_code(self)
        add_voice(self)
        groups = {
            s: self.add_argument_group(f"{s or 'run'} settings") for s in dict.fromkeys([bare, *shown, "compute", ""])
        }
        for key, s in config.settings().items():
            section, _, name = key.rpartition(".")
            common: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS, "metavar": _metavar(s.type)}
            shown_help = _help(s) if section in groups else argparse.SUPPRESS
            short = section and section in (bare, "compute")
            first, *others = [f"--{name}", f"--{key}"] if short else [f"--{key}"]
            groups.get(section, self).add_argument(first, help=shown_help, **common)
            for other in others:
                self.add_argument(other, help=argparse.SUPPRESS, **common)
        self.usage = "%(prog)s [options]"

    def add_file(self, help: str) -> None:
        """The positional FILE of a command that follows another, and the permission to run its code."""
        self.usage = "%(prog)s [FILE] [options]"
        self.add_argument("file", nargs="?", metavar="FILE", help=help)

    def add_resume(self) -> None:
        """The option --resume of a command that trains."""
        self.add_argument("--resume", action="store_true", help="go on where this was interrupted")

    def read(self, argv: Sequence[str] | None = None) -> Given:
        """The command line, or `argv`, checked. Exits after --help and --version; SlimError for a mistake."""
        arguments = self.parse_args(argv)
        as_options: dict[str, Any] = {}
        for key in vars(arguments).keys() & config.settings().keys():
            section, _, name = key.rpartition(".")
            (as_options.setdefault(section, {}) if section else as_options)[name] = getattr(arguments, key)
        in_file = config.read(arguments.config) if arguments.config else {}
        config.updated(config.updated(RunConfig(), in_file), as_options)  # tells mistakes before work starts
        return Given(arguments, in_file, as_options)


def add_voice(parser: argparse.ArgumentParser) -> None:
    """How much a command says, and how."""
    parser.add_argument("--quiet", action="store_true", help="say nothing unless something goes wrong")
    parser.add_argument("--json", action="store_true", help="close with one JSON object; all else goes to stderr")


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """The permission to import the code of an architecture, a task, data. What a file says is none."""
    parser.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="NAME",
        help="package.module:name or file.py:name that may be imported where a file names it",
    )


def _help(s: Setting) -> str:
    default = s.default if isinstance(s.default, str) else json.dumps(s.default)
    within = f"; {config.in_words(s.within)}" if s.within else ""
    choices = f"{config.describe(s.type)}; " if _metavar(s.type) == "NAME" else ""
    return f"{choices}{s.help} ({default}{within})".replace("%", "%%")


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        choices = "|".join(get_args(kind))
        return choices if len(choices) < 40 else "NAME"  # a longer one would break 80 columns
    words = {str: "TEXT", bool: SWITCH, list[int]: "[N, ...]", list[str]: "[TEXT, ...]", dict[str, Any]: "{...}"}
    kind = next(iter(get_args(kind)), kind) if type(None) in get_args(kind) else kind  # what it is, if not null
    return words.get(kind, "N" if kind is int else "X")


@contextmanager
def mistakes_in_one_line(program: str, argv: Sequence[str] | None = None) -> Iterator[list[str]]:
    """Turns a user's mistake, a file that can't be read or written, and signals into one line and a status.

    Yields the words of the command line that resumes, --resume apart; what isn't clear from them may be added.
    """
    words = [word for word in (sys.argv[1:] if argv is None else argv) if word != "--resume"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without γ gets a question mark
    try:
        yield words
    except (SlimError, OSError) as e:
        print(f"{program}: error: {' '.join(str(e).split())}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as e:
        if os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0":  # of several processes, the first
            launcher = "torchrun … " if "TORCHELASTIC_RUN_ID" in os.environ else ""
            line = f"{launcher}{shlex.join([program, *words, '--resume'])}"
            print(f"\n{program}: {e}; go on with: {line}", file=sys.stderr)
        sys.exit(128 + e.signal)
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted; the files of earlier stages are as they were", file=sys.stderr)
        sys.exit(130)
