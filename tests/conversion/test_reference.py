"""The QDQ graph computes what the prepared model does, for every way in which a net can be put together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_structure

from lq.backends.prepare import prepare, state_of
from lq.config.presets import PRESETS
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.convert import convert, in_float
from lq.conversion.reference import ReferenceLayer, reference
from lq.ptq import calibrate
from tests.conversion.test_convert import BODIES, Net
from tests.conversion.test_int8 import LAYERS


def calibrated(net: nn.Module, x: Tensor, qconfig: QConfig | str = "portable") -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        net.train()(x)
    prepared = prepare(net.eval(), qconfig, example_args=(x,))
    calibrate(prepared, [x])
    return prepared.eval()


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Conv1d(6, 6, 1), nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.function(self.first(x)))
        return out


def assert_equal(prepared: nn.Module, x: Tensor, signed: bool = False) -> fx.GraphModule:
    """Same structure, and equal up to ties that the folded BatchNorm moves to the other side."""
    qdq = reference(prepared, signed)
    with torch.no_grad():
        expected, got = prepared(x), qdq(x)
    assert tree_structure(got) == tree_structure(expected)
    step = max(q[0] for q in state_of(prepared).qparams())
    for a, b in zip(tree_leaves(expected), tree_leaves(got), strict=True):
        if isinstance(a, Tensor):
            assert (a - b).norm() <= max(1e-2 * a.norm(), step)
    return qdq


@pytest.mark.parametrize("signed", [False, True], ids=["as trained", "signed"])
@pytest.mark.parametrize("name", BODIES)
def test_every_body_computes_what_was_emulated(name: str, signed: bool) -> None:
    x = torch.randn(4, 4, 6, 6)
    qdq = assert_equal(calibrated(Net(BODIES[name]), x), x * 1.2, signed)
    assert any(isinstance(module, ReferenceLayer) for module in qdq.modules())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_computes_what_was_emulated(name: str, preset: str) -> None:
    net, shape = LAYERS[name]()
    x = torch.randn(shape) + 0.3
    assert_equal(calibrated(net, x, preset), x * 1.2)


TRANSPOSED: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "1d": lambda: (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), torch.randn(2, 4, 7)),
    "2d": lambda: (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 7, 7)),
    "3d": lambda: (nn.ConvTranspose3d(4, 6, 2, stride=2), torch.randn(2, 4, 3, 3, 3)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name: str) -> None:
    layer, x = TRANSPOSED[name]()
    assert_equal(calibrated(nn.Sequential(layer, nn.ReLU()), x), x)


def spec(low: int, high: int, **kwargs: Any) -> ActivationSpec:
    return ActivationSpec(low, high, **kwargs)


GRIDS = {
    "2 bits": (WeightSpec(-1, 1), spec(0, 3)),
    "3 bits": (WeightSpec(-3, 3), spec(0, 7)),
    "4 bits symmetric": (WeightSpec(-7, 7), spec(-7, 7, symmetric=True)),
    "4 bits signed": (WeightSpec(-7, 7), spec(-8, 7)),
    "5 bits": (WeightSpec(-15, 15), spec(0, 31)),
    "7 bits": (WeightSpec(-63, 63), spec(0, 127)),
    "8 bits symmetric": (WeightSpec(-127, 127), spec(-127, 127, symmetric=True)),
    "8 bits all symmetric": (WeightSpec(-127, 127), spec(-128, 127, symmetric=True)),
    "8 bits signed": (WeightSpec(-127, 127), spec(-128, 127)),
    "per tensor": (WeightSpec(-127, 127, per_channel=False), spec(0, 255)),
    "learned": (WeightSpec(-7, 7, learned_scale=True), spec(0, 15, learned_scale=True)),
}


@pytest.mark.parametrize("signed", [False, True], ids=["as trained", "signed"])
@pytest.mark.parametrize("activation", [nn.Identity, nn.ReLU, nn.ReLU6])
@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_keeps_its_levels(name: str, activation: type[nn.Module], signed: bool) -> None:
    weight, tensors = GRIDS[name]
    x = torch.randn(4, 4, 6, 6) * 3
    net = nn.Sequential(nn.Conv2d(4, 8, 3), activation(), nn.Conv2d(8, 8, 1), activation())
    prepared = calibrated(net, x, QConfig(weight=weight, activation=tensors))
    qdq = assert_equal(prepared, x * 1.5, signed)
    with torch.no_grad():
        assert 1 < qdq(x * 1.5).unique().numel() <= tensors.quant_max - tensors.quant_min + 1
    for module in qdq.modules():
        if isinstance(module, ReferenceLayer):
            assert module.weight.dtype == torch.int8
            assert module.weight.abs().max() <= weight.quant_max
            assert (module.per_tensor_scale is None) == weight.per_channel


def test_a_learned_scale_that_moved_is_the_one_that_counts() -> None:
    x = torch.randn(8, 4)
    activation = spec(0, 255, learned_scale=True)
    prepared = calibrated(nn.Sequential(nn.Linear(4, 4)), x, QConfig(activation=activation))
    prepared.train()(x)
    with torch.no_grad():
        for name, parameter in prepared.named_parameters():
            if name.endswith("log_factor"):
                parameter.add_(1.1)
    prepared.eval()
    with torch.no_grad():
        torch.testing.assert_close(reference(prepared)(x), prepared(x))


def _pairs(qdq: fx.GraphModule) -> list[fx.Node]:
    return [n for n in qdq.graph.nodes if "quantize_per_tensor" in str(n.target) and "dequantize" not in str(n.target)]


@pytest.mark.parametrize(("signed", "dtype"), [(False, torch.uint8), (True, torch.int8)])
def test_absorbed_activations_are_left_to_saturation(signed: bool, dtype: torch.dtype) -> None:
    x = torch.randn(4, 4, 6, 6)
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.ReLU())
    qdq = reference(calibrated(net, x * 20), signed)
    targets = {str(n.target) for n in qdq.graph.nodes}
    assert not any("relu" in target or "clamp" in target for target in targets)
    assert [n.args[-1] for n in _pairs(qdq)] == [dtype] * 3
    with torch.no_grad():
        first = qdq.graph.nodes
        assert len(list(first)) == 10, "input, three pairs, two layers, output"


def test_symmetric_grids_keep_the_relu_and_need_no_clamp() -> None:
    x = torch.randn(4, 4, 6, 6)
    qdq = reference(calibrated(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), x, "tensorrt"))
    targets = [str(n.target) for n in qdq.graph.nodes]
    assert sum("relu" in target for target in targets) == 1
    assert not any("clamp" in target for target in targets)
    assert all(n.args[2] == 0 and n.args[-1] == torch.int8 for n in _pairs(qdq))


def test_names_dtypes_and_the_prepared_model_are_kept() -> None:
    x = torch.randn(4, 4, 6, 6)
    prepared = calibrated(Net(BODIES["add relu"]), x)
    before = {k: v.clone() for k, v in prepared.state_dict().items() if isinstance(v, Tensor)}
    parts = list(prepared.named_modules())
    with torch.inference_mode():
        qdq = reference(prepared)
    assert {n for n, m in qdq.named_modules() if isinstance(m, ReferenceLayer)} == {"a", "b", "c"}
    after = prepared.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert list(prepared.named_modules()) == parts
    assert not any(tensor.is_inference() for tensor in qdq.state_dict().values())
    assert not qdq.training
    assert reference(copy.deepcopy(prepared).to(torch.bfloat16))(x).dtype == torch.float32


def test_same_grid_operations_tell_the_runtime_so() -> None:
    x = torch.randn(4, 4, 6, 6)
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    qdq = reference(calibrated(net, x))
    pairs = [(n.args[1], n.args[2]) for n in _pairs(qdq)]
    assert pairs[1] == pairs[2] == pairs[3], "conv, pooling and flattening lie on one grid"


@pytest.mark.parametrize(
    "keeps",
    [
        lambda x: x[:, :, torch.tensor([1, 0, -1])],
        lambda x: F.adaptive_max_pool1d(x, 3),
        lambda x: F.adaptive_max_pool2d(x, (2, 3)),
        lambda x: x.mT,
    ],
    ids=["indices", "adaptive maximum", "adaptive maximum of an image", "mT"],
)
def test_what_a_captured_graph_knows_by_another_name_keeps_the_grid(keeps: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 6, 6)
    prepared = calibrated(Between(keeps), x)
    qdq, int8 = assert_equal(prepared, x), convert(prepared)
    (last,) = [node for node in qdq.graph.nodes if node.target == "last"]
    assert "dequantize" in str(last.args[0].target)
    assert in_float(int8) == {}
    torch.testing.assert_close(int8(x), prepared(x))


def test_a_layer_without_ranges_is_left_in_float_around_its_weight() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x)))

    x = torch.randn(8, 4)
    prepared = calibrated(Branch(), x)
    state = state_of(prepared)
    state.min_val[1], state.max_val[1] = torch.inf, -torch.inf
    with torch.no_grad():
        torch.testing.assert_close(reference(prepared)(x), prepared(x))


def test_without_ranges_there_is_nothing_to_lower() -> None:
    with pytest.raises(ValueError, match="No fake quantizer has seen a batch"):
        reference(prepare(nn.Sequential(nn.Linear(2, 2))))


def test_sixteen_bits_are_uint16_and_a_finer_grid() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    prepared = calibrated(net, x, QConfig("qnn", activation=ActivationSpec(0, 65535)))
    qdq = reference(prepared)
    quantized = [node for node in qdq.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert {node.args[-1] for node in quantized} == {torch.uint16}
    with torch.no_grad():
        assert (qdq(x) - prepared(x)).abs().max() < 4 / 65535  # some steps


def test_what_keeps_its_values_is_clamped_once() -> None:
    few = QConfig(activation=ActivationSpec(0, 15), keep="nothing")
    prepared = prepare(nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), nn.Flatten()), few)
    x = torch.randn(64, 4)
    calibrate(prepared, [x])
    qdq = reference(prepared)
    targets = [node.target for node in qdq.graph.nodes]
    assert targets.count(torch.clamp) == 2, "of the input and of the layer"
    assert targets.count(torch.ops.quantized_decomposed.quantize_per_tensor.default) > 2
    with torch.no_grad():
        torch.testing.assert_close(qdq(2 * x), prepared.eval()(2 * x))
