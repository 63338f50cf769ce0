"""How long calls of a network take in a runtime, with some of its layers in float."""

from __future__ import annotations

import copy
import glob
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from lq.analysis.bits.layers import LayerChoices
from lq.analysis.costs import CostRow, layer_costs
from lq.backends.prepare import prepare
from lq.config.qconfig import QConfig
from lq.conversion.graph import as_graph
from lq.deployment.outputs import output_of
from lq.export.artifact.calls import smallest_call
from lq.export.artifact.manifest import write_manifest
from lq.export.artifact.scratch import scratch
from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS
from lq.lightning_module.copies import float_copy
from lq.ptq.batches import RunBatch
from lq.ptq.calibrate import calibrate
from lq.timing.rows import FP32
from lq.timing.stopwatch import Stopwatch
from lq.tracing.exported_call import call_to_export
from lq.tracing.structure import Inputs

_FLOAT, _MIXED = "float", "mixed"


@dataclass
class LatencyMeter:
    """Latency of one sample on one thread, in files that are written for it and run in a process of their own.

    The network and its float counterpart take turns, and the fastest calls count, because other processes disturb the
    median.

    Args:
        runtime: "torch", "onnx" or "openvino".
        model: in float and in evaluation mode, on the CPU.
        qconfig: with its layers in float, to which others are added.
        example: inputs of one call.
        calibration: gives a prepared model its ranges.
        place: an empty directory.
        stopwatch: the process.

    Attributes:
        float_ms: what the float model took beside the first choice.

    Example:
        >>> import torch
        >>> from lq.ptq.batches import run_batch
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), torch.eye(4)
        >>> ranges = calibrated_by([x], run_batch, lambda: None)
        >>> with latency_meter("torch", net, QConfig(keep="nothing"), ((x,), {}), ranges) as meter:
        ...     print(meter.share(["1"]) > 0, meter.float_ms > 0)
        True True
    """

    runtime: str
    model: nn.Module
    qconfig: QConfig
    example: Inputs
    calibration: Callable[[nn.Module], None]
    place: Path
    stopwatch: Stopwatch
    float_ms: float = 0.0

    def share(self, in_float: Sequence[str] = ()) -> float:
        """What a call takes with these layers in float, over what the float model takes.

        Raises:
            ValueError: if the model cannot be exported.
            RuntimeError: if the process fails.
        """
        twin, pattern = float_copy(self.model).eval(), tuple(map(glob.escape, in_float))
        prepare(twin, replace(self.qconfig, exclude=(*self.qconfig.exclude, *pattern)), *copy.deepcopy(self.example))
        self.calibration(twin)
        graph = as_graph(twin.eval(), call_to_export(twin, self.example))
        mixed = self.place / _MIXED
        signature = Signature.of(graph, self.example, output_of(graph, self.example))
        mixed.mkdir(exist_ok=True)
        info = EXPORTERS[self.runtime].export(graph, self.example, mixed)
        self._describe(mixed, signature, info)
        sample = smallest_call(graph, self.example)
        if self.runtime == "torch":
            times = self.stopwatch.latencies(mixed, [self.runtime], self.model, sample)
            exact = min(t.min_ms for name, t in times.items() if name.startswith(FP32))
        else:
            places = {self.runtime: mixed, _FLOAT: self._float(signature)}
            times = self.stopwatch.of_artifacts(places, self.runtime, sample)
            exact = times[_FLOAT].min_ms
        self.float_ms = self.float_ms or exact
        return times[self.runtime].min_ms / exact

    def _float(self, signature: Signature) -> Path:
        directory = self.place / _FLOAT
        if not directory.exists():
            directory.mkdir()
            info = EXPORTERS[self.runtime].write_float(self.model, self.example, directory)
            self._describe(directory, signature, info)
        return directory

    def _describe(self, directory: Path, signature: Signature, info: dict[str, Any]) -> None:
        write_manifest(directory, {"signature": signature.to_dict(), "artifacts": {self.runtime: info}})


@contextmanager
def latency_meter(
    runtime: str, model: nn.Module, qconfig: QConfig, example: Inputs, calibration: Callable[[nn.Module], None]
) -> Iterator[LatencyMeter]:
    """A meter, with room on the disk and a process for the time being.

    Example:
        >>> import torch
        >>> net, x = nn.Sequential(nn.Linear(4, 2)), torch.eye(4)
        >>> with latency_meter("torch", net, QConfig(), ((x,), {}), lambda prepared: None) as meter:
        ...     print(meter.place.exists(), meter.model is net)
        True False
        >>> meter.place.exists()
        False
    """
    with scratch() as place, Stopwatch() as stopwatch:
        yield LatencyMeter(runtime, float_copy(model).eval(), qconfig, example, calibration, place, stopwatch)


def calibrated_by(batches: Sequence[Any], run: RunBatch, advance: Callable[[], None]) -> Callable[[nn.Module], None]:
    """Ranges from one batch: which they are does not matter for the time; ``advance`` is called behind it.

    Example:
        >>> import torch
        >>> from lq.backends.prepare import state_of
        >>> from lq.ptq.batches import run_batch
        >>> prepared = prepare(nn.Sequential(nn.Linear(4, 2)))
        >>> calibrated_by([torch.eye(4), 9 * torch.eye(4)], run_batch, lambda: print("one batch"))(prepared)
        one batch
        >>> state_of(prepared).max_val[0]
        tensor(1.)
    """

    def calibration(prepared: nn.Module) -> None:
        calibrate(prepared, batches[:1], run, 1, show_progress=False)
        advance()

    return calibration


def added_in_float(graph: fx.GraphModule, example: Inputs, layers: Sequence[LayerChoices]) -> list[float]:
    """How much longer each layer takes in float than in int8, as parts of the sum.

    They are measured on PyTorch's kernels, one layer at a time. A layer that PyTorch has no int8 kernel for counts by
    its multiplications.

    Args:
        graph: prepared, with ranges.
        example: inputs of one call.
        layers: of the graph.

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> x = torch.eye(4)
        >>> graph = as_graph(prepare_static(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), [x]))
        >>> added = added_in_float(graph, ((x,), {}), [LayerChoices("0", 32, ()), LayerChoices("1", 16, ())])
        >>> round(sum(added), 6)
        1.0
    """
    sample = smallest_call(graph, example)
    rows = layer_costs(graph, sample, lambda model, call: model(*call[0], **call[1]))
    added = {row["layer"]: _added(row) for row in rows}
    known = [(value, row["macs"]) for row in rows if (value := added[row["layer"]]) is not None]
    per_mac = sum(value for value, _ in known) / max(sum(macs for _, macs in known), 1)
    by_macs = {row["layer"]: per_mac * row["macs"] for row in rows}
    values = [found if (found := added[layer.name]) is not None else by_macs[layer.name] for layer in layers]
    total = sum(values)
    return [value / total if total else 1 / len(values) for value in values]


def _added(row: CostRow) -> float | None:
    if row["int8_ms"] is None or row["float_ms"] is None:
        return None
    return max(row["float_ms"] - row["int8_ms"], 0.0)
