from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from lq.backends.prepare import plan_of, prepare, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.conversion.graph import as_graph
from lq.core.fake_quantize import FakeQuantize
from lq.ptq import calibrate
from lq.tracing import ops


class Net(nn.Module):
    """Three convolutions, their BatchNorms and a body."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.wide = nn.Conv2d(8, 4, 1)
        self.an, self.bn, self.wn = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(8)
        self.relu, self.pool, self.norm = nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.LayerNorm([4, 6, 6])
        self.fc = nn.Linear(4, 4)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def resnet_block(net: Net, x: Tensor) -> Tensor:
    x = net.relu(net.an(net.a(x)))
    y = net.bn(net.b(x))
    y += x
    return net.c(net.relu(y))


def squeeze_and_excitation(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.a(x))
    scale = torch.sigmoid(net.b(F.adaptive_avg_pool2d(y, 1)))
    return net.c(scale * y)


def concatenation(net: Net, x: Tensor) -> Tensor:
    return net.wide(torch.cat([net.relu(net.a(x)), net.b(x)], 1))


def densenet(net: Net, x: Tensor) -> Tensor:
    y = torch.cat([net.a(x), net.b(x)], 1)
    return net.wide(net.relu(net.wn(y)))


def shared_convolution(net: Net, x: Tensor) -> Tensor:
    return net.a(net.relu(net.a(net.relu(net.b(x)))))


def relu_on_a_branch(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    return net.c(net.b(F.relu(y)) + y)


def relu6_after_add(net: Net, x: Tensor) -> Tensor:
    return net.c(F.relu6(net.a(x) + net.b(x)))


def transformer_block(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    y = y + net.b(net.norm(y))
    return net.norm(y + net.c(F.gelu(net.b(net.norm(y)))))


def pooled_and_flattened(net: Net, x: Tensor) -> Tensor:
    y = net.pool(net.relu(net.a(x)))
    return net.fc(y.mean((2, 3)).flatten(1))


def one_tensor_for_three(net: Net, x: Tensor) -> Tensor:
    x = F.hardswish(x)
    return net.a(x) + net.b(x.flatten(2).unflatten(2, (6, 6))) + net.c(net.pool(x)).mean()


def shape_is_read(net: Net, x: Tensor) -> Tensor:
    y = torch.cat([net.a(x), net.b(x)], 1)
    batch, channels, height, width = y.size()
    y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(y.shape)
    return net.wide(y)


def fork_into_float(net: Net, x: Tensor) -> Tensor:
    y = F.gelu(x).flatten(2)
    return net.a(y.unflatten(2, (6, 6))) + F.gelu(y).unflatten(2, (6, 6))


def read_twice_behind_a_fork(net: Net, x: Tensor) -> Tensor:
    y = F.gelu(x)
    z = y.flatten(2).unflatten(2, (6, 6))
    return net.a(z) + net.b(z) + net.norm(y)


EXPECTED = {
    shape_is_read: ["x:none", "a:none", "b:none", "cat:none", "wide:none"],
    fork_into_float: ["flatten:none", "a:none"],
    read_twice_behind_a_fork: ["gelu:none", "a:none", "b:none"],
    resnet_block: ["x:none", "a:relu", "b:none", "add:relu", "c:none"],
    squeeze_and_excitation: [
        "x:none", "a:relu", "adaptive_avg_pool2d:none", "b:none", "sigmoid:none", "mul:none", "c:none"
    ],
    concatenation: ["x:none", "a:relu", "b:none", "cat:none", "wide:none"],
    # the concatenation feeds a float BatchNorm, so it stays float itself
    densenet: ["x:none", "a:none", "b:none", "wn:relu", "wide:none"],
    shared_convolution: ["x:none", "b:relu", "a:relu", "a_1:none"],
    relu_on_a_branch: ["x:none", "a:none", "b:none", "add:none", "c:none"],
    relu6_after_add: ["x:none", "a:none", "b:none", "add:relu6", "c:none"],
    # the residual stream is read by LayerNorm: no quantizer behind `add`
    transformer_block: ["x:none", "a:none", "norm:none", "b:none", "norm_1:none", "b_1:none", "gelu:none", "c:none"],
    pooled_and_flattened: ["x:none", "a:relu", "mean:none", "fc:none"],
    one_tensor_for_three: ["hardswish:none", "a:none", "b:none", "c:none"],
}  # fmt: skip


@pytest.mark.parametrize("body", EXPECTED)
def test_quantizers_sit_where_the_int8_model_rounds(body: Callable[[Net, Tensor], Tensor]):
    prepared = prepare(Net(body), example_args=(torch.randn(2, 4, 6, 6),))
    sites = [f"{t.name.removeprefix('fq_')}:{t.absorbs}" for t in plan_of(prepared).tensors]
    assert sites == EXPECTED[body]
    assert_one_quantizer_per_tensor(as_graph(prepared))


def test_what_is_excluded_takes_part_in_nothing():
    prepared = prepare(Net(resnet_block), _exclude("b"), (torch.randn(2, 4, 6, 6),))
    sites = [f"{t.name}:{t.absorbs}" for t in plan_of(prepared).tensors]
    # `b` computes in float, so the addition does too, and `c` reads its quantized result
    assert sites == ["fq_x:none", "fq_a:relu", "fq_add:relu", "fq_c:none"]


@pytest.mark.parametrize("recurrent", [nn.LSTM, nn.GRU])
def test_one_output_of_several_is_rounded_not_their_tuple(recurrent: type[nn.RNNBase]):
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = recurrent(4, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, pair: tuple[Tensor, int]) -> Tensor:
            return self.head(self.rnn(pair[0])[0][:, -1])

    x = torch.randn(2, 3, 4)
    prepared = prepare(Tagger(), example_args=((x, 1),))
    assert [t.name for t in plan_of(prepared).tensors] == [f"fq_rnn_{recurrent.__name__.lower()}_0", "fq_head"]
    calibrate(prepared, [(x, 1)], call=lambda model, batch: model(batch))
    assert prepared((x, 1)).shape == (2, 2)


PARTS: dict[str, Callable[[Tensor], Sequence[Tensor]]] = {
    "split": lambda x: torch.split(x, [4, 4], 1),
    "chunk": lambda x: x.chunk(2, 1),
    "tensor_split": lambda x: torch.tensor_split(x, 2, 1),
    "unbind": lambda x: x.unflatten(1, (2, 4)).unbind(1),
}


class Mixed(nn.Module):
    """Two layers that read parts of one tensor, as the mixed convolutions of MixNet do."""

    def __init__(self, parts: Callable[[Tensor], Sequence[Tensor]]) -> None:
        super().__init__()
        self.before, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(F.relu(self.before(x)))
        return torch.cat([self.a(parts[0]), self.b(parts[1])], 1)


@pytest.mark.filterwarnings("error:lq. . of . observers")
@pytest.mark.parametrize("what", PARTS)
def test_a_part_that_only_one_layer_in_int8_reads_is_rounded_itself(what: str):
    x = torch.randn(2, 3, 6, 6)
    qconfig = QConfig(exclude=("before", "a"), overrides={f"{what}.1": {"activation": ActivationSpec(0, 63)}})
    prepared = prepare(Mixed(PARTS[what]), qconfig, (x,))
    assert {t.name: t.grid == str(ActivationSpec(0, 63)) for t in plan_of(prepared).tensors} == {
        f"fq_{what}_1": True,
        "fq_b": False,
    }
    calibrate(prepared, [x])
    assert state_of(prepared).observed() == [True, True]
    with torch.no_grad():
        assert torch.equal(prepared.eval()(x), as_graph(prepared)(x))


@pytest.mark.parametrize("excluded", [(), ("a",), ("before",)])
def test_parts_are_rounded_as_a_whole_where_what_made_them_is_or_all_are_read_in_int8(excluded: tuple[str, ...]):
    prepared = prepare(Mixed(PARTS["split"]), QConfig(exclude=excluded), (torch.randn(2, 3, 6, 6),))
    assert not any("split" in t.name for t in plan_of(prepared).tensors)


def _exclude(name: str):
    return QConfig(exclude=(name,))


def assert_one_quantizer_per_tensor(prepared: fx.GraphModule) -> None:
    """No tensor is read by two fake quantizers, and none reads another's output through operations on its grid only."""
    modules = dict(prepared.named_modules())
    readers: dict[fx.Node, fx.Node] = {}
    for node in prepared.graph.nodes:
        if not isinstance(ops.module_of(node, modules), FakeQuantize):
            continue
        source = node.args[0]
        assert source not in readers, f"{readers[source]} and {node} read {source}"
        readers[source] = node
        while isinstance(source, fx.Node) and ops.is_same_grid(source):
            source = source.args[0]
        assert not isinstance(ops.module_of(source, modules), FakeQuantize), f"{node} rounds {source} again"
