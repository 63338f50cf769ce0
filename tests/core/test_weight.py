from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lq.config.specs import WeightSpec
from lq.core.functional import EPS
from lq.core.scratch import Scratch
from lq.core.weight import Covering, fake_quantize_weight, quantize_weight, weight_scale
from tests.core.second_derivatives import assert_same_second_derivatives, straight_through_round

PER_CHANNEL, PER_TENSOR = WeightSpec(-63, 63), WeightSpec(-63, 63, per_channel=False)


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2), (5, 3, 2, 2), (5, 3, 2, 1, 2), (1, 1), (512, 1, 3, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_weight_scales_equal_a_loop_over_channels(shape: tuple[int, ...], axis: int):
    weight = torch.randn(shape)
    weight.select(axis, 0).zero_()
    scale = weight_scale(weight, PER_CHANNEL, axis)
    assert (scale * weight).shape == weight.shape
    for channel in range(shape[axis]):
        expected = max(weight.select(axis, channel).abs().max().item() / 63, EPS)
        assert scale.flatten()[channel].item() == pytest.approx(expected, rel=1e-7)
    assert weight_scale(weight, PER_TENSOR).item() == pytest.approx(max(weight.abs().max().item() / 63, EPS), rel=1e-7)


@pytest.mark.parametrize(("largest", "least"), [(0.063, 0.001 * 2**-16), (63.0, EPS)])
def test_a_dead_channel_beside_others_leaves_room_for_its_bias(largest: float, least: float):
    scale = weight_scale(torch.tensor([[largest], [1e-30], [0.0], [63e-4 * largest]]), PER_CHANNEL)
    expected = torch.tensor([largest / 63, least, least, 1e-4 * largest])
    torch.testing.assert_close(scale.flatten(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_an_empty_weight_is_refused(observer: str):
    with pytest.raises(ValueError, match=r"shape \(0, 3\)"):
        weight_scale(torch.zeros(0, 3), WeightSpec(observer=observer))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    quant_max=st.sampled_from([1, 7, 63, 127]),
    per_channel=st.booleans(),
    magnitude=st.sampled_from([1e-20, 1e-4, 1.0, 1e10]),
)
def test_one_rounding_for_training_and_conversion(seed: int, quant_max: int, per_channel: bool, magnitude: float):
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed)) * magnitude
    scale = weight_scale(weight, WeightSpec(-quant_max, quant_max, per_channel))
    integers = quantize_weight(weight, scale)
    assert integers.dtype == torch.int8
    assert integers.abs().max() <= quant_max
    assert torch.equal(integers.float() * scale, fake_quantize_weight(weight, scale))


# ---- gradients and memory ---------------------------------------------------------------------------------------


def straight_through(weight: Tensor, scale: Tensor) -> Tensor:
    return weight + (torch.round(weight.detach().float() / scale) * scale - weight.detach().float())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scratch", [None, Scratch()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_and_factor_gradients_equal_autograd(
    layout: torch.memory_format, scratch: Scratch | None, dtype: torch.dtype
):
    weight = torch.randn(6, 4, 3, 3).to(dtype, memory_format=layout).requires_grad_()
    factor = torch.tensor([1.0, -2.0, 1e-12, 0.3, -1e-9, 40.0]).view(6, 1, 1, 1).requires_grad_()
    scale = weight_scale(weight, PER_CHANNEL)
    upstream = torch.randn(6, 4, 3, 3)
    expected = torch.autograd.grad(straight_through(weight, scale) * factor, (weight, factor), upstream)
    got = torch.autograd.grad(fake_quantize_weight(weight, scale, factor, scratch), (weight, factor), upstream.clone())
    # bfloat16: the twin adds in bfloat16 steps that ours makes in float32
    torch.testing.assert_close(got[0], expected[0], rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-5)  # sums in another order

    (plain,) = torch.autograd.grad(fake_quantize_weight(weight, scale), weight, upstream)
    assert torch.equal(plain, upstream.to(dtype))


