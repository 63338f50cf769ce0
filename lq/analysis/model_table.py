"""Several models on the same data: metric, size, latency, agreement."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torchmetrics import Metric

from lq.analysis.score import ACCURACY
from lq.analysis.tensors import finite_output
from lq.console import BatchCounter
from lq.export.artifact.directory import AnyPath
from lq.export.artifact.int8_model import at_hand, known_kinds, load
from lq.export.artifact.manifest import read_manifest
from lq.export.artifact.signature import Signature
from lq.export.formats.torchscript import export_torchscript, int8_kernels, like_original, with_traced_sizes
from lq.metrics import ModelComparison, targets_of
from lq.metrics.comparison import AnyMetric, metric_name
from lq.ptq.batches import RunBatch, first_batches
from lq.timing.latency import Latency, compare_latency, size_mb
from lq.timing.rows import artifact_mb, fastest_float, float_forms
from lq.tracing.batch import images_at_once
from lq.tracing.images import run_in_parts
from lq.tracing.structure import Inputs, tensors_of

FP32, FAKE, INT8, HISTOGRAM = "FP32", "QAT, fake-quantized", "QAT int8", "PTQ per-channel histogram"
_SMALL_GAP = 0.005  # of the float metric; a share of less than that says nothing


@dataclass(frozen=True)
class CompareOptions:
    """How to compare.

    Args:
        metric: any torchmetrics metric; None for multiclass accuracy where the batches are plain classification.
        call: how to run one batch; None for :func:`~lq.ptq.batches.run_batch`.
        target_fn: batch -> labels; None for :func:`lq.metrics.targets_of`.
        calibration: batches to calibrate with.
        limit: batches of the test data to use; None for all.
        threads: of the latencies.
        seconds: to time each model for, at least.
        others: more models to judge, by name.
        own: model -> figures that the user's own code computes of it, besides the metric.
        monitor: which of the user's own figures counts; it is shown first, and what QAT recovers is measured by it.
        higher_is_better: which way that is better; None if nobody says.

    Example:
        >>> CompareOptions(limit=10, call=lambda model, batch: model(batch["image"])).calibration
        100
    """

    metric: AnyMetric | None = None
    call: RunBatch | None = None
    target_fn: Callable[[Any], Any] | None = None
    calibration: int = 100
    limit: int | None = None
    threads: int = 1
    seconds: float = 1.0
    others: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    own: Callable[[Callable[..., Any]], Mapping[str, float]] | None = None
    monitor: str | None = None
    higher_is_better: bool | None = None


class ModelTable:
    """Models that are judged on the same data, what they are called with for their latency, and their sizes.

    Args:
        sample: inputs of one call.
        options: how to compare.

    Example:
        >>> from lq.ptq.batches import run_batch
        >>> x = torch.randn(8, 4)
        >>> table = ModelTable(((x[:1],), {}), CompareOptions(seconds=0.01))
        >>> table.add_float(nn.Sequential(nn.Linear(4, 3)).eval())
        >>> [row["model"] for row in table.rows([(x, torch.zeros(8, dtype=torch.long))], run_batch)]
        ['FP32']
    """

    def __init__(self, sample: Inputs, options: CompareOptions) -> None:
        self.sample, self.options = sample, options
        self.models: dict[str, Callable[..., Any]] = {}
        self.timed: dict[str, Callable[..., Any]] = {}
        self.sizes: dict[str, float] = {}

    def add(self, name: str, model: Callable[..., Any], size: float | None = None) -> None:
        """A model that is timed as it is, if its size is known."""
        self.models[name] = model
        if size is not None:
            self.timed[name], self.sizes[name] = model, size

    def add_float(self, model: nn.Module) -> None:
        """The float model in all its forms; the fastest counts."""
        self.models[FP32], self.sizes[FP32] = model, size_mb(model)
        self.timed |= float_forms(model, self.sample)

    def add_int8(self, name: str, int8: fx.GraphModule) -> None:
        """An int8 model as frozen TorchScript."""
        scripted = export_torchscript(with_traced_sizes(int8), *self.sample)
        run, count = like_original(scripted, int8, *self.sample), images_at_once(int8)
        self.add(name, run if count is None else _of_detector(run, int8, self.sample, count), size_mb(scripted))

    def add_artifact(self, directory: AnyPath) -> None:
        """Every format of an artifact whose runtime is installed."""
        with at_hand(directory) as place:
            for kind in known_kinds(read_manifest(place)):
                try:
                    loaded = load(place, kind, threads=self.options.threads)
                except ImportError:
                    continue
                except ValueError as error:  # an engine of another CPU
                    warnings.warn(f"lq: the {kind} model is not in the table: {error}", stacklevel=2)
                    continue
                self.add(f"{INT8}, {kind}", loaded, artifact_mb(kind, place))

    def rows(self, test: Iterable[Any], call: RunBatch) -> list[dict[str, Any]]:
        """Measure everything."""
        args, kwargs = self.sample
        with torch.inference_mode(), int8_kernels():
            times = compare_latency(
                self.timed, args, kwargs, threads=self.options.threads, min_time=self.options.seconds
            )
        fastest = fastest_float(times)
        if fastest is not None:
            times[FP32] = fastest
        results = self._judge(test, call)
        rows = [self._row(name, results, times) for name in self.models]
        return _with_recovered(rows, results, self._higher_is_better(next(iter(results[FP32]), None)))

    def _higher_is_better(self, name: str | None) -> bool | None:
        """Which way a figure is better, as far as anybody says so."""
        metric = self.options.metric
        if name is not None and name == self.options.monitor:
            return self.options.higher_is_better
        if metric is None:
            return True if name == ACCURACY else None
        return metric.higher_is_better if isinstance(metric, Metric) and metric_name(metric) == name else None

    def _judge(self, test: Iterable[Any], call: RunBatch) -> dict[str, dict[str, float]]:
        pairs = [(FAKE, name) for name in self.models if FAKE in self.models and name.startswith(INT8)]
        own = self.options.own
        comparison = ModelComparison(list(self.models), self.options.metric, pairs, optional=own is not None)
        total = self.options.limit or (len(test) if isinstance(test, Sized) else None)
        with torch.no_grad(), int8_kernels(), BatchCounter("lq: comparing", total) as counter:
            for batch in first_batches(test, self.options.limit, "compare()"):
                outputs = {name: call(model, batch) for name, model in self.models.items()}
                finite_output(outputs[FP32], f"compare(), {FP32}")
                comparison.update(outputs, (self.options.target_fn or targets_of)(batch))
                counter.advance()
        results = comparison.compute()
        if own is not None:
            results |= {name: {**own(model), **results[name]} for name, model in self.models.items()}
        counts = self.options.monitor
        return {
            name: {**({counts: figures[counts]} if counts in figures else {}), **figures}
            for name, figures in results.items()
        }

    def _row(self, name: str, results: Mapping[str, Any], times: Mapping[str, Latency]) -> dict[str, Any]:
        row: dict[str, Any] = {"model": name, "metrics": results[name], "size_mb": self.sizes.get(name)}
        if name in times:
            row |= {"latency_ms": times[name].median_ms, "threads": self.options.threads}
        fidelity = results.get(f"{name}_vs_{FAKE}", {})
        return row | {key: fidelity[key] for key in ("agreement", "sqnr_db") if key in fidelity}


def _with_recovered(
    rows: list[dict[str, Any]], results: Mapping[str, Mapping[str, float]], higher: bool | None
) -> list[dict[str, Any]]:
    for row in rows:
        if HISTOGRAM in results and str(row["model"]).startswith("QAT"):
            row["recovered"] = recovered(results[FP32], results[HISTOGRAM], results[row["model"]], higher)
    return rows


def recovered(
    exact: Mapping[str, float], ptq: Mapping[str, float], qat: Mapping[str, float], higher_is_better: bool | None = None
) -> float | None:
    """Share of the loss of PTQ that QAT regains, by the first metric: ``(QAT - PTQ) / (FP32 - PTQ)``.

    Args:
        exact: metrics of the float model.
        ptq: of the model quantized after training.
        qat: of the model trained with quantization.
        higher_is_better: which way the metric is better; None if nobody says.

    Returns:
        1 if nothing is lost any more, above it if QAT is better than float; None if PTQ lost less than 0.5 % of the
        float metric, of which a share would say nothing, or a version has no such metric. None, too, where float lies
        between PTQ and QAT and nobody says which of the two is better than float.

    Example:
        >>> round(recovered({"accuracy": 0.92}, {"accuracy": 0.82}, {"accuracy": 0.91}), 3)
        0.9
    """
    name = next(iter(exact), None)
    if name is None or name not in ptq or name not in qat:
        return None
    gap = exact[name] - ptq[name]
    if not gap or abs(gap) < _SMALL_GAP * abs(exact[name]):
        return None
    share = (qat[name] - ptq[name]) / gap
    if higher_is_better is None:
        return share if share <= 1 else None
    return share if (gap > 0) == higher_is_better else None


def _of_detector(run: Callable[..., Any], int8: fx.GraphModule, sample: Inputs, count: int) -> Callable[..., Any]:
    """A scripted detector that takes and returns lists of any length."""
    args, kwargs = sample
    with torch.no_grad(), int8_kernels():
        signature = Signature.of(int8, sample, int8(*args, **kwargs))

    def some(*args: Any, **kwargs: Any) -> Any:
        return signature.restore(tensors_of(run(*args, **kwargs)))

    return lambda *args, **kwargs: run_in_parts(some, (args, kwargs), count)
