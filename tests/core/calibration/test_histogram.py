"""The bank against sorted data and loops."""

import copy
import math
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lq.core.calibration.histogram import Histogram, HistogramBank, rebin

NO_LIMITS = (-math.inf, math.inf)


def bank_of(*batches: Tensor, limits: tuple[float, float] = NO_LIMITS, bins: int = 2048) -> HistogramBank:
    bank = HistogramBank([limits], bins)
    for batch in batches:
        bank.observe(0, batch)
        bank.update()
    return bank


def counted(x: Tensor, low: float, high: float, bins: int) -> list[int]:
    """Histogram by a loop."""
    counts = [0] * bins
    for value in x.flatten().tolist():
        counts[min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    return counts


def rebinned(counts: list[int], old: tuple[float, float], new: tuple[float, float]) -> list[int]:
    """Rebin by a loop over bins: each goes where its left end lies, but for the share beyond that bin."""
    bins = len(counts)
    old_width, width = (old[1] - old[0]) / bins, (new[1] - new[0]) / bins
    out = [0] * bins
    for k, count in enumerate(counts):
        left = (old[0] + k * old_width - new[0]) / width
        first = min(math.floor(left), bins - 1)
        beyond = min(max((left + old_width / width - first - 1) / (old_width / width), 0.0), 1.0)
        moved = round(count * beyond)
        out[first] += count - moved
        out[min(first + 1, bins - 1)] += moved
    return out


def test_one_batch_is_counted_as_a_loop_counts_it():
    x = torch.randint(-64, 65, (500,)) / 64  # bins of 1/32: no rounding
    bank = bank_of(x, torch.tensor([-1.0, 1.0]), bins=64)
    expected = counted(torch.cat([x, torch.tensor([-1.0, 1.0])]), -1.0, 1.0, 64)
    assert bank.counts[0].tolist() == expected


def test_what_is_observed_twice_before_an_update_counts_twice():
    bank = HistogramBank([NO_LIMITS], 8)
    bank.observe(0, torch.tensor([0.0, 1.0]))
    bank.observe(0, torch.tensor([torch.nan]))  # not counted
    bank.observe(0, torch.tensor([2.0, 3.0, 4.0]))
    bank.update()
    both = HistogramBank([NO_LIMITS], 8)
    both.observe(0, torch.arange(5.0))
    both.update()
    assert (bank.low.item(), bank.high.item()) == (0.0, 4.0)
    assert int(bank.counts.sum()) == int(both.counts.sum()) == 5


def test_lowest_and_highest_value_are_returned_before_the_limits():
    bank = HistogramBank([(0.0, 6.0)])
    low, high = bank.observe(0, torch.tensor([[-3.0], [7.0]], dtype=torch.bfloat16))
    assert (low.item(), high.item()) == (-3.0, 7.0)
    assert (low.dtype, low.dim()) == (torch.float32, 0)


@pytest.mark.parametrize(
    ("limits", "expected", "ends"),
    [
        (NO_LIMITS, [2, 0, 1, 1], (-3.0, 9.0)),
        ((0.0, math.inf), [3, 0, 0, 1], (0.0, 9.0)),
        ((0.0, 6.0), [3, 0, 0, 1], (0.0, 6.0)),
    ],
)
def test_values_beyond_the_limits_count_as_the_limit(limits, expected, ends):
    bank = bank_of(torch.tensor([-3.0, -1.0, 3.0 if limits == NO_LIMITS else -2.0, 9.0]), limits=limits, bins=4)
    assert bank.counts[0].tolist() == expected
    assert (bank.low.item(), bank.high.item()) == ends


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_batch_that_is_not_finite_is_not_counted(poison):
    bank = bank_of(torch.tensor([0.0, poison]), torch.tensor([0.0, 1.0]), torch.tensor([poison, 5.0]), bins=2)
    assert bank.counts[0].tolist() == [1, 1]
    assert (bank.low.item(), bank.high.item()) == (0.0, 1.0)


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_not_even_where_the_limits_would_hide_it(poison):
    assert bank_of(torch.tensor([1.0, poison]), limits=(0.0, 6.0)).counts.sum() == 0


def test_slots_are_independent_and_may_stay_empty():
    bank = HistogramBank([NO_LIMITS] * 3, bins=4)
    bank.observe(0, torch.tensor([0.0, 4.0]))
    bank.update()
    bank.observe(2, torch.tensor([-1.0, 1.0, 1.0]))
    bank.update()
    assert bank.counts.tolist() == [[1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 2]]
    assert bank.low.tolist() == [0.0, math.inf, -1.0]
    assert bank.high.tolist() == [4.0, -math.inf, 1.0]


def test_what_is_forgotten_is_not_taken_in():
    bank = HistogramBank([NO_LIMITS])
    bank.observe(0, torch.ones(3))
    bank.forget()
    bank.update()
    assert bank.counts.sum() == 0


def test_constant_batches():
    bank = bank_of(torch.full((3,), 2.0), torch.full((4,), 2.0), bins=4)
    assert bank.counts[0].tolist() == [7, 0, 0, 0]
    assert (bank.low.item(), bank.high.item()) == (2.0, 2.0)
    bank.observe(0, torch.tensor([0.0, 4.0]))
    bank.update()
    assert bank.counts[0].tolist() == [1, 0, 7, 1]


def test_the_same_range_again_moves_nothing():
    x = torch.cat([torch.randn(5000), torch.tensor([-9.1, 7.3])])
    once = bank_of(x)
    twice = bank_of(x, x)
    assert torch.equal(twice.counts, 2 * once.counts)


@given(
    counts=st.lists(st.integers(0, 2**40), min_size=8, max_size=8),
    low=st.integers(-64, 0),
    length=st.integers(1, 64),
    below=st.integers(0, 256),
    above=st.integers(0, 256),
)
@settings(max_examples=150, deadline=None)
def test_rebin_equals_a_loop_and_loses_nothing(counts, low, length, below, above):
    old, new = (low, low + length), (low - below, low + length + above)
    out = rebin(Histogram(torch.tensor([counts]), *(torch.tensor([float(e)]) for e in old)), *map(_row, new))
    assert out.sum().item() == sum(counts)
    assert (out >= 0).all()
    # A count from each old bin may round to the other side; float32 places an edge to 2^-21 of 8 bins: to 2^-11 of
    # an old bin, where 500 of these make a new one.
    expected = torch.tensor(rebinned(counts, old, new), dtype=torch.float64)
    torch.testing.assert_close(out[0].double(), expected, rtol=0, atol=8 + sum(counts) * 2**-11)


def _row(value: float) -> Tensor:
    return torch.tensor([float(value)])


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0.01, 100)), min_size=1, max_size=6), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_many_batches_give_the_distribution_of_all_values(places, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(400, generator=generator) * spread + centre for centre, spread in places]
    bank, everything = bank_of(*batches, bins=256), torch.cat(batches)
    assert bank.counts.sum().item() == everything.numel()
    assert bank.low.item() == everything.min().item()
    assert bank.high.item() == everything.max().item()
    # Each widening moves a value by one bin at most, so a value is off by at most one bin a batch.
    width = (bank.high - bank.low) / 256
    edges = bank.low + width * torch.arange(1, 256)
    below, off = bank.counts[0].cumsum(0)[:-1], (len(batches) + 1) * width
    assert ((everything < edges[:, None] - off).sum(1) <= below).all()
    assert (below <= (everything < edges[:, None] + off).sum(1)).all()


