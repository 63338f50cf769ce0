"""Checkpoints that are folders: each process has written its part of the weights.

Lightning's ``ModelParallelStrategy`` writes them. Whatever reads one unpickles files in it, which can run code.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lq.compat.torch_private import unflatten_state_dict
from lq.messages import one_line

_META = "meta.pt"  # what is no weight, in a file as torch.save writes it
_STATE = "state_dict"


def is_sharded_checkpoint(path: str | Path) -> bool:
    """Whether a path is a folder that such a checkpoint is in.

    Example:
        >>> is_sharded_checkpoint("checkpoints/last.ckpt")
        False
    """
    return (Path(path) / _META).is_file() and (Path(path) / ".metadata").is_file()


def read_meta(path: str | Path, weights_only: bool = True) -> dict[str, Any]:
    """What a checkpoint holds besides weights and optimizers; of one that is a file, all that it holds.

    Args:
        path: folder or file.
        weights_only: refuse more than plain data; see :func:`torch.load`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"epoch": 3}, f"{folder}/meta.pt")
        ...     (Path(folder) / ".metadata").touch()
        ...     read_meta(folder)
        {'epoch': 3}
    """
    file = Path(path) / _META if is_sharded_checkpoint(path) else path
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=weights_only)
    return found


def read_state(path: str | Path) -> dict[str, Any]:
    """The whole state dict of the model, on the CPU, read by this process alone.

    Args:
        path: of the folder; it is unpickled, so it has to be trusted.

    Raises:
        ValueError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> from torch.distributed import checkpoint
        >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # torch warns that it saves in a single process
        ...     _ = checkpoint.save({"state_dict": {"weight": torch.ones(2)}}, checkpoint_id=folder)
        ...     read_state(folder)
        {'weight': tensor([1., 1.])}
    """
    with _telling(path):
        return _read_alone(path)


def read_whole(path: str | Path) -> dict[str, Any]:
    """All but the optimizers, as in a checkpoint that is a file; see :func:`read_state`.

    Example:
        >>> import tempfile
        >>> from torch.distributed import checkpoint
        >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")  # torch warns that it saves in a single process
        ...     _ = checkpoint.save({"state_dict": {"weight": torch.ones(2)}}, checkpoint_id=folder)
        ...     torch.save({"epoch": 3}, f"{folder}/meta.pt")
        ...     read_whole(folder)
        {'epoch': 3, 'state_dict': {'weight': tensor([1., 1.])}}
    """
    with _telling(path):
        return {**read_meta(path, weights_only=False), _STATE: _read_alone(path)}


@contextmanager
def _telling(path: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever damaged files lead the readers to
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {one_line(error)})."
        ) from error


def _read_alone(path: str | Path) -> dict[str, Any]:
    from torch.distributed import checkpoint

    library: Any = checkpoint
    reader = library.FileSystemReader(path)
    metadata = reader.read_metadata()
    flat: dict[str, Any] = {}
    for key, stored in metadata.state_dict_metadata.items():
        if key.startswith(f"{_STATE}."):
            is_tensor = isinstance(stored, library.TensorStorageMetadata)
            flat[key] = torch.empty(stored.size, dtype=stored.properties.dtype) if is_tensor else None
    planner = library.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with warnings.catch_warnings():  # of a single process, which is what is wanted
        warnings.simplefilter("ignore")
        library.load(flat, storage_reader=reader, planner=planner, no_dist=True)
    nested: Mapping[str, Any] = unflatten_state_dict(flat, {key: metadata.planner_data[key] for key in flat})
    return dict(nested[_STATE])
