"""The ``lq`` command."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import warnings
from typing import NoReturn

from lq.cli.subcommands import OWN_SUBCOMMANDS, SUBCOMMANDS, debugging, overview

# Messages about the machinery under a run, which nobody who reads its output can act upon.
_NOISE = (
    # The small data sets of the recipes are in memory: worker processes would slow them down.
    ".*does not have many workers.*",
    # Lightning 2.6 uses a private class of torch 2.15.
    ".*isinstance\\(treespec, LeafSpec\\).*",
)


def main() -> None:
    """Run the ``lq`` command with the arguments of this process.

    What a user can put right is printed as one line, with exit status 2; a failure of the run itself, such as an
    artifact that does not agree, with 1. Errors of the user's code keep their traceback.

    Example:
        >>> import subprocess
        >>> done = subprocess.run([sys.executable, "-m", "lq", "exprot"], capture_output=True, text=True)
        >>> done.stderr.strip(), done.returncode
        ("lq: error: there is no subcommand 'exprot'; did you mean 'export'?", 2)
    """
    if "--debug" in sys.argv[1:]:
        os.environ["LQ_DEBUG"] = "1"  # of the other processes of a run, too
        sys.argv[1:] = [arg for arg in sys.argv[1:] if arg != "--debug"]
    # An installed script has its own folder in the search path, not the one that it is started in.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        if debugging():
            raise
        sys.exit("lq: interrupted")
    except Exception as error:
        if debugging():
            raise
        _report(error)


def _run(args: list[str]) -> None:
    subcommand = _subcommand_of(args)
    if subcommand is None and (not args or args[0] in ("-h", "--help", "--help-all")):
        print(overview(), file=sys.stdout if args else sys.stderr)
        sys.exit(0 if args else 2)
    if args == ["--version"]:
        print(f"lq {sys.modules['lq'].__version__}")
        return
    if subcommand == "doctor":
        from lq.cli.doctor import main as doctor

        doctor(args[1:])
        return
    _run_lightning(subcommand, args)


def _run_lightning(subcommand: str | None, args: list[str]) -> None:
    import torch

    from lq.cli.arguments import completed, subcommand_first
    from lq.cli.lightning_cli import LQCLI

    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    others = warnings.formatwarning
    warnings.formatwarning = lambda message, *where, **line: _own_warning(message) or others(message, *where, **line)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advert)
    if subcommand in OWN_SUBCOMMANDS:  # they compute on the CPU
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_not_about_devices)
        logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    # What save_hyperparameters(parser.parse_args()) puts into checkpoints; it holds values and runs nothing.
    torch.serialization.add_safe_globals([argparse.Namespace])
    everything = "--help-all" in args
    args = ["--help" if arg == "--help-all" else arg for arg in args]
    if subcommand is not None:
        args = subcommand_first(args, subcommand)
        at = args.index(subcommand) + 1
        args = [*args[:at], *completed(subcommand, args[at:])]
    sys.argv[1:] = args  # Lightning starts the other processes of a run with these
    LQCLI(subcommand, everything)


def _subcommand_of(args: list[str]) -> str | None:
    """The subcommand among the arguments; ``None`` if only a configuration can name it."""
    if args and args[0].startswith("-"):
        return next((arg for arg in args if arg in SUBCOMMANDS), None)
    if args and args[0] not in SUBCOMMANDS:
        from lq.cli.import_paths import suggestion

        near = suggestion(args[0], SUBCOMMANDS) or f"; choose from {', '.join(SUBCOMMANDS)}"
        print(f"lq: error: there is no subcommand {args[0]!r}{near}", file=sys.stderr)
        sys.exit(2)
    return args[0] if args else None


def _report(error: Exception) -> NoReturn:
    from lq.cli.errors import explanation

    told = explanation(error)
    if told is None:
        raise error
    print(f"lq: error: {told}\n(--debug shows where it was raised)", file=sys.stderr)
    sys.exit(1 if isinstance(error, RuntimeError) else 2)


def _own_warning(message: Warning | str) -> str:
    """A warning of lq's, without the line of lq that gives it; "" for those of others."""
    return f"{message}\n" if str(message).startswith("lq: ") else ""


def _is_no_advert(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()


def _is_not_about_devices(record: logging.LogRecord) -> bool:
    return not re.match(r"\w+ available: ", record.getMessage())
