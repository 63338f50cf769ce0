"""The last step of a delivery: what passed the gate replaces what was there, what did not is kept beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lq.export.artifact import PREPARED_NAME
from lq.export.destination import Destination
from lq.export.directory import AnyPath, scratch_directory
from lq.export.exporters import EXPORTERS
from lq.export.scratch import scratch, scratch_beside

Describe = Callable[[Path, Sequence[str]], None]


@dataclass(frozen=True)
class Handed:
    """Where things are.

    Args:
        directory: the artifact; ``None`` if an older one was better and stayed.
        rejected: what did not pass; ``None`` if all did, or left no file.
        remarks: what is not where it was wanted, a sentence each.
    """

    directory: Path | str | None = None
    rejected: Path | str | None = None
    remarks: tuple[str, ...] = ()


def as_destination(directory: AnyPath | Destination | None) -> Destination | None:
    """Where to, as it is now; one that was made before the training knows what was there then.

    Raises:
        OSError: if it cannot be written to.
    """
    if directory is None or isinstance(directory, Destination):
        return directory
    found = Destination.at(directory)
    found.check()
    return found


@contextmanager
def workplace(destination: Destination | None) -> Iterator[Path]:
    """An empty directory to write an artifact into, beside its destination; all scratch lies there too."""
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
        OSError: if the disk refuses; an older artifact is untouched then.
    """
    if not whole and destination.holds_models():
        describe(place, [*passed, *failed])
        kept = destination.failed().take(place)
        return Handed(rejected=kept, remarks=(f"{destination.name} stays the artifact of an earlier run",))
    rejected = _put_aside(place, destination, failed, describe) if failed else None
    describe(place, passed)
    where = destination.take(place)
    remarks: tuple[str, ...] = ()
    if where != destination.final:
        remarks = (f"another run has written {destination.name} since this one began; this artifact is in {where}",)
    return Handed(where, rejected, remarks)


def _put_aside(place: Path, destination: Destination, failed: Sequence[str], describe: Describe) -> Path | str:
    beside = destination.failed()
    with scratch_directory(beside.path) as aside:
        for kind in failed:
            for file in EXPORTERS[kind].files:
                (place / file).rename(aside / file)
        shutil.copyfile(place / PREPARED_NAME, aside / PREPARED_NAME)
        describe(aside, failed)
        return beside.take(aside)
