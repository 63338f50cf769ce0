"""Files that are written by Python, so that a disk that refuses is an exception with path and reason.

PyTorch's own writer of archives ends the whole process when the disk is full.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole.

    Args:
        path: of the file.
        content: its bytes.

    Raises:
        OSError: with the path and the reason; what was written of it is gone then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_file(Path(folder) / "a", b"42")
        ...     (Path(folder) / "a").read_bytes()
        b'42'
    """
    write_pieces(path, [content])


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file piece by piece, so that they need not be in memory together.

    Raises:
        OSError: as in :func:`write_file`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_pieces(Path(folder) / "a", [b"4", b"2"])
        ...     (Path(folder) / "a").read_bytes()
        b'42'
    """
    try:
        with path.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # some file systems find out only here that they are full
    except OSError as error:
        discard(path)
        raise cannot_write(path, error) from error


def save(content: Any, path: Path) -> None:
    """:func:`torch.save` into a file, by way of memory.

    Raises:
        OSError: as in :func:`write_file`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save({"x": torch.ones(1)}, Path(folder) / "a.pt")
        ...     torch.load(Path(folder) / "a.pt")
        {'x': tensor([1.])}
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_file(path, buffer.getbuffer())


def cannot_write(path: Path, error: OSError) -> OSError:
    """The same error with the path that it is about, and its reason in words.

    Example:
        >>> print(cannot_write(Path("a.pt"), OSError(28, "No space left on device")))
        [Errno 28] cannot write a.pt: No space left on device
    """
    return type(error)(error.errno, f"cannot write {path}: {error.strerror or error}")


def discard(path: Path) -> None:
    """Remove a file, if that is possible.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     discard(Path(folder) / "missing")
        ...     discard(Path(folder))  # no file: it stays, without an error
        ...     Path(folder).exists()
        True
    """
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
