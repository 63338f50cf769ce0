"""Artifacts in stores that fsspec knows: ``s3://``, ``gs://``, ``memory://`` and the like, as checkpoints are."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path, PurePosixPath
from typing import Any

from lq.export.manifest import MANIFEST_NAME


def is_remote(place: object) -> bool:
    """Whether a text is a URL of something else than the local disk.

    Example:
        >>> is_remote("s3://bucket/run"), is_remote("file:///tmp/run"), is_remote("runs/a")
        (True, False, False)
    """
    return isinstance(place, str) and "://" in place and not place.startswith(("file://", "local://"))


def check_remote(url: str) -> None:
    """Check, before hours of training, that a store takes files.

    Raises:
        OSError: if it does not, or holds other things than an artifact there.
        ImportError: if fsspec needs a package for this kind of URL.
    """
    store, root = _store(url)
    probe = f"{root.rstrip('/')}.lq-{uuid.uuid4().hex}"
    try:
        store.makedirs(_parent(root), exist_ok=True)
        store.pipe_file(probe, b"lq")
        store.rm_file(probe)
        found = store.find(root) if store.exists(root) else []
    except Exception as error:  # each store has errors of its own
        raise OSError(
            f"cannot write {url}: {error}. Check the address and the credentials, or choose another."
        ) from error
    if found and not store.exists(f"{root}/{MANIFEST_NAME}"):
        raise FileExistsError(
            f"{url} holds files that are not an lq artifact. Choose a new path, e.g. {url.rstrip('/')}/int8."
        )


def remote_manifest(url: str) -> bytes | None:
    """The bytes of the ``lq.json`` there; ``None`` if there is none."""
    store, root = _store(url)
    try:
        content: bytes = store.cat_file(f"{root}/{MANIFEST_NAME}")
    except FileNotFoundError:
        return None
    return content


def upload(place: Path, url: str, outdated: list[str]) -> None:
    """Upload a directory as a whole: under another name first, then moved by the store, ``lq.json`` last.

    Args:
        place: the directory.
        url: where to.
        outdated: names of files of an older artifact there, which go if the new one has none of that name.

    Raises:
        OSError: if the store refuses; what was there is still whole unless the store failed while it moved.
    """
    store, root = _store(url)
    waiting = f"{root.rstrip('/')}.tmp-{uuid.uuid4().hex}"
    names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    try:
        for name in names:
            store.makedirs(_parent(f"{waiting}/{name}"), exist_ok=True)
            store.put_file(str(place / name), f"{waiting}/{name}")
        for name in sorted(names, key=lambda name: name == MANIFEST_NAME):
            store.makedirs(_parent(f"{root}/{name}"), exist_ok=True)
            store.mv(f"{waiting}/{name}", f"{root}/{name}")
        for name in set(outdated) - set(names):
            store.rm_file(f"{root}/{name}")
    except Exception as error:  # each store has errors of its own
        raise OSError(f"cannot upload to {url}: {error}") from error
    finally:
        if store.exists(waiting):
            store.rm(waiting, recursive=True)


def download(url: str, directory: Path) -> None:
    """Fetch an artifact.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if what is there is none.
    """
    store, root = _store(url)
    if not store.exists(root):
        raise FileNotFoundError(f"{url} does not exist. Give the directory that a training exported.")
    if not store.exists(f"{root}/{MANIFEST_NAME}"):
        raise ValueError(f"{url} is not an lq artifact: it has no {MANIFEST_NAME}.")
    for found in store.find(root):
        name = PurePosixPath(found).relative_to(PurePosixPath(root))
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        store.get_file(found, str(directory / name))


def fingerprint(content: bytes | None) -> str | None:
    """What tells one ``lq.json`` from another."""
    return None if content is None else hashlib.sha256(content).hexdigest()


def _store(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        store, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{url} cannot be reached: {error}") from error
    except ValueError as error:
        raise ValueError(f"{url} is no place that fsspec knows: {error}. Choose another path.") from error
    return store, root.rstrip("/")


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"
