"""An extension of griffe: examples in docstrings are blocks of code, where Markdown sees quotes."""

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.MULTILINE)  # to the next empty line


class Doctests(griffe.Extension):
    """Put each example between fences, before Markdown is made of it."""

    def on_instance(self, *, obj: griffe.Object, **known: Any) -> None:
        """Change the docstring of a function or a class."""
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)
