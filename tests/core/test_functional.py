from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lq.core.functional import EPS, SMALLEST_SCALE, affine_qparams, fake_quantize
from lq.core.straight_through import RoundingValues, exact, marking

GRIDS = [(0, 255), (0, 15), (-128, 127), (0, 127), (-8, 7)]

MARK = 1e-6 + 2 * 2**-23  # by which saturated values lie outside of the grid, and what rounding adds


def _not_too_small(scale: float) -> float:
    return EPS if scale <= 2.0**-150 else max(scale, SMALLEST_SCALE)  # what float32 rounds to zero


def qparams_twin(low: float, high: float, quant_min: int, quant_max: int, symmetric: bool) -> tuple[float, int]:
    """One tensor at a time, in double precision."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return _not_too_small(max(low / quant_min, high / quant_max)), 0
    scale = _not_too_small((high - low) / (quant_max - quant_min))
    return scale, max(quant_min, min(quant_max, quant_min - round(low / scale)))


@settings(deadline=None, max_examples=200)
@given(
    ends=st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(0, 1e4, width=32)), min_size=1, max_size=5),
    grid=st.sampled_from(GRIDS),
    symmetric=st.booleans(),
)
def test_qparams_equal_a_loop_in_double_precision(
    ends: list[tuple[float, float]], grid: tuple[int, int], symmetric: bool
):
    symmetric = symmetric and grid[0] < 0
    low = torch.tensor([e[0] for e in ends])
    high = torch.tensor([e[0] + e[1] for e in ends])
    scale, zero_point = affine_qparams(low, high, *grid, symmetric)
    for i in range(len(ends)):
        expected_scale, expected_zero = qparams_twin(low[i].item(), high[i].item(), *grid, symmetric)
        assert scale[i].item() == pytest.approx(expected_scale, rel=3e-7)  # three roundings to float32
        # Where low / scale is a tie, float32 and double may round it to either side.
        tie = not symmetric and abs(abs(min(low[i].item(), 0) / expected_scale % 1) - 0.5) < 1e-3
        assert abs(zero_point[i].item() - expected_zero) <= tie


@pytest.mark.parametrize("grid", GRIDS)
def test_zero_is_exact_and_the_range_is_covered(grid: tuple[int, int]):
    low, high = torch.tensor([-3.0, 0.5, -2.0, 0.0]), torch.tensor([5.0, 1.0, -1.0, 0.0])
    scale, zero_point = affine_qparams(low, high, *grid)
    assert torch.equal(zero_point, zero_point.round())
    assert ((zero_point >= grid[0]) & (zero_point <= grid[1])).all()
    assert ((grid[0] - zero_point) * scale <= low.clamp(max=0) + scale / 2).all()
    assert ((grid[1] - zero_point) * scale >= high.clamp(min=0) - scale / 2).all()
    assert scale[3] == EPS


def test_qparams_accept_one_grid_per_entry():
    low, high = torch.tensor([-1.0, -1.0]), torch.tensor([1.55, 1.0])
    scale, zero_point = affine_qparams(
        low, high, torch.tensor([0.0, -127.0]), torch.tensor([255.0, 127.0]), torch.tensor([False, True])
    )
    assert scale.tolist() == pytest.approx([0.01, 1 / 127])
    assert zero_point.tolist() == [100.0, 0.0]


def fake_quantize_twin(x: Tensor, scale: float, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Values and gradient mask, spelled out; float32 as the definition says."""
    q = torch.round(x.detach().float() * torch.tensor(1.0 / scale))
    return (torch.clamp(q, low, high) * scale).to(x.dtype), (q >= low) & (q <= high)


def layouts(x: Tensor) -> list[Tensor]:
    return [x, x.to(memory_format=torch.channels_last), x.transpose(0, 1), x[:, ::2], x[:0], x[0, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("as_tensors", [False, True])
@pytest.mark.parametrize(
    ("scale", "low", "high"),
    [(0.1, 0.0, 255.0), (1 / 64, -128.0, 127.0), (0.013, -101.0, 154.0), (EPS, 0.0, 255.0), (3.7, -7.0, 8.0)],
)
def test_values_and_gradients_equal_the_twin(
    dtype: torch.dtype, as_tensors: bool, scale: float, low: float, high: float
):
    scale = torch.tensor(scale).item()  # a float32 number, as they all are in a model
    qparams = tuple(map(torch.tensor, (scale, low, high))) if as_tensors else (scale, low, high)
    base = torch.randn(4, 6, 5, 7) * scale * max(abs(low), high) * 0.7
    for x in layouts(base.to(dtype)):
        x = x.detach().requires_grad_()
        weight = torch.randn_like(x)
        expected, inside = fake_quantize_twin(x, scale, low, high)
        y = fake_quantize(x, *qparams)
        assert y.dtype == dtype
        assert y.shape == x.shape
        # the mark of saturated values; float64 is computed in float32
        torch.testing.assert_close(y, expected, rtol=MARK, atol=1e-19)
        (grad,) = torch.autograd.grad(y, x, weight)
        same = grad == torch.where(inside, weight, 0.0)
        if dtype != torch.float32:  # there, a value exactly half a step beyond the grid may fall on either side
            edge = torch.minimum((x.double() / scale - low + 0.5).abs(), (x.double() / scale - high - 0.5).abs())
            same |= edge < 1e-5
        assert same.all()
        with torch.no_grad():
            assert torch.equal(fake_quantize(x, *qparams), expected)


@settings(deadline=None, max_examples=100)
@given(
    low=st.integers(-255, 0),
    high=st.integers(0, 255),
    exponent=st.integers(-20, 10),
    mantissa=st.floats(1, 1.9375, width=16),
)
def test_gradients_on_the_edges_of_the_grid(low: int, high: int, exponent: int, mantissa: float):
    scale = mantissa * 2.0**exponent
    near = (torch.arange(low - 2, high + 3)[:, None] + torch.tensor([-0.5, -0.49, 0, 0.49, 0.5])).flatten()
    x = (near * scale).requires_grad_()
    expected, inside = fake_quantize_twin(x, scale, low, high)
    y = fake_quantize(x, scale, float(low), float(high))
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad.bool(), inside)
    torch.testing.assert_close(y, expected, rtol=MARK, atol=scale * 1.1e-20)


@pytest.mark.parametrize("make", [float, torch.tensor], ids=["numbers", "tensors"])
def test_half_a_step_beyond_the_grid_a_number_of_half_precision_gets_no_gradient(make: Callable[[float], Any]):
    x = torch.tensor([-2.25, -2.125, 2.125, 2.25], dtype=torch.bfloat16, requires_grad=True)
    (grad,) = torch.autograd.grad(fake_quantize(x, make(0.5), make(-4.0), make(4.0)).sum(), x)
    assert grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_agrees_with_the_stock_operator():
    x = torch.randn(1000, requires_grad=True)
    scale, zero_point = 0.02, 117
    stock = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255)
    ours = fake_quantize(x, scale, 0.0 - zero_point, 255.0 - zero_point)
    torch.testing.assert_close(ours, stock, rtol=MARK, atol=0)
    weight = torch.randn(1000)
    assert torch.equal(torch.autograd.grad(ours, x, weight)[0], torch.autograd.grad(stock, x, weight)[0])


