"""Where an artifact goes: resolved once, before the training, and handed over when it is complete."""

from __future__ import annotations

import tempfile
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from lq.export.artifact.directory import AnyPath, absolute, beside, complete_directory, publish
from lq.export.artifact.int8_model import check_writable, own_files
from lq.export.artifact.manifest import MANIFEST_NAME, is_artifact, parse_manifest, read_manifest_bytes
from lq.export.artifact.remote import check_remote, fingerprint, local_path, remote_manifest, upload


@dataclass(frozen=True)
class Destination:
    """A directory or URL, and what it held when a run began.

    Args:
        path: absolute, or where what goes to ``url`` is written first.
        url: of a store, if it is no local directory.
        before: fingerprint of the ``lq.json`` that was there, so that what another run has put there since is known.

    Example:
        >>> Destination.at("memory://runs/int8").name
        'memory://runs/int8'
    """

    path: Path
    url: str = ""
    before: str | None = None

    @classmethod
    def at(cls, place: AnyPath) -> Destination:
        """The destination that a user means, as it is now.

        Args:
            place: a path, with ``~`` for the home directory, or a URL that fsspec knows.

        Raises:
            OSError: if the path is relative and the working directory was deleted, or a store cannot be asked.
            ValueError: if no such path can be.
        """
        path = local_path(place)
        if path is None:
            url = str(place).rstrip("/")
            staged = Path(tempfile.gettempdir(), f"lq-{uuid.uuid5(uuid.NAMESPACE_URL, url).hex}")
            found = cls(staged, url)
        else:
            found = cls(absolute(path))
        return replace(found, before=fingerprint(found.manifest()))

    @property
    def name(self) -> str:
        """For messages."""
        return self.url or str(self.path)

    @property
    def final(self) -> Path | str:
        """Where it can be loaded from."""
        return self.url or self.path

    def manifest(self) -> bytes | None:
        """The ``lq.json`` that is there now."""
        if self.url:
            return remote_manifest(self.url)
        with suppress(OSError):  # a path that cannot be is what check() refuses
            return read_manifest_bytes(complete_directory(self.path) / MANIFEST_NAME)
        return None

    def check(self) -> None:
        """Check that an artifact can be written there, without leaving a trace.

        Raises:
            OSError: if it cannot.
            ImportError: if fsspec needs a package for such URLs.
        """
        if self.url:
            check_remote(self.url)
        else:
            check_writable(self.path)

    def holds_models(self) -> bool:
        """Whether an artifact with at least one model is there, of this or of a newer format.

        Raises:
            OSError: if a store cannot be asked.
        """
        content = self.manifest()
        try:
            return content is not None and bool(parse_manifest(content, self.name).get("artifacts"))
        except ValueError:
            return False

    def failed(self) -> Destination:
        """Where that goes which has not passed."""
        if self.url:
            return Destination.at(f"{self.url}.failed")
        return Destination.at(beside(self.path, ".failed"))

    def take(self, place: Path) -> Path | str:
        """Move a complete artifact here, or to a free name beside, if another run was faster.

        Args:
            place: a directory from :func:`lq.export.artifact.directory.scratch_directory` beside ``path``.

        Returns:
            where it is now.

        Raises:
            OSError: if that is refused; what was there before is whole.
        """
        if not self.url:
            return publish(place, self.path, own_files, lambda path: _free(Destination(path, before=self.before)).path)
        chosen = _free(self)
        upload(place, chosen.url)
        return chosen.url


def _free(wanted: Destination) -> Destination:
    """The destination itself, unless somebody else has written there since; then the next name with a number."""
    if fingerprint(wanted.manifest()) == wanted.before and not _is_foreign(wanted):
        return wanted
    number = 2
    while True:
        path, url = beside(wanted.path, f"-{number}"), f"{wanted.url}-{number}" if wanted.url else ""
        candidate = Destination(path, url)
        if candidate.manifest() is None and not _is_foreign(candidate):
            return candidate
        number += 1


def _is_foreign(wanted: Destination) -> bool:
    path = wanted.path
    return not wanted.url and path.exists() and not (path.is_dir() and (not any(path.iterdir()) or is_artifact(path)))
