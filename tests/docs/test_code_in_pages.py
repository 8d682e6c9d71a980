"""The code in the pages of the documentation: Python that parses, names and options that there are."""

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from workbench.commands import call

import slim
from slim.workbench.cli.main import COMMANDS
from slim.workbench.cli.parser import COMPLETE

PROJECT = Path(__file__).parents[2]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(PROJECT)) for page in PAGES]


def included(text: str) -> str:
    """Return a page with the files that it takes in, or the lines of them."""

    def lines(found: re.Match[str]) -> str:
        file, _, span = found[1].partition(":")
        first, _, last = span.partition(":")
        whole = (PROJECT / file).read_text(encoding="utf-8").splitlines()
        return "\n".join(whole[int(first or 1) - 1 : int(last) if last else None])

    return re.sub(r'--8<-- "(.+?)"', lines, text)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the language and text of each block of code."""
    yield from re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", included(page.read_text(encoding="utf-8")), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_parses_and_names_what_slim_has(page: Path) -> None:
    for language, text in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "slim":
                assert node.attr in {*slim.__all__, *slim.__dict__}, f"slim.{node.attr}"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each command, with dashes for underscores."""
    found = {}
    for command in COMMANDS:
        with contextlib.redirect_stdout(io.StringIO()) as listed, pytest.raises(SystemExit):
            call(command, COMPLETE)
        found[command] = {line.partition("\t")[0].replace("_", "-") for line in listed.getvalue().splitlines()}
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_have_the_options_that_pages_give_them(page: Path, options: dict[str, set[str]]) -> None:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    code = [line for _, block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    for line in code:
        words = line.partition("#")[0].split()
        given = {word.partition("=")[0].strip(",;.").replace("_", "-") for word in words if re.match(r"--[a-z]", word)}
        command = words[0].removeprefix("slim-") if words else ""
        if command in COMMANDS and words[0] != command:
            assert given <= options[command], line
        elif line.startswith("--"):  # of one command or another
            assert given <= set().union(*options.values()), line
