"""The command line: options made from the settings, help, and the nearest option for one that there isn't."""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any, Literal, NoReturn, get_args, get_origin

from slim.errors import SlimError
from slim.version import __version__
from slim.workbench import config, presets
from slim.workbench.cli.command import ParsedCommand
from slim.workbench.cli.device import check_device
from slim.workbench.config import RunConfig, Setting

COMPLETE = "--list-options"  # what completion asks each command
SWITCH = "true|false"  # the metavar of a setting that is on or off


class PlainParser(argparse.ArgumentParser):
    """argparse, with mistakes raised as SlimError that names the nearest option, and dashes as good as underscores."""

    def __init__(self, program: str, about: str | None, examples: str = "", epilog: str | None = None) -> None:
        self.examples = textwrap.dedent(examples).strip()
        super().__init__(
            prog=program,
            description=about,
            epilog=epilog,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=28),
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        words = self._joined(self._spelled(sys.argv[1:] if args is None else args))
        if words == [COMPLETE]:
            self._list_options()
        arguments, rest = self.parse_known_args(words)
        for word in rest:
            raise self._unknown(word.partition("=")[0]) if word.startswith("-") else self._unexpected(word)
        return arguments

    def _spelled(self, args: Sequence[str]) -> list[str]:
        """Return the options spelled as they are known: --data.batch-size is --data.batch_size."""
        known = {_alike(option): option for option in self._option_string_actions}
        words = []
        for word in args:
            option, equals, value = word.partition("=")
            words.append(known.get(_alike(option), option) + equals + value if word.startswith("--") else word)
        return words

    def _joined(self, args: Sequence[str]) -> list[str]:
        """Join what argparse would take apart: a switch alone means true (--int8 FILE is --int8=true FILE, and --int8
        false stays), and what looks like a number below zero is a value (--latency -2ms), for which it has the last
        word."""
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

    def format_help(self) -> str:
        """Return the help, which begins with what one would type."""
        return textwrap.indent(self.examples, "  ") + "\n\n" + super().format_help()

    def _list_options(self) -> NoReturn:
        """Print the options that --help shows, each with its choices."""
        for action in self._actions:
            if action.help == argparse.SUPPRESS:
                continue
            metavar = action.metavar if isinstance(action.metavar, str) else ""
            choices = " ".join(_choices_of(action) or (metavar.split("|") if "|" in metavar else []))
            for option in action.option_strings:
                if option.startswith("--"):
                    print(f"{option}\t{choices}")
        sys.exit(0)

    def error(self, message: str) -> Any:
        raise SlimError(message)

    def _unknown(self, option: str) -> SlimError:
        known = [o for a in self._actions for o in a.option_strings]
        near = [o for o in known if o.endswith(f".{option.lstrip('-')}")]
        near = near or get_close_matches(option, known, n=1, cutoff=0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else f"expected one that {self.prog} --help names"
        return SlimError(f"unknown option {option!r}: {hint}")

    def _unexpected(self, word: str) -> SlimError:
        return SlimError(f"unexpected argument {word!r}: expected {self.usage or 'options'}" % {"prog": self.prog})


class SettingsParser(PlainParser):
    """The options of a command that takes settings.

    Every setting is an option by its dotted key. Those of the section `bare`, and of `compute`, also go by their own
    name (--ratio for --prune.ratio). The help lists those that act in the command: the ones whose keys match a pattern
    of `shown`, and all of `bare` unless that names some of them.
    """

    def __init__(
        self, program: str, about: str | None, examples: str, bare: str = "", shown: Sequence[str] = ()
    ) -> None:
        more = f"Any setting can be given, such as --data.batch_size 128.\n{program} --print-config shows them all."
        super().__init__(program, about, examples, more)
        self.add_argument("--config", metavar="FILE", help="settings: a YAML file, or a name of slim-run --list")
        self.add_argument("--print-config", action="store_true", help="show all settings as YAML, and stop")
        add_allow_code(self)
        add_verbosity(self)
        groups: dict[str, Any] = {bare: self.add_argument_group(f"{bare} settings")} if bare else {}
        some = any(pattern.startswith(f"{bare}.") for pattern in shown)
        patterns = [*shown] if some else [f"{bare}.*", *shown]
        for key, s in config.settings().items():
            section, _, name = key.rpartition(".")
            common: dict[str, Any] = {"dest": key, "default": argparse.SUPPRESS, "metavar": _metavar(s.type)}
            group, shown_help = self, argparse.SUPPRESS
            if any(fnmatch(key, pattern) for pattern in patterns):
                if section not in groups:
                    groups[section] = self.add_argument_group(f"{section or 'general'} settings")
                group, shown_help = groups[section], _help(s)
            short = section and section in (bare, "compute")
            first, *others = [f"--{name}", f"--{key}"] if short else [f"--{key}"]
            group.add_argument(first, help=shown_help, **common)
            for other in others:
                self.add_argument(other, help=argparse.SUPPRESS, **common)
        self.usage = "%(prog)s [CONFIG] [options]"

    def add_file(self, help: str) -> None:
        """Add the positional FILE of a command that follows another."""
        self.usage = "%(prog)s [CONFIG] [FILE] [options]"
        self.add_argument("file", nargs="?", metavar="FILE", help=help)

    def add_beginning(self) -> None:
        """Add what a command takes that begins a run."""
        self.add_argument("--overwrite", action="store_true", help="write into a finished run of other settings, too")

    def add_resume(self) -> None:
        """Add the option --resume of a command that trains."""
        self.add_argument("--resume", action="store_true", help="go on where this was interrupted")

    def _unexpected(self, word: str) -> SlimError:
        if word in presets.names():
            return SlimError(f"settings {word!r}: expected one CONFIG, as the first argument")
        near = get_close_matches(word, presets.names(), n=1)
        return SlimError(f"no settings {word!r}: did you mean {near[0]}?") if near else super()._unexpected(word)

    def read(self, argv: Sequence[str] | None = None) -> ParsedCommand:
        """Return the command line, or `argv`, checked. Exits after --help and --version; SlimError for a mistake."""
        words = list(sys.argv[1:] if argv is None else argv)
        if words and presets.is_one(words[0]):
            words[0] = f"--config={words[0]}"
        arguments = self.parse_args(words)
        as_options: dict[str, Any] = {}
        for key in vars(arguments).keys() & config.settings().keys():
            section, _, name = key.rpartition(".")
            (as_options.setdefault(section, {}) if section else as_options)[name] = getattr(arguments, key)
        in_file = config.read(presets.find(arguments.config)) if arguments.config else {}
        settings = config.updated(config.updated(RunConfig(), in_file), as_options)  # tells mistakes before work starts
        if not arguments.print_config:
            check_device(settings.compute.device)
        return ParsedCommand(arguments, in_file, as_options)


def _choices_of(action: argparse.Action) -> tuple[str, ...]:
    """Return the values that a setting takes, where they are names."""
    known = config.settings().get(action.dest)
    return get_args(known.type) if known and get_origin(known.type) is Literal else ()


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    """Add the options for how much a command says, and how."""
    parser.add_argument("--quiet", action="store_true", help="say nothing unless something goes wrong")
    parser.add_argument("--json", action="store_true", help="close with one JSON object; all else goes to stderr")


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """Add the permission to import code that a file names. What the file says is none."""
    parser.add_argument(
        "--allow-code",
        action="append",
        default=[],
        metavar="NAME",
        help="package.module:name or file.py:name that may be imported where a file names it",
    )


def _alike(option: str) -> str:
    return "--" + option[2:].replace("-", "_")


def _help(s: Setting) -> str:
    default = s.default if isinstance(s.default, str) else json.dumps(s.default)
    within = f"; {config.in_words(s.within)}" if s.within else ""
    choices = f"{config.describe(s.type)}; " if _metavar(s.type) == "NAME" else ""
    return f"{choices}{s.help} ({default}{within})".replace("%", "%%")


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        choices = "|".join(get_args(kind))
        return choices if len(choices) < 40 else "NAME"  # a longer one would break 80 columns
    kind = next(iter(get_args(kind)), kind) if type(None) in get_args(kind) else kind  # what it is, if not null
    if get_origin(kind) is list:  # which needs no brackets, and a shell may take them for a pattern
        return f"{_metavar(get_args(kind)[0])},…"
    return {str: "TEXT", bool: SWITCH, int: "N", dict[str, Any]: "{...}"}.get(kind, "X")
