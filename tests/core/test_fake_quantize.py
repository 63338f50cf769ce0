from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from lq.config.specs import ActivationSpec
from lq.core.fake_quantize import FakeQuantize
from lq.core.saving import Saving
from lq.core.state import QATState

ACTIVATIONS = {"none": lambda x: x, "relu": torch.relu, "relu6": torch.nn.functional.relu6}


def make(activation: str = "none", **flags: bool) -> tuple[QATState, FakeQuantize]:
    state = QATState(["fq"], [ActivationSpec()], [activation])
    quantizer = FakeQuantize(state, 0)
    for name, value in flags.items():
        setattr(state, name, value)
    return state, quantizer


def step(state: QATState, quantizer: FakeQuantize, x: Tensor) -> Tensor:
    return state(quantizer(x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_switched_off_it_is_the_absorbed_activation(activation: str):
    _, quantizer = make(activation)
    x = torch.randn(50) * 5
    assert torch.equal(quantizer(x), ACTIVATIONS[activation](x))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_observing_without_fake_quantization_changes_no_value(activation: str):
    state, quantizer = make(activation, observer=True)
    x = torch.randn(50) * 5
    assert torch.equal(step(state, quantizer, x), ACTIVATIONS[activation](x))
    low = x.min().item() if activation == "none" else 0.0
    assert (state.min_val.item(), state.max_val.item()) == (low, x.max().item())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fake_quantization_is_near_the_absorbed_activation(activation: str):
    state, quantizer = make(activation, observer=True, fake_quant=True)
    x = torch.randn(50) * 5
    y = step(state, quantizer, x)
    half_a_step = state.qparams()[0][0] / 2
    assert (y - ACTIVATIONS[activation](x)).abs().max() <= half_a_step * 1.001
    assert y.unique().numel() < x.numel() or activation == "none"


@pytest.mark.parametrize("off", ["evaluation", "observers off"])
def test_only_training_with_observers_on_observes(off: str):
    state, quantizer = make(observer=True, fake_quant=True)
    state.writers = [2]  # what the two have seen in a step is joined, and so would be what was seen before it
    step(state, quantizer, torch.tensor([0.0, 2.55]))
    if off == "evaluation":
        state.eval()
        quantizer.eval()
    state.observer = off == "evaluation"
    y = step(state, quantizer, torch.tensor([-5.0, 1.004, 99.0]))
    torch.testing.assert_close(y, torch.tensor([0.0, 1.0, 2.55]))
    state.train()
    quantizer.train()
    state.observer = True
    step(state, quantizer, torch.tensor([0.0, 2.55]))
    assert (state.min_val.item(), state.max_val.item()) == (0.0, pytest.approx(2.55))


def test_what_is_computed_again_is_observed_once():
    states = []
    for again in (False, True):
        state = QATState(["fq"], [ActivationSpec(observer="histogram")], ["none"])
        quantizer, state.observer = FakeQuantize(state, 0), True
        x = torch.tensor([1.0, 2.0, 5.0])
        quantizer(x)
        if again:
            quantizer(x, recomputing=True)
        state(x)
        states.append(state.histograms.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_single_value_is_observed():
    state, quantizer = make(observer=True)
    step(state, quantizer, torch.tensor([3.0]))
    assert (state.min_val.item(), state.max_val.item()) == (3.0, 3.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_range_it_stays_float_to_the_bit(activation: str, dtype: torch.dtype):
    _, quantizer = make(activation, fake_quant=True)
    x = torch.cat([torch.randn(50) * 10.0**exponent for exponent in range(-9, 10, 3)])
    x = torch.cat([x, torch.tensor([0.0, -0.0, torch.inf, -torch.inf])]).to(dtype).requires_grad_()
    with torch.no_grad():
        assert torch.equal(quantizer.eval()(x), ACTIVATIONS[activation](x))
    y = quantizer(x)
    torch.testing.assert_close(y, ACTIVATIONS[activation](x), rtol=2e-6, atol=1e-38)  # a mark for the backward pass
    inside = torch.isfinite(x)
    gradient, expected = (torch.autograd.grad(z[inside].float().sum(), x)[0] for z in (y, ACTIVATIONS[activation](x)))
    assert torch.equal(gradient[x != 0], expected[x != 0])  # a ReLU's gradient at 0 is a convention


@pytest.mark.parametrize("fake_quant", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_an_empty_batch_passes_and_is_not_observed(seen: bool, fake_quant: bool):
    state, quantizer = make(observer=True, fake_quant=fake_quant)
    if seen:
        step(state, quantizer, torch.tensor([0.0, 1.0]))
    before = state.state_dict()["max_val"].clone()
    assert step(state, quantizer, torch.zeros(0, 3)).shape == (0, 3)
    assert torch.equal(state.max_val, before)
    assert state.nonfinite.item() == 0


def test_only_what_it_owns_is_overwritten():
    _, quantizer = make(observer=True, fake_quant=True)
    x = torch.randn(5, requires_grad=True) * 1.0
    assert quantizer(x).data_ptr() != x.data_ptr()
    assert quantizer(x, owned=True).data_ptr() == x.data_ptr()


def test_it_says_what_it_does():
    assert "uint8 [0, 255] affine, moving_average_minmax, activation=relu6" in repr(make("relu6")[1])


@pytest.mark.parametrize("observer", ["histogram", "percentile"])
def test_clipped_ranges_leave_zero_where_it_is_and_saturate(observer: str):
    state = QATState(["fq"], [ActivationSpec(0, 15, observer=observer, percentile=99.0)], ["none"])
    quantizer = FakeQuantize(state, 0)
    state.observer = True
    x = torch.cat([torch.zeros(1), torch.randn(5000), torch.tensor([50.0])])
    assert torch.equal(step(state, quantizer, x), x)
    state.fake_quant, state.observer = True, False
    y = step(state, quantizer, x)
    assert y[0] == 0.0
    assert y.max() < 40.0


def test_a_grid_of_sixteen_bits_is_not_kept_as_bytes():
    found = []
    for save in (False, True):
        state = QATState(["fq"], [ActivationSpec(0, 65535)], ["none"])
        quantizer = FakeQuantize(state, 0)
        x = torch.linspace(-1.0, 1.0, 999).requires_grad_()
        state.observer = True
        step(state, quantizer, x)
        state.observer, state.fake_quant = False, True
        with Saving() if save else nullcontext():
            y = quantizer(x * 1).square()
        y.sum().backward()
        found.append((y.detach(), x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][0].unique().numel() > 256
