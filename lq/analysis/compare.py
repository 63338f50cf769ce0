"""Is QAT worth it? Float, post-training quantization and QAT, on the same data, in one table."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils.hooks import RemovableHandle

from lq.analysis.tensors import evaluating
from lq.backends.convert import convert
from lq.benchmark import Latency, compare_latency, size_mb
from lq.console import BatchCounter
from lq.export.artifact import load
from lq.export.manifest import read_manifest
from lq.export.rows import artifact_mb, fastest_float, float_forms
from lq.export.signature import Inputs, one_sample
from lq.export.torchscript import export_torchscript, int8_kernels, like_original
from lq.metrics import ModelComparison, targets_of
from lq.metrics.comparison import AnyMetric
from lq.ptq.batches import Call, first_batches, reusable, run_batch
from lq.ptq.dynamic import DYNAMIC_LAYERS, quantize_dynamic
from lq.ptq.static import StaticOptions, prepare_static
from lq.qconfig import PRESETS, QConfig, as_qconfig

FP32, MINMAX, HISTOGRAM = "FP32", "PTQ per-tensor MinMax", "PTQ per-channel histogram"
CORRECTED, DYNAMIC = "PTQ histogram, bias corrected", "PTQ dynamic"
FAKE, INT8 = "QAT fake", "QAT int8"
_SMALL_GAP = 0.005  # of the float metric; a share of less than that says nothing


@dataclass(frozen=True)
class CompareOptions:
    """How to compare.

    Args:
        metric: any torchmetrics metric; None for multiclass accuracy.
        call: how to run one batch; None for :func:`~lq.ptq.batches.run_batch`.
        target_fn: batch -> labels; None for :func:`lq.metrics.targets_of`.
        calibration: batches to calibrate with.
        limit: batches of the test data to use; None for all.
        threads: of the latencies.
        seconds: to time each model for, at least.
        others: more models to judge, by name.
    """

    metric: AnyMetric | None = None
    call: Call | None = None
    target_fn: Callable[[Any], Any] | None = None
    calibration: int = 100
    limit: int | None = None
    threads: int = 1
    seconds: float = 1.0
    others: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


def compare(
    model: nn.Module,
    calibration: Iterable[Any],
    test: Iterable[Any],
    qconfig: QConfig | str = "portable",
    qat: fx.GraphModule | None = None,
    artifact: str | os.PathLike[str] | None = None,
    options: CompareOptions | None = None,
) -> list[dict[str, Any]]:
    """Judge the float model, post-training quantization of three kinds, and QAT, on the same test data.

    Rows: FP32 (latency of the fastest of eager, frozen and fused TorchScript); static PTQ per tensor with MinMax, per
    channel with histograms, and the latter with corrected biases; dynamic PTQ where there are recurrent layers or
    linear ones hold most of the weights; the fake-quantized QAT model and what was exported from it. Latency is that
    of one sample, int8 as frozen TorchScript or in the artifact's own runtime.

    Args:
        model: the float model, on the CPU.
        calibration: batches for PTQ, e.g. the training data's loader.
        test: batches with labels.
        qconfig: grids of the PTQ models: those of QAT.
        qat: the prepared model that was trained, with its ranges.
        artifact: directory of its artifact, of which every format is judged whose runtime is installed; without it
            the int8 row is converted from ``qat``.
        options: see :class:`CompareOptions`.

    Returns:
        rows for :func:`lq.report.table.print_table`. ``recovered`` is the share of PTQ's loss that QAT regains,
        ``(QAT - PTQ) / (FP32 - PTQ)`` with PTQ per channel with histograms; it is left out where that loss is below
        0.5 % of the float metric.

    Raises:
        ValueError: if there are no data, or the metric does not fit them.

    Example:
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), torch.randn(64, 4)
        >>> rows = compare(net, [x], [(x, net(x).argmax(1))], options=CompareOptions(seconds=0.01))
        >>> [row["model"] for row in rows][:3]
        ['FP32', 'PTQ per-tensor MinMax', 'PTQ per-channel histogram']
    """
    options = options or CompareOptions()
    call = options.call or run_batch
    calibration, test = reusable(calibration, options.calibration), reusable(test, options.limit)
    model = copy.deepcopy(model).cpu().eval()
    example = next(first_batches(test, 1, "compare()"))
    contest = _Contest(_sample(model, example, call), options)
    contest.add_float(model)
    for name, prepared in _static(model, calibration, qconfig, call, options.calibration):
        contest.add_int8(name, convert(prepared))
    if _dynamic_pays(model):
        dynamic = quantize_dynamic(model)
        contest.add(DYNAMIC, dynamic, size_mb(dynamic))
    for name, other in options.others.items():
        contest.add(name, other)
    if qat is not None:
        contest.models[FAKE] = _fake_quantized(qat)
    if artifact is not None:
        contest.add_artifact(artifact)
    elif qat is not None:
        contest.add_int8(INT8, convert(qat))
    return contest.rows(test, call)


class _Contest:
    """The models, what they are called with for their latency, and their sizes."""

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
        scripted = export_torchscript(int8, *self.sample)
        self.add(name, like_original(scripted, int8, *self.sample), size_mb(scripted))

    def add_artifact(self, directory: str | os.PathLike[str]) -> None:
        """Every format of an artifact whose runtime is installed."""
        for kind in read_manifest(directory).get("artifacts", {}):
            try:
                loaded = load(directory, kind, threads=self.options.threads)
            except ImportError:
                continue
            self.add(f"{INT8}, {kind}", loaded, artifact_mb(kind, loaded.path))

    def rows(self, test: Iterable[Any], call: Call) -> list[dict[str, Any]]:
        """Measure everything."""
        args, kwargs = self.sample
        with torch.inference_mode(), int8_kernels():
            times = compare_latency(
                self.timed, args, kwargs, threads=self.options.threads, min_time=self.options.seconds
            )
        times[FP32] = fastest_float(times)
        results = self._judge(test, call)
        rows = [self._row(name, results, times) for name in self.models]
        return _with_recovered(rows, results)

    def _judge(self, test: Iterable[Any], call: Call) -> dict[str, dict[str, float]]:
        pairs = [(FAKE, name) for name in self.models if FAKE in self.models and name.startswith(INT8)]
        comparison = ModelComparison(list(self.models), self.options.metric, pairs)
        with torch.no_grad(), int8_kernels(), BatchCounter("lq: comparing", self.options.limit) as counter:
            for batch in first_batches(test, self.options.limit, "compare()"):
                outputs = {name: call(model, batch) for name, model in self.models.items()}
                comparison.update(outputs, (self.options.target_fn or targets_of)(batch))
                counter.advance()
        return comparison.compute()

    def _row(self, name: str, results: Mapping[str, Any], times: Mapping[str, Latency]) -> dict[str, Any]:
        row: dict[str, Any] = {"model": name, "metrics": results[name], "size_mb": self.sizes.get(name)}
        if name in times:
            row |= {"latency_ms": times[name].median_ms, "threads": self.options.threads}
        fidelity = results.get(f"{name}_vs_{FAKE}", {})
        return row | {key: fidelity[key] for key in ("agreement", "sqnr_db") if key in fidelity}


def _static(
    model: nn.Module, batches: Iterable[Any], qconfig: QConfig | str, call: Call, limit: int
) -> Iterable[tuple[str, fx.GraphModule]]:
    qconfig = as_qconfig(qconfig)
    weight = replace(qconfig.weight or PRESETS[qconfig.preset].weight, learned_scale=False)
    activation = replace(qconfig.resolved_activation, learned_scale=False)
    minmax, histogram = (replace(activation, observer=observer) for observer in ("minmax", "histogram"))
    per_tensor = replace(qconfig, weight=replace(weight, per_channel=False), activation=minmax)
    per_channel = replace(qconfig, weight=replace(weight, per_channel=True), activation=histogram)
    plain, corrected = StaticOptions(limit=limit), StaticOptions(limit=limit, bias=True)
    yield MINMAX, prepare_static(model, batches, per_tensor, call, plain)
    yield HISTOGRAM, prepare_static(model, batches, per_channel, call, plain)
    yield CORRECTED, prepare_static(model, batches, per_channel, call, corrected)


def _dynamic_pays(model: nn.Module) -> bool:
    recurrent = any(isinstance(m, (nn.LSTM, nn.GRU)) for m in model.modules())
    kinds = tuple(DYNAMIC_LAYERS.values())
    held = sum(p.numel() for m in model.modules() if isinstance(m, kinds) for p in m.parameters(recurse=False))
    return recurrent or 2 * held > sum(p.numel() for p in model.parameters())


def _fake_quantized(prepared: fx.GraphModule) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with evaluating(prepared):
            return prepared(*args, **kwargs)

    return run


def _sample(model: nn.Module, batch: Any, call: Call) -> Inputs:
    """What the model is called with for one sample of a batch."""
    heard: list[Inputs] = []

    def hear(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard.append((args, kwargs))

    hook: RemovableHandle = model.register_forward_pre_hook(hear, with_kwargs=True)
    try:
        with torch.no_grad():
            call(model, batch)
    finally:
        hook.remove()
    if not heard:
        raise ValueError("compare(): call= did not call the model: write call=lambda model, batch: model(batch[0]).")
    return one_sample(heard[0])


def _with_recovered(rows: list[dict[str, Any]], results: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    for row in rows:
        if str(row["model"]).startswith("QAT"):
            row["recovered"] = recovered(results[FP32], results[HISTOGRAM], results[row["model"]])
    return rows


def recovered(exact: Mapping[str, float], ptq: Mapping[str, float], qat: Mapping[str, float]) -> float | None:
    """Share of the loss of PTQ that QAT regains, by the first metric: ``(QAT - PTQ) / (FP32 - PTQ)``.

    Args:
        exact: metrics of the float model.
        ptq: of the model quantized after training.
        qat: of the model trained with quantization.

    Returns:
        1 if nothing is lost any more, above it if QAT is better than float; None if PTQ lost less than 0.5 % of the
        float metric, of which a share would say nothing.

    Example:
        >>> round(recovered({"accuracy": 0.92}, {"accuracy": 0.82}, {"accuracy": 0.91}), 3)
        0.9
    """
    name = next(iter(exact))
    gap = exact[name] - ptq[name]
    return (qat[name] - ptq[name]) / gap if abs(gap) >= _SMALL_GAP * abs(exact[name]) else None
