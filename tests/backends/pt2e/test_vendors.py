from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchao")

from lq.backends.prepare import plan_of, prepare, set_phase, state_of
from lq.backends.pt2e.quantizers import make_quantizer
from lq.backends.pt2e.vendors import VENDORS
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.conversion.convert import convert
from lq.metrics import sqnr
from lq.ptq import calibrate
from tests.backends.pt2e.test_choice import Residual, X
from tests.backends.pt2e.torchao_flow import torchao_flow

# What executorch 1.5, coremltools and nncf themselves warn of.
pytestmark = pytest.mark.filterwarnings("ignore")

SLOW = ("coreml",)  # exports some hundred patterns for each model that it annotates: minutes
NAMES = [name for name in VENDORS if name not in SLOW]
SEES_BATCH_NORM = ("x86_inductor", "arm_inductor", "xnnpack", "qnn", "coreml")


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNN_SDK_ROOT", "")  # else executorch fetches Qualcomm's SDK


def of(name: str, /, **options: Any) -> Any:
    """The quantizer; the test is skipped without its packages."""
    try:
        return make_quantizer(qconfig(name, **options))
    except ImportError as error:
        pytest.skip(str(error))


def qconfig(name: str, /, **options: Any) -> QConfig:
    grid = ActivationSpec(observer="minmax")
    return QConfig(backend="pt2e", quantizer=name, quantizer_options=options, activation=grid)


@pytest.mark.parametrize("name", ["x86_inductor", "arm_inductor", "xnnpack", "ethos_u", "vgf", "tosa"])
def test_where_there_is_a_configuration_it_is_for_static_qat(name):
    config = of(name).global_config
    assert getattr(config, "is_qat", "qat=1" in str(getattr(config, "label", "")))
    assert not config.input_activation.is_dynamic


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("x86_inductor", {"reduce_range": True}, "uint7 [0, 127] affine"),
        ("xnnpack", {"act_qmin": 0, "act_qmax": 127}, "uint7 [0, 127] affine"),
        ("ethos_u", {"target": "ethos-u85-256", "act_qmin": -127}, "int8 [-127, 127] affine"),
        ("vgf", {"tosa_spec": "TOSA-1.0+INT", "act_qmin": -127}, "int8 [-127, 127] affine"),
        ("tosa", {"act_qmin": -127}, "int8 [-127, 127] affine"),
        ("qnn", {"act_symmetric": True}, "int8 [-128, 127] symmetric"),
        ("qnn", {"quant_dtype": "use_16a8w"}, "uint16 [0, 65535] affine"),
        ("openvino", {"mode": "INT8_MIXED"}, "uint8 [0, 255] affine"),
        ("samsung", {"precision": "A8W8"}, "int8 [-128, 127] affine"),
        ("cadence", {"name": "CadenceDefaultQuantizer"}, "int8 [-128, 127] affine"),
    ],
)
def test_options_reach_the_vendor(name, options, grid):
    of(name, **options)
    prepared = prepare(mlp(), qconfig(name, **options), (torch.rand(4, 8),))
    assert {str(spec).partition(",  ")[0].rpartition(", ")[0] for spec in state_of(prepared).specs} == {grid}


def test_cortex_m_leaves_convolutions_in_float_unless_the_layout_is_explicit_or_channels_last():
    of("cortex_m")
    assert len(plan_of(prepare(Residual(), qconfig("cortex_m"), (X,))).quantized) == 5
    legacy = prepare(Residual(), qconfig("cortex_m", use_explicit_layout=False), (X,))
    assert [layer.name for layer in plan_of(legacy).quantized] == ["head.2"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("xnnpack", {"is_dynamic": True}, "to be quantized dynamically, which is not trained"),
        ("xnnpack", {"weight": 4}, "do not fit xnnpack: .*unexpected keyword argument 'weight'"),
        ("qnn", {"quant_dtype": "use_9a9w"}, r"Unknown QuantDtype 'use_9a9w'. Choose one of \['use_16a16w', "),
        (
            "openvino",
            {"mode": "INT4WO_SYM"},
            "the weight of 0 by INT4WeightObserver, which does not say which",
        ),
        ("samsung", {"is_per_channel": False}, "the weight of 0 as torch.per_tensor_affine; lq has symmetric weights"),
    ],
)
def test_what_lq_does_not_have_is_refused(name, options, message):
    of(name)
    with pytest.raises(ValueError, match=message):
        prepare(mlp(), qconfig(name, **options), (torch.rand(4, 8),))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))


class Joined(Residual):
    """Up to its concatenation: what follows is only moved, and not rounded again, whatever a quantizer wants."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        x = self.pool(self.relu(self.body(x) + x))
        return torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], dim=1)


def residual(kind: type[Residual] = Joined) -> nn.Module:
    torch.manual_seed(0)
    net = kind()
    with torch.no_grad():
        for _ in range(20):
            net(X + 0.1 * torch.rand_like(X))
    return net


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("make", "x"), [(mlp, torch.rand(16, 8)), (residual, X)], ids=["mlp", "residual"])
def test_it_rounds_what_torchaos_flow_rounds(name, make, x):
    """With the same ranges, values differ only by ties; each of them is a step of one value."""
    net = make().eval()
    theirs, roundings = torchao_flow(net, x, of(name), qat=name in SEES_BATCH_NORM)
    ours = prepare(copy.deepcopy(net), qconfig(name), (x,))
    calibrate(ours, [x])
    with torch.no_grad():
        theirs(x)
        for rounding in roundings:
            rounding.rounds = True
        plain, real, fake = net(x), theirs(x), ours.eval()(x)
    assert float(sqnr(real, fake)) > float(sqnr(plain, real)) + 6  # less than half as far


@pytest.mark.parametrize("name", NAMES)
def test_it_is_trained_and_converted(name):
    of(name)
    prepared = prepare(residual(Residual), qconfig(name), (X,))
    calibrate(prepared, [X])
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    for _ in range(2):
        prepared.train()(X).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(sqnr(prepared.eval()(X), convert(prepared)(X))) > 35  # ties