def test_large_counts_are_exact():
    bank = bank_of(torch.tensor([0.0, 1.0]), bins=16)
    bank.counts += 2**50 + 1
    before = bank.counts.sum().item()
    bank.observe(0, torch.tensor([-0.37, 3.0]))
    bank.update()
    assert bank.counts.sum().item() == before + 2
    assert (bank.counts >= 0).all()


def test_nothing_asks_the_device_for_a_value():
    with FakeTensorMode():  # which refuses whatever depends on data
        bank = bank_of(torch.randn(4, 3), torch.randn(4, 3))
        bank.histogram()
    assert bank.counts.shape == (1, 2048)


def test_buffers_keep_shape_and_dtype_from_the_start():
    bank = HistogramBank([NO_LIMITS] * 3)
    before = {name: (t.shape, t.dtype) for name, t in bank.named_buffers()}
    bank.observe(1, torch.randn(9))
    bank.update()
    bank.bfloat16()
    assert {name: (t.shape, t.dtype) for name, t in bank.named_buffers()} == before


def test_copies_and_state_dicts_hold_what_was_taken_in():
    bank = bank_of(torch.randn(50))
    bank.observe(0, torch.randn(50))  # noted, not taken in
    loaded = HistogramBank([NO_LIMITS])
    loaded.load_state_dict(bank.state_dict())
    for other in (copy.deepcopy(bank), pickle.loads(pickle.dumps(bank)), loaded):
        other.update()
        assert torch.equal(other.counts, bank.counts)
        assert (other.low, other.high) == (bank.low, bank.high)


def test_too_few_bins_are_refused():
    with pytest.raises(ValueError, match="bins=1"):
        HistogramBank([NO_LIMITS], bins=1)


DATA = """
import torch

def batch(rank, step):
    generator = torch.Generator().manual_seed(10 * rank + step)
    same_range = torch.cat([torch.randint(0, 65, (99,), generator=generator) / 64, torch.tensor([0.0, 1.0])])
    own_range = torch.randn(500, generator=generator) * (1 + 2 * rank) + step
    return same_range * 2**step, own_range
"""

RANK = (
    DATA
    + """
import sys, torch.distributed as dist
from lq.core.calibration.histogram import HistogramBank
rank, file = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
bank = HistogramBank([(-torch.inf, torch.inf)] * 5, bins=64)
for step in range(2):
    same_range, own_range = batch(rank, step)
    bank.observe(0, same_range)
    bank.observe(1, torch.tensor([0.0, torch.nan if rank else 1.0]))
    if rank == 0:
        bank.observe(2, torch.tensor([-3.0, -2.0]))
    bank.observe(4, own_range)
    bank.update()
torch.save(bank.state_dict(), sys.argv[3])
dist.destroy_process_group()  # or its threads may end the process with an error
"""
)


def test_two_processes_equal_one_with_all_data(tmp_path):
    files = [tmp_path / f"{rank}.pt" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "rendezvous"), str(file)])
        for rank, file in enumerate(files)
    ]
    code: dict[str, Any] = {}
    exec(DATA, code)
    one = HistogramBank([NO_LIMITS] * 5, bins=64)
    for step in range(2):
        same_range, own_range = (
            torch.cat(parts) for parts in zip(*(code["batch"](r, step) for r in range(2)), strict=True)
        )
        one.observe(0, same_range)
        one.observe(1, torch.tensor([0.0, 1.0]))
        one.observe(2, torch.tensor([-3.0, -2.0]))
        one.observe(4, own_range)
        one.update()
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (torch.load(file) for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["low"], one.low)
    assert torch.equal(first["high"], one.high)
    assert torch.equal(first["counts"].sum(1), one.counts.sum(1))
    assert torch.equal(first["counts"][:4], one.counts[:4])
    # Each process counts over its own range first: a bin more that a value can be off.
    off, total = first["counts"][4].cumsum(0), one.counts[4].cumsum(0)
    assert (off[:-3] <= total[3:]).all()
    assert (total[:-3] <= off[3:]).all()
