"""What layers with a quantized weight share, beyond the arithmetic that test_modules.py compares with its twins."""

from typing import Any

import pytest
import torch
from torch import nn

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.convert import convert
from lq.core.weight import weight_scale
from lq.metrics import sqnr
from lq.ptq import calibrate
from lq.ptq.layers import layers_of

ALL: dict[str, Any] = {"keep": "nothing"}  # four bits at the ends, too
LEARNED = QConfig(
    weight=WeightSpec(-7, 7, learned_scale=True), activation=ActivationSpec(0, 15, learned_scale=True), **ALL
)
PLAIN = QConfig(weight=WeightSpec(-7, 7), activation=ActivationSpec(0, 15), **ALL)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def train(prepared: nn.Module, x: torch.Tensor, steps: int = 60) -> float:
    """Fit the network to a fixed target with four-bit weights and activations; the last loss."""
    torch.manual_seed(1)
    target = torch.randn(len(x), 4) * 0.3
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=0.05)
    for step in range(steps):
        if step == steps // 2:
            set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
        optimizer.zero_grad()
        loss = (prepared(x) - target).pow(2).mean()
        loss.backward()
        optimizer.step()
    prepared.eval()
    return loss.item()


def log_factors(prepared: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in prepared.named_parameters() if n.endswith("learned_scale.log_factor")}


def scales_of(prepared: nn.Module) -> dict[str, torch.Tensor]:
    """Scale of every weight and activation, as deployed."""
    state = state_of(prepared)
    weights = {layer.name: layer.module.weight_scale for layer in layers_of(prepared)}
    return {**weights, **{name: state.get_submodule(name).scale for name in state.names}}


def test_learned_scales_are_parameters_from_the_start_and_start_from_the_observed_ones():
    prepared, x = prepare(network(), LEARNED), torch.randn(16, 3, 6, 6)
    factors = log_factors(prepared)
    assert len(factors) == len(plan_of(prepared).quantized) + len(plan_of(prepared).tensors)
    assert all((factor == 0).all() for factor in factors.values())
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()
    prepared(x)  # the observers' first batch
    prepared(x)
    scales, weight = scales_of(prepared), prepared.get_submodule("0").weight
    torch.testing.assert_close(scales["0"].flatten(), weight.abs().amax((1, 2, 3)) / 7)
    observed, _ = prepared.qat_state.scale_zero_point()
    for name, scale in zip(prepared.qat_state.names, observed, strict=True):
        assert scales[name] == scale


def test_learned_scales_learn_convert_and_round_trip():
    x = torch.randn(64, 3, 6, 6)
    prepared = prepare(network(), LEARNED)
    loss = train(prepared, x)
    weight = prepared.get_submodule("3").weight.detach()
    minmax = weight.abs().amax((1, 2, 3)) / 7
    factors = log_factors(prepared)
    assert all((factor != 0).all() for factor in factors.values())  # not of min/max now
    assert max(factor.abs().max() for factor in factors.values()) > 0.01
    learned = minmax * factors["qat_state.wq_3.learned_scale.log_factor"].flatten().exp()
    torch.testing.assert_close(scales_of(prepared)["3"].flatten(), learned)
    with torch.no_grad():
        # 16 levels: integers agree but for rounding edges, which would show at one step of 15
        assert sqnr(prepared(x), convert(prepared)(x)) > 40
    again = prepare(network(), LEARNED)
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(again.eval()(x), prepared(x))
    assert loss < train(prepare(network(), PLAIN), x) * 1.1


@pytest.mark.parametrize("learned", [False, True])
def test_scales_of_least_squares_train_convert_and_start_learned_ones(learned: bool):
    weight = WeightSpec(-7, 7, learned_scale=learned, observer="mse")
    prepared, x = (
        prepare(network(), QConfig(weight=weight, activation=PLAIN.activation, **ALL)),
        torch.randn(64, 3, 6, 6),
    )
    start = weight_scale(prepared.get_submodule("3").weight, weight)
    train(prepared, x, steps=1)
    if learned:
        torch.testing.assert_close(scales_of(prepared)["3"], start, atol=0.02, rtol=0)  # one step
    train(prepared, x, steps=20)
    with torch.no_grad():
        assert sqnr(prepared(x), convert(prepared)(x)) > 40


