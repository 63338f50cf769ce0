"""The IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor


def read_idx(path: str | Path) -> Tensor:
    """Read a file of unsigned bytes in the IDX format of MNIST, gzipped or not.

    Args:
        path: file whose name may end in `.gz`.

    Returns:
        The array as a uint8 tensor of the shape that the file's header gives.

    Raises:
        ValueError: the file is not IDX, or is shorter or longer than its header says.

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
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes; it starts with {raw[:4]!r}.")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if len(raw) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(raw) - start} bytes of data, its header promises shape {tuple(shape)}; "
            "the file is damaged: fetch it again."
        )
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).reshape(shape)


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
