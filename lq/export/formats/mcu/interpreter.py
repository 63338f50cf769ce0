"""tflite-micro's interpreter: what runs on a microcontroller, with its reference kernels, on this machine."""

from __future__ import annotations

import os
import re
import tempfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.signature import Signature
from lq.export.formats.litert.runtime import entering, leaving

_PLENTY = 2**30  # bytes, which the system hands out when they are used
_ALIGNMENT = 16


class RefusedError(ValueError):
    """tflite-micro does not load a file; ``operator`` is the kind that it lacks, or ""."""

    operator = ""


def arena_bytes(path: Path) -> int:
    """The smallest arena that a file loads in, on a machine of 64 bits; on one of 32 its records are smaller.

    What the interpreter prints of its allocations can be less: it plans the memory inside of the arena, too.

    Args:
        path: the file.

    Returns:
        bytes, a multiple of 16.

    Raises:
        RefusedError: if tflite-micro does not load the file however much memory there is.
    """
    _opened(path, _PLENTY)
    steps = range(_PLENTY // _ALIGNMENT)
    return _ALIGNMENT * bisect_left(steps, True, key=lambda step: _loads(path, _ALIGNMENT * step))


def _loads(path: Path, arena: int) -> bool:
    try:
        _opened(path, arena)
    except RefusedError:
        return False
    return True


def interpreted(
    path: Path, signature: Signature, arena: int, *, channels_last: bool, largest_batch: int | None
) -> FlatModel:
    """A ``.tflite`` file in tflite-micro's interpreter, callable as its signature says.

    Args:
        path: the file.
        signature: of the original model.
        arena: bytes that it may use.
        channels_last: whether images in the file have their channels last.
        largest_batch: what it takes at once; ``None`` is any.

    Raises:
        RefusedError: if tflite-micro does not load it, or needs a larger arena.
    """
    interpreter = _opened(path, arena)

    def run(tensors: list[Tensor]) -> list[Tensor]:
        for index, tensor in enumerate(tensors):
            details = interpreter.get_input_details(index)
            interpreter.set_input(entering(tensor, details, channels_last), index)
        interpreter.invoke()
        return [_output(interpreter, index, channels_last) for index in range(signature.outputs)]

    return FlatModel(run, signature, at_once=largest_batch, one_call_at_a_time=True)


def _output(interpreter: Any, index: int, channels_last: bool) -> Tensor:
    # A copy: the values lie in the arena, which the next call overwrites.
    values = interpreter.get_output(index).copy()
    return leaving(values, interpreter.get_output_details(index), channels_last)


def _opened(path: Path, arena: int) -> Any:
    from tflite_micro.python.tflite_micro import runtime

    with _printed() as said:
        try:
            return runtime.Interpreter.from_file(str(path), arena_size=arena)
        except RuntimeError as error:
            refused = error
    lacking = re.search(r"Didn't find op for builtin opcode '(\w+)'", said[0])
    if lacking is None:
        raise RefusedError(f"tflite-micro refuses {path.name}: {' '.join(said[0].split())[-300:]}") from refused
    found = RefusedError(f"tflite-micro lacks the operator {lacking[1]}")
    found.operator = lacking[1]
    raise found from refused


@contextmanager
def _printed() -> Iterator[list[str]]:
    """What is printed, past Python, to stdout and stderr; it is there when the context has ended."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        try:
            yield said
        finally:
            for descriptor, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            file.seek(0)
            said.append(file.read().decode(errors="replace"))