def test_a_float_checkpoint_loads_strictly_and_learned_scales_start_anew():
    prepared, x = prepare(network(), LEARNED), torch.randn(16, 3, 6, 6)
    train(prepared, x, steps=4)
    prepared.load_state_dict(network().state_dict(), strict=True)
    assert all((factor == 0).all() for factor in log_factors(prepared).values())
    expected = prepared.get_submodule("0").weight.abs().amax((1, 2, 3)) / 7
    torch.testing.assert_close(scales_of(prepared)["0"].flatten(), expected)


def test_a_float_checkpoint_lets_the_search_of_a_learned_scale_start_anew():
    searched = WeightSpec(-7, 7, learned_scale=True, observer="mse")
    prepared = prepare(network(), QConfig(weight=searched, activation=PLAIN.activation, **ALL))
    train(prepared, torch.randn(16, 3, 6, 6), steps=4)
    torch.manual_seed(5)
    with torch.no_grad():
        other = {
            key: value + torch.randn_like(value) if value.dim() > 1 else value
            for key, value in network().state_dict().items()
        }
    prepared.load_state_dict(other, strict=True)
    expected = weight_scale(other["3.weight"], searched)
    torch.testing.assert_close(scales_of(prepared)["3"], expected)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    prepared.train()(torch.randn(16, 3, 6, 6))
    torch.testing.assert_close(scales_of(prepared)["3"], expected)


