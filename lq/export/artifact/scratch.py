"""Room for what is only needed for a moment: beside the artifact, and gone however the process ends."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType

from lq.export.artifact.directory import scratch_directory

_BESIDE: ContextVar[Path | None] = ContextVar("beside", default=None)


@contextmanager
def scratch_beside(target: Path | None) -> Iterator[None]:
    """Let :func:`scratch` make its directories beside ``target``; ``None`` is the system's place for such things.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with scratch_beside(Path(folder) / "int8"), scratch() as place:
        ...         place.parent.name == Path(folder).name, place.name.startswith(".int8.tmp-")
        (True, True)
    """
    token = _BESIDE.set(target)
    try:
        yield
    finally:
        _BESIDE.reset(token)


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty directory for a moment.

    Raises:
        OSError: if there is no room for it, naming where.

    Example:
        >>> with scratch() as place:
        ...     _ = (place / "float.onnx").write_bytes(b"")
        ...     [file.name for file in place.iterdir()]
        ['float.onnx']
        >>> place.exists()
        False
    """
    target = _BESIDE.get()
    if target is not None:
        with scratch_directory(target) as place:
            yield place
        return
    try:
        made = tempfile.TemporaryDirectory(prefix="lq-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OSError(
            f"no temporary directory can be created ({error}). Let the environment variable TMPDIR name a directory "
            "that is writable and has room."
        ) from error
    with made as name:
        yield Path(name)


class _Terminated(BaseException):
    pass


@contextmanager
def cleaned_up_on_sigterm() -> Iterator[None]:
    """Leave the contexts inside of this one before a SIGTERM ends the process, as it would have without.

    A handler of the user's own is left alone, as is one of another thread than the main one, which has none.

    Example:
        >>> with cleaned_up_on_sigterm():
        ...     signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        False
        >>> signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        True
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a forked worker of a data loader
            os._exit(128 + number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        raise SystemExit(128 + signal.SIGTERM) from None  # if that takes a moment
    finally:
        if signal.getsignal(signal.SIGTERM) is end:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
