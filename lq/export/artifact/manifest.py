"""``lq.json``: what an artifact holds, where it comes from, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from lq.export.artifact.files import write_file
from lq.fields import Field, parse_json

MANIFEST_NAME = "lq.json"
FORMAT = "lq-artifact"
FORMAT_VERSION = 1
DISTRIBUTION = "lightning-qat"
_REMEDY = "Give the directory that a training exported."
LARGEST_MANIFEST = 2**26  # bytes; that of a model of ten thousand layers has some 10 MB
_PACKAGES = (
    "lightning",
    "pytorch-lightning",
    "torchmetrics",
    "torchao",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "executorch",
    "ai-edge-litert",
    "tflite-micro",
    "onnxruntime-qnn",
)
RESERVED = ("format", "format_version", "versions", "files")


def write_manifest(directory: Path, entries: Mapping[str, Any]) -> None:
    """Write ``lq.json`` for the files that are in a directory now.

    Args:
        directory: holds the files; their SHA-256 and size go into the manifest.
        entries: what else to record: dicts, lists, strings, numbers, booleans and None. JSON has no infinity,
            so infinite and undefined floats become the strings ``"inf"``, ``"-inf"`` and ``"nan"``.

    Raises:
        ValueError: if an entry takes a name that the manifest needs itself.
        TypeError: if an entry is not plain data.
        OSError: if the disk refuses.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "int8.pt").write_text("model")
        ...     write_manifest(Path(folder), {"results": {"torch_vs_fake": {"sqnr_db": math.inf}}})
        ...     manifest = read_manifest(folder)
        >>> manifest["files"]["int8.pt"]["bytes"], manifest["results"]
        (5, {'torch_vs_fake': {'sqnr_db': 'inf'}})
    """
    taken = sorted(set(entries) & set(RESERVED))
    if taken:
        raise ValueError(f"manifest entries {taken} are written by lq itself; choose other names.")
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_NAME)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": _versions(),
        "files": {path.relative_to(directory).as_posix(): _fingerprint(path) for path in files},
        **{key: _plain(value, key) for key, value in entries.items()},
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    write_file(directory / MANIFEST_NAME, f"{text}\n".encode())


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of an artifact.

    Args:
        directory: the artifact.

    Returns:
        The content of its ``lq.json``.

    Raises:
        FileNotFoundError: if there is no such directory.
        NotADirectoryError: if the path is a file.
        ValueError: if the directory is no lq artifact, one of a newer format, or was tampered with; the message names
            file and field.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_manifest(Path(folder), {"artifacts": {"torch": {"engine": "x86"}}})
        ...     manifest = read_manifest(folder)
        >>> manifest["format"], manifest["format_version"], manifest["artifacts"]
        ('lq-artifact', 1, {'torch': {'engine': 'x86'}})
    """
    path = Path(directory)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Give the directory that a training exported, e.g. lightning_logs/version_0/int8."
        )
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; give the artifact's directory, e.g. {path.absolute().parent}.")
    content = _read(path)
    check_manifest(content, path)
    return content


def parse_manifest(content: bytes, place: Path | str) -> dict[str, Any]:
    """Read the bytes of an ``lq.json``, of this or of a newer format; :func:`check_manifest` looks at the entries.

    Args:
        content: the bytes.
        place: directory or URL of the artifact, for the messages.

    Raises:
        ValueError: if they are no JSON, or none that lq has written.

    Example:
        >>> parse_manifest(b"{}", "runs/int8")
        Traceback (most recent call last):
        ...
        ValueError: runs/int8/lq.json was not written by lq: runs/int8 is not an lq artifact. Give the directory ...
    """
    file = f"{place}/{MANIFEST_NAME}"
    if len(content) > LARGEST_MANIFEST:
        raise ValueError(f"{file} has more than {LARGEST_MANIFEST} bytes, so lq did not write it. {_REMEDY}")
    try:
        found = parse_json(content, file)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): the artifact is damaged. {_REMEDY}") from error
    wanted = {"format": str, "format_version": int, "files": dict}
    known = isinstance(found, dict) and all(isinstance(found.get(k), t) for k, t in wanted.items())
    if not known or found["format"] != FORMAT or isinstance(found["format_version"], bool):
        raise ValueError(f"{file} was not written by lq: {place} is not an lq artifact. {_REMEDY}")
    return dict(found)


def check_manifest(content: dict[str, Any], place: Path | str) -> None:
    """Refuse a manifest that :func:`write_manifest` cannot have written, such as one of files elsewhere.

    Args:
        content: from :func:`parse_manifest`.
        place: directory or URL of the artifact, for the messages.

    Raises:
        ValueError: if it is of a newer format, or was tampered with; the message names file and field.

    Example:
        >>> manifest = {"format": "lq-artifact", "format_version": 1, "files": {}}
        >>> check_manifest(manifest, "runs/int8")
        >>> check_manifest({**manifest, "files": {"../passwords": {"sha256": 64 * "0", "bytes": 1}}}, "runs/int8")
        Traceback (most recent call last):
        ValueError: runs/int8/lq.json.files.../passwords is not the name of a file inside of the artifact, ...
    """
    whole = Field(content, f"{place}/{MANIFEST_NAME}")
    version = content["format_version"]
    if version > FORMAT_VERSION:
        writer = whole.get("versions", {}).get("lq", "a later version").value
        raise ValueError(
            f"{place} has format version {version}, written by lq {writer}; this lq reads versions up to "
            f"{FORMAT_VERSION}. Upgrade it: pip install -U {DISTRIBUTION}."
        )
    _check(whole)


