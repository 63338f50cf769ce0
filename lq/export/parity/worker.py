"""Runs a model of an artifact in a process of its own, which has nothing but the files and lq."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO

import torch

from lq.export.artifact.files import save, write_file
from lq.export.artifact.int8_model import load
from lq.export.artifact.scratch import scratch
from lq.export.parity.isolation import START, job_of, worker_environment
from lq.metrics.detections import Comparable, comparable
from lq.tracing.structure import Inputs, in_plain_containers

_LENGTH = struct.Struct("<Q")
_LAST_LINES = 40


class WorkerError(RuntimeError):
    """The process could not do its work, whatever the model is."""


def run_in_fresh_process(directory: Path, kind: str, calls: Sequence[Inputs]) -> list[Comparable]:
    """What is compared of the output of each call, computed by a process that has nothing but the files and lq.

    Args:
        directory: the artifact.
        kind: which of its models.
        calls: inputs on the CPU.

    Returns:
        a tensor, or detections, for each call.

    Raises:
        WorkerError: if the process cannot be started, is killed, or cannot write its results; with the whole reason.
        RuntimeError: if the model fails there, with its error.
    """
    with scratch() as place:
        made, error = place / "outputs.pt", place / "error.json"
        run_module(
            "lq.export.parity.worker", str(directory.absolute()), kind, str(made), str(error), given=map(_packed, calls)
        )
        if error.exists():
            raise RuntimeError(f"a fresh process could not run {directory}: {json.loads(error.read_text())}")
        outputs: list[Comparable] = torch.load(made, weights_only=True)
        return outputs


def run_module(module: str, *arguments: str, given: Iterable[bytes] = ()) -> None:
    """Call ``main`` of a module of lq in a fresh process, which ends when this one does.

    It sees neither the working directory nor the ``PYTHON...`` variables of the environment.

    Args:
        module: its name.
        arguments: of its ``main``.
        given: what it reads from its standard input, piece by piece (:func:`pieces`).

    Raises:
        WorkerError: if it fails, with all that it printed last.
    """
    if not sys.executable:
        raise WorkerError("a fresh process could not be started: this Python does not know its own executable")
    command = [sys.executable, "-I", "-c", START, json.dumps(job_of(module, arguments))]
    try:
        process = subprocess.Popen(
            command, cwd="/" if sys.platform != "win32" else None, env=worker_environment(),
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise WorkerError(f"a fresh process could not be started: {error}") from error
    printed: deque[bytes] = deque(maxlen=_LAST_LINES)
    assert process.stdin is not None
    assert process.stderr is not None
    reader = threading.Thread(target=printed.extend, args=(process.stderr,), daemon=True)
    reader.start()
    try:
        _feed(process.stdin, given)
        code = process.wait()
    finally:
        process.kill()  # an exception, or a signal, has broken off the wait
        process.wait()
        reader.join(timeout=5)
        process.stderr.close()
    if code != 0:
        raise WorkerError(f"a fresh process {_ending(code)}: {_text(printed)}")


def pieces(stream: IO[bytes]) -> Iterable[bytes]:
    """What :func:`run_module` was ``given``, read in the process."""
    while header := stream.read(_LENGTH.size):
        yield stream.read(_LENGTH.unpack(header)[0])


def main(directory: str, kind: str, made: str, error: str) -> None:
    """What the process does."""
    outputs = []
    try:
        model = load(directory, kind)
        for piece in pieces(sys.stdin.buffer):
            # Written by the parent a moment ago, and inputs may be of any class.
            args, kwargs = torch.load(BytesIO(piece), weights_only=False)
            outputs.append(comparable(model(*args, **kwargs)))
    except (OSError, ImportError, MemoryError):
        raise  # of the machine, not of the model
    except Exception as problem:
        write_file(Path(error), json.dumps(f"{type(problem).__name__}: {problem}").encode())
        return
    save(outputs, Path(made))


def _packed(call: Inputs) -> bytes:
    buffer = BytesIO()
    torch.save(in_plain_containers(call), buffer)
    return buffer.getvalue()


def _feed(stream: IO[bytes], given: Iterable[bytes]) -> None:
    with suppress(BrokenPipeError), stream:  # it has ended then, and its exit code says why
        for piece in given:
            stream.write(_LENGTH.pack(len(piece)))
            stream.write(piece)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    return f"was killed by {name}"


def _text(printed: Iterable[bytes]) -> str:
    return b"".join(printed).decode(errors="replace").strip() or "it printed nothing"