def small_and_wild(qconfig: QConfig, lr: float = 0.02) -> nn.Module:
    """Small weights behind a BatchNorm, as weight decay leaves them, have large gradients."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 64, 4),
    )  # fmt: skip
    net[3].weight.data.mul_(0.1)
    x, y = torch.randn(256, 1, 8, 8), torch.randint(0, 4, (256,))
    prepared = prepare(net, qconfig, example_args=(x[:4],))
    calibrate(prepared, [x], show_progress=False)
    set_phase(prepared.train(), fake_quant=True, observer=True, freeze_bn=False)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=lr, momentum=0.9)
    for _ in range(100):
        index = torch.randint(0, 256, (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(prepared(x[index]), y[index]).backward()
        optimizer.step()
    return prepared


@pytest.mark.parametrize("activation", [ActivationSpec(), ActivationSpec(0, 15, learned_scale=True)])
@pytest.mark.parametrize("lr", [0.02, 0.5])
def test_no_learned_scale_dies(lr: float, activation: ActivationSpec):
    qconfig = QConfig(weight=WeightSpec(-7, 7, learned_scale=True), activation=activation, **ALL)
    prepared = small_and_wild(qconfig, lr)
    for name, scale in scales_of(prepared).items():
        assert torch.isfinite(scale).all(), name
        assert (scale > 0).all(), name
    for layer in layers_of(prepared):
        integers, _, _ = layer.module.integer_weight(layer.norm)
        assert (integers.flatten(1) != 0).any(1).all(), f"{layer.name} has a channel that is 0"


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_tensor_of_one_sign_has_a_learned_scale_that_learns(sign: float, symmetric: bool):
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(net[2].bias, 10.0 * sign)
    spec = ActivationSpec(*((-8, 7) if symmetric else (0, 15)), symmetric=symmetric, learned_scale=True)
    x = torch.rand(16, 4)
    prepared = prepare(net, QConfig(activation=spec), example_args=(x,))
    set_phase(prepared.train(), fake_quant=True, observer=True, freeze_bn=False)
    for _ in range(3):
        prepared.zero_grad()
        prepared(x).sum().backward()
    gradient = prepared.qat_state.fq_2.learned_scale.log_factor.grad
    assert torch.isfinite(gradient)
    assert gradient != 0


def test_the_gradient_of_a_learned_scale_does_not_know_the_batch_size():
    x = torch.randn(8, 3, 6, 6)
    prepared = prepare(network(), LEARNED)
    calibrate(prepared, [x], show_progress=False)

    def gradients(batch: torch.Tensor) -> dict[str, torch.Tensor]:
        prepared.zero_grad()
        prepared(batch).pow(2).mean().backward()
        return {n: p.grad.clone() for n, p in prepared.named_parameters() if n.endswith("log_factor")}

    once, twice = gradients(x), gradients(torch.cat([x, x, x, x]))
    for name, gradient in once.items():
        # sums of some thousand products in float32, in another order
        torch.testing.assert_close(twice[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert any(gradient.abs().max() > 1e-3 for gradient in once.values())


def test_weight_decay_pulls_a_learned_scale_to_the_observed_one():
    x = torch.randn(16, 3, 6, 6)
    prepared = prepare(network(), LEARNED)
    train(prepared, x, steps=20)
    learned = [p for n, p in prepared.named_parameters() if n.endswith("log_factor")]
    assert max(factor.abs().max() for factor in learned) > 1e-3
    optimizer = torch.optim.AdamW(learned, lr=0.1, weight_decay=1.0)
    for _ in range(100):
        for parameter in learned:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    held, _ = prepared.qat_state.scale_zero_point()
    for name, scale in zip(prepared.qat_state.names, held, strict=True):
        assert scales_of(prepared)[name] == pytest.approx(float(scale), rel=1e-3)
    weight = prepared.get_submodule("0").weight
    torch.testing.assert_close(scales_of(prepared)["0"], weight_scale(weight, WeightSpec(-7, 7)), rtol=1e-3, atol=0)


def test_a_learned_scale_follows_the_observer_while_that_observes():
    x = torch.randn(16, 3, 6, 6)
    prepared = prepare(network(), LEARNED)
    set_phase(prepared.train(), fake_quant=True, observer=True, freeze_bn=False)
    prepared(x)
    first = scales_of(prepared)["fq_input_1"].item()
    for _ in range(500):  # of a moving average that moves by a hundredth
        prepared(10 * x)
    assert scales_of(prepared)["fq_input_1"].item() == pytest.approx(10 * first, rel=0.02)


@pytest.mark.parametrize("side", [4, 12])  # 2 * 8 * side ** 2 values against 576 weights: one is not folded, one is
def test_frozen_batch_norm_is_the_same_folded_and_not(side):
    def layers() -> nn.Sequential:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        with torch.no_grad():
            for tensor, spread in ((model[1].weight, 1.0), (model[1].bias, 1.0), (model[1].running_mean, 1.0)):
                tensor.copy_(torch.randn(8) * spread)
            model[1].running_var.copy_(torch.rand(8) + 0.5)
        return model

    x = torch.randn(2, 8, side, side)
    fast, slow = layers(), layers()
    prepared = prepare(fast)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)  # no ranges: activations stay as they are
    prepared.train()(x).pow(2).sum().backward()
    conv, norm = slow
    scale = conv.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 63
    rounded = conv.weight + ((conv.weight / scale).round() * scale - conv.weight).detach()
    y = nn.functional.conv2d(x, rounded, conv.bias, padding=1)
    nn.functional.batch_norm(
        y, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
    ).pow(2).sum().backward()
    for (name, a), b in zip(fast.named_parameters(), slow.parameters(), strict=True):
        # float32 sums of some thousand products, in another order
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("engine", ["x86", "fbgemm", "onednn", "qnnpack"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(("stride", "groups", "batch_norm"), [(1, 1, True), (2, 1, True), (2, 2, False), (2, 2, True)])
def test_transposed_convolutions_convert_faithfully(engine, dimensions, stride, groups, batch_norm):
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"no {engine} here")
    if engine == "qnnpack" and dimensions == 3:
        pytest.skip("qnnpack has no 3d kernels, transposed or not")
    torch.manual_seed(0)
    transposed = getattr(nn, f"ConvTranspose{dimensions}d")
    norm = [getattr(nn, f"BatchNorm{dimensions}d")(8)] if batch_norm else []
    output_padding = stride - 1
    model = nn.Sequential(
        transposed(4, 8, 3, stride=stride, padding=1, output_padding=output_padding, groups=groups), *norm, nn.ReLU(),
        transposed(8, 2, 2, stride=2),
    )  # fmt: skip
    x = torch.randn(8, 4, *[5] * dimensions)
    prepared = prepare(model, QConfig(engine=engine), example_args=(x,))
    first = plan_of(prepared).layers[0]
    assert first.weight is not None
    assert first.weight.endswith("per tensor")
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        prepared(x).pow(2).mean().backward()
        optimizer.step()
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    with torch.no_grad():
        # 8 bits: one rounding edge in a thousand values leaves 50 dB
        assert sqnr(prepared.eval()(x), convert(prepared)(x)) > 40


def test_a_transposed_convolution_with_an_output_size_converts_faithfully():
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
            self.up = nn.ConvTranspose2d(4, 1, 3, stride=2, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.up(self.conv(x), output_size=[8, 8])

    x = torch.randn(8, 1, 8, 8)
    prepared = prepare(Decoder(), example_args=(x,))
    assert [layer.name for layer in plan_of(prepared).quantized] == ["conv", "up"]
    calibrate(prepared, [x])
    with torch.no_grad():
        assert prepared(x).shape == x.shape
        assert sqnr(prepared(x), convert(prepared)(x)) > 40
