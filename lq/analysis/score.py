"""One figure for how good a version of a model is: SQNR against float, or any metric."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lq.analysis.tensors import compared_part, finite_output
from lq.checks import shown
from lq.messages import some_of
from lq.metrics import SQNR, ModelComparison, metric_name, targets_of
from lq.metrics.comparison import AnyMetric
from lq.ptq.batches import RunBatch, run_batch

ACCURACY: Literal["accuracy"] = "accuracy"
OneMetric = AnyMetric | Literal["accuracy"]


def single_metric(metric: AnyMetric | None) -> OneMetric:
    """The one that layers are ranked by: the first of a collection, multiclass accuracy if there is none.

    Example:
        >>> single_metric(None)
        'accuracy'
    """
    if isinstance(metric, MetricCollection):
        metric = next(iter(metric.values()))
    return ACCURACY if metric is None else metric


def require_direction(metric: OneMetric) -> None:
    """Refuse a metric that does not say which way it is better.

    Raises:
        ValueError: naming it.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> require_direction(MeanMetric())
        Traceback (most recent call last):
        ...
        ValueError: MeanMetric does not say whether higher is better; set higher_is_better = True (or False) ...
    """
    if isinstance(metric, Metric) and metric.higher_is_better is None:
        raise ValueError(
            f"{type(metric).__name__} does not say whether higher is better; set higher_is_better = True (or False) on "
            "the metric's class."
        )


def _no_figure(model: nn.Module) -> float:
    raise ValueError("OwnScore needs a figure: a function that takes a model.")


@dataclass(frozen=True)
class Score:
    """What a version of a model is judged by, always on the same batches.

    Args:
        batches: the data.
        metric: any torchmetrics metric with a single value; "accuracy" for multiclass accuracy; None for the SQNR of
            the output against the float one.
        call: how to run one batch; None for :func:`~lq.ptq.batches.run_batch`.
        target_fn: batch -> labels; None for :func:`lq.metrics.targets_of`.
        higher_is_better: needed where the metric does not say so itself.

    Raises:
        TypeError: if ``metric`` is not a torchmetrics metric.
        ValueError: if nobody says which way the metric is better.

    Example:
        >>> import torch
        >>> batches = [(torch.eye(3), torch.tensor([0, 1, 1]))]
        >>> score = Score(batches, "accuracy")
        >>> score.name, round(score.of(nn.Identity()), 3)
        ('accuracy', 0.667)
    """

    batches: Sequence[Any]
    metric: OneMetric | None = None
    call: RunBatch | None = None
    target_fn: Callable[[Any], Any] | None = None
    higher_is_better: bool | None = None

    def __post_init__(self) -> None:
        # Not `==`, which torchmetrics turns into another metric.
        if self.metric is None or (isinstance(self.metric, str) and self.metric == ACCURACY):
            return
        if isinstance(self.metric, MetricCollection) or not isinstance(self.metric, Metric):
            raise TypeError(
                f"metric={shown(self.metric)} ({type(self.metric).__name__}): layers are ranked by one figure, "
                "so give a single torchmetrics metric, e.g. MulticlassAccuracy(num_classes=10, average='micro'), or "
                "'accuracy'."
            )
        if self.higher_is_better is None:
            require_direction(self.metric)

    @property
    def name(self) -> str:
        """Short name of the figure."""
        if self.metric is None or isinstance(self.metric, str):
            return self.metric or "sqnr_db"
        return metric_name(self.metric)

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1."""
        given = self.higher_is_better
        if given is None:
            given = bool(self.metric.higher_is_better) if isinstance(self.metric, Metric) else True
        return 1 if given else -1

    def outputs(self, model: nn.Module, advance: Callable[[], None] | None = None) -> list[Tensor]:
        """The tensor of each batch's output that is compared."""
        kept, part = [], compared_part(model)
        for batch in self.batches:
            kept.append(finite_output((self.call or run_batch)(part, batch), "sensitivity()").clone())
            if advance is not None:
                advance()
        return kept

    def of(
        self, model: nn.Module, reference: Sequence[Tensor] = (), advance: Callable[[], None] | None = None
    ) -> float:
        """The figure of a model.

        Args:
            model: runs the batches.
            reference: outputs of the float model, for SQNR.
            advance: is called behind every batch.

        Returns:
            the metric, or SQNR in dB.

        Raises:
            ValueError: if the metric does not fit the batches or has several values.
        """
        if self.metric is None:
            sqnr = SQNR(sync_on_compute=False)
            for exact, output in zip(reference, self.outputs(model, advance), strict=True):
                sqnr.update(exact, output)
            return float(sqnr.compute())
        comparison = ModelComparison(
            ["model"], None if isinstance(self.metric, str) else self.metric, sync_on_compute=False
        )
        for batch in self.batches:
            output = (self.call or run_batch)(model, batch)
            finite_output(output, f"the {self.name} of a model")
            comparison.update({"model": output}, (self.target_fn or targets_of)(batch))
            if advance is not None:
                advance()
        values = comparison.compute()["model"]
        if len(values) != 1:
            raise ValueError(
                f"{type(self.metric).__name__} gives {len(values)} values ({some_of(values, 3)}), but "
                "layers are ranked by one; average them, e.g. average='macro'."
            )
        return next(iter(values.values()))


@dataclass(frozen=True)
class OwnScore(Score):
    """A figure that code of the user's computes, such as what a LightningModule logs in its validation.

    Args:
        batches: what layers are run on besides.
        figure: model -> its figure.
        label: name of the figure.
        higher_is_better: which way it is better.

    Example:
        >>> score = OwnScore([0], higher_is_better=False, figure=lambda model: 0.25, label="val_loss")
        >>> score.name, score.sign, score.of(nn.Identity())
        ('val_loss', -1, 0.25)
    """

    figure: Callable[[nn.Module], float] = field(default=_no_figure)
    label: str = "figure"

    @property
    def name(self) -> str:
        """Name of the figure."""
        return self.label

    def of(
        self, model: nn.Module, reference: Sequence[Tensor] = (), advance: Callable[[], None] | None = None
    ) -> float:
        """The figure of a model.

        Raises:
            ValueError: if it is no number.
        """
        value = self.figure(model)
        if advance is not None:
            for _ in self.batches:
                advance()
        if not math.isfinite(value):
            raise ValueError(f"{self.label} of the model is {value}, and layers cannot be ranked by that.")
        return value
