"""The distances of :mod:`lq.metrics.fidelity` over many batches and processes, as torchmetrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric

from lq.compat.float64 import as_float64, has_float64
from lq.metrics.detections import Detections, shared_scores
from lq.metrics.fidelity import agreeing, decibel, max_abs_error, powers


def _is_float64(state: Any) -> bool:
    return isinstance(state, Tensor) and state.dtype == torch.float64


class _InFloat64(Metric):
    """States of float64 stay on the CPU where a device has none."""

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Metric:
        if has_float64(fn(torch.zeros(1, device=self.device)).device):
            moved = super()._apply(fn, exclude_state)
        else:
            kept = [name for name, state in self.metric_state.items() if _is_float64(state)]
            moved = super()._apply(fn, [*exclude_state, *kept])
        return cast(Metric, moved)


class SQNR(_InFloat64):
    """:func:`sqnr` over all batches seen: powers are summed, and the ratio is taken once at the end.

    Example:
        >>> metric = SQNR()
        >>> metric.update(torch.tensor([3.0]), torch.tensor([3.0]))
        >>> metric.update(torch.tensor([4.0]), torch.tensor([4.5]))
        >>> metric.compute()
        tensor(20., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    signal: Tensor
    noise: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("signal", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("noise", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, reference: Tensor, other: Tensor) -> None:
        """Add a batch (see :func:`sqnr`)."""
        signal, noise = powers(reference, other)
        self.signal = self.signal + signal
        self.noise = self.noise + noise

    def compute(self) -> Tensor:
        """SQNR in dB over everything seen."""
        return decibel(self.signal, self.noise)


class Top1Agreement(Metric):
    """:func:`top1_agreement` over all batches seen.

    Example:
        >>> metric = Top1Agreement()
        >>> metric.update(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 9.0]]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    same: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("same", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch (see :func:`top1_agreement`)."""
        same, total = agreeing(a, b)
        self.same = self.same + same
        self.total = self.total + total

    def compute(self) -> Tensor:
        """Share of such predictions over everything seen."""
        return as_float64(self.same) / as_float64(self.total)


class DetectionAgreement(_InFloat64):
    """:func:`lq.metrics.detections.detection_agreement` over all batches seen.

    Example:
        >>> box = {"boxes": torch.tensor([[0.0, 0.0, 9.0, 9.0]]), "scores": torch.ones(1), "labels": torch.ones(1)}
        >>> metric = DetectionAgreement()
        >>> metric.update([box], [box])
        >>> metric.update([box], [{key: value[:0] for key, value in box.items()}])
        >>> round(float(metric.compute()), 3)
        0.667
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    agreeing: Tensor
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("agreeing", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, expected: Detections, got: Detections) -> None:
        """Add a batch (see :func:`lq.metrics.detections.detection_agreement`)."""
        agreeing, total = shared_scores(expected, got)
        self.agreeing = self.agreeing + agreeing
        self.total = self.total + total

    def compute(self) -> Tensor:
        """Share of common detections over everything seen; 1 if there are none."""
        return torch.where(self.total > 0, self.agreeing / self.total, torch.ones_like(self.total))


class MaxAbsError(_InFloat64):
    """:func:`max_abs_error` over all batches seen.

    Example:
        >>> metric = MaxAbsError()
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
        >>> metric.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    largest: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("largest", torch.zeros((), dtype=torch.float64), dist_reduce_fx="max")

    def update(self, a: Tensor, b: Tensor) -> None:
        """Add a batch (see :func:`max_abs_error`)."""
        self.largest = torch.maximum(self.largest, max_abs_error(a, b))

    def compute(self) -> Tensor:
        """Largest absolute difference over everything seen."""
        return self.largest
