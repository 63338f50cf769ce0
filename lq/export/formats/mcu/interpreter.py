"""tflite-micro's interpreter: what runs on a microcontroller, with its reference kernels, on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from lq.export.artifact.flat_model import FlatModel
from lq.export.artifact.signature import Signature
from lq.export.formats.litert.runtime import entering, leaving
from lq.export.parity.isolation import search_path

_PLENTY = 2**30  # bytes, which the system hands out when they are used
_ALIGNMENT = 16

# Tries each arena in a process of its own: in some that are a little too small tflite-micro crashes.
_SEARCH = """
import json, os, resource, sys
from bisect import bisect_left
job = json.loads(sys.argv[1])
sys.path[:] = job["search"]
from tflite_micro.python.tflite_micro import runtime
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def loads(step):
    child = os.fork()
    if not child:
        try:
            runtime.Interpreter.from_file(job["path"], arena_size=step * job["alignment"])
        except RuntimeError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
print(job["alignment"] * bisect_left(range(job["plenty"] // job["alignment"]), True, key=loads))
"""


class RefusedError(ValueError):
    """tflite-micro does not load a file; ``operator`` is the kind that it lacks, or "".

    Example:
        >>> import torch
        >>> from lq.export.formats.litert import write_float
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "gelu.tflite"
        ...     largest = write_float(torch.nn.GELU(), ((torch.zeros(1, 3),), {}), path)
        ...     try:
        ...         arena_bytes(path)
        ...     except RefusedError as error:
        ...         print(f"{error}: {error.operator!r}")
        tflite-micro lacks the operator GELU: 'GELU'
    """

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
        RuntimeError: if it does not run in a process of its own, with what that says.

    Example:
        >>> import torch
        >>> from lq.export.formats.litert import write_float
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "relu.tflite"
        ...     largest = write_float(torch.nn.ReLU(), ((torch.zeros(1, 256),), {}), path)
        ...     2 * 4 * 256 < arena_bytes(path) < 4096  # an input and an output of 256 floats, and its own records
        True
    """
    _opened(path, _PLENTY)
    job = {"path": str(path.absolute()), "plenty": _PLENTY, "alignment": _ALIGNMENT, "search": search_path()}
    command = [sys.executable, "-I", "-c", _SEARCH, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        raise RuntimeError(f"the arena of {path.name} cannot be found: {' '.join(done.stderr.split())[-300:]}")
    return int(done.stdout)


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

    Example:
        >>> import torch
        >>> from lq.export.formats.litert import write_float
        >>> net, x = torch.nn.ReLU(), torch.tensor([[-1.0, 2.0]])
        >>> signature = Signature.of(net, ((x,), {}), net(x))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "relu.tflite"
        ...     largest = write_float(net, ((x,), {}), path)
        ...     model = interpreted(path, signature, arena=4096, channels_last=False, largest_batch=1)
        >>> model(x)
        tensor([[0., 2.]])
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
