"""Completion of commands, options and their values for bash, zsh and fish, written from the commands' own options."""

from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO

from slim.errors import unknown
from slim.workbench.cli.errors import report_user_errors
from slim.workbench.cli.parser import COMPLETE
from slim.workbench.presets import names

SHELLS = {
    "bash": 'eval "$(slim completion bash)"  # in ~/.bashrc',
    "zsh": 'eval "$(slim completion zsh)"  # in ~/.zshrc, after compinit',
    "fish": "slim completion fish | source  # in ~/.config/fish/config.fish",
}
BASH = """_slim() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    local command=${{COMP_WORDS[0]##*/}} words= values=
    if [ "$command" = slim ]; then
        if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=($(compgen -W "{commands}" -- "$word")); return; fi
        command=slim-${{COMP_WORDS[1]}}
    fi
    case $command in
{options}
    esac
    case "$command $before" in
{values}
    esac
    if [ -n "$values" ]; then COMPREPLY=($(compgen -W "$values" -- "$word"))
    elif [ "${{word#-}}" != "$word" ]; then COMPREPLY=($(compgen -W "$words" -- "$word"))
    else COMPREPLY=($(compgen -f -- "$word") $(compgen -W "{presets}" -- "$word")); fi
}}
complete -o filenames -F _slim slim {programs}
"""


def main(argv: Sequence[str], commands: Sequence[str]) -> None:
    """Print the script for a shell: `slim completion bash`."""
    with report_user_errors("slim", argv):
        if len(argv) != 1 or argv[0] in ("-h", "--help"):
            print("\n".join(f"{shell:<5} {line}" for shell, line in SHELLS.items()))
        elif argv[0] not in SHELLS:
            raise unknown("shell", argv[0], SHELLS)
        else:
            print(script(argv[0], commands), end="")


def script(shell: str, commands: Sequence[str]) -> str:
    """Return what a shell is to evaluate."""
    options = {command: options_of(command) for command in commands}
    if shell == "fish":
        return _fish(options)
    start = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    return start + BASH.format(
        commands=" ".join(options),
        options="\n".join(f'        slim-{name}) words="{" ".join(known)}" ;;' for name, known in options.items()),
        values="\n".join(
            f'        "slim-{name} {option}") values="{choices}" ;;'
            for name, known in options.items()
            for option, choices in known.items()
            if choices
        ),
        presets=" ".join(names()),
        programs=" ".join(f"slim-{name}" for name in options),
    )


def options_of(command: str) -> dict[str, str]:
    """Return the options of a command, with the values that are to choose from, if any."""
    listed = StringIO()
    with redirect_stdout(listed), suppress(SystemExit):
        import_module(f"slim.workbench.cli.{command}").main([COMPLETE])
    return dict(line.split("\t") for line in listed.getvalue().splitlines())


def _fish(options: dict[str, dict[str, str]]) -> str:
    lines = [f"complete -c slim -n __fish_use_subcommand -x -a '{' '.join(options)}'"]
    for name, known in options.items():
        for option, choices in known.items():
            given = f" -x -a '{choices}'" if choices else ""
            lines.append(f"complete -c slim-{name} -l {option[2:]}{given}")
            lines.append(f"complete -c slim -n '__fish_seen_subcommand_from {name}' -l {option[2:]}{given}")
    return "\n".join(lines) + "\n"
