"""Relative entropy against straight loops over candidates, levels and bins."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lq.core.calibration.entropy import candidate_bins, entropy_range
from lq.core.calibration.histogram import Histogram, HistogramBank
from lq.core.calibration.ranges import Grid
from tests.core.calibration.histograms import grid_of, histogram_of, minmax_range

UINT8, INT8, UINT4 = (0, 255, False), (-128, 127, True), (0, 15, False)


def divergence_twin(counts: list[int], begin: int, end: int, levels: int) -> float:
    """p and q written out bin by bin."""
    bins = len(counts)
    first, last = max(begin, 0), min(end, bins) - 1
    if first >= last or first >= bins or last < 0:
        return math.inf
    p = [float(counts[j]) for j in range(first, last + 1)]
    held = list(p)
    p[0] += sum(counts[:first])
    p[-1] += sum(counts[last + 1 :])
    q = [0.0] * len(p)
    for level in range(levels):
        members = [j for j in range(len(p)) if (j + first - begin) * levels // (end - begin) == level]
        filled = [j for j in members if p[j] > 0]
        for j in filled:
            q[j] = sum(held[k] for k in members) / len(filled)
    total_p, total_q = sum(p), sum(q)
    if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
        return math.inf
    return sum(a / total_p * math.log(a / total_p / (b / total_q)) for a, b in zip(p, q, strict=True) if a > 0)


def entropy_twin(histogram: Histogram, grid: Grid, candidates: int) -> tuple[float, list[float]]:
    """The least divergence of one histogram, and that of every candidate."""
    levels = int(grid.quant_max - grid.quant_min + 1)
    begins, ends = (bins[0].tolist() for bins in candidate_bins(histogram, grid, candidates))
    counts = histogram.counts[0].tolist()
    found = [divergence_twin(counts, int(b), int(e), levels) for b, e in zip(begins, ends, strict=True)]
    return min(found), found


@settings(deadline=None, max_examples=150)
@given(
    counts=st.lists(st.one_of(st.just(0), st.integers(0, 5000)), min_size=40, max_size=40).filter(any),
    left=st.integers(-60, 30),
    length=st.integers(1, 60),
    spec=st.sampled_from([UINT4, (-8, 7, True), (-8, 7, False), (0, 6, False)]),
)
def test_the_choice_is_the_best_of_a_loop(counts, left, length, spec):
    counts[0], counts[-1] = counts[0] + 1, counts[-1] + 1  # the ends are values
    histogram = Histogram(torch.tensor([counts]), torch.tensor([float(left)]), torch.tensor([float(left + length)]))
    grid = grid_of(spec)
    begins, ends = (bins[0] for bins in candidate_bins(histogram, grid, 12))
    least, found = entropy_twin(histogram, grid, 12)
    low, high = entropy_range(histogram, grid, 12)
    width = length / 40
    places = [
        (max(left + width * b, left), min(left + width * e, left + length))
        for b, e in zip(begins.tolist(), ends.tolist(), strict=True)
    ]
    # Among equals either will do; the sums come in another order.
    best = [place for place, value in zip(places, found, strict=True) if value <= least + 1e-9]
    assert any((low.item(), high.item()) == pytest.approx(place, abs=1e-4) for place in best)


def test_for_data_without_negative_values_candidates_are_those_of_the_source():
    x = torch.cat([torch.zeros(1), torch.rand(100), torch.ones(1)])
    begin, end = candidate_bins(histogram_of(x), grid_of(UINT8), 2048 - 256 + 1)
    assert (begin == 0).all()
    assert end[0].tolist() == list(range(256, 2049))


def test_symmetric_candidates_reach_as_far_on_both_sides():
    x = torch.cat([torch.tensor([-1.0, 3.0]), torch.rand(100)])
    begin, end = candidate_bins(histogram_of(x), grid_of(INT8), 16)
    assert (begin[0, -1].item(), end[0, -1].item()) == (512 - 1536, 2048)
    assert (begin + end == 2 * 512).all()


def test_outliers_are_cut_off():
    x = torch.cat([torch.randn(100_000).abs(), torch.tensor([20.0])])
    histogram = histogram_of(x, torch.cat([-x, torch.randn(100_000)]), x)
    low, high = entropy_range(histogram, grid_of(UINT8, UINT8, INT8))
    assert (high[[0, 2]] > 2.0).all()
    assert (high[[0, 2]] < 8.0).all()
    assert -8.0 < low[1].item() < -2.0


def test_what_is_spread_evenly_is_not_clipped():
    histogram = histogram_of(torch.linspace(-1, 2, 200_000), torch.linspace(0, 1, 200_000))
    low, high = entropy_range(histogram, grid_of(UINT8, UINT8))
    torch.testing.assert_close((low, high), minmax_range(histogram, grid_of(UINT8, UINT8)), rtol=0, atol=0.02)


@pytest.mark.parametrize("centre", [-1e3, -5.0, 5.0, 1e3])
def test_data_far_from_zero_keeps_its_middle(centre):
    x = torch.randn(20_000) + centre
    low, high = entropy_range(histogram_of(x), grid_of(UINT8))
    assert x.min() <= low.item() <= high.item() <= x.max()
    nearest, farthest = (low, high) if centre > 0 else (high, low)
    assert abs(farthest.item()) > abs(centre)
    assert abs(nearest.item()) < abs(centre)


def test_slots_do_not_see_each_other():
    tensors = [torch.randn(5000), torch.randn(5000).relu(), torch.randn(5000) * 7 + 3]
    specs = [INT8, UINT4, UINT8]
    together = entropy_range(histogram_of(*tensors), grid_of(*specs))
    for slot in range(3):
        alone = entropy_range(histogram_of(tensors[slot]), grid_of(specs[slot]))
        torch.testing.assert_close([end[slot] for end in together], [end[0] for end in alone])


def test_a_range_of_no_length_is_given_back():
    bank = HistogramBank([(-math.inf, math.inf)] * 4)
    for slot, value in enumerate([3.0, 0.0, -2.0]):
        bank.observe(slot, torch.full((7,), value))
    bank.update()
    low, high = entropy_range(bank.histogram(), grid_of(*[UINT8] * 4))
    assert low.tolist() == bank.low.tolist()  # the last slot saw nothing: inf
    assert high.tolist() == bank.high.tolist()


def test_fewer_bins_than_levels_leave_no_choice():
    histogram = histogram_of(torch.randn(1000), bins=64)
    torch.testing.assert_close(entropy_range(histogram, grid_of(UINT8)), minmax_range(histogram, grid_of(UINT8)))


def test_nothing_asks_the_device_for_a_value():
    with FakeTensorMode():
        low, high = entropy_range(histogram_of(torch.randn(9), torch.randn(9)), grid_of(UINT8, INT8))
    assert low.shape == high.shape == (2,)
