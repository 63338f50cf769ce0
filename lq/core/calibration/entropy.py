"""Calibration by relative entropy: the clipped and quantized distribution shall tell most about the original one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lq.compat.float64 import has_float64
from lq.core.calibration.histogram import Histogram
from lq.core.calibration.ranges import Grid, Range, within

_LEVELS = 256  # the most that a grid can have; known without asking the device
_CHUNK = 32


def entropy_range(histogram: Histogram, grid: Grid, candidates: int = 512) -> Range:
    r"""The range whose quantized distribution q diverges least from the clipped one p.

    .. math:: D = \sum_j p_j \log \frac{p_j}{q_j}

    over the bins j inside the range. p counts what lies beyond the range in its last bins; q shares what each level of
    the grid holds (without that) equally among the level's bins that p has anything in. Candidates are the values of
    magnitude up to T, for T evenly from all down to where every level is a single bin. The source works on absolute
    values; here both signs keep bins of their own, which is the same for data that is never negative.

    Args:
        histogram: m histograms.
        grid: m grids.
        candidates: ranges to try.

    Returns:
        ``(low, high)``, float32 of shape (m,).

    Source:
        Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017.

    Example:
        >>> counts = torch.tensor([[8, 9, 4, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]])
        >>> histogram = Histogram(counts, torch.tensor([0.0]), torch.tensor([16.0]))
        >>> grid = Grid(torch.tensor([0.0]), torch.tensor([3.0]), torch.tensor([False]))
        >>> low, high = entropy_range(histogram, grid)
        >>> bool(high < 16)
        True
    """
    begin, end = candidate_bins(histogram, grid, candidates)
    levels = (grid.quant_max - grid.quant_min + 1)[:, None, None].to(begin.dtype)
    chunks = zip(torch.split(begin, _CHUNK, dim=1), torch.split(end, _CHUNK, dim=1), strict=True)
    score = torch.cat([_divergence(histogram.counts, _edges(histogram, b, e, levels)) for b, e in chunks], dim=1)
    index = score.nan_to_num(torch.inf, torch.inf, torch.inf).argmin(dim=1, keepdim=True)
    width = (histogram.high - histogram.low) / histogram.counts.shape[1]
    low = histogram.low + width * begin.gather(1, index)[:, 0].float()
    high = histogram.low + width * end.gather(1, index)[:, 0].float()
    return within(histogram, low, high)


def candidate_bins(histogram: Histogram, grid: Grid, candidates: int) -> Range:
    """Bins at which the candidate ranges begin and end, whole numbers of shape (m, candidates), the full range last.

    They may lie outside the histogram, where zero does or where the grid is symmetric.

    Example:
        >>> histogram = Histogram(torch.ones(1, 8, dtype=torch.int64), torch.tensor([-2.0]), torch.tensor([6.0]))
        >>> grid = Grid(torch.tensor([0.0]), torch.tensor([3.0]), torch.tensor([False]))
        >>> begin, end = candidate_bins(histogram, grid, 3)
        >>> begin.tolist(), end.tolist()  # of 8 bins, 0.0 lies between the second and the third
        ([[0.0, 0.0, 0.0]], [[4.0, 6.0, 8.0]])
    """
    counts, left, right = histogram
    bins = counts.shape[1]
    # float64 is exact to the bin wherever zero lies; not every device has it.
    exact = torch.float64 if has_float64(counts.device) else torch.float32
    zero = (-left * bins / (right - left)).nan_to_num(0.0, 0.0, 0.0).to(exact)
    below, above = zero.clamp(min=0.0), (bins - zero).clamp(min=0.0)
    reach = torch.maximum(below, above)
    below, above = torch.where(grid.symmetric, reach, below), torch.where(grid.symmetric, reach, above)
    levels = grid.quant_max - grid.quant_min + 1
    # So long that the range, which is T and the shorter side up to T, has a bin for each level.
    least = torch.minimum(torch.maximum(levels / 2, levels - torch.minimum(below, above)), reach)[:, None]
    part = torch.linspace(0, 1, candidates, device=counts.device, dtype=exact)
    magnitude = least + (reach[:, None] - least) * part
    begin = zero[:, None] - torch.minimum(magnitude, below[:, None])
    return begin.round(), (zero[:, None] + torch.minimum(magnitude, above[:, None])).round()


def _edges(histogram: Histogram, begin: Tensor, end: Tensor, levels: Tensor) -> Tensor:
    """First bin of each level and, last, the end; int64 of shape (m, candidates, levels + 1), inside the histogram."""
    part = torch.arange(_LEVELS + 1, device=begin.device, dtype=begin.dtype) / levels
    edges = begin[..., None] + (end - begin)[..., None] * part.clamp(max=1.0)
    # Products of fractions that should be whole come out a rounding error beside it.
    return (edges - 1e-6).ceil().clamp(0, histogram.counts.shape[1]).long()


def _divergence(counts: Tensor, edges: Tensor) -> Tensor:
    """Divergence of every candidate, shape (m, candidates); NaN or infinite where it cannot be had.

    All sums over bins are differences of cumulative sums, so that the work grows with levels and not with bins:
    ``sum p log q`` over a level is what p has in it, times the logarithm of the level's mean.
    """
    counts = counts.to(torch.float64 if has_float64(counts.device) else torch.float32)
    mass, entropy, filled = (_up_to(t, edges) for t in (counts, torch.xlogy(counts, counts), (counts > 0).to(counts)))
    total = counts.sum(dim=1, keepdim=True)
    held = mass.diff(dim=-1)
    p, p_log_p, bins_filled = held, entropy[..., -1] - entropy[..., 0], filled.diff(dim=-1)
    first, last = edges[..., 0].clamp(max=counts.shape[1] - 1), (edges[..., -1] - 1).clamp(min=0)
    for bin_index, outliers in ((first, mass[..., 0]), (last, total - mass[..., -1])):
        inside = counts.gather(1, bin_index)
        joined = inside + outliers
        p_log_p = p_log_p + torch.xlogy(joined, joined) - torch.xlogy(inside, inside)
        level = F.one_hot((edges[..., 1:-1] <= bin_index[..., None]).sum(dim=-1), _LEVELS)
        p = p + level * outliers[..., None]
        bins_filled = bins_filled + level * ((inside == 0) & (outliers > 0))[..., None]
    cross = torch.xlogy(p, held / bins_filled.clamp(min=1)).sum(dim=-1)
    divergence = (p_log_p - cross) / total + held.sum(dim=-1).log() - total.log()
    # All in one bin would diverge from nothing.
    return torch.where(first < last, divergence, torch.inf)


def _up_to(values: Tensor, edges: Tensor) -> Tensor:
    """Sums of the values before each edge."""
    sums = F.pad(values.cumsum(dim=1), (1, 0))
    return sums.gather(1, edges.flatten(1)).view_as(edges)
