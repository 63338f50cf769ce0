"""Directories that are written as a whole, in the steps that a delivery takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lq.export.artifact.directory import AnyPath, Own, absolute, publish, scratch_directory


@contextmanager
def new_directory(directory: AnyPath, own: Own | None = None) -> Iterator[Path]:
    """An empty directory, which becomes ``directory`` when the block ends well."""
    target = absolute(directory)
    with scratch_directory(target) as place:
        yield place
        publish(place, target, own)
