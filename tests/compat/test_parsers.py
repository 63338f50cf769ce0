"""A probe for each private name of argparse and LightningCLI."""

import argparse
import sys

import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lq.compat.parsers import Instantiator, actions_of, move_last_group_first, options_of_subcommand, subparsers_of


def test_arguments_and_subcommands_of_a_parser() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--x")
    assert subparsers_of(parser) == []
    fit = parser.add_subparsers(dest="command").add_parser("fit")
    assert [action.dest for action in actions_of(parser)] == ["x", "command"]
    assert subparsers_of(parser) == [fit]


def test_the_last_group_becomes_the_first() -> None:
    parser = argparse.ArgumentParser("lq")
    parser.add_argument_group("own").add_argument("--x")
    move_last_group_first(parser, "mine")
    assert parser.format_help().index("mine:") < parser.format_help().index("options:")


def test_parsers_of_the_subcommands_of_lightnings_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    class CLI(LightningCLI):
        def setup_parser(self, *args: object, **kwargs: object) -> None:
            super().setup_parser(*args, **kwargs)  # type: ignore[arg-type]
            seen["fit"] = options_of_subcommand(self, "fit")
            seen["instantiator"] = Instantiator(cli=self, key="model")

    monkeypatch.setattr(sys, "argv", ["x", "fit", "--help"])
    with pytest.raises(SystemExit):
        CLI(BoringModel)
    parser, options = seen["fit"]
    assert isinstance(parser, argparse.ArgumentParser)
    assert "ckpt_path" in options
    assert callable(seen["instantiator"])
