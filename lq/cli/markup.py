"""Docstrings without their markup, for a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable

_KEPT = r"\1"
_RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r":\w+(?::\w+)*:`~(?:[\w.]*\.)?(\w+)`"), _KEPT),  # :class:`~a.b.Name`
    (re.compile(r":\w+(?::\w+)*:`(?:[^`<]*<)?([^`<>]+)>?`"), _KEPT),  # :func:`a.b`, :ref:`text <label>`
    (re.compile(r"`([^`<]+?)\s*<([^`>]+)>`_{1,2}"), r"\1 (\2)"),  # `text <url>`_
    (re.compile(r"\[([^\]]+)\]\((\w+:[^)]+)\)"), r"\1 (\2)"),  # [text](url)
    (re.compile(r"``(.+?)``", re.DOTALL), _KEPT),
    (re.compile(r"`([^`]+)`_*"), _KEPT),
    (re.compile(r"\*\*(\S.*?\S|\S)\*\*"), _KEPT),
    (re.compile(r"^\s*\.\. (\w+)::\s*", re.MULTILINE), lambda found: f"{found[1].capitalize()}: "),
]


def without_markup(text: str) -> str:
    """Text without the roles, backticks and directives of reStructuredText and Markdown.

    Example:
        >>> without_markup("see :class:`~lq.export.parity.gate.Gate`, ``x=None`` or `the paper <https://a.b/c>`_")
        'see Gate, x=None or the paper (https://a.b/c)'
        >>> without_markup("**Now** :paramref:`~lightning.Trainer.profiler` and [this](https://a.b)")
        'Now profiler and this (https://a.b)'
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def first_sentence(text: str) -> str:
    r"""The first sentence, without markup, on one line.

    Example:
        >>> first_sentence("Stop training once ``n`` epochs\nare reached. Disabled by default (None).")
        'Stop training once n epochs are reached.'
    """
    line = " ".join(without_markup(text).split())
    found = re.match(r"(.+?[.!?])(?:\s+[A-Z]|$)", line)
    return found[1] if found else line
