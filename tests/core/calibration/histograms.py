"""Histograms and grids of a few slots."""

from __future__ import annotations

import math

import torch

from lq.core.calibration.histogram import Histogram, HistogramBank
from lq.core.calibration.ranges import Grid, Range


def histogram_of(*tensors: torch.Tensor, bins: int = 2048) -> Histogram:
    bank = HistogramBank([(-math.inf, math.inf)] * len(tensors), bins)
    for slot, x in enumerate(tensors):
        bank.observe(slot, x)
    bank.update()
    return bank.histogram()


def grid_of(*specs: tuple[int, int, bool]) -> Grid:
    quant_min, quant_max, symmetric = zip(*specs, strict=True)
    return Grid(torch.tensor(quant_min).float(), torch.tensor(quant_max).float(), torch.tensor(symmetric))


def minmax_range(histogram: Histogram, grid: Grid) -> Range:
    """The whole range: nothing is clipped."""
    return histogram.low, histogram.high
