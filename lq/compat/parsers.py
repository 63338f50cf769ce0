"""What lq relies on in argparse and LightningCLI that they do not document, under names of lq's own.

``tests/compat/test_parsers.py`` tries each of them, and finds uses elsewhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.cli import _InstantiatorFn as Instantiator

__all__ = ["Instantiator", "actions_of", "move_last_group_first", "options_of_subcommand", "subparsers_of"]


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments that were added to a parser.

    Example:
        >>> [action.dest for action in actions_of(argparse.ArgumentParser())]
        ['help']
    """
    return parser._actions


def subparsers_of(parser: argparse.ArgumentParser) -> list[Any]:
    """The parsers of the subcommands of a parser.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> parser.add_subparsers().add_parser("fit") in subparsers_of(parser)
        True
    """
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return [subparser for action in actions for subparser in action.choices.values()]


def move_last_group_first(parser: argparse.ArgumentParser, title: str) -> None:
    """Give the group of arguments that was added last a title, and show it first.

    Example:
        >>> parser = argparse.ArgumentParser("lq", add_help=False)
        >>> _ = parser.add_argument_group("mine").add_argument("--x")
        >>> move_last_group_first(parser, "options of mine")
        >>> "options of mine:" in parser.format_help()
        True
    """
    groups: Any = parser._action_groups
    groups[-1].title = title
    groups.insert(0, groups.pop())


def options_of_subcommand(cli: LightningCLI, subcommand: str) -> tuple[Any, Sequence[str]]:
    """The parser of a subcommand, and the names of the arguments of its method, when ``setup_parser`` has run.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> class Shows(LightningCLI):
        ...     def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        ...         super().setup_parser(*args, **kwargs)
        ...         parser, names = options_of_subcommand(self, "test")
        ...         known = [action.dest for action in actions_of(parser)]
        ...         raise SystemExit(str([name in known for name in names if name == "ckpt_path"]))
        >>> Shows(LightningModule)
        Traceback (most recent call last):
            ...
        SystemExit: [True]
    """
    return cli._subcommand_parsers[subcommand], cli._subcommand_method_arguments[subcommand]
