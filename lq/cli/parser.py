"""The parser of a verb: its help fits on a screen, its errors in a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lq.cli.help import Formatter, verb_help
from lq.cli.mistakes import in_one_line, options_of
from lq.cli.verbs import debugging


class Parser(LightningArgumentParser):
    """Lightning's parser with short help and short errors; the parsers of classes inside of it are of its kind, too."""

    verb = ""
    own: Sequence[str] = ()
    help_of_everything = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": Formatter, **kwargs})

    def format_help(self, *args: Any) -> str:
        """One screen, or all of it; of a class that options ask the help of, its arguments."""
        if self.verb and not self.help_of_everything:
            return verb_help(self.verb, self, self.own)
        self.usage = self.usage or argparse.SUPPRESS
        return super().format_help(*args)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in one line what is wrong, and end with exit status 2."""
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        parsers = [self, *self._of_verbs()]
        verbs = [parser.verb for parser in parsers if parser.verb]
        options = [option for parser in parsers for option in options_of(parser)]
        command = f"lq {verbs[0]}" if len(verbs) == 1 else "lq"
        print(f"lq: error: {in_one_line(message, command, options)}", file=sys.stderr)
        sys.exit(2)

    def _of_verbs(self) -> list[Parser]:
        actions = (a for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return [parser for action in actions for parser in action.choices.values()]
