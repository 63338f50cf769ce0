"""The IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from lq.messages import one_line

_DAMAGED = "The file is damaged; fetch it again."


def read_idx(path: str | Path) -> Tensor:
    """Read a file of unsigned bytes in the IDX format of MNIST, gzipped or not.

    Args:
        path: file whose name may end in `.gz`.

    Returns:
        The array as a uint8 tensor of the shape that the file's header gives.

    Raises:
        ValueError: the file is not IDX, is shorter or longer than its header says, or cannot be unpacked.

    Source: http://yann.lecun.com/exdb/mnist (the format's description).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "labels"
        ...     _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9]))
        ...     read_idx(file)
        tensor([7, 8, 9], dtype=torch.uint8)
    """
    path = Path(path)
    raw = _unpacked(path) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes; it starts with {raw[:4]!r}.")
    start = 4 + 4 * raw[3]
    if len(raw) < start:
        raise ValueError(f"{path} ends within its header, after {len(raw)} of {start} bytes. {_DAMAGED}")
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(raw) - start} bytes of data, but its header says shape {tuple(shape)}. {_DAMAGED}"
        )
    data = bytearray(raw[start:])
    return (torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)).reshape(shape)


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({one_line(error)}). {_DAMAGED}") from error


def find_idx(folder: Path, name: str) -> Path | None:
    """Path of `name` or `name.gz` in a folder, None where there is neither; `name` wins where there are both.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "labels.gz").write_bytes(b"")
        ...     find_idx(Path(folder), "labels").name, find_idx(Path(folder), "images")
        ('labels.gz', None)
    """
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
