"""A directory that is written as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

AnyPath = str | os.PathLike[str]


@contextmanager
def atomic_directory(directory: AnyPath) -> Iterator[Path]:
    """Write a directory beside its place and move it there when everything is on the disk.

    Whatever stood there before stays until the new one is complete; a process that dies in between leaves
    the old or the new one, never half of one. The exchange takes two renames: dying right between them leaves
    the old directory under its backup name, where :func:`complete_directory` finds it and the next write
    restores it. One process at a time may write a directory.

    Args:
        directory: where the result shall be; its parents are created.

    Yields:
        An empty directory to write into.

    Raises:
        OSError: if the disk refuses; the old directory is untouched then.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "result"
        >>> with atomic_directory(target) as place:
        ...     _ = (place / "answer.txt").write_text("42")
        >>> [file.name for file in target.iterdir()]
        ['answer.txt']
    """
    target = _absolute(directory)
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target)
    for stale in target.parent.glob(f"{_temporary(target)}*"):
        shutil.rmtree(stale)
    place = target.with_name(_temporary(target) + uuid.uuid4().hex)
    place.mkdir()
    try:
        yield place
        _sync(place)
        _exchange(place, target)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def complete_directory(directory: AnyPath) -> Path:
    """Where the last complete version of an atomically written directory is.

    Args:
        directory: the directory.

    Returns:
        The directory itself, or its backup if a process died while exchanging the two.

    Example:
        >>> complete_directory("runs/int8")
        PosixPath('runs/int8')
    """
    backup = _backup(_absolute(directory))
    return backup if backup.exists() and not Path(directory).exists() else Path(directory)


def check_creatable(directory: AnyPath) -> None:
    """Check that a directory can be written or replaced, without leaving a trace.

    Args:
        directory: the directory, which need not exist.

    Raises:
        NotADirectoryError: if the path, or a part of it, is a file.
        PermissionError: if the disk refuses to hold a new directory there, or to replace a mount point.
    """
    target = _absolute(directory)
    existing = next(path for path in (target, *target.parents) if path.exists())
    if not existing.is_dir():
        raise NotADirectoryError(f"cannot write {target}: {existing} is not a directory. Choose another path.")
    if target.is_mount():
        raise PermissionError(f"cannot replace {target}, a mount point. Choose a directory below it, e.g. int8.")
    # The exchange renames in the parent of the target.
    holder = target.parent if existing == target else existing
    try:
        os.rmdir(tempfile.mkdtemp(prefix=f"{_temporary(target)}check-", dir=holder))
    except OSError as error:
        raise PermissionError(
            f"cannot write {target}: no directory can be created in {holder} ({error.strerror}). "
            "Make it writable or choose another path."
        ) from error


def _absolute(directory: AnyPath) -> Path:
    return Path(directory).resolve()  # a link stays, and what it points to is replaced


def _temporary(target: Path) -> str:
    return f".{target.name}.tmp-"


def _backup(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    backup = _backup(target)
    if backup.exists() and target.exists():
        shutil.rmtree(backup)
    elif backup.exists():
        backup.rename(target)


def _exchange(place: Path, target: Path) -> None:
    backup = _backup(target)
    replaces = target.exists()
    if replaces:
        target.rename(backup)
    try:
        place.rename(target)
    except OSError:
        if replaces:
            backup.rename(target)
        raise
    _sync_entries(target.parent)
    if replaces:
        shutil.rmtree(backup)


def _sync(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_dir():
            _sync_entries(path)
        else:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    _sync_entries(directory)


def _sync_entries(directory: Path) -> None:
    with suppress(PermissionError):  # Windows cannot open a directory
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
