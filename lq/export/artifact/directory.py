"""A directory that is written as a whole or not at all, beside the one that it replaces.

Whatever stood there before stays until the new one is complete; a process that dies in between leaves the old or the
new one, never half of one. The exchange takes two renames: dying right between them leaves the old directory under its
backup name, where :func:`complete_directory` finds it and the next write restores it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lq.export.artifact.files import cannot_write

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

AnyPath = str | os.PathLike[str]
Own = Callable[[Path], Iterable[str]]

_LONGEST_NAME = 255  # bytes, on every file system in use
_DAY = 24 * 60 * 60


@contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """An empty directory beside ``target``, gone afterwards if it was not moved away.

    It is locked as long as its process lives, so that one that a killed process has left is known by that, and removed
    when the next one is made.

    Args:
        target: absolute; its parents are created.

    Yields:
        The directory.

    Raises:
        OSError: if it cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with scratch_directory(Path(folder) / "int8") as place:
        ...         place.parent == Path(folder), place.name.startswith(".int8.tmp-")
        ...     place.exists()
        (True, True)
        False
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent):
            _sweep(target)
            place = target.with_name(_scratch_prefix(target) + uuid.uuid4().hex)
            place.mkdir()
            lock = _lock(place, wait=False)
    except OSError as error:
        raise cannot_write(target, error) from error
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def publish(place: Path, target: Path, own: Own | None = None, choose: Callable[[Path], Path] | None = None) -> Path:
    """Move a complete directory to its place; no other process does so at the same time.

    Args:
        place: from :func:`scratch_directory`.
        target: absolute, in the same directory.
        own: names the files of an older directory that may be deleted; the others stay. ``None`` is all of them.
        choose: takes the target, once nobody else can change it, and returns where to move to.

    Returns:
        where it is now.

    Raises:
        OSError: if the disk refuses; what stood there is untouched then.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "result"
        ...     with scratch_directory(target) as place:
        ...         _ = (place / "answer.txt").write_text("42")
        ...         _ = publish(place, target)
        ...     [file.name for file in target.iterdir()]
        ['answer.txt']
    """
    _sync(place)
    with _locked(target.parent):
        _recover(target, own)
        chosen = target if choose is None else choose(target)
        if chosen != target:
            _recover(chosen, own)
        _exchange(place, chosen, own)
    return chosen


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
    path = Path(directory)
    if path.exists():
        return path
    backup = backup_of(absolute(directory))
    return backup if backup.exists() else path


def absolute(directory: AnyPath) -> Path:
    """The real path: a link stays, and what it points to is replaced.

    Raises:
        FileNotFoundError: if the path is relative and the working directory is gone.
        ValueError: if no such path can be.

    Example:
        >>> absolute("/tmp/../int8")
        PosixPath('/int8')
    """
    try:
        path = Path(directory).expanduser()
        return path.resolve()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{str(directory)!r} is not the name of a directory: {error}. Choose another path.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{directory} is a relative path, and the working directory that it starts from was deleted. "
            "Change into one that exists, or give an absolute path."
        ) from error


def beside(target: Path, suffix: str) -> Path:
    """The directory of the same name with a suffix; a name that is too long for that is cut.

    Example:
        >>> beside(Path("/runs/int8"), ".failed")
        PosixPath('/runs/int8.failed')
    """
    room = _LONGEST_NAME - len(os.fsencode(suffix))
    return target.with_name(os.fsencode(target.name)[:room].decode(errors="ignore") + suffix)


def _scratch_prefix(target: Path) -> str:
    room = len(uuid.uuid4().hex) + 1  # for what follows, and the dot in front
    return f".{beside(target, '.tmp-' + room * '-').name[:-room]}"


def backup_of(target: Path) -> Path:
    """Where what stood at ``target`` is for the moment of the exchange.

    Example:
        >>> backup_of(Path("/runs/int8"))
        PosixPath('/runs/.int8.old')
    """
    return target.with_name(f".{beside(target, '.old-').name[:-1]}")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time, by a lock on the directory, which leaves nothing behind."""
    lock = _lock(directory, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(directory: Path, wait: bool) -> int | None:
    """A file descriptor that holds the lock; ``None`` where the file system has none.

    Raises:
        BlockingIOError: if another process holds it.
    """
    if fcntl is None:
        return None
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # some network file systems
        os.close(handle)
        return None
    return handle


def _sweep(target: Path) -> None:
    ours = re.compile(re.escape(_scratch_prefix(target)) + "[0-9a-f]{32}")
    for path in [path for path in target.parent.iterdir() if ours.fullmatch(path.name) and path.is_dir()]:
        try:
            lock = _lock(path, wait=False)
        except OSError:  # its process lives, or it is somebody else's
            continue
        if lock is not None or time.time() - path.stat().st_mtime > _DAY:
            shutil.rmtree(path, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _recover(target: Path, own: Own | None) -> None:
    backup = backup_of(target)
    if backup.exists() and target.exists():
        _remove(backup, target, own)
    elif backup.exists():
        backup.rename(target)


def _exchange(place: Path, target: Path, own: Own | None) -> None:
    backup = backup_of(target)
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
        _remove(backup, target, own)


def _remove(backup: Path, target: Path, own: Own | None) -> None:
    """Delete a backup; what is not our own moves into the directory that has replaced it."""
    if own is not None:
        deletable = {backup / name for name in own(backup)}
        for path in sorted(backup.rglob("*")):
            if path not in deletable and (path.is_symlink() or not path.is_dir()):
                _move(path, target / path.relative_to(backup))
    shutil.rmtree(backup)


def _move(path: Path, wanted: Path) -> None:
    wanted.parent.mkdir(parents=True, exist_ok=True)
    free, number = wanted, 1
    while os.path.lexists(free):
        free, number = beside(wanted, f".kept-{number}"), number + 1
    path.rename(free)


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
