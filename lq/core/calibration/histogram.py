"""Histograms of all tensors of a network in one buffer, from which clipping ranges are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lq.core.collective import all_reduce
from lq.core.float32 import Float32Buffers

BINS = 2048  # as many as in Migacz' talk on 8-bit inference and in torch.ao


class Histogram(NamedTuple):
    """Histograms of m tensors, each with equal bins over a range of its own.

    Args:
        counts: int64 of shape (m, bins).
        low: left edge of the first bin, float32 of shape (m,); ``inf`` while a histogram is empty.
        high: right edge of the last bin; ``-inf`` while a histogram is empty.

    Example:
        >>> bank = HistogramBank([(-torch.inf, torch.inf)], bins=2)
        >>> bank.histogram()
        Histogram(counts=tensor([[0, 0]]), low=tensor([inf]), high=tensor([-inf]))
        >>> _ = bank.observe(0, torch.tensor([0.0, 1.0, 4.0]))
        >>> bank.update()
        >>> bank.histogram()
        Histogram(counts=tensor([[2, 1]]), low=tensor([0.]), high=tensor([4.]))
    """

    counts: Tensor
    low: Tensor
    high: Tensor


class HistogramBank(Float32Buffers):
    """Histograms of m slots; every slot notes its batch, one vectorised update takes all of them in.

    The buffers ``counts`` (int64, so that sums over batches and processes are exact), ``low`` and ``high`` have their
    final shape from the start.

    Args:
        limits: lowest and highest value that each slot's quantizer lets pass, e.g. ``(0, 6)`` where it absorbed a
            ReLU6; what lies beyond counts as the limit itself.
        bins: bins of each histogram.

    Example:
        >>> bank = HistogramBank([(0.0, torch.inf)], bins=4)
        >>> _ = bank.observe(0, torch.tensor([-1.0, 0.0, 1.0, 8.0]))
        >>> bank.update()
        >>> bank.counts.tolist(), bank.low.item(), bank.high.item()
        ([[3, 0, 0, 1]], 0.0, 8.0)
    """

    counts: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, limits: Sequence[tuple[float, float]], bins: int = BINS) -> None:
        super().__init__()
        if bins < 2:
            raise ValueError(f"A histogram needs at least 2 bins, got bins={bins}; the default is {BINS}.")
        self.limits, self.bins = list(limits), bins
        self._batch: list[Histogram | None] = [None] * len(self.limits)
        count = len(self.limits)
        self.register_buffer("counts", torch.zeros(count, bins, dtype=torch.int64))
        self.register_buffer("low", torch.full((count,), torch.inf, dtype=torch.float32))
        self.register_buffer("high", torch.full((count,), -torch.inf, dtype=torch.float32))

    def histogram(self) -> Histogram:
        """What all updates so far took in."""
        return Histogram(self.counts, self.low, self.high)

    @torch.no_grad()
    def observe(self, slot: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Note the histogram of ``x``, beside what was noted before, for the next update; nothing waits for a GPU.

        Args:
            slot: index.
            x: floating tensor with at least one element; with NaN or infinity in it, it is not counted.

        Returns:
            lowest and highest value of ``x``, 0-dim float32, before the slot's limits.
        """
        x = x.detach().float()
        ends = torch.aminmax(x)
        noted, new = self._batch[slot], _batch_histogram(x, *ends, self.limits[slot], self.bins)
        self._batch[slot] = new if noted is None else _joined(noted, new)
        return ends.min, ends.max

    @torch.no_grad()
    def update(self) -> None:
        """Take in the batches noted since the last update, of all processes; ranges widen to hold them.

        Two collectives if several processes train: the maximum of all ranges, then the sum of all counts.
        """
        batch = self._stacked_batch()
        ends = torch.stack([-batch.low, batch.high])
        all_reduce(ends, "MAX")
        low, high = torch.minimum(self.low, -ends[0]), torch.maximum(self.high, ends[1])
        added = rebin(batch, low, high)
        all_reduce(added, "SUM")
        self.counts.copy_(rebin(self.histogram(), low, high) + added)
        self.low.copy_(low)
        self.high.copy_(high)
        self.forget()

    def forget(self) -> None:
        """Drop what was noted since the last update."""
        self._batch = [None] * len(self.limits)

    def _stacked_batch(self) -> Histogram:
        nothing = torch.full((), torch.inf, dtype=torch.float32, device=self.low.device)
        absent = Histogram(torch.zeros_like(self.counts[0]), nothing, -nothing)
        counts, low, high = zip(*(noted or absent for noted in self._batch), strict=True)
        return Histogram(torch.stack(counts), torch.stack(low), torch.stack(high))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batch": [None] * len(self.limits)}

    def extra_repr(self) -> str:
        """Its size."""
        return f"slots={len(self.limits)}, bins={self.bins}"


