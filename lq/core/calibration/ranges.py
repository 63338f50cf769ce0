"""From histograms to clipping ranges: all slots at once, without a loop over them.

Every function takes m histograms and gives ``(low, high)``, float32 of shape (m,), within the histogram's own range.
Histograms whose range has no length (constant or no data) give their own range back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lq.core.calibration.histogram import Histogram
from lq.core.functional import affine_qparams

Range = tuple[Tensor, Tensor]

# Candidates are tried so many at a time: more memory would not make it faster.
_CHUNK = 16


class Grid(NamedTuple):
    """Integer grids of m tensors: two float32 tensors of shape (m,) and a boolean one.

    Example:
        >>> grid = Grid(torch.tensor([0.0, -7.0]), torch.tensor([255.0, 7.0]), torch.tensor([False, True]))
        >>> affine_qparams(torch.tensor([-1.0, -1.0]), torch.tensor([1.55, 0.5]), *grid)
        (tensor([0.0100, 0.1429]), tensor([100.,   0.]))
    """

    quant_min: Tensor
    quant_max: Tensor
    symmetric: Tensor


def percentile_range(histogram: Histogram, percentile: float | Tensor = 99.99) -> Range:
    """Clip the share ``1 - percentile / 100`` of the values at each end.

    Args:
        histogram: m histograms.
        percentile: in (50, 100], for all or of shape (m,).

    Returns:
        ``(low, high)``, right to a bin's width.

    Source:
        Wu et al., "Integer Quantization for Deep Learning Inference", https://arxiv.org/abs/2004.09602, section 5.2,
        here for both ends of the range.

    Example:
        >>> histogram = Histogram(torch.tensor([[1, 99, 99, 1]]), torch.tensor([0.0]), torch.tensor([4.0]))
        >>> percentile_range(histogram, 99.0)
        (tensor([1.]), tensor([3.]))
    """
    counts, low, high = histogram
    share = (100 - percentile) / 100
    cut = ((counts.sum(dim=1) - 1).clamp(min=0) * share).floor().long()
    upper = _without_top(counts, low, high, cut)
    lower = -_without_top(counts.flip(1), -high, -low, cut)
    return within(histogram, lower, upper)


def _without_top(counts: Tensor, low: Tensor, high: Tensor, cut: Tensor) -> Tensor:
    """Where the highest value lies once the ``cut`` highest ones are gone, values spread evenly over their bin."""
    from_top = counts.flip(1)
    cut = cut[:, None]
    above = from_top.cumsum(dim=1)
    index = (above <= cut).sum(dim=1, keepdim=True).clamp(max=counts.shape[1] - 1)
    inside = from_top.gather(1, index)
    gone = cut - (above.gather(1, index) - inside)
    return high - (high - low) / counts.shape[1] * (index + gone.float() / inside.clamp(min=1))[:, 0]


def quantization_error(histogram: Histogram, grid: Grid, low: Tensor, high: Tensor) -> Tensor:
    r"""Mean squared error of the tensors quantized over ``[low, high]``, rounding and clipping together.

    Values are spread evenly over their bin, and the error is integrated exactly: with :math:`u = x / s` and
    :math:`n = \text{clamp}(\text{round}(u))`, :math:`\int (u - n)^2 du = n / 12 + (u - n)^3 / 3`, also beyond the
    ends of the grid.

    Args:
        histogram: m histograms.
        grid: m grids.
        low: lower ends, shape (m, candidates).
        high: upper ends, same shape.

    Returns:
        float32 of shape (m, candidates); NaN where a histogram's range has no length.

    Example:
        >>> histogram = Histogram(torch.ones(1, 4, dtype=torch.int64), torch.tensor([0.0]), torch.tensor([2.0]))
        >>> grid = Grid(torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([False]))
        >>> quantization_error(histogram, grid, torch.tensor([[0.0]]), torch.tensor([[2.0]]))  # step 1: 1 / 12
        tensor([[0.0833]])
    """
    counts, left, right = histogram
    bins = counts.shape[1]
    quant_min, quant_max, symmetric = (part[:, None] for part in grid)
    scale, zero_point = affine_qparams(low, high, quant_min, quant_max, symmetric)
    width = ((right - left) / bins)[:, None]
    edges = left[:, None] + width * torch.arange(bins + 1, device=low.device)
    real = edges[:, None, :] / scale[..., None]
    bottom, top = quant_min - zero_point, quant_max - zero_point
    nearest = torch.clamp(real.round(), bottom[..., None], top[..., None])
    integral = (real - nearest).pow_(3).div_(3).add_(nearest, alpha=1 / 12)
    share = counts.float() / counts.sum(dim=1, keepdim=True)  # integers would give the default type
    return torch.einsum("mcb,mb->mc", integral.diff(dim=-1), share) * scale**3 / width


def mse_range(histogram: Histogram, grid: Grid) -> Range:
    """The range with the least squared error among those that shrink both ends by one factor.

    Factors from 1 down to a bin's width, geometric, then finer ones around the best.

    Args:
        histogram: m histograms.
        grid: m grids.

    Returns:
        ``(low, high)``.

    Source:
        Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference",
        https://arxiv.org/abs/1902.06822, section 3.

    Example:
        >>> counts = torch.tensor([[0, 500, 500, 0, 0, 0, 0, 1]])
        >>> histogram = Histogram(counts, torch.tensor([-2.0]), torch.tensor([6.0]))
        >>> grid = Grid(torch.tensor([0.0]), torch.tensor([15.0]), torch.tensor([False]))
        >>> low, high = mse_range(histogram, grid)
        >>> bool(-2 < low) and bool(high < 6)
        True
    """
    full_low, full_high = _with_zero(histogram)
    coarse, fine = _coarse(histogram), _around(full_low.device)
    low, high = _best(histogram, grid, full_low * coarse, full_high * coarse)
    low, high = _best(histogram, grid, torch.maximum(low * fine, full_low), torch.minimum(high * fine, full_high))
    return within(histogram, low[:, 0], high[:, 0])


def histogram_range(histogram: Histogram, grid: Grid) -> Range:
    """The range with the least squared error, both ends free.

    From :func:`mse_range` on, each end in turn takes its best place while the other one waits: first anywhere, then
    nearby. A symmetric grid has but one end to move, and stays with :func:`mse_range`.

    Args:
        histogram: m histograms.
        grid: m grids.

    Returns:
        ``(low, high)``, never worse than those of :func:`mse_range`.

    Source:
        the aim of ``torch.ao.quantization.HistogramObserver``; the search is our own.

    Example:
        >>> counts = torch.tensor([[1, 0, 0, 0, 0, 500, 500, 0]])
        >>> histogram = Histogram(counts, torch.tensor([-6.0]), torch.tensor([2.0]))
        >>> grid = Grid(torch.tensor([0.0]), torch.tensor([15.0]), torch.tensor([False]))
        >>> low, high = histogram_range(histogram, grid)
        >>> bool(-6 < low) and bool(high < 2)
        True
    """
    full_low, full_high = _with_zero(histogram)
    tied = mse_range(histogram, grid)
    low, high = tied[0].clamp(max=0.0)[:, None], tied[1].clamp(min=0.0)[:, None]
    coarse, fine = _coarse(histogram), _around(low.device)
    for anywhere in (True, False):
        lows = full_low * coarse if anywhere else torch.maximum(low * fine, full_low)
        lows = torch.cat([low, lows], dim=1)
        low, high = _best(histogram, grid, lows, high.expand_as(lows))
        highs = full_high * coarse if anywhere else torch.minimum(high * fine, full_high)
        highs = torch.cat([high, highs], dim=1)
        low, high = _best(histogram, grid, low.expand_as(highs), highs)
    ends = (torch.where(grid.symmetric, *pair) for pair in zip(tied, (low[:, 0], high[:, 0]), strict=True))
    return within(histogram, *ends)


def _with_zero(histogram: Histogram) -> Range:
    return histogram.low.clamp(max=0.0)[:, None], histogram.high.clamp(min=0.0)[:, None]


def _coarse(histogram: Histogram) -> Tensor:
    """Factors 1, 0.84, 0.71, ... of the whole range, down to that of one bin."""
    counts = histogram.counts
    steps = 4 * (counts.shape[1].bit_length() - 1) + 1
    return torch.arange(steps, dtype=torch.float32, device=counts.device).div(-4).exp2()


def _around(device: torch.device) -> Tensor:
    """Factors around 1, up to the neighbours among the coarse ones."""
    return torch.arange(-16, 17, dtype=torch.float32, device=device).div(64).exp2()


def _best(histogram: Histogram, grid: Grid, lows: Tensor, highs: Tensor) -> Range:
    """Of each row the pair with the least error, shapes (m, 1)."""
    chunks = zip(torch.split(lows, _CHUNK, dim=1), torch.split(highs, _CHUNK, dim=1), strict=True)
    errors = torch.cat([quantization_error(histogram, grid, low, high) for low, high in chunks], dim=1)
    index = errors.nan_to_num(torch.inf).argmin(dim=1, keepdim=True)
    return lows.gather(1, index), highs.gather(1, index)


def within(histogram: Histogram, low: Tensor, high: Tensor) -> Range:
    """A clipping range cut to the data's own, and that one itself where it has no length.

    Args:
        histogram: m histograms.
        low: lower ends, shape (m,).
        high: upper ends.

    Returns:
        ``(low, high)``.

    Example:
        >>> histogram = Histogram(torch.tensor([[3, 1], [4, 0]]), torch.tensor([-1.0, 2.0]), torch.tensor([4.0, 2.0]))
        >>> within(histogram, torch.tensor([-3.0, 0.0]), torch.tensor([3.5, 1.0]))  # the second has the value 2.0 alone
        (tensor([-1.,  2.]), tensor([3.5000, 2.0000]))
    """
    _, left, right = histogram
    clips = left < right
    low = torch.where(clips, torch.maximum(torch.minimum(low, right), left), left)
    return low, torch.where(clips, torch.minimum(torch.maximum(high, low), right), right)
