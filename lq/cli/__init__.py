"""The ``lq`` command: a file a subcommand, and what makes its arguments, its help and its errors readable."""

from lq.cli.command import main as main
