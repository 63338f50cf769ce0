"""Whether a directory can be written, tried before hours of training: under its final name, with a file in it."""

from __future__ import annotations

import errno
import uuid
from contextlib import suppress
from pathlib import Path

from lq.export.artifact.directory import AnyPath, absolute, scratch_directory
from lq.export.artifact.files import write_file

_LONGEST_FILE = "int8.qnn.float.onnx"
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EROFS: "the disk can only be read",
    errno.ENAMETOOLONG: "the name is too long for the disk",
}


def check_creatable(directory: AnyPath) -> None:
    """Check that a directory can be written or replaced, without leaving a trace.

    Args:
        directory: the directory, which need not exist.

    Raises:
        NotADirectoryError: if the path, or a part of it, is a file.
        PermissionError: if the working directory is that directory, or lies in it.
        OSError: if the disk refuses to hold a new directory of this name there, or a file in it, or to replace a mount
            point; a PermissionError where that is the reason.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_creatable(f"{folder}/runs/int8")
        ...     list(Path(folder).iterdir())  # it leaves no trace
        []
        >>> check_creatable("/")
        Traceback (most recent call last):
        PermissionError: cannot replace /, which the working directory is or lies in: ...
    """
    target = absolute(directory)
    try:
        existing = next(path for path in (target, *target.parents) if path.exists())
    except OSError as error:
        raise _refused(target, target.parent, error) from error
    if not existing.is_dir():
        raise NotADirectoryError(f"cannot write {target}: {existing} is not a directory. Choose another path.")
    if target in (here := _working_directory(), *here.parents):
        raise PermissionError(
            f"cannot replace {target}, which the working directory is or lies in: whatever is started there would end "
            "up in a deleted one. Choose a directory below it, e.g. int8."
        )
    if target.is_mount():
        raise PermissionError(f"cannot replace {target}, a mount point. Choose a directory below it, e.g. int8.")
    # The exchange renames in the parent of the target.
    holder = target.parent if existing == target else existing
    try:
        _try(target)
    except OSError as error:
        raise _refused(target, holder, error) from error


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:  # it was deleted
        return Path("/")


def _try(target: Path) -> None:
    """Make and remove what the export is going to make; a process that dies in between leaves nothing at the target."""
    made = [path for path in target.parents if not path.exists()]
    try:
        with scratch_directory(target) as place:
            (place / target.name).mkdir()
            _write_one(place)
    finally:
        for path in made:
            with suppress(OSError):  # another run may have come to use it
                path.rmdir()


def _write_one(directory: Path) -> None:
    file = directory / f"{uuid.uuid4().hex[:4]}.{_LONGEST_FILE}"
    write_file(file, b"lq" * 4096)
    file.unlink()


def _refused(target: Path, holder: Path, error: BaseException) -> OSError:
    number = getattr(error, "errno", None)
    reason = _REASONS.get(number or 0, "") or getattr(error, "strerror", None) or str(error)
    # Where nothing may be created at all, some file systems say that there is no such file.
    kind = PermissionError if number in (errno.EACCES, errno.EPERM, errno.ENOENT) else OSError
    return kind(
        f"cannot write {target}: no directory can be created in {holder} ({reason}). Make it writable or choose "
        "another path."
    )
