"""``lq.json``: what an artifact holds, where it comes from, and whether it is whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

MANIFEST_NAME = "lq.json"
FORMAT = "lq-artifact"
FORMAT_VERSION = 1
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
    """
    taken = sorted(set(entries) & set(RESERVED))
    if taken:
        raise ValueError(f"manifest entries {taken} are written by lq itself; choose other names.")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "versions": _versions(),
        "files": {path.relative_to(directory).as_posix(): _fingerprint(path) for path in files},
        **{key: _plain(value, key) for key, value in entries.items()},
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    (directory / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the manifest of an artifact.

    Args:
        directory: the artifact.

    Returns:
        The content of its ``lq.json``.

    Raises:
        FileNotFoundError: if there is no such directory.
        NotADirectoryError: if the path is a file.
        ValueError: if the directory is no lq artifact, or one of a newer format.
    """
    path = Path(directory)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Give the directory that a training exported, e.g. lightning_logs/version_0/int8."
        )
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; give the artifact's directory, e.g. {path.parent}.")
    content = _read(path)
    version = content["format_version"]
    if version > FORMAT_VERSION:
        writer = content.get("versions", {}).get("lq", "a later version")
        raise ValueError(
            f"{path} has format version {version}, written by lq {writer}; this lq reads versions up to "
            f"{FORMAT_VERSION}. Upgrade it: pip install -U lq."
        )
    return content


def is_artifact(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory holds an lq artifact, of this or of a newer format."""
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
    remedy = "Give the directory that a training exported."
    if not file.is_file():
        raise ValueError(f"{path} is not an lq artifact: it has no {MANIFEST_NAME}. {remedy}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): the artifact is damaged. {remedy}") from error
    wanted = {"format": str, "format_version": int, "files": dict}
    known = isinstance(content, dict) and all(isinstance(content.get(k), t) for k, t in wanted.items())
    if not known or content["format"] != FORMAT:
        raise ValueError(f"{file} was not written by lq: {path} is not an lq artifact. {remedy}")
    return dict(content)


def _fingerprint(path: Path) -> dict[str, str | int]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}


def _versions() -> dict[str, str]:
    """Of lq, and of whatever has a part in an artifact and is installed."""
    found = {name: version for name in _PACKAGES if (version := _installed(name)) is not None}
    own = {"lq": _installed("lq") or "unknown", "torch": str(torch.__version__), "python": platform.python_version()}
    return {**own, **found}


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
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