def is_artifact(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds an lq artifact, of this or of a newer format.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     before = is_artifact(folder)
        ...     write_manifest(Path(folder), {})
        ...     before, is_artifact(folder)
        (False, True)
    """
    try:
        return bool(_read(Path(directory)))
    except ValueError:
        return False


def checked_file(directory: str | os.PathLike[str], manifest: Mapping[str, Any], name: str) -> Path:
    """Path of a file of an artifact, after a look at its checksum.

    Args:
        directory: the artifact.
        manifest: its manifest.
        name: the file, relative to the directory.

    Returns:
        The path.

    Raises:
        FileNotFoundError: if the artifact does not have the file.
        ValueError: if the file is not the one that was exported.

    The checksum is in the same directory: it finds damage, not malice.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "int8.pt")
        ...     _ = file.write_text("model")
        ...     write_manifest(Path(folder), {})
        ...     found = checked_file(folder, read_manifest(folder), "int8.pt")
        ...     _ = found.write_text("other")
        ...     checked_file(folder, read_manifest(folder), "int8.pt")
        Traceback (most recent call last):
        ValueError: ...int8.pt is not the file that was exported: its checksum differs from that in lq.json. ...
    """
    path, listed = Path(directory, name), manifest["files"]
    if name not in listed:
        raise FileNotFoundError(
            f"{directory} was exported without {name}; it has {', '.join(sorted(listed)) or 'no files'}."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing, but {MANIFEST_NAME} lists it. Copy the whole directory, or export again."
        )
    if _fingerprint(path) != listed[name]:
        raise ValueError(
            f"{path} is not the file that was exported: its checksum differs from that in {MANIFEST_NAME}. "
            "It was changed or damaged; copy it again, or export again."
        )
    return path


def _read(path: Path) -> dict[str, Any]:
    file = path / MANIFEST_NAME
    if not file.is_file():
        raise ValueError(f"{path} is not an lq artifact: it has no {MANIFEST_NAME}. {_REMEDY}")
    return parse_manifest(read_manifest_bytes(file), path)


def read_manifest_bytes(file: Path) -> bytes:
    """The bytes of an ``lq.json``; of one that :func:`parse_manifest` refuses as too large, no more than it takes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_manifest(Path(folder), {})
        ...     parse_manifest(read_manifest_bytes(Path(folder, MANIFEST_NAME)), folder)["files"]
        {}
    """
    with file.open("rb") as stream:
        return stream.read(LARGEST_MANIFEST + 1)


def _check(manifest: Field) -> None:
    """Refuse a manifest that :func:`write_manifest` cannot have written."""
    manifest["format_version"].integer(1)
    for _, version in manifest.get("versions", {}).items():
        version.text()
    for name, listed in manifest["files"].items():
        _check_file_name(name, listed)
        if not re.fullmatch("[0-9a-f]{64}", listed["sha256"].text()):
            raise listed["sha256"].error("a SHA-256 checksum of 64 digits")
        listed["bytes"].integer(0)
    for kind in ("artifacts", "parity", "results"):
        for _, entry in manifest.get(kind, {}).items():
            entry.mapping()
    for _, entry in manifest.get("results", {}).items():
        for _, figure in entry.items():
            _check_figure(figure)
    for _, ends in manifest.get("ranges", {}).items():
        _check_range(ends)
    for row in manifest.get("table", []).each():
        row.mapping()


def _check_file_name(name: str, listed: Field) -> None:
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(f"{listed.where} is not the name of a file inside of the artifact, which it must be.")


def _check_figure(figure: Field) -> None:
    if figure.value not in ("inf", "-inf", "nan", None):
        figure.number()


def _check_range(ends: Field) -> None:
    values = ends.each()
    if [end.value for end in values] == ["inf", "-inf"]:
        return  # of a tensor that never was computed
    if len(values) != 2 or values[0].number() > values[1].number():
        raise ends.error("two numbers, the lower one first")


def checksum(file: IO[bytes]) -> dict[str, str | int]:
    """SHA-256 and size of an open file, as a manifest lists them.

    Example:
        >>> import io
        >>> checksum(io.BytesIO(b"42"))
        {'sha256': '73475cb40a568e8da8a045ced110137e159f890ac4da883b6b17dc651b3a8049', 'bytes': 2}
    """
    digest, size = hashlib.sha256(), 0
    while block := file.read(1 << 20):
        digest.update(block)
        size += len(block)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _fingerprint(path: Path) -> dict[str, str | int]:
    with path.open("rb") as file:
        return checksum(file)


def _versions() -> dict[str, str]:
    """Of lq, and of whatever has a part in an artifact and is installed."""
    found = {name: version for name in _PACKAGES if (version := installed_version(name)) is not None}
    own = {
        "lq": installed_version(DISTRIBUTION) or "unknown",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return {**own, **found}


def installed_version(package: str) -> str | None:
    """The version of an installed package.

    Example:
        >>> installed_version("no-such-package") is None
        True
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(
        f"manifest entry {where} is a {type(value).__name__}; give plain data, "
        "e.g. tensor.item() or dataclasses.asdict(config)."
    )
