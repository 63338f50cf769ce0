import copy
import math

import pytest
import torch
from torch import Tensor

from lq.config.specs import OBSERVERS, ActivationSpec
from lq.core.calibration.clipping import ClippedRanges, needs_histogram
from lq.core.calibration.entropy import entropy_range
from lq.core.calibration.histogram import HistogramBank
from lq.core.calibration.ranges import Grid, histogram_range, mse_range, percentile_range

NO_LIMITS, RELU6 = (-math.inf, math.inf), (0.0, 6.0)
SPECS = [
    ActivationSpec(observer="percentile", percentile=90.0),
    ActivationSpec(),
    ActivationSpec(observer="histogram"),
    ActivationSpec(-128, 127, symmetric=True, observer="mse"),
    ActivationSpec(observer="minmax"),
    ActivationSpec(observer="entropy"),
    ActivationSpec(0, 15, observer="histogram"),
    ActivationSpec(observer="percentile", percentile=99.0),
    ActivationSpec(observer="mse"),
]
LIMITS = [NO_LIMITS] * 6 + [RELU6] * 3
WITH_HISTOGRAM = [0, 2, 3, 5, 6, 7]
NEVER_RUNS = 8


def batch(slot: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * slot + seed)
    return torch.randn(4, 500, generator=generator) ** 3 * (slot + 1) + slot


def range_of_one(slot: int) -> tuple[float, float]:
    """The slot's range, from a bank of its own."""
    bank, spec = HistogramBank([LIMITS[slot]]), SPECS[slot]
    for seed in range(3):
        bank.observe(0, batch(slot, seed))
        bank.update()
    grid = Grid(
        torch.tensor([1.0 * spec.quant_min]), torch.tensor([1.0 * spec.quant_max]), torch.tensor([spec.symmetric])
    )
    searches = {"histogram": histogram_range, "mse": mse_range, "entropy": entropy_range}
    if spec.observer == "percentile":
        low, high = percentile_range(bank.histogram(), spec.percentile)
    else:
        low, high = searches[spec.observer](bank.histogram(), grid)
    return low.item(), high.item()


def filled() -> ClippedRanges:
    clipped = ClippedRanges(SPECS, LIMITS)
    for seed in range(3):
        for slot in WITH_HISTOGRAM:
            clipped.observe(clipped.rows[slot], batch(slot, seed))
        clipped.update()
    return clipped


def written(clipped: ClippedRanges) -> tuple[Tensor, Tensor]:
    low, high = torch.full((len(SPECS),), -7.0), torch.full((len(SPECS),), 7.0)
    clipped.write(low, high)
    return low, high


def test_only_observers_of_values_need_no_histogram():
    assert [o for o in OBSERVERS if not needs_histogram(ActivationSpec(observer=o))] == [
        "moving_average_minmax",
        "minmax",
    ]
    assert sorted(ClippedRanges(SPECS, LIMITS).rows) == [*WITH_HISTOGRAM, NEVER_RUNS]


def test_every_slot_gets_the_range_of_its_own_observer():
    low, high = written(filled())
    for slot in WITH_HISTOGRAM:
        assert (low[slot].item(), high[slot].item()) == pytest.approx(range_of_one(slot), rel=1e-4, abs=1e-4), slot


def test_slots_without_histogram_or_data_keep_theirs():
    low, high = written(filled())
    for slot in (1, 4, NEVER_RUNS):
        assert (low[slot].item(), high[slot].item()) == (-7.0, 7.0)


def test_ranges_can_be_searched_again_and_by_copies():
    clipped = filled()
    expected = written(clipped)
    other = ClippedRanges(SPECS, LIMITS)
    other.load_state_dict(clipped.state_dict())
    for found in (written(clipped), written(other), written(copy.deepcopy(clipped))):
        assert all(map(torch.equal, found, expected))


def test_checkpoints_hold_the_histograms_only():
    assert list(filled().state_dict()) == ["counts", "low", "high"]
