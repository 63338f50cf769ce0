"""One layer at a time the int8 kernels must give what was emulated, to the last integer."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare, state_of
from lq.compat.deprecations import quiet_torchscript
from lq.config.presets import PRESETS
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.convert import convert
from lq.conversion.int8 import Int8Layer, has_kernel, quantized_engine, room_for_bias
from lq.core.modules import QAT_LAYERS
from lq.core.state import QATState
from lq.ptq import calibrate

SUPPORTED = [p for p in PRESETS if PRESETS[p].engine in torch.backends.quantized.supported_engines]


def conv_bn(dims: int, channels: int, out: int, kernel: int, act: nn.Module | None = None, **kwargs) -> nn.Sequential:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](channels, out, kernel, **kwargs)
    bn = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](out)
    return nn.Sequential(conv, bn, *filter(None, (act,)))


LAYERS = {
    "conv2d bn relu": lambda: (conv_bn(2, 32, 32, 3, nn.ReLU(), padding=1, bias=False), (4, 32, 8, 8)),
    "pointwise bn relu6": lambda: (conv_bn(2, 32, 64, 1, nn.ReLU6()), (4, 32, 8, 8)),
    "depthwise": lambda: (conv_bn(2, 64, 64, 3, padding=1, groups=64), (4, 64, 8, 8)),
    "wide depthwise": lambda: (conv_bn(2, 128, 128, 5, nn.ReLU6(), padding=2, groups=128), (2, 128, 8, 8)),
    "groups, stride, dilation": lambda: (conv_bn(2, 8, 16, 3, groups=4, stride=2, dilation=2), (4, 8, 12, 12)),
    "same padding": lambda: (conv_bn(2, 8, 8, (3, 5), padding="same", dilation=(1, 2)), (4, 8, 12, 12)),
    "valid padding": lambda: (conv_bn(2, 8, 8, 3, padding="valid"), (4, 8, 6, 6)),
    "conv1d": lambda: (conv_bn(1, 16, 32, 3, nn.ReLU(), padding=1, groups=2), (4, 16, 33)),
    "conv3d": lambda: (conv_bn(3, 4, 8, 3, nn.ReLU(), padding=1), (2, 4, 6, 6, 6)),
    "linear": lambda: (nn.Sequential(nn.Linear(256, 64)), (64, 256)),
    "linear bn relu": lambda: (nn.Sequential(nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU()), (64, 64)),
    "linear on tokens": lambda: (nn.Sequential(nn.Linear(32, 16, bias=False)), (4, 7, 32)),
}


def calibrated(net: nn.Module, x: Tensor, qconfig: QConfig | str) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            nn.init.normal_(module.weight)  # negative ones too
    with torch.no_grad():
        net.train()(x)
    prepared = prepare(net, qconfig, example_args=(x,))
    calibrate(prepared, [x])
    return prepared


def steps_apart(prepared: nn.Module, x: Tensor) -> Tensor:
    """Difference of fake-quantized and int8 model, in steps of the last grid."""
    with torch.no_grad():
        fake, int8 = prepared.eval()(x), convert(prepared)(x)
    return ((fake - int8) / state_of(prepared).qparams()[-1][0]).round().abs()


@pytest.mark.parametrize("per_channel", [True, False], ids=["per channel", "per tensor"])
@pytest.mark.parametrize("preset", SUPPORTED)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_was_emulated(name: str, preset: str, per_channel: bool):
    net, shape = LAYERS[name]()
    x = torch.randn(shape) + 0.3
    high = PRESETS[preset].weight.quant_max
    prepared = calibrated(net, x, QConfig(preset, weight=WeightSpec(-high, high, per_channel)))
    off = steps_apart(prepared, x * 1.2)  # some values saturate
    assert off.max() <= 1
    # The float emulation and the int32 kernel meet a tie from different sides now and then. qnnpack rounds its scale
    # and bias once more, so its ties are wider.
    assert (off > 0).float().mean() < (5e-3 if preset == "qnnpack" else 1e-3)


@pytest.mark.parametrize("preset", SUPPORTED)
@pytest.mark.parametrize("gamma", [0.0, 1e-20, 1e-9, -1e-6])
def test_dead_channels_keep_their_bias(preset: str, gamma: float):
    net, x = conv_bn(2, 8, 8, 3, nn.ReLU()), torch.randn(4, 8, 6, 6)
    prepared = calibrated(net, x, preset)
    with torch.no_grad():
        net[1].weight[:4] = gamma
        net[1].bias[:4] = torch.tensor([0.5, 1.5, -1.0, 0.0])
    calibrate(prepared, [x])
    assert steps_apart(prepared, x).max() <= 1


def test_a_scale_is_widened_for_a_bias_of_more_than_2_to_the_30_steps() -> None:
    integers, scale = torch.full((4, 1), 64, dtype=torch.int8), torch.full((4,), 2.0**-20)
    bias = torch.tensor([2.0**30, -(2.0**30), 2.0**31, -(2.0**33)]) * scale * 0.5
    narrowed, widened = room_for_bias(integers, scale, bias, input_scale=0.5)
    assert widened.tolist() == [2.0**-20, 2.0**-20, 2.0**-19, 2.0**-17]
    assert narrowed.flatten().tolist() == [64, 64, 32, 8]


@pytest.mark.parametrize(
    ("weight", "activation"),
    [
        (WeightSpec(-7, 7), ActivationSpec(0, 15)),
        (WeightSpec(-1, 1), ActivationSpec(0, 3)),
        (WeightSpec(-7, 7), ActivationSpec(-7, 7, symmetric=True)),
        (WeightSpec(-63, 63), ActivationSpec(-128, 127)),
        (WeightSpec(-63, 63), ActivationSpec(-8, 7)),
        (WeightSpec(-63, 63), ActivationSpec(0, 127, observer="minmax")),
    ],
)
@pytest.mark.parametrize("activation_function", [nn.Identity, nn.ReLU, nn.ReLU6])
def test_grids_with_fewer_levels_convert_faithfully(
    weight: WeightSpec, activation: ActivationSpec, activation_function: type[nn.Module]
):
    net = nn.Sequential(nn.Conv2d(8, 8, 3), activation_function(), nn.Conv2d(8, 8, 1))
    x = torch.randn(4, 8, 6, 6) * 3
    prepared = calibrated(net, x, QConfig(weight=weight, activation=activation))
    off = steps_apart(prepared, x * 1.5)
    assert (off > 0).float().mean() < 5e-3  # a flipped tie behind the first layer moves outputs of the second
    with torch.no_grad():
        levels = convert(prepared)(x * 1.5).unique().numel()
    assert 1 < levels <= activation.quant_max - activation.quant_min + 1


@pytest.mark.skipif("tensorrt" not in SUPPORTED, reason="no onednn here")
def test_onednn_linear_layers_avoid_the_slow_kernel_and_stay_right_when_saved():
    net, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4, bias=False)), torch.randn(16, 64)
    prepared = calibrated(net, x, "tensorrt")
    int8 = convert(prepared)
    layers = [m for m in int8.modules() if isinstance(m, Int8Layer)]
    assert all(layer.scale_without_zero_point is not None for layer in layers)
    file = io.BytesIO()
    with quiet_torchscript(), quantized_engine("onednn"), torch.no_grad():
        torch.jit.save(torch.jit.freeze(torch.jit.trace(int8, x)), file)
        loaded = torch.jit.load(io.BytesIO(file.getvalue()))
        assert torch.equal(loaded(x), int8(x))
    assert steps_apart(prepared, x).max() <= 1


@pytest.mark.parametrize("preset", [p for p in ("portable", "x86_vnni") if p in SUPPORTED])
@pytest.mark.parametrize(("width", "stride", "dilation"), [(8, 1, 1), (8, 4, 1), (12, 2, 1), (16, 1, 2), (7, 2, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_wide_kernels_that_onednn_gets_wrong(preset: str, width: int, stride: int, dilation: int, groups: int) -> None:
    conv = nn.Conv1d(16 * groups, 16, width, stride, padding=3, dilation=dilation, groups=groups)
    x = torch.randn(2, 16 * groups, 90)
    assert steps_apart(calibrated(nn.Sequential(conv), x, preset), x).max() <= 1


@pytest.mark.skipif("portable" not in SUPPORTED, reason="no x86 here")
@pytest.mark.parametrize(
    ("channels", "width", "dilation", "columns"),
    [(31, 8, 1, 1), (4, 12, 3, 3), (32, 8, 1, 0), (4, 4, 1, 0), (4, 9, 1, 0)],
)
def test_only_what_onednn_gets_wrong_is_widened(channels: int, width: int, dilation: int, columns: int) -> None:
    net, x = nn.Sequential(nn.Conv1d(channels, 3, width, dilation=dilation)), torch.randn(2, channels, 40)
    (layer,) = [m for m in convert(calibrated(net, x, "portable")).modules() if isinstance(m, Int8Layer)]
    assert layer.columns == columns


def test_the_engine_in_force_is_restored():
    before = torch.backends.quantized.engine
    other = next(e for e in torch.backends.quantized.supported_engines if e not in (before, "none"))
    seen = []

    def fails() -> None:
        with quantized_engine(other):
            seen.append(torch.backends.quantized.engine)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert seen == [other]
    assert torch.backends.quantized.engine == before


def test_it_says_what_it_is():
    net, x = LAYERS["linear"]()[0], torch.randn(64, 256)
    int8 = convert(calibrated(net, x, "portable"))
    assert "Linear, scale=" in repr(int8)


@pytest.mark.parametrize(
    ("engine", "without"),
    [
        ("qnnpack", {nn.Conv3d, nn.ConvTranspose3d}),
        ("fbgemm", set()),
        ("x86", {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}),
        ("onednn", {nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d}),
    ],
)
def test_which_layers_have_a_kernel(engine: str, without: set[type[nn.Module]]) -> None:
    if engine not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this build of PyTorch has no {engine}")
    layers: list[nn.Module] = [nn.Linear(4, 4)]
    layers += [getattr(nn, f"Conv{kind}{n}d")(4, 4, 1) for kind in ("", "Transpose") for n in (1, 2, 3)]
    state = QATState([], [], [])
    own = {type(x): QAT_LAYERS[type(x)].from_float(x, WeightSpec(-127, 127), state) for x in layers}
    lacking = {kind for kind, layer in own.items() if not has_kernel(layer, engine)}
    assert lacking == without
