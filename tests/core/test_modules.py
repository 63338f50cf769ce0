from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.config.specs import WeightSpec
from lq.core.modules import QAT_LAYERS, QATLayer
from lq.core.state import QATState

PER_CHANNEL, PER_TENSOR = WeightSpec(-63, 63), WeightSpec(-127, 127, per_channel=False)
LEAST_SQUARES = [WeightSpec(-7, 7, per_channel, observer="mse") for per_channel in (True, False)]


@dataclass
class Case:
    layer: nn.Module
    x: Tensor
    bn: nn.Module | None = None


def conv(kind: type[Any], *args: Any, size: int = 9, **kwargs: Any) -> Case:
    layer = kind(*args, **kwargs)
    spatial = layer.weight.dim() - 2
    x = torch.randn(3, args[0], *[size] * spatial)
    bn = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[spatial](args[1])
    return Case(layer, x, bn)


CASES = {
    "linear": lambda: Case(nn.Linear(5, 7), torch.randn(6, 5), nn.BatchNorm1d(7)),
    "linear without bias": lambda: Case(nn.Linear(5, 7, bias=False), torch.randn(6, 5), nn.BatchNorm1d(7)),
    "linear on tokens": lambda: Case(nn.Linear(5, 7), torch.randn(2, 3, 5)),
    "conv1d": lambda: conv(nn.Conv1d, 4, 6, 3, stride=2, padding="valid", dilation=2, groups=2),
    "conv2d": lambda: conv(nn.Conv2d, 4, 6, 3, padding=1, bias=False),
    "conv2d depthwise": lambda: conv(nn.Conv2d, 4, 8, (3, 5), padding=(1, 2), groups=4, stride=(1, 2)),
    "conv2d same": lambda: conv(nn.Conv2d, 3, 4, 3, padding="same", dilation=2),
    "conv2d pointwise": lambda: conv(nn.Conv2d, 4, 6, 1),
    "conv3d": lambda: conv(nn.Conv3d, 2, 4, 2, groups=2, stride=2, size=4),
}


def make(case: Case, spec: WeightSpec, **flags: bool) -> tuple[QATState, QATLayer]:
    state = QATState([], [], [])
    for name, value in {"fake_quant": True, **flags}.items():
        setattr(state, name, value)
    kind = next(kind for base, kind in QAT_LAYERS.items() if isinstance(case.layer, base))
    return state, kind.from_float(case.layer, spec, state)


def trained_bn(bn: nn.Module, affine: bool = True) -> nn.Module:
    """A BatchNorm in the middle of its life, with negative, zero and tiny weights."""
    count = bn.num_features
    bn = type(bn)(count, eps=1e-3, momentum=0.2, affine=affine)
    bn.running_mean.copy_(torch.randn(count))
    bn.running_var.copy_(torch.rand(count) + 0.2)
    if affine:
        weight = torch.randn(count)
        weight[0], weight[1], weight[2] = -0.7, 0.0, 1e-4
        bn.weight.data.copy_(weight)
        bn.bias.data.copy_(torch.randn(count))
    return bn


