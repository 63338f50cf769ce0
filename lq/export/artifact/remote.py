"""Artifacts in stores that fsspec knows: ``s3://``, ``gs://``, ``memory://`` and the like, as checkpoints are."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lq.export.artifact.directory import AnyPath
from lq.export.artifact.files import discard, write_file
from lq.export.artifact.manifest import LARGEST_MANIFEST, MANIFEST_NAME, check_manifest, checksum, parse_manifest

_REMEDY = "Check the address and the credentials, or choose another."


def is_remote(place: object) -> bool:
    """Whether a text is a URL of something else than the local disk.

    Example:
        >>> is_remote("s3://bucket/run"), is_remote("file:///tmp/run"), is_remote("runs/a")
        (True, False, False)
    """
    return isinstance(place, str) and "://" in place and not place.startswith(("file://", "local://"))


def local_path(place: AnyPath) -> Path | None:
    """The path of a place on the local disk: ``~`` is the home directory, and a ``file://`` URL becomes a path.

    Args:
        place: a path or a URL.

    Returns:
        The path, relative if that was; ``None`` for a URL of something else, which fsspec may know.

    Raises:
        ValueError: if no such path can be.

    Example:
        >>> local_path("file:///runs/a%20b").as_posix(), local_path("runs/a").as_posix(), local_path("s3://bucket/run")
        ('/runs/a b', 'runs/a', None)
    """
    if is_remote(place):
        return None
    if isinstance(place, str) and "://" in place:
        parts = urlsplit(place)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(
                f"{place} names the host {parts.netloc!r}, but files are read from this one. The path of a file URL is "
                f"absolute: {parts.scheme}:///{parts.netloc}{parts.path}; for a relative one, leave out {parts.scheme}://."
            )
        return Path(url2pathname(parts.path))
    try:
        return Path(place).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{str(place)!r} is not a path: {error}. Choose another.") from error


def check_remote(url: str) -> None:
    """Check, before hours of training, that a store takes files.

    Raises:
        OSError: if it does not, or holds other things than an artifact there.
        ImportError: if fsspec needs a package for this kind of URL.

    Example:
        >>> check_remote("memory://int8")
        >>> check_remote("no-such-store://int8")
        Traceback (most recent call last):
        ValueError: no-such-store://int8 is not a location that fsspec knows: ... Choose another path.
    """
    store, root = _store(url)
    probe = f"{root.rstrip('/')}.lq-{uuid.uuid4().hex}"
    with _as_os_error(f"cannot write {url}", _REMEDY):
        store.makedirs(_parent(root), exist_ok=True)
        store.pipe_file(probe, b"lq")
        store.rm_file(probe)
        found = store.find(root) if store.exists(root) else []
    if found and not _is_artifact(url):
        raise FileExistsError(
            f"{url} holds files that are not an lq artifact. Choose a new path, e.g. {url.rstrip('/')}/int8."
        )


def remote_manifest(url: str) -> bytes | None:
    """The bytes of the ``lq.json`` there; ``None`` if there is none.

    Raises:
        OSError: if the store cannot be asked.
        ImportError: if fsspec needs a package for this kind of URL.

    Example:
        >>> import fsspec
        >>> remote_manifest("memory://example") is None
        True
        >>> store = fsspec.filesystem("memory")
        >>> store.pipe_file("/example/lq.json", b"{}")
        >>> remote_manifest("memory://example")
        b'{}'
        >>> store.rm("/example", recursive=True)
    """
    store, root = _store(url)
    with _as_os_error(f"cannot read {url}", _REMEDY):
        try:
            content: bytes = store.cat_file(f"{root}/{MANIFEST_NAME}", end=LARGEST_MANIFEST + 1)
        except FileNotFoundError:
            return None
    return content


def upload(place: Path, url: str) -> None:
    """Upload a directory as a whole: under another name first, then moved by the store, ``lq.json`` last.

    Files that an older artifact there lists and the new one has not are deleted, unless somebody has changed them.

    Args:
        place: the directory.
        url: where to.

    Raises:
        OSError: if the store refuses; what was there is still whole unless the store failed while it moved.

    Example:
        >>> import fsspec, tempfile
        >>> from lq.export.artifact.manifest import write_manifest
        >>> with tempfile.TemporaryDirectory() as place:
        ...     _ = Path(place, "int8.pt").write_text("model")
        ...     write_manifest(Path(place), {})
        ...     upload(Path(place), "memory://example/int8")
        >>> store = fsspec.filesystem("memory")
        >>> sorted(store.find("/example"))
        ['/example/int8/int8.pt', '/example/int8/lq.json']
        >>> store.rm("/example", recursive=True)
    """
    older = _listed(url)
    store, root = _store(url)
    waiting = f"{root.rstrip('/')}.tmp-{uuid.uuid4().hex}"
    names = sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())
    try:
        with _as_os_error(f"cannot upload to {url}"):
            for name in names:
                store.makedirs(_parent(f"{waiting}/{name}"), exist_ok=True)
                store.put_file(str(place / name), f"{waiting}/{name}")
            for name in sorted(names, key=lambda name: name == MANIFEST_NAME):
                store.makedirs(_parent(f"{root}/{name}"), exist_ok=True)
                store.mv(f"{waiting}/{name}", f"{root}/{name}")
    finally:
        with suppress(Exception):  # each store has errors of its own, and what was uploaded is there
            if store.exists(waiting):
                store.rm(waiting, recursive=True)
    for name in older.keys() - set(names):
        with suppress(Exception):
            _remove_unchanged(store, f"{root}/{name}", older[name])


def download(url: str, directory: Path) -> None:
    """Fetch the files that the ``lq.json`` of an artifact lists, and itself.

    A listed file that is missing is no error here: a part of an artifact is enough to load a part.

    Args:
        url: of the artifact.
        directory: where to.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if what is there is none, is one of a newer format, or was tampered with.
        OSError: if the store cannot be read.

    Example:
        >>> import fsspec, tempfile
        >>> from lq.export.artifact.manifest import write_manifest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     place, copy = Path(folder, "int8"), Path(folder, "copy")
        ...     place.mkdir()
        ...     write_manifest(place, {})
        ...     upload(place, "memory://example/int8")
        ...     download("memory://example/int8", copy)
        ...     [file.name for file in copy.iterdir()]
        ['lq.json']
        >>> fsspec.filesystem("memory").rm("/example", recursive=True)
    """
    store, root = _store(url)
    content = remote_manifest(url)
    if content is None:
        with _as_os_error(f"cannot read {url}", _REMEDY):
            is_there = store.exists(root)
        if not is_there:
            raise FileNotFoundError(f"{url} does not exist. Give the directory that a training exported.")
        raise ValueError(f"{url} is not an lq artifact: it has no {MANIFEST_NAME}.")
    manifest = parse_manifest(content, url)
    check_manifest(manifest, url)  # and so that no name leads out of the directory
    for name in manifest["files"]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with _as_os_error(f"cannot read {url}/{name}"):
            try:
                store.get_file(f"{root}/{name}", str(directory / name))
            except FileNotFoundError:
                discard(directory / name)
    directory.mkdir(parents=True, exist_ok=True)
    write_file(directory / MANIFEST_NAME, content)


def fingerprint(content: bytes | None) -> str | None:
    """What tells one ``lq.json`` from another.

    Example:
        >>> fingerprint(b"{}") == fingerprint(b"{ }"), fingerprint(None) is None
        (False, True)
    """
    return None if content is None else hashlib.sha256(content).hexdigest()


def _store(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        store, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{url} cannot be reached: {error}") from error
    except ValueError as error:
        raise ValueError(f"{url} is not a location that fsspec knows: {error}. Choose another path.") from error
    except Exception as error:  # some look for credentials already here
        raise OSError(f"cannot reach {url}: {error}. {_REMEDY}") from error
    return store, root.rstrip("/")


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


@contextmanager
def _as_os_error(what: str, remedy: str = "") -> Iterator[None]:
    """Let whatever a store raises be an OSError: each has errors of its own."""
    try:
        yield
    except Exception as error:
        reason = f"{what}: {error}"
        raise OSError(f"{reason}. {remedy}" if remedy else reason) from error


def _is_artifact(url: str) -> bool:
    content = remote_manifest(url)
    try:
        return content is not None and bool(parse_manifest(content, url))
    except ValueError:
        return False


def _listed(url: str) -> dict[str, Any]:
    """The files of an artifact with their checksums; nothing where somebody else has written the ``lq.json``."""
    content = remote_manifest(url)
    if content is None:
        return {}
    try:
        manifest = parse_manifest(content, url)
        check_manifest(manifest, url)
    except ValueError:
        return {}
    return dict(manifest["files"])


def _remove_unchanged(store: Any, path: str, listed: Any) -> None:
    with store.open(path, "rb") as file:
        is_ours = checksum(file) == listed
    if is_ours:
        store.rm_file(path)