@pytest.mark.parametrize("channels", [3, 1])  # of one, a transposed convolution has a factor of shape (1, 1, 1, 1)
def test_a_factor_along_another_axis(channels: int):
    weight = torch.randn(4, channels, requires_grad=True)
    factor = torch.rand(1, channels).add(0.5).requires_grad_()
    scale = weight_scale(weight, PER_CHANNEL, 1)
    got = torch.autograd.grad(fake_quantize_weight(weight, scale, factor).square().sum(), (weight, factor))
    expected = torch.autograd.grad((straight_through(weight, scale) * factor).square().sum(), (weight, factor))
    torch.testing.assert_close(got, expected)


def quantized(weight: Tensor, scratch: Scratch) -> Tensor:
    return fake_quantize_weight(weight, weight_scale(weight, PER_CHANNEL), scratch=scratch)


def test_the_backward_pass_gives_the_memory_back_and_the_next_step_takes_it():
    scratch, weight, addresses = Scratch(), torch.randn(4, 3, requires_grad=True), []
    for _ in range(3):
        out = quantized(weight, scratch)
        addresses.append(out.data_ptr())
        assert scratch.free is None
        out.sum().backward()
        assert scratch.free is not None
    assert len(set(addresses)) == 1


def test_lent_memory_is_left_alone():
    scratch, weight = Scratch(), torch.randn(4, 3, requires_grad=True)
    first = quantized(weight, scratch)
    before = first.detach().clone()
    with torch.no_grad():
        weight.mul_(2.0)
        quantized(weight, scratch)
    quantized(weight, scratch)
    assert torch.equal(first, before)


def test_what_has_no_backward_pass_takes_no_memory():
    scratch, weight = Scratch(), torch.randn(4, 3, requires_grad=True)
    quantized(weight, scratch).sum().backward()
    kept = scratch.free
    quantized(weight.detach(), scratch)
    with torch.no_grad():
        quantized(weight, scratch)
    fake_quantize_weight(weight.detach(), weight_scale(weight, PER_CHANNEL), torch.ones(4, 1), scratch)
    assert scratch.free is kept is not None


def test_a_graph_that_outlives_its_backward_pass_is_refused_once_its_memory_was_used_again():
    scratch, weight, x = Scratch(), torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    y = torch.nn.functional.linear(x, quantized(weight, scratch)).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    quantized(weight, scratch)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_memory_of_another_shape_or_layout_is_not_used():
    scratch = Scratch()
    for like in (torch.randn(4, 3), torch.randn(3, 4), torch.randn(4, 3).T, torch.randn(4, 3, dtype=torch.bfloat16)):
        taken = scratch.take(like)
        assert (taken.shape, taken.stride(), taken.dtype) == (like.shape, like.stride(), torch.float32)
        scratch.free = taken


# ---- least squares ----------------------------------------------------------------------------------------------


def squared_error(weight: Tensor, scale: Tensor, quant_max: int) -> Tensor:
    rounded = (weight / scale).round().clamp(-quant_max, quant_max) * scale
    return (rounded - weight).square().flatten(1).sum(1)