def _batch_histogram(x: Tensor, low: Tensor, high: Tensor, limits: tuple[float, float], bins: int) -> Histogram:
    usable = torch.isfinite(high - low)
    low, high = low.clamp(*limits), high.clamp(*limits)
    per_unit = torch.where(high > low, bins / (high - low), 0.0)
    # Clamped as integers: what NaN becomes as an integer depends on the device, but it is an integer.
    index = (x - low).mul_(per_unit).long().clamp_(0, bins - 1).flatten()
    counts = torch.zeros(bins, dtype=torch.int64, device=x.device)
    counts.scatter_add_(0, index, usable.long().expand_as(index))
    return Histogram(counts, torch.where(usable, low, torch.inf), torch.where(usable, high, -torch.inf))


def _joined(a: Histogram, b: Histogram) -> Histogram:
    """Two histograms of one slot, each of shape (bins,), as one."""
    low, high = torch.minimum(a.low, b.low).reshape(1), torch.maximum(a.high, b.high).reshape(1)
    counts = sum(rebin(Histogram(h.counts[None], h.low[None], h.high[None]), low, high) for h in (a, b))
    return Histogram(torch.as_tensor(counts)[0], low[0], high[0])


def rebin(histogram: Histogram, low: Tensor, high: Tensor) -> Tensor:
    """Counts of a histogram over wider ranges; not one is lost.

    A bin that straddles an edge is shared by length between its two new bins, rounded to whole counts.

    Args:
        histogram: m histograms, empty ones included.
        low: new left ends, shape (m,), none above the old one.
        high: new right ends, none below the old one.

    Returns:
        int64 of the shape of ``histogram.counts``.

    Example:
        >>> old = Histogram(torch.tensor([[4, 0, 2, 6]]), torch.tensor([0.0]), torch.tensor([1.0]))
        >>> rebin(old, torch.tensor([0.0]), torch.tensor([2.0]))
        tensor([[4, 8, 0, 0]])
    """
    counts, bins = histogram.counts, histogram.counts.shape[1]
    width = (high - low) / bins
    # Empty histograms and ranges of length 0 divide infinity or 0 by 0; all of their counts are in bin 0.
    shift = ((histogram.low - low) / width).nan_to_num(0.0, 0.0, 0.0)[:, None]
    share = ((histogram.high - histogram.low) / bins / width).nan_to_num(0.0, 0.0, 0.0)[:, None]
    left = shift + share * torch.arange(bins, device=counts.device)
    first = left.floor().clamp_(0, bins - 1)
    beyond = ((left + share - first - 1) / share).nan_to_num(0.0).clamp_(0, 1)
    # float32 may round a large count up.
    moved = torch.minimum((counts * beyond).round().long(), counts)
    target = first.long()
    out = torch.zeros_like(counts).scatter_add_(1, target, counts - moved)
    return out.scatter_add_(1, (target + 1).clamp_(max=bins - 1), moved)