def float_call(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    return torch.func.functional_call(layer, {"weight": weight}, (x,))


def twin(case: Case, spec: WeightSpec, training: bool) -> Tensor:
    """The layer in plain operations; BatchNorm is never folded, but for the grid of a per-tensor weight."""
    weight = case.layer.weight
    factor = torch.ones(())
    if case.bn is not None and not spec.per_channel:
        factor = torch.rsqrt(case.bn.running_var + case.bn.eps)
        if case.bn.weight is not None:
            factor = factor * case.bn.weight.detach()
        factor = torch.where(factor == 0, 1e-12, factor).view(-1, *[1] * (weight.dim() - 1))
    w = weight.detach() * factor
    rows = w.flatten(1).abs().amax(1) if spec.per_channel else w.abs().max().expand(w.shape[0])
    scale = (rows / spec.quant_max).view(-1, *[1] * (w.dim() - 1))
    on_grid = torch.round(w / scale) * scale / factor
    y = float_call(case.layer, case.x, weight + (on_grid - weight).detach())
    if case.bn is None:
        return y
    bn = case.bn
    statistics = (bn.running_mean.clone(), bn.running_var.clone())
    return F.batch_norm(y, *statistics, bn.weight, bn.bias, training, 0.0, bn.eps)


def parameters(case: Case) -> list[Tensor]:
    return [case.x, *case.layer.parameters(), *(case.bn.parameters() if case.bn is not None else ())]


@pytest.mark.parametrize("spec", [PER_CHANNEL, PER_TENSOR], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("bn", ["bn", "bn without affine", "no bn"])
@pytest.mark.parametrize("phase", ["train", "frozen", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_all_gradients_equal_the_twin(name: str, phase: str, bn: str, spec: WeightSpec):
    case = CASES[name]()
    case.x.requires_grad_()
    if case.bn is None and bn != "no bn":
        pytest.skip("BatchNorm has another axis there")
    case.bn = trained_bn(case.bn, affine=bn == "bn") if bn != "no bn" else None
    _, layer = make(case, spec, freeze_bn=phase == "frozen")
    expected = twin(case, spec, training=phase == "train")
    for module in filter(None, (layer, case.bn)):
        module.train(phase != "eval")
    y = layer(case.x, *filter(None, (case.bn,)))
    upstream = torch.randn_like(y)
    got = torch.autograd.grad(y, parameters(case), upstream)
    wanted = torch.autograd.grad(expected, parameters(case), upstream)
    # Folding changes the order of float32 operations; the sums have at most a few hundred terms of order 1 to 10.
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_switched_off_it_is_the_float_layer_to_the_bit(name: str, training: bool):
    case = CASES[name]()
    twin_bn = copy.deepcopy(case.bn)
    _, layer = make(case, PER_CHANNEL, fake_quant=False)
    modules = [m.train(training) for m in (layer, case.layer, case.bn, twin_bn) if m is not None]
    assert modules
    y = layer(case.x, *filter(None, (case.bn,)))
    expected = case.layer(case.x) if twin_bn is None else twin_bn(case.layer(case.x))
    assert torch.equal(y, expected)
    if twin_bn is not None:
        assert torch.equal(case.bn.running_mean, twin_bn.running_mean)


def test_training_moves_the_statistics_and_frozen_does_not():
    case = CASES["conv2d"]()
    state, layer = make(case, PER_CHANNEL)
    layer(case.x, case.bn)
    assert case.bn.num_batches_tracked == 1
    state.freeze_bn = True
    before = case.bn.running_mean.clone()
    layer(case.x, case.bn)
    assert torch.equal(case.bn.running_mean, before)


@pytest.mark.parametrize("freeze_bn", [False, True])
@pytest.mark.parametrize("spec", [PER_CHANNEL, PER_TENSOR])
def test_the_weights_memory_is_reused_without_harm(spec: WeightSpec, freeze_bn: bool):
    """Two calls before one backward pass, evaluations in between, accumulation: all equal to fresh memory."""

    def run(reuse: bool) -> list[Tensor]:
        torch.manual_seed(3)
        case = CASES["conv2d"]()
        case.bn = trained_bn(case.bn)
        _, layer = make(case, spec, freeze_bn=freeze_bn)
        if not reuse:
            layer._memory = None
        for _ in range(2):
            first = layer(case.x, case.bn)
            layer.eval()
            with torch.no_grad():
                layer(case.x * 2, case.bn)
            layer(case.x * 3, case.bn)
            layer.train()
            second = layer(case.x * 0.5, case.bn)
            (first.square().mean() + second.exp().mean()).backward()
            first = layer(case.x, case.bn)
            first.mean().backward()
        with torch.no_grad():
            case.layer.weight.sub_(case.layer.weight.grad)
        layer(case.x, case.bn).square().sum().backward()
        return [p.grad for p in (*case.layer.parameters(), *case.bn.parameters())]

    for a, b in zip(run(True), run(False), strict=True):
        assert torch.equal(a, b)


def test_the_memory_really_is_reused():
    case = CASES["linear"]()
    _, layer = make(case, PER_CHANNEL)
    layer(case.x).sum().backward()
    kept = layer.quantizer._memory.free
    assert kept is not None
    layer(case.x).sum().backward()
    assert layer.quantizer._memory.free is kept


CHANGES = {
    "weight": lambda layer, bn: layer.weight.mul_(1.5),
    "gamma": lambda layer, bn: bn.weight.mul_(-3.0),
    "running statistics": lambda layer, bn: (bn.running_mean.add_(1.0), bn.running_var.mul_(4.0)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("size", [2, 9])  # folded with the larger input only
def test_the_gradients_of_a_frozen_layer_are_those_of_its_forward_pass_or_refused(change: str, size: int):
    """Something changes before the backward pass, and the layer runs again."""

    def gradients(changed: bool) -> list[Tensor]:
        torch.manual_seed(3)
        case = conv(nn.Conv2d, 8, 16, 3, padding=1, bias=False, size=size)
        case.bn = trained_bn(case.bn)
        _, layer = make(case, PER_CHANNEL, freeze_bn=True)
        case.x.requires_grad_()
        y = layer(case.x, case.bn)
        if changed:
            with torch.no_grad():
                CHANGES[change](layer, case.bn)
            layer(case.x.detach(), case.bn)
        return list(torch.autograd.grad(y.square().sum(), parameters(case)))

    # F.batch_norm, which frozen layers with a small input call, keeps nothing of its own and so refuses.
    refused = size == 2 and change != "weight"
    with pytest.raises(RuntimeError, match="modified by an inplace operation") if refused else nullcontext():
        torch.testing.assert_close(gradients(True), gradients(False))


def test_unfrozen_again_before_the_backward_pass_a_folded_layer_has_the_gradients_of_its_forward_pass():
    case = CASES["conv2d"]()
    case.bn = trained_bn(case.bn)
    state, layer = make(case, PER_CHANNEL, freeze_bn=True)
    wanted = torch.autograd.grad(layer(case.x, case.bn).square().sum(), parameters(case)[1:])
    y = layer(case.x, case.bn)
    state.freeze_bn = False
    layer(case.x, case.bn)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), parameters(case)[1:]), wanted)


def test_one_layer_on_two_sizes_is_folded_for_one_of_them_and_right_for_both():
    case = conv(nn.Conv2d, 8, 16, 3, padding=1, bias=False)
    case.bn = trained_bn(case.bn)
    _, layer = make(case, PER_CHANNEL, freeze_bn=True)
    large, small = case.x, case.x[:1, :, :2, :2].clone()
    assert small.numel() < layer.weight.numel() < large.numel()
    wanted = [torch.autograd.grad(layer(x, case.bn).square().sum(), parameters(case)[1:]) for x in (large, small)]
    first, second = layer(large, case.bn), layer(small, case.bn)
    got = torch.autograd.grad(first.square().sum() + second.square().sum(), parameters(case)[1:])
    for a, b, both in zip(*wanted, got, strict=True):
        torch.testing.assert_close(both, a + b)


@pytest.mark.parametrize("name", ["linear", "conv1d", "conv2d", "conv3d"])
@pytest.mark.parametrize("with_bn", [False, True])
@pytest.mark.parametrize("spec", [PER_CHANNEL, PER_TENSOR, *LEAST_SQUARES], ids=str)
def test_the_integers_are_those_of_the_forward_pass(name: str, with_bn: bool, spec: WeightSpec):
    case = CASES[name]()
    bn = trained_bn(case.bn) if with_bn else None
    _, layer = make(case, spec)
    integers, scale, bias = layer.integer_weight(bn)
    assert integers.dtype == torch.int8
    assert integers.abs().max() <= spec.quant_max
    assert scale.shape == ((case.layer.weight.shape[0],) if spec.per_channel else ())
    assert (scale > 0).all()
    shaped = scale.view(-1, *[1] * (integers.dim() - 1)) if spec.per_channel else scale
    real = copy.deepcopy(case.layer)
    real.weight.data = integers.float() * shaped
    if bias is not None:
        real.bias = nn.Parameter(bias.detach())
    for module in filter(None, (layer, bn)):
        module.eval()
    with torch.no_grad():
        expected = layer(case.x, *filter(None, (bn,)))
        torch.testing.assert_close(real(case.x), expected, rtol=1e-5, atol=1e-5)  # order of multiplications


@pytest.mark.parametrize("phase", ["train", "frozen"])
@pytest.mark.parametrize("spec", LEAST_SQUARES, ids=str)
def test_weights_that_least_squares_clips_have_no_gradient(spec: WeightSpec, phase: str):
    case = conv(nn.Conv2d, 64, 6, 3, bias=False)
    nn.init.normal_(case.layer.weight)  # at 4 bits worth clipping at some 2.6 standard deviations
    case.bn = trained_bn(case.bn)
    _, layer = make(case, spec, freeze_bn=phase == "frozen")
    factor = torch.ones(6, 1, 1, 1) if spec.per_channel else layer.folding(case.bn)[0].detach().view(6, 1, 1, 1)
    folded = (layer.weight * factor).detach()
    clipped = (folded / layer.quantizer.observed_scale(folded)).abs() > 7.5
    layer(case.x, case.bn).square().sum().backward()
    others = case.bn.weight != 0  # of a channel that BatchNorm multiplies by 0, no weight has
    assert clipped[others].any()
    assert torch.equal((layer.weight.grad == 0)[others], clipped[others])


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
def test_a_batch_norm_over_another_axis_is_refused(kind: str):
    case = CASES[kind]()
    _, layer = make(case, PER_CHANNEL)
    with pytest.raises(ValueError, match=r"dimensions; the two are one layer only with \d\. Exclude it"):
        layer(torch.randn(2, *case.x.shape), case.bn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("freeze_bn", [False, True])
def test_a_model_in_half_precision_trains_finitely(dtype: torch.dtype, freeze_bn: bool):
    case = Case(nn.Linear(5, 7).to(dtype), torch.randn(6, 5).to(dtype), trained_bn(nn.BatchNorm1d(7)).to(dtype))
    _, layer = make(case, PER_CHANNEL, freeze_bn=freeze_bn)
    y = layer(case.x, case.bn)
    assert y.dtype == dtype
    y.float().square().mean().backward()
    for parameter in (*case.layer.parameters(), *case.bn.parameters()):
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("freeze_bn", [False, True])
def test_autocast_computes_in_bfloat16_and_gives_float32_gradients(freeze_bn: bool):
    case = CASES["conv2d"]()
    _, layer = make(case, PER_CHANNEL, freeze_bn=freeze_bn)
    reference = layer(case.x, case.bn)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(case.x, case.bn)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), reference, rtol=0.05, atol=0.05)  # bfloat16 has 8 bits of mantissa
    y.float().sum().backward()
    assert case.layer.weight.grad.dtype == torch.float32


def test_parameters_are_shared_and_the_float_layer_is_left_alone():
    case = CASES["conv2d"]()
    _, layer = make(case, PER_CHANNEL)
    assert layer.weight is case.layer.weight
    assert isinstance(layer, nn.Conv2d)
    assert type(case.layer) is nn.Conv2d
    assert layer.state_dict().keys() == case.layer.state_dict().keys()
    assert "weight=int7 [-63, 63] per channel" in repr(layer)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_compute_the_same_and_share_nothing(copied: Any):
    case = CASES["conv2d"]()
    _, layer = make(case, PER_CHANNEL)
    layer(case.x)
    other = copied(layer)
    assert torch.equal(other(case.x), layer(case.x))
    assert other.weight is not layer.weight
    other.__dict__["state"].fake_quant = False
    assert layer.__dict__["state"].fake_quant
