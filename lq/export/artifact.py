"""The artifact of a run: written by one call, loaded by another in a process without the training code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lq.deprecations import quiet_torchscript
from lq.export.directory import AnyPath, atomic_directory, check_creatable, complete_directory
from lq.export.manifest import MANIFEST_NAME, checked_file, is_artifact, read_manifest, write_manifest
from lq.export.torchscript import int8_kernels

INT8_NAME = "int8.pt"
PREPARED_NAME = "prepared.pt"


def check_writable(directory: AnyPath) -> None:
    """Check, before hours of training, that an artifact can be written to a directory.

    Args:
        directory: where :func:`write_artifact` will write; it need not exist, and nothing is left behind.

    Raises:
        NotADirectoryError: if the path, or a part of it, is a file.
        PermissionError: if the directory cannot be created or replaced.
        FileExistsError: if it holds files that are not an lq artifact.

    Example:
        >>> import tempfile
        >>> check_writable(Path(tempfile.mkdtemp()) / "run" / "int8")
    """
    path = Path(directory)
    check_creatable(path)
    if path.is_dir() and any(path.iterdir()) and not is_artifact(path):
        raise FileExistsError(
            f"{path} holds files that are not an lq artifact, and writing one replaces the whole directory. "
            "Choose a new path, e.g. a subdirectory, or empty this one."
        )


def write_artifact(
    directory: AnyPath, files: Mapping[str, Callable[[Path], object]], manifest: Mapping[str, Any]
) -> Path:
    """Write an artifact atomically; an older one in the same place stays valid until this one is complete.

    Args:
        directory: where the artifact shall be.
        files: for each file name a function that writes it to the path it is given. The int8 model as
            TorchScript is ``"int8.pt"``, the prepared state dict ``"prepared.pt"``.
        manifest: plain data for ``lq.json``, beside versions and checksums. ``"engine"`` is the quantized
            engine that :func:`load` selects.

    Returns:
        The directory.

    Raises:
        OSError: as in :func:`check_writable`, or if the disk refuses.
        ValueError: if a file name leaves the directory or is ``lq.json``, or a manifest entry has a name that lq needs.
        TypeError: if the manifest is not plain data.

    Example:
        >>> import tempfile
        >>> directory = Path(tempfile.mkdtemp()) / "int8"
        >>> files = {"notes.txt": lambda path: path.write_text("hello")}
        >>> sorted(file.name for file in write_artifact(directory, files, {"engine": "x86"}).iterdir())
        ['lq.json', 'notes.txt']
    """
    for name in files:
        if Path(name).name != name or name in ("", "..", MANIFEST_NAME):
            raise ValueError(f"file name {name!r} is not a plain name of its own; write e.g. {INT8_NAME!r}.")
    check_writable(directory)
    with atomic_directory(directory) as place:
        for name, write in files.items():
            write(place / name)
        write_manifest(place, manifest)
    return Path(directory)


class Int8Model:
    """An int8 model that needs none of the code it was trained with; call it like the float one.

    Args:
        module: the loaded TorchScript module.
        path: the artifact.
        manifest: the content of its ``lq.json``.
    """

    def __init__(self, module: torch.jit.ScriptModule, path: Path, manifest: Mapping[str, Any]) -> None:
        self.module = module
        self.path = path
        self.manifest = manifest

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on CPU tensors, without gradients."""
        with int8_kernels():
            return self.module(*args, **kwargs)

    def __repr__(self) -> str:
        engine, lq = self.manifest.get("engine", "default"), self.manifest["versions"]["lq"]
        return f"Int8Model({str(self.path)!r}, engine={engine!r}, written by lq {lq})"


def load(directory: AnyPath) -> Int8Model:
    """Load the int8 model of an artifact and select the quantized engine that it was exported for.

    Args:
        directory: the artifact.

    Returns:
        A callable that takes and returns CPU tensors as the float model did.

    Raises:
        FileNotFoundError: if the directory or its int8 model is missing.
        NotADirectoryError: if the path is a file.
        ValueError: if the directory is not an lq artifact, is of a newer format, was changed, or needs an
            engine that this build of PyTorch does not have.

    Example:
        >>> import tempfile
        >>> with quiet_torchscript():
        ...     traced = torch.jit.trace(torch.nn.ReLU(), torch.zeros(1))
        ...     path = write_artifact(Path(tempfile.mkdtemp()) / "int8", {"int8.pt": traced.save}, {})
        >>> load(path)(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    path, manifest = _open(directory)
    file = checked_file(path, manifest, INT8_NAME)
    _select_engine(path, manifest.get("engine"))
    with quiet_torchscript():
        module = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
    return Int8Model(module, path, manifest)


def load_prepared_state(directory: AnyPath) -> dict[str, Any]:
    """Load the state of the fake-quantized model of an artifact, to train on from it.

    Args:
        directory: the artifact.

    Returns:
        The state dict, on the CPU.

    Raises:
        FileNotFoundError: if the directory or the state in it is missing.
        NotADirectoryError: if the path is a file.
        ValueError: if the directory is not an lq artifact, is of a newer format, or was changed.
    """
    path, manifest = _open(directory)
    file = checked_file(path, manifest, PREPARED_NAME)
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _open(directory: AnyPath) -> tuple[Path, dict[str, Any]]:
    path = complete_directory(directory)
    return path, read_manifest(path)


def _select_engine(path: Path, engine: str | None) -> None:
    if engine is None:
        return
    supported = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if engine not in supported:
        raise ValueError(
            f"{path} was exported for the quantized engine {engine!r}, which this build of PyTorch lacks; "
            f"it has {', '.join(supported) or 'none'}. Export again with a preset for one of these."
        )
    torch.backends.quantized.engine = engine
