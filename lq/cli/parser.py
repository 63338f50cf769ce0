"""The parser of a subcommand: its help fits on a screen, its errors in a line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from lq.cli.help import Formatter, subcommand_help
from lq.cli.mistakes import in_one_line, options_of
from lq.cli.subcommands import debugging
from lq.compat.parsers import subparsers_of


class Parser(LightningArgumentParser):
    """Lightning's parser with short help and short errors; the parsers of classes inside of it are of its kind, too.

    Example:
        >>> parser = Parser("lq")
        >>> parser.name, parser.own = "bench", ["threads"]
        >>> _ = parser.add_argument("--threads", type=int, default=1, help="of all.")
        >>> lines = parser.format_help().splitlines()
        >>> lines[0], [line.strip() for line in lines if "--threads" in line]
        ('usage: lq bench [options]', ['--threads N           of all (default: 1)'])
    """

    name = ""
    own: Sequence[str] = ()
    help_of_everything = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": Formatter, **kwargs})

    def format_help(self, *args: Any) -> str:
        """One screen, or all of it; of a class that options ask the help of, its arguments."""
        if self.name and not self.help_of_everything:
            return subcommand_help(self.name, self, self.own)
        self.usage = self.usage or argparse.SUPPRESS
        return super().format_help(*args)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say in one line what is wrong, and end with exit status 2."""
        if not self.exit_on_error or debugging():
            super().error(message, ex)
        parsers = [self, *subparsers_of(self)]
        subcommands = [parser.name for parser in parsers if parser.name]
        options = [option for parser in parsers for option in options_of(parser)]
        command = f"lq {subcommands[0]}" if len(subcommands) == 1 else "lq"
        print(f"lq: error: {in_one_line(message, command, options)}", file=sys.stderr)
        sys.exit(2)
