"""A hook of mkdocs: the pages that follow from the code and from the results, so that they can't fall behind."""

import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from slim.workbench import config, presets
from slim.workbench.cli.main import COMMANDS

RESULTS = Path(__file__).parents[1] / "scripts" / "results"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = {"reference/settings.md": settings(), "reference/commands.md": commands(), "results.md": results()}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def settings() -> str:
    """Return all settings, a table for each section."""
    lines = [
        "# Settings",
        "",
        "Each is a line of a YAML file, and an option: `--train.lr 0.05`. What comes with slim:",
        "",
    ]
    lines += [f"- `{name}`: {presets.about(path)}" for name, path in presets.names().items()]
    section = None
    for key, each in config.settings().items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            lines += ["", f"## {section or 'The run'}", "", "| setting | default | what it is |", "|---|---|---|"]
        within = f"; {config.in_words(each.within)}" if each.within else ""
        kind = f" {config.describe(each.type)}{within}."
        lines.append(f"| `{key}` | `{each.default}` | {each.help.replace('|', chr(92) + '|')}.{kind} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Return what each command says of itself."""
    lines = ["# Commands", "", "`slim prune` is `slim-prune`; dashes are as good as underscores.", ""]
    for name in COMMANDS:
        words = [sys.executable, "-m", "slim", name, "--help"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=RESULTS.parents[1]).stdout
        lines += [f"## slim-{name}", "", "```text", shown.rstrip(), "```", ""]
    return "\n".join(lines)


def results() -> str:
    """Return the dated results, each with its first lines."""
    lines = [
        "# Results",
        "",
        "What was measured, when and on what, each with the script that does it again. Full tables, machines, versions",
        "and seeds are in the files.",
        "",
    ]
    for path in sorted(RESULTS.glob("*.md")):
        text = path.read_text(encoding="utf-8").splitlines()
        title = next((line.lstrip("# ") for line in text if line.startswith("#")), path.stem)
        paragraphs = [line for line in text if line and not line.startswith(("#", "|", "-"))]
        first = paragraphs[0][:400] if paragraphs else ""
        lines += [f"## {title}", "", first, "", f"File: `scripts/results/{path.name}`", ""]
    return "\n".join(lines)
