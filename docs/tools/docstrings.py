"""A Griffe extension: the reStructuredText of docstrings as Markdown."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))
from reference import is_documented

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(~?)([\w.]+)`")
_MATH = re.compile(r"^( *)\.\. math:: (.*(?:\n\1   .*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Roles become cross-references and formulas become code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of a function, class or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown_of(obj.docstring.value)


def markdown_of(text: str) -> str:
    """A docstring without roles, directives and inline literals of reStructuredText."""
    text = _MATH.sub(lambda match: f"{match[1]}```text\n{match[1]}{match[2]}\n{match[1]}```", text)
    text = re.sub(r":math:`([^`]*)`", r"`\1`", text)
    text = _ROLE.sub(_reference, text)
    text = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
    return re.sub(r"``([^`]*)``", r"`\1`", text)


def _reference(match: re.Match[str]) -> str:
    short, name = match.groups()
    shown = name.rpartition(".")[2] if short else name
    return f"[`{shown}`][{name}]" if is_documented(name) else f"`{shown}`"
