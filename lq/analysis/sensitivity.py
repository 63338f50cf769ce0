"""Which layers quantization hurts: one at a time, on SQNR or on a metric."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor, fx, nn

from lq.analysis.resume import ResultFile, fingerprint
from lq.analysis.score import OneMetric, Score
from lq.analysis.tensors import evaluating, require_ranges
from lq.backends.prepare import plan_of
from lq.console import BatchCounter
from lq.conversion.graph import as_graph
from lq.ptq.batches import RunBatch, first_batches
from lq.ptq.layers import layers_of
from lq.ptq.switch import quantize_only

DIRECTIONS = ("one", "all_but_one")


class SensitivityRow(TypedDict):
    """One layer.

    Args:
        layer: its name.
        direction: "one" (only this layer quantized) or "all_but_one".
        metric: what ``value`` is, "sqnr_db" or the metric's name.
        value: the figure of the model with the layers chosen so.
        float_value: of the float model; None for SQNR, where it is infinite.
        quantized_value: of the model with all layers quantized.
        loss: what quantizing this layer costs: of a metric, the loss that it causes ("one") or the gain that leaving
            it out brings; of SQNR the same in noise power over signal power. Losses of several layers add up, roughly.
        share: ``loss`` as a share of that of the whole model; None if that is not positive.

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> prepared = prepare_static(nn.Sequential(nn.Linear(4, 2)), [torch.eye(4)])
        >>> (row,) = sensitivity(prepared, [torch.eye(4)], direction="one")
        >>> row["layer"], row["metric"], row["value"] == row["quantized_value"], row["float_value"]
        ('0', 'sqnr_db', True, None)
    """

    layer: str
    direction: str
    metric: str
    value: float
    float_value: float | None
    quantized_value: float
    loss: float
    share: float | None


@dataclass(frozen=True)
class SensitivityOptions:
    """How to measure.

    Args:
        call: how to run one batch; None for :func:`~lq.ptq.batches.run_batch`.
        target_fn: batch -> labels; None for :func:`lq.metrics.targets_of`.
        higher_is_better: needed where the metric does not say so itself.
        limit: batches to use; they are kept in memory, so that every layer is measured on the same ones.
        show_progress: whether to show how far it is.
        replace_other: whether a ``resume_file`` of another model, metric or data is started anew, rather than refused.

    Example:
        >>> SensitivityOptions(limit=8, show_progress=False).limit
        8
    """

    call: RunBatch | None = None
    target_fn: Callable[[Any], Any] | None = None
    higher_is_better: bool | None = None
    limit: int = 8
    show_progress: bool = True
    replace_other: bool = False


def sensitivity(
    prepared: nn.Module,
    batches: Iterable[Any],
    metric: OneMetric | None = None,
    direction: str = "all_but_one",
    resume_file: str | os.PathLike[str] | None = None,
    options: SensitivityOptions | None = None,
    score: Score | None = None,
) -> list[SensitivityRow]:
    """What quantizing each layer costs, by switching layers on or off one at a time.

    "one" quantizes each layer alone and measures the loss that it causes, as ``QConfig(include=[layer])`` would.
    "all_but_one" leaves each layer in float and measures the gain, as ``QConfig(exclude=[layer])`` would. A tensor that
    another int8 layer reads or writes stays quantized.

    Args:
        prepared: from :func:`lq.prepare`, with ranges; it is left as it is.
        batches: data, e.g. a DataLoader; with labels if there is a metric.
        metric: any torchmetrics metric with a single value; "accuracy" for multiclass accuracy; None for the SQNR of
            the output against the float one, which needs no labels and few batches.
        direction: "one" or "all_but_one".
        resume_file: JSON file in which every result is kept at once, and from which an interrupted run goes on.
        options: see :class:`SensitivityOptions`.
        score: evaluates in the place of ``metric``.

    Returns:
        a row per layer, in execution order; :func:`most_sensitive` sorts them.

    Raises:
        TypeError: if ``metric`` is not a single torchmetrics metric.
        ValueError: if the direction is unknown, the model has no ranges, there is no batch, nobody says which way the
            metric is better, or the file belongs to another model, metric or data.

    Source:
        "QAT in practice, basics", after the post "Practical Quantization in PyTorch".

    Example:
        >>> import torch
        >>> from lq.ptq.static import prepare_static
        >>> model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.randn(64, 4)
        >>> rows = sensitivity(prepare_static(model, [x]), [x], direction="one")
        >>> [row["layer"] for row in rows], rows[0]["metric"]
        (['0', '1'], 'sqnr_db')
    """
    options = options or SensitivityOptions()
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r} is unknown; choose one of {list(DIRECTIONS)}.")
    require_ranges(prepared, "sensitivity()")
    prepared = as_graph(prepared)
    kept = list(first_batches(batches, options.limit, "sensitivity()"))
    score = score or Score(kept, metric, options.call, options.target_fn, options.higher_is_better)
    layers = [layer.name for layer in layers_of(prepared)]
    total = len(kept) * (len(layers) + 2)
    counter = BatchCounter(f"lq: sensitivity of {len(layers)} layers", total, shown=options.show_progress)
    with evaluating(prepared), counter:
        return _measure(_Run(prepared, score, direction, counter.advance), layers, resume_file, options.replace_other)


def most_sensitive(rows: Iterable[SensitivityRow]) -> list[SensitivityRow]:
    """The rows, the layer that causes the most loss first.

    Example:
        >>> row = SensitivityRow(layer="a", direction="one", metric="accuracy", value=0.9, float_value=0.92,
        ...     quantized_value=0.8, loss=0.02, share=0.17)
        >>> [r["layer"] for r in most_sensitive([row, {**row, "layer": "b", "loss": 0.05}])]
        ['b', 'a']
    """
    return sorted(rows, key=lambda row: -row["loss"])


@dataclass
class _Run:
    prepared: fx.GraphModule
    score: Score
    direction: str
    advance: Callable[[], None]
    reference: tuple[Tensor, ...] = ()

    def value(self, layers: list[str]) -> float:
        with quantize_only(self.prepared, layers):
            return self.score.of(self.prepared, self.reference, self.advance)

    def loss(self, better: float | None, worse: float) -> float:
        """How much worse one figure is than another."""
        if self.score.name != "sqnr_db":
            assert better is not None
            return self.score.sign * (better - worse)
        return _noise(worse) - (0.0 if better is None else _noise(better))


def _noise(decibel: float) -> float:
    return float(10 ** (-decibel / 10))


def _measure(
    run: _Run, layers: list[str], path: str | os.PathLike[str] | None, replace_other: bool
) -> list[SensitivityRow]:
    float_value = None
    if run.score.name == "sqnr_db":
        with quantize_only(run.prepared, []):
            run.reference = tuple(run.score.outputs(run.prepared, run.advance))
    else:
        float_value = run.value([])
    quantized = run.value(layers)
    key = {
        "model": fingerprint(run.prepared),
        "plan": str(plan_of(run.prepared)),
        "metric": run.score.name,
        "direction": run.direction,
        "results on the data": [float_value, quantized],
    }
    file = ResultFile(path, key, replace_other)
    rows = []
    for layer in layers:
        chosen = [layer] if run.direction == "one" else [other for other in layers if other != layer]
        if layer not in file.results:
            file.add(layer, run.value(chosen))
        rows.append(_row(run, layer, file.results[layer], float_value, quantized))
    return rows


def _row(run: _Run, layer: str, value: float, float_value: float | None, quantized: float) -> SensitivityRow:
    loss = run.loss(float_value, value) if run.direction == "one" else run.loss(value, quantized)
    whole = run.loss(float_value, quantized)
    return SensitivityRow(
        layer=layer,
        direction=run.direction,
        metric=run.score.name,
        value=value,
        float_value=float_value,
        quantized_value=quantized,
        loss=loss,
        share=loss / whole if whole > 0 else None,
    )