SHAPES = {
    "normal": lambda: torch.randn(16, 32, 3, 3),
    "heavy tails": lambda: torch.randn(16, 32, 3, 3) ** 3,
    "uniform": lambda: torch.rand(16, 32, 3, 3) - 0.5,
    "few values": lambda: torch.randn(64, 9),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("quant_max", [1, 3, 7, 31, 127])
def test_mse_is_near_the_best_of_many_scales_and_never_worse_than_min_max(kind: str, quant_max: int):
    weight = SHAPES[kind]()
    scale = weight_scale(weight, WeightSpec(-quant_max, quant_max, observer="mse"))
    covering = weight_scale(weight, WeightSpec(-quant_max, quant_max))
    found, widest = (squared_error(weight, s, quant_max) for s in (scale, covering))
    assert (found <= widest * (1 + 1e-5)).all()  # float32 sums
    many = torch.linspace(0.02, 1.0, 300)
    best = torch.stack([squared_error(weight, covering * part, quant_max) for part in many]).amin(0)
    # nine candidates, a third of an octave apart: within a dB in all, however few values a channel has
    assert found.sum() < best.sum() * 10**0.1


@pytest.mark.parametrize(("thirds_of_an_octave", "found"), [(0, True), (5, True), (8, True), (9, False)])
def test_mse_finds_the_grid_under_an_outlier_of_up_to_six_times_its_end(thirds_of_an_octave: int, found: bool):
    integers = torch.arange(-7.0, 8.0).repeat(4000)  # so many that the outlier is given up
    weight = torch.cat([0.1 * integers, torch.tensor([0.7 * 2 ** (thirds_of_an_octave / 3)])])[None]
    scale = weight_scale(weight, WeightSpec(-7, 7, observer="mse"))
    assert torch.equal(quantize_weight(weight, scale, 7)[0, :-1].float(), integers) == found


def test_mse_takes_each_channel_by_itself_and_a_tensor_as_one():
    spec, weight = WeightSpec(-7, 7, observer="mse"), torch.randn(6, 5, 3, 3) * torch.rand(6, 1, 1, 1)
    together = weight_scale(weight, spec)
    for channel in range(6):
        one = weight_scale(weight[channel : channel + 1], spec)
        torch.testing.assert_close(together[channel : channel + 1], one)
    torch.testing.assert_close(weight_scale(weight.transpose(0, 1), spec, 1), together.transpose(0, 1))
    whole = weight_scale(weight, WeightSpec(-7, 7, per_channel=False, observer="mse"))
    assert whole.shape == ()
    torch.testing.assert_close(whole, weight_scale(weight.reshape(1, -1), spec).squeeze())


def test_mse_follows_a_factor_so_that_batch_norm_commutes_with_it():
    spec, weight = WeightSpec(-7, 7, observer="mse"), torch.randn(6, 5, 3, 3)
    factor = torch.tensor([1.0, -2.0, 0.25, 3.0, -0.7, 10.0]).view(6, 1, 1, 1)
    torch.testing.assert_close(weight_scale(weight * factor, spec), weight_scale(weight, spec) * factor.abs())


def test_mse_of_empty_and_constant_channels():
    weight = torch.tensor([[0.0, 0.0], [0.5, 0.5], [-2.0, 0.0]])
    scale = weight_scale(weight, WeightSpec(-7, 7, observer="mse"))
    assert scale[0].item() == pytest.approx(EPS)
    torch.testing.assert_close(quantize_weight(weight, scale, 7).float() * scale, weight)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_memory_is_not_copied(copied):
    scratch = Scratch()
    scratch.free = torch.zeros(3)
    assert copied(scratch).free is None


# ---- second derivatives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_gradients_have_gradients(in_memory: bool, at_once: bool) -> None:
    weight, factor = torch.randn(4, 3, 2, 2), torch.rand(4, 1, 1, 1) + 0.5
    spec = WeightSpec(-7, 7)
    scale, scratch = weight_scale(weight, spec), Scratch() if in_memory else None

    def rounded(weight: Tensor, factor: Tensor) -> Tensor:
        return fake_quantize_weight(weight, Covering(spec) if at_once else scale, factor, scratch)

    def twin(weight: Tensor, factor: Tensor) -> Tensor:
        return straight_through_round(weight / scale) * scale * factor

    assert_same_second_derivatives(rounded, twin, weight, factor)
    assert_same_second_derivatives(lambda w: rounded(w, factor), lambda w: twin(w, factor), weight)

    def without_factor(weight: Tensor) -> Tensor:
        return fake_quantize_weight(weight, scale, None, scratch)

    assert_same_second_derivatives(without_factor, lambda w: straight_through_round(w / scale) * scale, weight)
