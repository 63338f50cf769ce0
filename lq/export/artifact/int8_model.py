"""The artifact of a run: written as a whole, loaded by :func:`load` in a process without the training code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from lq.checks import check_integer, check_path, shown
from lq.export.artifact.creatable import check_creatable
from lq.export.artifact.directory import AnyPath, absolute, backup_of, complete_directory
from lq.export.artifact.manifest import MANIFEST_NAME, checked_file, is_artifact, read_manifest
from lq.export.artifact.program_check import only_plain_pickles
from lq.export.artifact.remote import download, is_remote, local_path
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS
from lq.fields import Field
from lq.messages import one_line
from lq.tracing.any_batch import run_any_batch

PREPARED_NAME = "prepared.pt"


def check_writable(directory: AnyPath) -> None:
    """Check, before hours of training, that an artifact can be written to a directory.

    Args:
        directory: where an artifact will be written; it need not exist, and nothing is left behind.

    Raises:
        NotADirectoryError: if the path, or a part of it, is a file.
        PermissionError: if the directory cannot be created or replaced.
        FileExistsError: if it, or the place where it lies while it is replaced, holds files that are not an lq
            artifact.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     check_writable(Path(folder) / "run" / "int8")
        ...     _ = Path(folder, "notes.txt").write_text("of the user")
        ...     check_writable(folder)
        Traceback (most recent call last):
        FileExistsError: ... holds files that are not an lq artifact. Choose a new path, ...
    """
    path = Path(directory)
    check_creatable(path)
    if path.is_dir() and any(path.iterdir()) and not is_artifact(path):
        raise FileExistsError(
            f"{path} holds files that are not an lq artifact. "
            f"Choose a new path, e.g. {path / 'int8'}, or empty this one."
        )
    backup = backup_of(absolute(directory))
    if backup.exists() and not is_artifact(backup):
        raise FileExistsError(
            f"cannot write {path}: lq moves the older artifact to {backup} for a moment, but that path exists and is "
            "not an lq artifact. Rename it, or choose another path."
        )


def own_files(directory: Path) -> list[str]:
    """The files of an artifact that lq has written and nobody has changed, by its ``lq.json``.

    Args:
        directory: the artifact.

    Example:
        >>> import tempfile
        >>> from lq.export.artifact.manifest import write_manifest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "int8.pt").write_text("model")
        ...     write_manifest(Path(folder), {})
        ...     _ = Path(folder, "notes.txt").write_text("of the user")
        ...     own_files(Path(folder))
        ['lq.json', 'int8.pt']
    """
    try:
        manifest = read_manifest(directory)
    except (ValueError, OSError):
        return []
    own = [MANIFEST_NAME]
    for name in manifest["files"]:
        with suppress(ValueError, OSError):
            checked_file(directory, manifest, name)
            own.append(name)
    return own


@contextmanager
def at_hand(directory: AnyPath) -> Iterator[Path]:
    """An artifact on the local disk: where it is, or a copy for as long as the context lasts.

    Args:
        directory: the artifact, or its URL for fsspec.

    Yields:
        a directory; whether it is an artifact is for :func:`lq.export.artifact.manifest.read_manifest` to say.

    Raises:
        FileNotFoundError: if there is nothing at the URL.
        ValueError: if there is no artifact at the URL.
        OSError: if a store cannot be read.

    Example:
        >>> with at_hand("runs/int8") as place:
        ...     place == Path("runs/int8")
        True
        >>> with at_hand("memory://no/such/artifact"):
        ...     pass
        Traceback (most recent call last):
        FileNotFoundError: memory://no/such/artifact does not exist. Give the directory that a training exported.
    """
    path = local_path(directory)
    if path is not None:
        yield complete_directory(path)
        return
    with scratch() as copy:
        download(str(directory), copy)
        yield copy


class Int8Model:
    """An int8 model that needs none of the code it was trained with; call it like the float one.

    Args:
        call: the loaded model.
        path: the artifact.
        kind: name of the exporter.
        manifest: the content of its ``lq.json``.
        signature: what it takes and returns.

    Example:
        >>> import lq, tempfile
        >>> x, prepared = torch.randn(8, 4), lq.prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> _ = lq.calibrate(prepared, [x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     int8 = lq.export_artifact(prepared, [x], f"{folder}/int8").models["torch"]
        >>> int8.kind, int8(x).shape
        ('torch', torch.Size([8, 2]))
        >>> int8(x[:, :3])
        Traceback (most recent call last):
        ValueError: ...int8 (torch): the model was exported for (input: float32(batch, 4)), but input is float32(8, ...
    """

    def __init__(
        self, call: Callable[..., Any], path: Path | str, kind: str, manifest: Mapping[str, Any], signature: Signature
    ) -> None:
        self.call, self.path, self.kind, self.manifest, self.signature = call, path, kind, manifest, signature

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on CPU tensors, without gradients.

        Raises:
            ValueError: if it cannot be run and the inputs are not as those that it was exported for, or if it is right
                for one batch size, or one height, width or length, alone and that of the call is another.
        """
        self.signature.check_batch(args, kwargs)
        self.signature.check_images(args, kwargs)
        self._check_sizes(args, kwargs)
        try:
            return run_any_batch(self.call, (args, kwargs), self.signature.batch)
        except Exception as error:
            misfit = self.signature.misfit(args, kwargs)
            if misfit is None:
                raise
            raise ValueError(f"{self.path} ({self.kind}): {misfit}.") from error

    def _check_sizes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse sizes that the file may hold as constants, for which it would compute something else."""
        resized = self.signature.resized(args, kwargs)
        if resized:
            axes = {name: dims for name, dims in resized.items() if 0 not in dims}
            static = EXPORTERS[self.kind].static
            open_them = f" If the model takes other sizes, export it with dynamic_axes={axes} to leave them open."
            remedy = open_them if axes and not static else ""
            raise ValueError(f"{self.path} ({self.kind}): {self.signature.misfit(args, kwargs)}.{remedy}")

    def __repr__(self) -> str:
        lq = self.manifest.get("versions", {}).get("lq", "unknown")
        return f"Int8Model({str(self.path)!r}, kind={self.kind!r}, inputs={self.signature}, written by lq {lq})"


def load(
    directory: AnyPath,
    kind: str | None = None,
    threads: int | None = None,
    compile: bool = False,
    trust: bool = False,
) -> Int8Model:
    """Load the int8 model of an artifact.

    Loading runs no code and imports no module that the files name. Calling the model runs the model: a file from
    somebody else may be slow or compute anything.

    Args:
        directory: the artifact, or its URL for fsspec.
        kind: which of its models: "torch", "onnx", "pt2", "openvino", ...; ``None`` takes the first that it was
            exported as.
        threads: of ONNX Runtime and OpenVINO; torch has ``torch.set_num_threads``.
        compile: let inductor turn a "pt2" program into int8 kernels, once for each input shape.
        trust: set it only for files of somebody who may run code on this machine. It is needed if an output is of a
            class that this process does not know.

    Returns:
        A callable that takes and returns CPU tensors as the float model did; what that returned in a named tuple or in
        a class of its own comes in a plain tuple or dict.

    Raises:
        FileNotFoundError: if the directory or its int8 model is missing.
        NotADirectoryError: if the path is a file.
        ValueError: if the directory is not an lq artifact, is of a newer format, was changed, has no model of this
            kind, or needs an engine that this build of PyTorch does not have; naming file and field.
        ImportError: if the runtime is not installed; the message says how to.

    Example:
        >>> import lq, tempfile
        >>> x, prepared = torch.randn(8, 4), lq.prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> _ = lq.calibrate(prepared, [x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = lq.export_artifact(prepared, [x], f"{folder}/int8")
        ...     model = load(f"{folder}/int8")
        >>> model(x).shape
        torch.Size([8, 2])
    """
    check_path("directory", directory, "lightning_logs/version_0/int8")
    if threads is not None:
        check_integer("threads", threads, 4)
        if threads < 1:
            raise ValueError(f"threads={threads} must be at least 1; leave it out to let the runtime choose.")
    if kind is not None and not isinstance(kind, str):
        raise TypeError(f"kind={shown(kind)} ({type(kind).__name__}) must be the name of an exporter, e.g. 'onnx'.")
    with at_hand(directory) as path:  # the runtimes have read it all when they have loaded it
        model = _load(path, kind, threads, compile, trust)
    if is_remote(directory):
        model.path = str(directory)
    return model


def known_kinds(manifest: Mapping[str, Any]) -> list[str]:
    """What an artifact was exported as, but for kinds that only newer versions of lq have.

    Example:
        >>> known_kinds({"artifacts": {"onnx": {}, "of the future": {}}})
        ['onnx']
    """
    return [kind for kind in manifest.get("artifacts", {}) if kind in EXPORTERS]


def _load(path: Path, kind: str | None, threads: int | None, compile: bool, trust: bool) -> Int8Model:
    manifest = read_manifest(path)
    kinds = manifest.get("artifacts", {})
    if not kinds:
        raise FileNotFoundError(f"{path} holds no int8 model{_why(manifest)}.")
    kind = kind or next(iter(known_kinds(manifest)), next(iter(kinds)))
    if kind not in kinds:
        raise ValueError(f"{path} has no {kind!r} model; it was exported as {', '.join(kinds)}.")
    if kind not in EXPORTERS:
        raise ValueError(
            f"{path} was exported as {kind!r}, which this version of lq does not know; it knows "
            f"{', '.join(EXPORTERS)}. Install the version that wrote it, or a newer one."
        )
    if compile and kind != "pt2":
        raise ValueError(f"compile=True is for kind='pt2'; {kind!r} models hold kernels already.")
    whole = Field(manifest, str(path / MANIFEST_NAME))
    signature = Signature.from_dict(whole["signature"].mapping(), whole["signature"].where, trust)
    signature = signature.static if EXPORTERS[kind].static else signature
    call = _loaded(path, whole, kind, signature, threads, trust)
    if compile:
        from lq.export.formats.pt2 import ProgramModel, lower

        assert isinstance(call, ProgramModel)
        call = lower(call)
    return Int8Model(call, path, kind, manifest, signature)


def _loaded(
    path: Path, whole: Field, kind: str, signature: Signature, threads: int | None, trust: bool
) -> Callable[..., Any]:
    exporter = EXPORTERS[kind]
    files = [checked_file(path, whole.mapping(), file) for file in exporter.files_in(path)]
    restricted = not trust and exporter.check(path)
    try:
        with only_plain_pickles(restricted):
            return exporter.load(path, signature, whole["artifacts"][kind].mapping(), threads)
    except (ImportError, ValueError, MemoryError):
        raise
    except KeyError as error:
        raise ValueError(f"{whole['artifacts'][kind].where} lacks {error}. The file was changed or damaged.") from error
    except Exception as error:  # whatever a runtime makes of bytes that are not its own
        reason = one_line(error, 500)
        raise ValueError(f"{files[0]} cannot be loaded as a {kind!r} model: {reason}") from error


def load_prepared_state(directory: AnyPath) -> dict[str, Any]:
    """Load the state of the fake-quantized model of an artifact, to train on from it.

    Args:
        directory: the artifact, or its URL for fsspec.

    Returns:
        The state dict, on the CPU.

    Raises:
        FileNotFoundError: if the directory or the state in it is missing.
        NotADirectoryError: if the path is a file.
        ValueError: if the directory is not an lq artifact, is of a newer format, or was changed.

    Example:
        >>> import lq, tempfile
        >>> x, prepared = torch.randn(8, 4), lq.prepare(torch.nn.Sequential(torch.nn.Linear(4, 2)))
        >>> _ = lq.calibrate(prepared, [x])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     done = lq.export_artifact(prepared, [x], f"{folder}/int8")
        ...     state = load_prepared_state(done.directory)
        >>> state["0.weight"].shape, torch.equal(state["0.weight"], prepared[0].weight)
        (torch.Size([2, 4]), True)
    """
    with at_hand(directory) as path:
        file = checked_file(path, read_manifest(path), PREPARED_NAME)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # the restricted unpickler raises whatever foreign bytes lead it to
            raise ValueError(
                f"{file} is not a state dict of plain data (read with weights_only=True): {error}"
            ) from error
    return Field(state, str(file)).mapping()


def _why(manifest: Mapping[str, Any]) -> str:
    error = manifest.get("error")
    return f", because it could not be made: {error}" if error else ""
