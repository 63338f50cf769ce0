from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.backends.prepare import prepare, set_phase, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.conversion.bias import round_biases
from lq.conversion.graph import as_graph
from lq.conversion.reference import ReferenceLayer, reference


class Net(nn.Module):
    """A convolution with the BatchNorm asked for, one without, and a linear layer."""

    def __init__(self, bn: nn.Module | None, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, bias=bias), nn.Conv2d(8, 8, 3)
        self.bn = bn or nn.Identity()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.bn(self.first(x)))))
        logits: Tensor = self.head(F.max_pool2d(x, 4).flatten(1))
        return logits


NORMS: dict[str, Any] = {
    "none": lambda: None,
    "with bias": lambda: nn.BatchNorm2d(8),
    "affine=False": lambda: nn.BatchNorm2d(8, affine=False),
}
X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def calibrated(net: nn.Module, x: Tensor = X, qconfig: QConfig | str = "portable") -> fx.GraphModule:
    """The graph of a prepared net, which shares its parameters."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    with torch.no_grad():
        net.train()(x)
        prepared = prepare(net.eval(), qconfig, example_args=(x,))
        set_phase(prepared, fake_quant=True, observer=True, freeze_bn=True)
        prepared.train()(x)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    return as_graph(prepared.eval())


def off_grid(prepared: fx.GraphModule) -> dict[str, float]:
    """How far the bias of each layer, as it is folded, lies from its integer grid, in steps at most."""
    qdq = reference(prepared)
    found = {}
    for node in qdq.graph.nodes:
        layer = dict(qdq.named_modules()).get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, ReferenceLayer) and layer.bias is not None:
            assert layer.weight_scale is not None
            steps = layer.bias.double() / (layer.weight_scale.double() * node.args[0].args[1])
            found[str(node.target)] = float((steps - steps.round()).abs().max())
    return found


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_folded_biases_become_multiples_of_input_times_weight_scale(norm: str, bias: bool) -> None:
    prepared = calibrated(Net(NORMS[norm](), bias))
    before = off_grid(prepared)
    assert max(before.values()) > 0.2, "they were not before"
    round_biases(prepared)
    after = off_grid(prepared)
    assert after.keys() == before.keys() >= {"second", "head"}
    # The bias is stored in float32 and, behind a BatchNorm, computed from numbers that are: 24 bits for 1e4 steps.
    assert max(after.values()) < 0.02


@pytest.mark.parametrize("norm", NORMS)
def test_outputs_move_by_less_than_a_step(norm: str) -> None:
    prepared = calibrated(Net(NORMS[norm]()))
    with torch.no_grad():
        before = prepared(X)
        round_biases(prepared)
        after = prepared(X)
    step = state_of(prepared).qparams()[-1][0]
    assert (after - before).abs().max() <= 1.01 * step
    assert ((after - before).abs() > 0.5 * step).float().mean() < 0.1


def test_doing_it_twice_changes_nothing_more() -> None:
    prepared = calibrated(Net(nn.BatchNorm2d(8)))
    round_biases(prepared)
    first = {k: v.clone() for k, v in prepared.state_dict().items() if isinstance(v, Tensor)}
    round_biases(prepared)
    for name, value in first.items():
        torch.testing.assert_close(prepared.state_dict()[name], value, rtol=1e-6, atol=1e-7)


class PreActivation(nn.Module):
    """A layer reads what another one wrote, behind a ReLU of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        logits: Tensor = self.head(x + self.body(F.relu(x)))
        return logits


def test_a_layer_behind_a_relu_of_its_own_is_rounded_too() -> None:
    prepared = calibrated(PreActivation())
    before = off_grid(prepared)
    round_biases(prepared)
    assert before["body"] > 0.1
    assert off_grid(prepared)["body"] < 0.02


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(torch.tanh(self.layer(x)) * 3)
        return y


def test_a_layer_that_is_called_twice_stays_as_it_is() -> None:
    net = Shared()
    before = net.layer.bias.detach().clone()
    round_biases(calibrated(net, torch.randn(16, 4)))
    assert torch.equal(net.layer.bias, before)


def test_a_layer_whose_input_has_no_range_stays_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    prepared = calibrated(net, torch.randn(16, 4))
    state_of(prepared).min_val[0], state_of(prepared).max_val[0] = torch.inf, -torch.inf
    first, last = net[0].bias.detach().clone(), net[2].bias.detach().clone()
    round_biases(prepared)
    assert torch.equal(net[0].bias, first)
    assert not torch.equal(net[2].bias, last)


def test_learned_scales_count() -> None:
    qconfig = QConfig(activation=ActivationSpec(0, 255, learned_scale=True))
    net = Net(None)
    prepared = calibrated(net, qconfig=qconfig)
    net.train()(X)
    net.eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("log_factor"):
                parameter.add_(0.5)
    round_biases(prepared)
    assert max(off_grid(prepared).values()) < 0.02


def test_dead_channels_keep_their_bias() -> None:
    net = Net(nn.BatchNorm2d(8))
    prepared = calibrated(net)
    with torch.no_grad():
        net.bn.weight[:2] = 1e-12
        net.bn.bias[:2] = torch.tensor([0.5, -0.5])
    round_biases(prepared)
    torch.testing.assert_close(net.bn.bias[:2], torch.tensor([0.5, -0.5]))


def test_onnx_runtime_adds_the_same_int32_biases(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from lq.export.formats.onnx import _session, write

    prepared = calibrated(Net(nn.BatchNorm2d(8)))
    round_biases(prepared)
    write(prepared, ((X,), {}), tmp_path / "net.onnx")
    _session(tmp_path / "net.onnx", optimized=tmp_path / "optimized.onnx")
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    values = {t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer}
    folded = {n: m for n, m in reference(prepared).named_modules() if isinstance(m, ReferenceLayer)}
    seen = 0
    for node in graph.node:
        if node.op_type == "QLinearConv":
            input_scale, weight_scale, bias = (values[node.input[i]] for i in (1, 4, 8))
            assert bias.dtype == torch.int32
            layer = next(m for m in folded.values() if torch.equal(m.weight, values[node.input[3]]))
            assert layer.bias is not None
            torch.testing.assert_close(
                bias.double() * input_scale * weight_scale, layer.bias.double(), rtol=1e-5, atol=0
            )
            seen += 1
    assert seen == 2