def test_saturated_values_are_marked_in_training_only():
    x = torch.tensor([-5.0, 0.0, 300.0], requires_grad=True)
    y = fake_quantize(x, 1.0, 0.0, 255.0)
    assert y[0] < 0
    assert y[0] > -1e-19
    assert y[2] > 255
    assert y[2] <= 255 * (1 + MARK)
    assert fake_quantize(x.detach(), 1.0, 0.0, 255.0).tolist() == [0.0, 0.0, 255.0]


def test_relu_and_relu6_are_absorbed():
    x = torch.linspace(-3, 9, 500)
    for activation, top in ((torch.relu, 9.0), (torch.nn.functional.relu6, 6.0)):
        scale = top / 255
        absorbed = fake_quantize(x, scale, 0.0, 255.0)
        apart = torch.fake_quantize_per_tensor_affine(activation(x), scale, 0, 0, 255)
        torch.testing.assert_close(absorbed, apart, rtol=1e-6, atol=0)


def test_infinities_saturate_and_nan_stays_visible():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0], requires_grad=True)
    y = fake_quantize(x, 0.5, -4.0, 4.0)
    torch.testing.assert_close(y.detach(), torch.tensor([2.0, -2.0, torch.nan, 1.0]), rtol=1e-5, atol=0, equal_nan=True)
    (grad,) = torch.autograd.grad(y, x, torch.ones(4))
    assert grad[[0, 1, 3]].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_at_the_ends(dtype: torch.dtype):
    x = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, torch.finfo(dtype).tiny], dtype=dtype)
    y = fake_quantize(x.requires_grad_(), 0.01, -128.0, 127.0)
    assert torch.isfinite(y).all()


def test_working_in_place_changes_nothing_but_the_memory():
    source = torch.randn(3, 4, requires_grad=True)
    results = []
    for inplace in (False, True):
        x = source * 1.0
        y = fake_quantize(x, 0.1, -7.0, 7.0, inplace)
        assert (y.data_ptr() == x.data_ptr()) is inplace
        results.append((y, *torch.autograd.grad(y.square().sum(), source)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        x = source.clone()
        assert fake_quantize(x, 0.1, -7.0, 7.0, inplace=True).data_ptr() == x.data_ptr()
        half = source.half()
        assert fake_quantize(half, 0.1, -7.0, 7.0, inplace=True).data_ptr() != half.data_ptr()


class Names(TorchDispatchMode):
    """Notes the operations within its block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_nothing_is_computed_that_is_not_needed():
    """A GPU launches a kernel for each operation, those of single numbers, too."""
    x, scale, low, high = torch.randn(4), torch.tensor(0.1), torch.tensor(-7.0), torch.tensor(7.0)
    with Names() as without_gradient:
        fake_quantize(x, scale, low, high)
    assert without_gradient.seen == ["reciprocal", "mul", "mul", "round_", "clamp_", "mul_"]
    rounding, leaf = marking(scale, low, high), torch.randn(4, requires_grad=True)
    with Names() as with_gradient:
        fake_quantize(leaf, scale, low, high, rounding=rounding)
    assert [name for name in with_gradient.seen if name != "detach"] == ["mul", "round_", "clamp_", "mul_"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_follows_from_many_grids_at_once_is_the_same_to_the_bit(dtype: torch.dtype):
    scales = torch.rand(50) * 10.0 ** torch.randint(-6, 4, (50,))
    lows, highs = torch.randint(-255, 1, (50,)).float(), torch.randint(0, 256, (50,)).float()
    vectors = (marking if dtype == torch.float32 else exact)(scales, lows, highs)
    for scale, low, high, *rounding in zip(scales, lows, highs, *vectors, strict=True):
        x = (torch.randn(400) * 200 * scale).to(dtype)
        results = []
        for given_rounding in (None, RoundingValues(*rounding)):
            leaf = x.clone().requires_grad_()
            out = fake_quantize(leaf, scale, low, high, rounding=given_rounding)
            out.backward(torch.ones_like(out))
            results.append((out.detach(), leaf.grad))
        assert all(map(torch.equal, *results))
