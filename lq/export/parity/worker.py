"""Runs models of an artifact in a process of its own, which has nothing but the files and lq."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch

from lq.export.artifact.files import save, write_file
from lq.export.artifact.int8_model import load
from lq.export.artifact.scratch import scratch
from lq.export.parity.fresh_process import FreshProcess, given
from lq.metrics.detections import Comparable, comparable
from lq.tracing.structure import Inputs, in_plain_containers


class Worker(FreshProcess):
    """The process; it runs one model after the other.

    Example:
        >>> Worker().module
        'lq.export.parity.worker'
    """

    def __init__(self) -> None:
        super().__init__(__name__)

    def run(self, directory: Path, kind: str, calls: Sequence[Inputs]) -> list[Comparable]:
        """What is compared of the output of each call, computed from nothing but the files.

        Args:
            directory: the artifact.
            kind: which of its models.
            calls: inputs on the CPU.

        Returns:
            a tensor, or detections, for each call.

        Raises:
            WorkerError: if the process cannot be started, is killed, or cannot write its results; with the whole
                reason.
            RuntimeError: if the model fails there, with its error.
        """
        with scratch() as place:
            made, error = place / "outputs.pt", place / "error.json"
            self.call(str(directory.absolute()), kind, str(made), str(error), given=map(_packed, calls))
            if error.exists():
                raise RuntimeError(f"a fresh process could not run {directory}: {json.loads(error.read_text())}")
            outputs: list[Comparable] = torch.load(made, weights_only=True)
            return outputs


def main(directory: str, kind: str, made: str, error: str) -> None:
    """What the process does for each model.

    Example:
        >>> from lq.export.artifact.manifest import write_manifest
        >>> with scratch() as place:
        ...     write_manifest(place, {"artifacts": {"torch": {}}})
        ...     main(str(place), "onnx", str(place / "outputs.pt"), str(place / "error.json"))
        ...     print(json.loads((place / "error.json").read_text()).partition(" has ")[2])
        no 'onnx' model; it was exported as torch.
    """
    outputs = []
    try:
        model = load(directory, kind)
        for piece in given():
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
