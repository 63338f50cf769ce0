"""The last step of a delivery: what passed the gate replaces what was there, what did not is kept beside it."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from lq.deployment.destination import Destination
from lq.export.artifact.directory import AnyPath, beside, scratch_directory
from lq.export.artifact.int8_model import PREPARED_NAME
from lq.export.artifact.manifest import MANIFEST_NAME, is_artifact
from lq.export.artifact.scratch import scratch, scratch_beside
from lq.export.exporters import EXPORTERS

Describe = Callable[[Path, Sequence[str]], None]


@dataclass(frozen=True)
class Handed:
    """Where things are.

    Args:
        directory: the artifact; ``None`` if an older one was better and stayed.
        rejected: what did not pass; ``None`` if all did, or left no file.
        notes: what is not where it was wanted, a sentence each.

    Example:
        >>> handed = Handed(rejected="s3://runs/int8.failed", notes=("s3://runs/int8 still holds an earlier artifact",))
        >>> handed.directory is None, handed.rejected
        (True, 's3://runs/int8.failed')
    """

    directory: Path | str | None = None
    rejected: Path | str | None = None
    notes: tuple[str, ...] = ()


def as_destination(directory: AnyPath | Destination | None) -> Destination | None:
    """Where to, as it is now; one that was made before the training knows what was there then.

    Raises:
        OSError: if it cannot be written to.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     destination = as_destination(f"{folder}/int8")
        ...     print(destination.path.name, destination.before, destination.path.exists())
        int8 None False
        >>> as_destination(None) is None
        True
    """
    if directory is None or isinstance(directory, Destination):
        return directory
    found = Destination.at(directory)
    found.check()
    return found


@contextmanager
def workplace(destination: Destination | None) -> Iterator[Path]:
    """An empty directory to write an artifact into, beside its destination; all scratch lies there too.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with workplace(as_destination(f"{folder}/int8")) as place:
        ...         print(place.parent == Path(folder).resolve(), place.name[:10])
        ...     place.exists()
        True .int8.tmp-
        False
    """
    if destination is None:
        with scratch() as place:
            yield place
        return
    with scratch_beside(destination.path), scratch_directory(destination.path) as place:
        yield place


def hand_over(
    place: Path, destination: Destination, passed: Sequence[str], failed: Sequence[str], whole: bool, describe: Describe
) -> Handed:
    """Put an artifact where it belongs.

    Args:
        place: it, with the files of all kinds.
        destination: where it was wanted.
        passed: kinds that passed the gate.
        failed: kinds that did not.
        whole: whether all that was ordered passed.
        describe: writes ``lq.json`` for a directory and the kinds in it.

    Returns:
        where it went. An older artifact with models is replaced by one that passed as a whole only.

    Raises:
        OSError: if disk or store refuses; an older artifact is untouched then, and the error says where the new one is.

    Example:
        >>> from lq.export.artifact.manifest import read_manifest, write_manifest
        >>> def describe(directory, kinds):
        ...     write_manifest(directory, {"artifacts": dict.fromkeys(kinds, {})})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     destination = as_destination(f"{folder}/int8")
        ...     with workplace(destination) as place:
        ...         _ = (place / "int8.pt").write_text("of the exporter torch")
        ...         handed = hand_over(place, destination, ["torch"], [], True, describe)
        ...     handed.directory.name, list(read_manifest(handed.directory)["files"]), handed.rejected
        ('int8', ['int8.pt'], None)
    """
    if not whole:
        with _kept(place, destination):
            describe(place, [*passed, *failed])
            if destination.holds_models():
                kept = destination.failed().take(place)
                return Handed(rejected=kept, notes=(f"{destination.name} still holds the artifact of an earlier run",))
    with _apart(place, destination, failed, describe) as (aside, notes):
        try:
            with _kept(place, destination):
                describe(place, passed)
                where = destination.take(place)
        except OSError as error:
            rejected, _ = _take_rejected(aside, destination)
            if rejected is None:
                raise
            raise OSError(
                f"{str(error).rstrip('.')}. The files that did not pass the gate are in {rejected}."
            ) from error
        rejected, more = _take_rejected(aside, destination)
    notes += more
    if where != destination.final:
        notes += (f"another run wrote to {destination.name} in the meantime, so this artifact is in {where}",)
    return Handed(where, rejected, notes)


@contextmanager
def _apart(
    place: Path, destination: Destination, failed: Sequence[str], describe: Describe
) -> Iterator[tuple[Path | None, tuple[str, ...]]]:
    """A directory with what did not pass, which is no longer in ``place``; ``None``, with a note, without room."""
    aside: Path | None = None
    notes: tuple[str, ...] = ()
    files = [file for kind in failed for file in EXPORTERS[kind].written_in(place)]
    with ExitStack() as stack:
        try:
            if files:
                aside = stack.enter_context(scratch_directory(destination.path))
                for file in files:
                    (place / file).rename(aside / file)
                shutil.copyfile(place / PREPARED_NAME, aside / PREPARED_NAME)
                describe(aside, failed)
        except OSError as error:
            for file in files:
                (place / file).unlink(missing_ok=True)
            aside, notes = None, (f"the files that did not pass the gate could not be kept: {error}",)
        yield aside, notes


def _take_rejected(aside: Path | None, destination: Destination) -> tuple[Path | str | None, tuple[str, ...]]:
    if aside is None:
        return None, ()
    try:
        return destination.failed().take(aside), ()
    except OSError as error:
        return _refuge(aside, destination), (
            f"the files that did not pass the gate could not be written next to {destination.name}: {error}",
        )


@contextmanager
def _kept(place: Path, destination: Destination) -> Iterator[None]:
    """If disk or store refuses an artifact, it goes where it can be found, which the error says."""
    try:
        yield
    except OSError as error:
        refuge = _refuge(place, destination)
        if refuge is None:
            raise
        what = "The artifact is complete; it is" if is_artifact(refuge) else f"Its files, but no {MANIFEST_NAME}, are"
        raise OSError(f"{str(error).rstrip('.')}. {what} in {refuge}.") from error


def _refuge(place: Path, destination: Destination) -> Path | None:
    """Move a directory beside its destination, or else to the system's place for temporary files."""
    suffix = f"-{uuid.uuid4().hex[:8]}"
    for parent in (destination.path.parent, Path(tempfile.gettempdir())):
        refuge = parent / beside(destination.path, suffix).name
        try:
            place.rename(refuge)
        except OSError:
            try:
                shutil.copytree(place, refuge)
            except OSError:
                shutil.rmtree(refuge, ignore_errors=True)
                continue
        return refuge
    return None
