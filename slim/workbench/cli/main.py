"""Channel pruning for any CNN: exact, honest, and measured where it runs."""

import sys
from collections.abc import Sequence
from importlib import import_module

from slim.errors import unknown
from slim.version import __version__
from slim.workbench.cli import completion
from slim.workbench.cli.errors import report_user_errors

COMMANDS = {
    "run": "do it all: train, prune, fine-tune, export, measure",
    "train": "train a network with a penalty on every BatchNorm scale γ",
    "prune": "remove its least important channels, and prove the result",
    "sensitivity": "measure how much each group of layers may lose",
    "finetune": "train the pruned network on",
    "export": "write it as an ONNX file, checked against PyTorch",
    "bench": "measure networks side by side",
    "predict": "classify images with an exported network",
    "report": "one page that explains a run, or compares several",
    "doctor": "say whether this installation can be trusted; for bug reports",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names: `slim prune` is `slim-prune`."""
    words = list(sys.argv[1:] if argv is None else argv)
    with report_user_errors("slim", argv):
        if words[:1] == ["help"] and len(words) > 1:
            words = [*words[1:], "--help"]
        if not words or words[0] in ("-h", "--help", "help"):
            print(overview())
            return
        if words[0] == "--version":
            print(f"slim {__version__}")
            return
        if words[0] == "completion":
            completion.main(words[1:], list(COMMANDS))
            return
        if words[0] not in COMMANDS:
            raise unknown("command", words[0], COMMANDS)
    import_module(f"slim.workbench.cli.{words[0]}").main(words[1:])


def overview() -> str:
    """Return the commands with a line for each."""
    width = max(map(len, COMMANDS))
    listed = [f"  slim {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        [
            f"slim {__version__}: {__doc__}",
            "",
            *listed,
            "",
            "slim COMMAND --help explains a command; slim-COMMAND is the same as slim COMMAND.",
            "slim completion bash (zsh, fish) prints what makes a shell complete them.",
            "Begin with: slim run digits     (handwritten digits, minutes on a CPU)",
        ]
    )
