"""Calibration against dense samples, exhaustive search, sorted data and torch.ao's observer."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lq.core.calibration.histogram import Histogram, HistogramBank
from lq.core.calibration.ranges import (
    Grid,
    histogram_range,
    mse_range,
    percentile_range,
    quantization_error,
    within,
)
from lq.core.functional import affine_qparams, fake_quantize
from lq.metrics import sqnr
from tests.core.calibration.histograms import grid_of, histogram_of, minmax_range

UINT8, INT8, UINT4 = (0, 255, False), (-128, 127, True), (0, 15, False)
SEARCHES = [mse_range, histogram_range]


def make_data(name: str, count: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count, generator=generator)
    uniform = torch.rand(count, generator=generator)
    return {
        "gaussian": normal,
        "laplace": torch.distributions.Laplace(0.0, 1.0).icdf(uniform.clamp(1e-6, 1 - 1e-6)),
        "relu": normal.relu(),
        "heavy": torch.tan((uniform - 0.5) * 3.1),  # Cauchy, cut at 48
        "outlier": torch.cat([normal, torch.tensor([60.0])]),
        "shifted": normal * 0.1 + 5,
        "negative": -normal.abs() - 1,
        "spiky": torch.where(uniform < 0.7, torch.zeros(()), normal * 3),
    }[name]


DATA = ["gaussian", "laplace", "relu", "heavy", "outlier", "shifted", "negative", "spiky"]


def quantized(x: Tensor, low: float | Tensor, high: float | Tensor, spec: tuple[int, int, bool]) -> Tensor:
    ends = (torch.as_tensor(low), torch.as_tensor(high))
    scale, zero_point = affine_qparams(*ends, *spec)
    return fake_quantize(x, scale, spec[0] - zero_point, spec[1] - zero_point)


def error_of(histogram: Histogram, grid: Grid, found: tuple[Tensor, Tensor]) -> Tensor:
    return quantization_error(histogram, grid, found[0][:, None], found[1][:, None])[:, 0]


# ---- the error --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(0, 1000), min_size=6, max_size=6).filter(any),
    left=st.integers(-40, 20),
    length=st.integers(1, 40),
    clip=st.tuples(st.floats(0.05, 1.5), st.floats(0.05, 1.5)),
    spec=st.sampled_from([UINT8, INT8, UINT4]),
)
def test_the_error_is_that_of_values_spread_over_their_bins(counts, left, length, clip, spec):
    histogram = Histogram(torch.tensor([counts]), torch.tensor([float(left)]), torch.tensor([float(left + length)]))
    low, high = left * clip[0], (left + length) * clip[1]
    width, per_bin = length / 6, 4000
    places = left + width * (torch.arange(6 * per_bin, dtype=torch.float64) + 0.5) / per_bin
    q = quantized(places.float(), low, high, spec).double()
    squares = (q - places).square().view(6, per_bin).mean(1)
    expected = (squares * torch.tensor(counts)).sum() / sum(counts)
    error = quantization_error(histogram, grid_of(spec), torch.tensor([[low]]), torch.tensor([[high]]))
    # 4000 places a bin against steps of down to a tenth of a bin, and float32
    assert error.item() == pytest.approx(expected.item(), rel=1e-2)


# ---- percentile -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("percentile", [100.0, 99.99, 99.0, 75.0])
def test_percentile_equals_the_quantile_of_the_values(name, percentile):
    x = make_data(name)
    histogram = histogram_of(x)
    low, high = percentile_range(histogram, percentile)
    bin_width = ((histogram.high - histogram.low) / 2048).item()
    for found, q in ((low, 1 - percentile / 100), (high, percentile / 100)):
        # The quantile lies between two neighbours; float32 may take the next pair.
        span = [min(max(q + shift / len(x), 0.0), 1.0) for shift in (-1, 1)]
        below = torch.quantile(x, span[0], interpolation="lower") - 1.01 * bin_width
        above = torch.quantile(x, span[1], interpolation="higher") + 1.01 * bin_width
        assert below <= found.item() <= above


def test_percentile_100_is_the_whole_range():
    histogram = histogram_of(make_data("laplace"), make_data("relu"))
    low, high = percentile_range(histogram, 100.0)
    torch.testing.assert_close((low, high), minmax_range(histogram, grid_of(UINT8, UINT8)))


def test_a_percentile_may_reach_into_the_last_bin():
    histogram = Histogram(torch.tensor([[990, 0, 0, 10]]), torch.tensor([0.0]), torch.tensor([4.0]))
    # 99 of the 999 steps between the values: all of the highest bin's, and 89 of the lowest one's.
    assert percentile_range(histogram, 90.0)[1].item() == pytest.approx(1 - 89 / 990)


def test_every_slot_may_have_its_percentile():
    x = make_data("gaussian")
    both = percentile_range(histogram_of(x, x), torch.tensor([99.0, 99.9]))
    for slot, percentile in enumerate([99.0, 99.9]):
        alone = percentile_range(histogram_of(x), percentile)
        torch.testing.assert_close([end[slot] for end in both], [end[0] for end in alone])


def test_the_percentile_counts_values_exactly_where_float32_could_not():
    counts = torch.tensor([[2**30, 2**30, 2**30, 2**20, 1]])  # the last value is 1 of 3e9
    histogram = Histogram(counts, torch.tensor([0.0]), torch.tensor([5.0]))
    assert percentile_range(histogram, 100.0)[1].item() == 5.0
    assert percentile_range(histogram, 99.999999)[1].item() == pytest.approx(4.0, abs=1e-3)


# ---- searches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4])
def test_mse_is_as_good_as_an_exhaustive_search_over_one_factor(spec):
    histogram, grid = histogram_of(*map(make_data, DATA)), grid_of(*[spec] * len(DATA))
    factors = torch.arange(1, 2001) / 2000
    best = [
        quantization_error(
            histogram, grid, histogram.low.clamp(max=0)[:, None] * f, histogram.high.clamp(min=0)[:, None] * f
        )
        for f in factors.split(100)
    ]
    best_error = torch.cat(best, dim=1).amin(dim=1)
    # Factors are 1 % apart near the best coarse one. With few levels among narrow data far from zero, the error
    # depends on where the levels happen to lie, and has valleys elsewhere.
    slack = torch.tensor([1.15 if (name, spec) == ("shifted", UINT4) else 1.02 for name in DATA])
    assert (error_of(histogram, grid, mse_range(histogram, grid)) <= slack * best_error).all()


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4])
def test_histogram_is_as_good_as_an_exhaustive_search_over_both_ends(spec):
    histogram, grid = histogram_of(*map(make_data, DATA)), grid_of(*[spec] * len(DATA))
    factors = torch.cat([torch.tensor([0.0]), (torch.arange(40) / -5.0).exp2()])
    lows, highs = (ends.flatten() for ends in torch.meshgrid(factors, factors, indexing="ij"))
    best = [
        quantization_error(
            histogram, grid, histogram.low.clamp(max=0)[:, None] * a, histogram.high.clamp(min=0)[:, None] * b
        )
        for a, b in zip(lows.split(100), highs.split(100), strict=True)
    ]
    best_error = torch.cat(best, dim=1).nan_to_num(math.inf).amin(dim=1)
    assert (error_of(histogram, grid, histogram_range(histogram, grid)) <= 1.03 * best_error).all()


@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4])
def test_more_freedom_is_never_worse(spec):
    histogram, grid = histogram_of(*map(make_data, DATA)), grid_of(*[spec] * len(DATA))
    errors = [error_of(histogram, grid, f(histogram, grid)) for f in (histogram_range, mse_range, minmax_range)]
    for better, worse in itertools.pairwise(errors):
        assert (better <= worse * (1 + 1e-5)).all()  # the same range in two roundings


def test_an_outlier_at_one_end_does_not_move_the_other():
    x = make_data("outlier")
    low, high = histogram_range(histogram_of(x), grid_of(UINT4))
    assert -4 < low.item() < -1.5
    assert 1.5 < high.item() < 6


def torch_ao_range(x: Tensor, spec: tuple[int, int, bool]) -> tuple[Tensor, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and a reference
        from torch.ao.quantization import HistogramObserver

        scheme = torch.per_tensor_symmetric if spec[2] else torch.per_tensor_affine
        dtype = torch.qint8 if spec[0] < 0 else torch.quint8
        observer = HistogramObserver(dtype=dtype, qscheme=scheme, quant_min=spec[0], quant_max=spec[1])
        observer(x)
        scale, zero_point = observer.calculate_qparams()
    return scale, zero_point


@pytest.mark.parametrize("name", ["gaussian", "laplace", "relu", "heavy"])
@pytest.mark.parametrize("spec", [UINT8, INT8, UINT4])
@pytest.mark.parametrize("search", SEARCHES)
def test_searches_are_no_worse_than_torch_ao(name, spec, search):
    x = make_data(name)
    low, high = search(histogram_of(x), grid_of(spec))
    scale, zero_point = torch_ao_range(x, spec)
    reference = fake_quantize(x, scale, spec[0] - zero_point.float(), spec[1] - zero_point.float())
    assert sqnr(x, quantized(x, low, high, spec)) >= sqnr(x, reference) - 0.3


# ---- all of them ------------------------------------------------------------------------------------------------

ALL = [minmax_range, mse_range, histogram_range, lambda histogram, grid: percentile_range(histogram)]


@pytest.mark.parametrize("calibrate", ALL)
def test_ranges_lie_within_the_data(calibrate):
    histogram, grid = histogram_of(*map(make_data, DATA)), grid_of(*[UINT8] * len(DATA))
    low, high = calibrate(histogram, grid)
    assert (histogram.low <= low).all()
    assert (low <= high).all()
    assert (high <= histogram.high).all()


@pytest.mark.parametrize("calibrate", ALL)
def test_slots_do_not_see_each_other(calibrate):
    specs = [(UINT8, INT8, UINT4)[i % 3] for i in range(len(DATA))]
    together = calibrate(histogram_of(*map(make_data, DATA)), grid_of(*specs))
    for slot, name in enumerate(DATA):
        alone = calibrate(histogram_of(make_data(name)), grid_of(specs[slot]))
        torch.testing.assert_close([end[slot] for end in together], [end[0] for end in alone])


@pytest.mark.parametrize("calibrate", ALL)
def test_a_range_of_no_length_is_given_back(calibrate):
    bank = HistogramBank([(-math.inf, math.inf)] * 5)
    for slot, value in enumerate([3.0, 0.0, -2.0, 1e30]):
        bank.observe(slot, torch.full((7,), value))
    bank.update()
    low, high = calibrate(bank.histogram(), grid_of(*[UINT8] * 5))
    assert low.tolist() == bank.low.tolist()  # the last slot saw nothing: inf
    assert high.tolist() == bank.high.tolist()


@pytest.mark.parametrize("calibrate", ALL)
def test_nothing_asks_the_device_for_a_value(calibrate):
    with FakeTensorMode():
        low, high = calibrate(histogram_of(torch.randn(9), torch.randn(9)), grid_of(UINT8, INT8))
    assert low.shape == high.shape == (2,)


@pytest.mark.parametrize("calibrate", ALL)
def test_ranges_scale_with_the_data(calibrate):
    x, grid = make_data("laplace"), grid_of(UINT8)
    small, large = calibrate(histogram_of(x / 2**10), grid), calibrate(histogram_of(x * 2**10), grid)
    torch.testing.assert_close([end * 2.0**20 for end in small], list(large), rtol=1e-4, atol=0)


def test_within_cuts_to_the_data():
    histogram = Histogram(torch.ones(2, 4), torch.tensor([1.0, 5.0]), torch.tensor([2.0, 5.0]))
    low, high = within(histogram, torch.tensor([0.0, 0.0]), torch.tensor([1.5, 9.0]))
    assert (low.tolist(), high.tolist()) == ([1.0, 5.0], [1.5, 5.0])
