"""Errors as one clear message; a traceback is for faults of the code, and for those who ask for it."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lq.cli.markup import without_markup
from lq.compat.users_code import is_users_code

_OF_LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric", "jsonargparse")
_OF_SETTINGS = (MisconfigurationException, ValueError, TypeError, ImportError)


def explanation(error: BaseException) -> str | None:
    """What to tell a user of an error that their settings, files or data cause.

    Args:
        error: that was caught.

    Returns:
        a message; ``None`` for an error of the user's code or of a library's, which wants a traceback.

    Example:
        >>> explanation(FileNotFoundError(2, "No such file or directory", "images/train"))
        "[Errno 2] No such file or directory: 'images/train'"
        >>> explanation(ZeroDivisionError("division by zero")) is None
        True
    """
    own = find_own_error(error)
    if own is not None:
        return str(own)
    if isinstance(error, OSError):
        return f"{error}{_place_of(error)}"
    if isinstance(error, _OF_SETTINGS) and _raised_by(error).split(".")[0] in _OF_LIGHTNING:
        hint = ": name data that have one, --data my_module.Data" if "dataloader` must be" in str(error) else ""
        return f"{without_markup(str(error))}{hint}{_place_of(error)}"
    return None


def find_own_error(error: BaseException) -> BaseException | None:
    """Find, in a chain of exceptions, the one that an lq module raised itself.

    The configuration parser wraps what a constructor raises into an error of its own.

    Args:
        error: the exception that was caught.

    Returns:
        The exception whose innermost frame is code of lq, or None when there is none.

    Example:
        >>> from lq.models import OptimizerConfig
        >>> try:
        ...     OptimizerConfig(lr=-1)
        ... except ValueError as error:
        ...     find_own_error(error) is error
        True
        >>> find_own_error(ValueError("from elsewhere")) is None
        True
    """
    return next((link for link in _chain(error) if f"{_raised_by(link)}.".startswith("lq.")), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _raised_by(error: BaseException) -> str:
    """The module whose code raised an error."""
    module, frame = "", error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        frame = frame.tb_next
    return module


def _place_of(error: BaseException) -> str:
    """Where in the user's own code it happened, if it did there."""
    installed = (*{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}, "<")
    own = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(installed)]
    theirs = [f for f in own if is_users_code(f.filename)]
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
