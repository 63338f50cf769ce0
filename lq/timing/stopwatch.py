"""Latency of exported and float models in a process of their own, with one thread.

A process that has trained or run large batches gives int8 latencies that are several times too high.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lq.compat.deprecations import quiet_torchscript
from lq.core.copies import deep_copy
from lq.export.artifact.files import save, write_file
from lq.export.artifact.int8_model import load
from lq.export.artifact.scratch import scratch
from lq.export.formats.libraries import import_libraries, libraries_of
from lq.export.formats.torchscript import export_torchscript, tensor_inputs
from lq.export.parity.fresh_process import FreshProcess
from lq.timing.latency import Latency, compare_latency, latency
from lq.timing.rows import EAGER, FROZEN, FUSED
from lq.tracing.structure import Inputs, in_plain_containers

SECONDS = 1.0
_JOB, _SAMPLE, _FLOAT, _TIMES = "job.json", "sample.pt", "float.pt", "times.json"


class Stopwatch(FreshProcess):
    """The process.

    Example:
        >>> Stopwatch().module
        'lq.timing.stopwatch'
    """

    def __init__(self) -> None:
        super().__init__(__name__)

    def latencies(
        self, directory: Path, kinds: Iterable[str], float_model: nn.Module | None, sample: Inputs
    ) -> dict[str, Latency]:
        """Time the models of an artifact and the float model in turns.

        Args:
            directory: the artifact.
            kinds: which of its models.
            float_model: on the CPU; timed as frozen and as fused TorchScript, or, where it cannot be scripted, eagerly
                and in this process. ``None`` is left out.
            sample: inputs of one call.

        Returns:
            latencies by exporter, and of float as "fp32 ...".

        Raises:
            RuntimeError: if the process fails.
        """
        with scratch() as place:
            job: dict[str, Any] = {}
            samples = {"int8": in_plain_containers(sample)}
            here: dict[str, Latency] = {}
            if float_model is not None:
                scripted = _save_float(float_model, sample, place / _FLOAT)
                if scripted is None:
                    here[EAGER] = latency(float_model, *sample, min_time=SECONDS)
                else:
                    samples["float"], job["libraries"] = scripted
            models = [(kind, directory, kind) for kind in kinds]
            return {**here, **self._timed(place, models, samples, job)}

    def of_artifacts(self, directories: Mapping[str, Path], kind: str, sample: Inputs) -> dict[str, Latency]:
        """Time the models that one exporter wrote into several artifacts, in turns.

        Args:
            directories: the artifacts, by the names of the result.
            kind: the exporter.
            sample: inputs of one call.

        Returns:
            latencies by name.

        Raises:
            RuntimeError: if the process fails.
        """
        with scratch() as place:
            models = [(name, directory, kind) for name, directory in directories.items()]
            return self._timed(place, models, {"int8": in_plain_containers(sample)}, {})

    def _timed(
        self,
        place: Path,
        models: Iterable[tuple[str, Path, str]],
        samples: Mapping[str, Inputs],
        job: Mapping[str, Any],
    ) -> dict[str, Latency]:
        loaded = [(name, str(directory.absolute()), kind) for name, directory, kind in models]
        save(samples, place / _SAMPLE)
        job = {**job, "models": loaded, "seconds": SECONDS}
        write_file(place / _JOB, json.dumps(job).encode())
        self.call(str(place))
        times = json.loads((place / _TIMES).read_text())
        return {name: Latency(**values) for name, values in times.items()}


def main(scratch: str) -> None:
    """What the process does.

    Example:
        >>> with scratch() as place:
        ...     save({"int8": ((), {})}, place / _SAMPLE)
        ...     write_file(place / _JOB, json.dumps({"models": [], "seconds": SECONDS}).encode())
        ...     main(str(place))  # of no model
        ...     print((place / _TIMES).read_text())
        {}
    """
    place = Path(scratch)
    job = json.loads((place / _JOB).read_text())
    # Written by the parent a moment ago, and inputs may be of any class.
    samples: dict[str, Inputs] = torch.load(place / _SAMPLE, weights_only=False)
    calls: dict[str, Callable[[], Any]] = {}
    if (place / _FLOAT).exists():
        args, kwargs = samples["float"]
        import_libraries(job)
        for name, model in _float_forms(place / _FLOAT):
            calls[name] = _bound(model, args, kwargs)
    for name, directory, kind in job["models"]:
        calls[name] = _bound(load(directory, kind, threads=1), *samples["int8"])
    with torch.inference_mode():
        times = compare_latency(calls, min_time=job["seconds"]) if calls else {}
    write_file(place / _TIMES, json.dumps({name: asdict(value) for name, value in times.items()}).encode())


def _save_float(model: nn.Module, sample: Inputs, path: Path) -> tuple[Inputs, list[str]] | None:
    """Write a scripted copy; returns what that is called with and what it needs, or ``None`` if there is none."""
    # Whatever TorchScript cannot do with the user's float model leaves the eager one.
    with suppress(Exception):
        scripted = export_torchscript(deep_copy(model), *sample)
        content = io.BytesIO()
        with quiet_torchscript():
            torch.jit.save(scripted, content)
        inputs: Inputs = in_plain_containers(tensor_inputs(model, *sample))
        write_file(path, content.getbuffer())
        return inputs, libraries_of(scripted)
    return None


def _float_forms(path: Path) -> Iterable[tuple[str, Callable[..., Any]]]:
    with quiet_torchscript():
        yield FROZEN, torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        # Loaded once more: the optimization changes the module that it is given.
        again = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        yield FUSED, torch.jit.optimize_for_inference(again)


def _bound(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    return lambda: model(*args, **kwargs)
