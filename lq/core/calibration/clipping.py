"""Slots whose range is not the one of their values, but a clipped one found from their histogram."""

from __future__ import annotations

import torch
from torch import Tensor

from lq.config.specs import ActivationSpec
from lq.core.calibration.entropy import entropy_range
from lq.core.calibration.histogram import Histogram, HistogramBank
from lq.core.calibration.ranges import Grid, histogram_range, mse_range, percentile_range
from lq.core.float32 import Constant

SEARCHES = {"histogram": histogram_range, "mse": mse_range, "entropy": entropy_range}


class ClippedRanges(HistogramBank):
    """Histograms of the slots whose observer needs one, and the ranges found from them when they are asked for.

    Rows are ordered by observer, so that each search takes a slice.

    Args:
        specs: of all slots of the model.
        limits: what each slot's absorbed activation lets pass.

    Example:
        >>> clipped = ClippedRanges([ActivationSpec(observer="percentile", percentile=75.0)], [(0.0, 6.0)])
        >>> _ = clipped.observe(clipped.rows[0], torch.arange(9.0))
        >>> clipped.update()
        >>> low, high = torch.tensor([torch.inf]), torch.tensor([-torch.inf])
        >>> clipped.write(low, high)
        >>> low, high
        (tensor([1.9980]), tensor([5.9980]))
    """

    def __init__(self, specs: list[ActivationSpec], limits: list[tuple[float, float]]) -> None:
        slots = sorted((i for i, spec in enumerate(specs) if needs_histogram(spec)), key=lambda i: specs[i].observer)
        super().__init__([limits[slot] for slot in slots])
        self.rows = {slot: row for row, slot in enumerate(slots)}
        ours = [specs[slot] for slot in slots]
        self._parts: list[tuple[str, slice]] = []
        for name in sorted({spec.observer for spec in ours}):
            members = [row for row, spec in enumerate(ours) if spec.observer == name]
            self._parts.append((name, slice(members[0], members[-1] + 1)))
        rows = [(s.quant_min, s.quant_max, s.symmetric) for s in ours]
        grid = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3).T
        percentile = torch.tensor([s.percentile for s in ours], dtype=torch.float32)
        self._slots = Constant(torch.tensor(slots, dtype=torch.int64))
        self._grid, self._percentile = Constant(grid.contiguous()), Constant(percentile)

    @torch.no_grad()
    def write(self, low: Tensor, high: Tensor) -> None:
        """Put the clipped ranges into ``low`` and ``high``, float32 with one entry per slot of the model.

        Slots without a batch keep what is there.
        """
        found = [self._search(name, part) for name, part in self._parts]
        has_data, slots = self.low <= self.high, self._slots.on(low.device)
        for target, ends in zip((low, high), zip(*found, strict=True), strict=True):
            kept = target.index_select(0, slots)
            target.index_copy_(0, slots, torch.where(has_data, torch.cat(ends), kept))

    def _search(self, name: str, part: slice) -> tuple[Tensor, Tensor]:
        grid, percentile = (constant.on(self.low.device) for constant in (self._grid, self._percentile))
        low, high = _search(self.counts[part], self.low[part], self.high[part], grid[:, part], percentile[part], name)
        return low, high


def needs_histogram(spec: ActivationSpec) -> bool:
    """Whether the observer of ``spec`` works on a histogram.

    Example:
        >>> [needs_histogram(ActivationSpec(observer=name)) for name in ("minmax", "percentile", "entropy")]
        [False, True, True]
    """
    return spec.fixed_range is None and (spec.observer in SEARCHES or spec.observer == "percentile")


# One operation to torch.compile, which would otherwise compile the search for minutes to run it once in a while.
@torch.library.custom_op("lq::search_range", mutates_args=())
def _search(
    counts: Tensor, low: Tensor, high: Tensor, grid: Tensor, percentile: Tensor, name: str
) -> tuple[Tensor, Tensor]:
    histogram = Histogram(counts, low, high)
    if name == "percentile":
        return percentile_range(histogram, percentile)
    quant_min, quant_max, symmetric = grid
    return SEARCHES[name](histogram, Grid(quant_min, quant_max, symmetric.bool()))


@_search.register_fake
def _(counts: Tensor, low: Tensor, high: Tensor, grid: Tensor, percentile: Tensor, name: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(low), torch.empty_like(high)
