from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

import lq
from lq.config.specs import WeightSpec
from lq.conversion.bias import round_biases
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.conversion.int8 import Int8Layer
from lq.conversion.reference import reference
from lq.core.functional import fake_quantize
from lq.core.layer import QATLayer
from lq.core.lsq import LearnedScale
from lq.core.modes import modes_kept
from lq.core.state import QATState
from lq.export.exporters import chosen
from lq.export.formats.program import float_program
from lq.export.formats.torchscript import export_torchscript
from lq.export.parity.bisection import first_difference
from lq.metrics import sqnr
from lq.tracing.capture import LayerSite, capture
from tests.tracing.marked import Marked, Sites, captured, with_ranges


def leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    elif hasattr(output, "__dataclass_fields__"):
        output = list(vars(output).values())
    return [leaf for part in output or () if part is not None for leaf in leaves(part)]


def check_float(net: Marked, *args: Any, **kwargs: Any) -> Any:
    """Capture, and compare with the float model at the example and, doubled, at another batch size."""
    graph = captured(net, *args, **kwargs)
    graph.graph.lint()
    copied = copy.deepcopy(graph)
    with torch.no_grad(), modes_kept(net):
        expected, got = net.eval()(*copy.deepcopy(args), **kwargs), graph(*args, **kwargs)
        again = copied(*args, **kwargs)
    for a, b, c in zip(leaves(expected), leaves(got), leaves(again), strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(b, c)
    return graph


def check_lowered(graph: Any, *batches: Any) -> None:
    """int8 and QDQ, traced and exported, at other batch sizes than those that they were made with."""
    first, second = batches
    with torch.no_grad():
        expected, other = leaves(graph(*first)), leaves(graph(*second))
        int8, qdq = convert(graph), reference(graph)
        scripted = export_torchscript(int8, first)
        program, dynamic = float_program(qdq, (first, {}))
        assert dynamic
        for model in (int8, qdq, scripted, program.module()):
            for inputs, outputs in ((first, expected), (second, other)):
                for a, b in zip(outputs, leaves(model(*inputs)), strict=True):
                    assert sqnr(a, b) > 30


def resnet() -> Marked:
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        x = sites.round(x, "in")
        y = sites.round(net.bn1(net.convolve("conv1", x, folds=True)), "one", "relu")
        z = sites.round(net.bn2(net.convolve("conv2", y, folds=True)), "two")
        z += y
        z = sites.round(z, "sum", "relu")
        z = net.pool(z)
        return sites.round(net.linear("fc", sites.round(z.view(z.size(0), -1), "flat")), "out")

    return Marked(
        body,
        conv1=nn.Conv2d(3, 8, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(8),
        conv2=nn.Conv2d(8, 8, 3, padding="same"),
        bn2=nn.BatchNorm2d(8),
        pool=nn.MaxPool2d(2),
        fc=nn.Linear(8 * 16, 5),
    )


def test_a_resnet_like_net_shares_its_tensors_and_lowers():
    torch.manual_seed(0)
    net = resnet()
    net.conv1.eval()
    with torch.no_grad():
        net.bn1.running_mean.normal_()
    x = torch.randn(4, 3, 8, 8)
    graph = check_float(net, x)
    assert net.training
    assert not net.conv1.training
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert targets == [
        *("qat_state.fq_in", "conv1", "qat_state.fq_one", "conv2", "qat_state.fq_two", "qat_state.fq_sum"),
        *("qat_state.fq_flat", "fc", "qat_state.fq_out", "qat_state"),
    ]
    assert graph.get_submodule("conv1").weight is net.conv1.weight
    assert graph.get_submodule("fc").bias is net.fc.bias
    assert graph.get_submodule("bn1").running_mean is net.bn1.running_mean
    with_ranges(graph, x)
    check_lowered(graph, (x,), (torch.randn(7, 3, 8, 8).clamp(-2, 2),))
    layers = [m for m in convert(graph).modules() if isinstance(m, Int8Layer)]
    assert len(layers) == 3
    before = net.bn1.bias.clone()
    round_biases(graph)
    assert not torch.equal(before, net.bn1.bias)


@dataclass
class Output:
    logits: Tensor
    hidden: tuple[Tensor, Tensor | None]
    loss: Tensor | None = None


class Bundle(OrderedDict[str, Any]):
    """As transformers' ModelOutput."""


class Pair(NamedTuple):
    a: Tensor
    b: Tensor


def transformer(kind: str) -> Marked:
    def body(net: Marked, sites: Sites, batch: dict[str, Any], *, scale: float = 1.0, returns: bool = True) -> Any:
        x, mask = batch["x"], batch["more"][0]
        b, n, c = x.shape
        qkv = net.linear("qkv", sites.round(net.norm(x), "normed"))
        q, k, v = qkv.reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        y = y.transpose(1, 2).flatten(2) * scale
        y = x + net.linear("proj", sites.round(y, "attended"))
        y = F.dropout(y, 0.1, net.training)
        if kind == "record":
            return Output(y, (q, None))
        if kind == "pair":
            return Pair(y, q)
        return Bundle(logits=y, hidden=[q, {"k": k}]) if kind == "bundle" else OrderedDict(y=y)

    return Marked(body, norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24), proj=nn.Linear(8, 8))


@pytest.mark.parametrize("kind", ["record", "bundle", "ordered", "pair"])
def test_a_transformer_takes_and_returns_structures(kind: str):
    torch.manual_seed(0)
    batch = {"x": torch.randn(2, 6, 8), "unused": torch.randn(2), "more": [torch.ones(2, 6, dtype=torch.bool), 3]}
    graph = check_float(transformer(kind), batch, scale=2.0)
    types = {"record": dict, "bundle": dict, "ordered": OrderedDict, "pair": Pair}
    bigger = {"x": torch.randn(5, 6, 8), "unused": torch.randn(5), "more": [torch.ones(5, 6, dtype=torch.bool), 3]}
    output = graph(bigger, scale=2.0)
    assert type(output) is types[kind]
    assert leaves(output)[0].shape == (5, 6, 8)


def test_a_transformer_lowers():
    torch.manual_seed(0)

    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        b, _, c = x.shape
        q, k, v = net.linear("qkv", sites.round(net.norm(x), "normed")).chunk(3, -1)
        y = sites.round(F.scaled_dot_product_attention(q, k, v), "attended")
        y = x + net.linear("proj", y)
        y = net.linear("fc", sites.round(F.gelu(y), "gelu"))
        return y.view(b, -1, c).softmax(-1)

    net = Marked(body, norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24), proj=nn.Linear(8, 8), fc=nn.Linear(8, 8))
    x = torch.randn(3, 6, 8)
    graph = with_ranges(check_float(net, x), x)
    check_lowered(graph, (x,), (x.repeat(2, 1, 1),))


def test_weights_that_are_computed_transposed_or_shared():
    torch.manual_seed(0)

    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        x = sites.round(x, "in")
        x = net.linear("normed", x)
        x = torch.addmm(net.wide.bias, sites.round(x, "b", "relu"), sites.weight(net.wide.weight, "wide"))
        x = net.linear("twice", sites.round(x, "c"))
        x = net.linear("twice", sites.round(x, "d"))
        bias = torch.cat([net.twice.bias[:2], net.twice.bias[2:]])
        return F.linear(sites.round(x, "e"), sites.weight(net.twice.weight.t(), "turned"), bias)

    wide = nn.Module()
    wide.weight, wide.bias = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    net = Marked(body, normed=normed, wide=wide, twice=nn.Linear(6, 6))
    x = torch.randn(5, 4)
    graph = check_float(net, x)
    layers = [name for name, m in graph.named_modules() if isinstance(m, QATLayer)]
    assert sorted(layers) == ["normed", "turned", "twice", "wide"]
    assert graph.get_submodule("twice").weight is net.twice.weight
    assert graph.get_submodule("wide").bias is net.wide.bias
    check_lowered(with_ranges(graph, x), (x,), (x.repeat(2, 1),))


def test_operations_in_place():
    torch.manual_seed(0)

    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        net.count += 1
        y = net.convolve("conv", sites.round(x, "in")).relu_()
        y += 1
        y.pow_(2)
        y[:, :4].mul_(2)
        y[:, 0] = y[:, 1]
        with torch.no_grad():
            z = y * 2
        return (z, y.flatten(1), torch.zeros(y.shape[0], 2, device=y.device).fill_(3.0))

    net = Marked(body, conv=nn.Conv2d(3, 8, 3))
    net.register_buffer("count", torch.zeros((), dtype=torch.int64))
    graph = check_float(net, torch.randn(2, 3, 8, 8))
    assert net.count == 2  # once in the helper, once in the check
    assert [leaf.shape[0] for leaf in graph(torch.randn(5, 3, 8, 8))] == [5, 5, 5]


def test_transposed_convolution_pooling_and_branches():
    torch.manual_seed(0)

    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        up = net.up
        weight = sites.weight(up.weight, "up")
        y = F.conv_transpose2d(sites.round(x, "in"), weight, up.bias, up.stride, up.padding, up.output_padding)
        y = sites.round(y, "up_out", "relu")
        a, b = y.chunk(2, dim=1)
        a = net.convolve("conv", a)
        y = torch.cat([sites.round(a, "a"), b], axis=1)
        y = F.hardswish(F.avg_pool2d(y, 2)) + F.adaptive_avg_pool2d(y, 1)
        y = F.interpolate(F.max_pool2d(y, 2), scale_factor=2.0)
        return net.convolve("last", sites.round(y, "y")).mean((2, 3))

    net = Marked(body, up=nn.ConvTranspose2d(3, 8, 3, 2, 1, 1), conv=nn.Conv2d(4, 4, 1), last=nn.Conv2d(8, 4, 1))
    x = torch.randn(2, 3, 6, 6)
    graph = with_ranges(check_float(net, x), x)
    check_lowered(graph, (x,), (x.repeat(2, 1, 1, 1),))


def test_a_maximum_with_indices_behind_quantized_values():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        y = sites.round(net.convolve("conv", sites.round(x, "in")), "y", "relu")
        y, indices = F.max_pool2d(y, 2, return_indices=True)
        return net.convolve("last", sites.round(F.max_unpool2d(y, indices, 2), "z"))

    net = Marked(body, conv=nn.Conv2d(3, 8, 3, padding=1), last=nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 3, 8, 8)
    graph = with_ranges(check_float(net, x), x)
    check_lowered(graph, (x,), (x.repeat(2, 1, 1, 1),))


def test_the_same_tensor_twice_and_one_that_is_not_used():
    def body(net: Marked, sites: Sites, x: Tensor, y: Tensor, z: Tensor | None = None, *, k: Any = None) -> Tensor:
        return net.linear("fc", x) + y + k

    net = Marked(body, fc=nn.Linear(4, 4))
    x = torch.randn(1, 4)
    net.sites.names.append("none")
    net.sites.activations.append("none")
    graph = captured(net, x, x, z=x, k=torch.randn(1, 4))
    a, b, k = (torch.randn(3, 4) for _ in range(3))
    torch.testing.assert_close(graph(a, b, z=a, k=k), net(a, b, z=a, k=k))


def test_one_image_without_a_batch():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        return sites.round(net.convolve("conv", sites.round(x, "in")), "y", "relu")

    net = Marked(body, conv=nn.Conv2d(3, 8, 3))
    x = torch.randn(3, 8, 8)
    graph = with_ranges(check_float(net, x), x)
    assert sqnr(graph(x), convert(graph)(x)) > 30


def test_a_dynamic_weight_stays_float():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        y = net.linear("fc", sites.round(x, "in"))
        return F.linear(x, sites.weight(y, "dynamic"))

    net = Marked(body, fc=nn.Linear(4, 4))
    graph = check_float(net, torch.randn(3, 4))
    assert [name for name, m in graph.named_modules() if isinstance(m, QATLayer)] == ["fc"]


def test_the_line_that_has_no_graph_is_named():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return net.linear("fc", x)
        return x

    net = Marked(body, fc=nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"test_capture\.py:\d+, in body: `if x\.sum\(\) > 0:`.*takes a branch"):
        captured(net, torch.ones(3, 4))


def test_what_takes_a_tensor_out_of_the_graph_is_told():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        return net.linear("fc", x).data * 2

    net = Marked(body, fc=nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"has no graph .* write x\.detach\(\)\."):
        captured(net, torch.ones(3, 4))


def test_what_needs_numpy_is_told_with_what_to_write_instead():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        y = net.linear("fc", x)
        if not (guarded and torch.compiler.is_exporting()):
            net.importance = y.mean(0).detach().numpy()
        return y

    net, guarded = Marked(body, fc=nn.Linear(4, 4)), False
    with pytest.raises(
        ValueError, match=r"\.detach\(\)\.numpy\(\)`.*under `if not torch\.compiler\.is_exporting\(\):`"
    ):
        captured(net, torch.ones(3, 4))
    guarded = True
    captured(net, torch.ones(3, 4))


def test_an_assertion_on_values_is_told_with_what_to_write_around_it():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        y = net.linear("fc", x)
        if not (guarded and torch.compiler.is_exporting()):
            assert torch.isfinite(y).all()
        return y

    net, guarded = Marked(body, fc=nn.Linear(4, 4)), False
    with pytest.raises(ValueError, match=r"An assertion on.*under `if not torch\.compiler\.is_exporting\(\):`"):
        captured(net, torch.ones(3, 4))
    guarded = True
    captured(net, torch.ones(3, 4))


@pytest.mark.parametrize("inside", [False, True])
def test_a_module_that_fails_itself_is_not_recommended(inside: bool):
    class Block(nn.Module):
        def __init__(self, fails: bool) -> None:
            super().__init__()
            self.fc, self.fails = nn.Linear(4, 4), fails

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if not self.fails or x.sum() > 0 else x

    prepared = lq.prepare(nn.Sequential(Block(inside), Block(not inside)), example_args=(torch.ones(3, 4),))
    with pytest.raises(ValueError, match=re.escape(f"QATCallback(target={'...' if inside else repr('0')}).")):
        as_graph(prepared)


def test_a_packed_sequence_is_told_with_what_to_write_instead():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(net.linear("fc", x), torch.tensor([3, 2]), batch_first=True)
        return net.lstm(packed)[1][0]

    net = Marked(body, fc=nn.Linear(4, 4), lstm=nn.LSTM(4, 5, batch_first=True))
    with pytest.raises(
        ValueError, match=r"net\.lstm\(packed\).*cannot follow packed sequences\. Give the layer the padded"
    ):
        captured(net, torch.ones(2, 3, 4))


def test_a_learned_scale_is_shared():
    scale = LearnedScale(torch.zeros(4, 1))

    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        return net.linear("fc", sites.round(x, "in"))

    net = Marked(body, fc=nn.Linear(4, 4))
    net.sites.layers.append(LayerSite("fc", WeightSpec(learned_scale=True), learned_scale=scale))
    graph = check_float(net, torch.randn(3, 4))
    assert graph.get_submodule("fc").learned_scale is scale


def test_a_bfloat16_model_lowers_to_float32():
    net = resnet().bfloat16()
    x = torch.randn(4, 3, 8, 8, dtype=torch.bfloat16)
    graph = with_ranges(captured(net, x), x)
    for lowered in (convert(graph), reference(graph)):
        assert sqnr(graph(x).float(), lowered(x)) > 20
        assert lowered(x).dtype == torch.float32


def test_with_ranges_it_rounds_what_was_marked():
    torch.manual_seed(0)

    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        y = sites.round(net.bn(net.convolve("fold", sites.round(x, "in"), folds=True)), "y", "relu6")
        return y * 2

    net = Marked(body, fold=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 6, 6)
    graph = with_ranges(captured(net, x), x)
    state, spec = graph.qat_state, net.sites.layers[0].spec
    weight = net.fold.weight.detach()
    step = weight.abs().amax((1, 2, 3), keepdim=True) / spec.quant_max
    rounded = [fake_quantize(x, *state.qparams()[0]), torch.round(weight / step) * step]
    y = net.bn(F.conv2d(rounded[0], rounded[1], net.fold.bias)).clamp(0, 6)
    torch.testing.assert_close(graph(x), fake_quantize(y, *state.qparams()[1]) * 2, atol=1e-5, rtol=0)


def test_a_fixed_batch_and_names_of_all_kinds_of_arguments():
    def body(net: Marked, sites: Sites, x: Tensor) -> Tensor:
        return net.linear("fc", x.reshape(2, -1)[:, :4])

    net = Marked(body, fc=nn.Linear(4, 4))
    x = torch.randn(2, 8)
    graph = captured(net, x)
    torch.testing.assert_close(graph(x), net(x))
    assert [n.target for n in graph.graph.nodes if n.op == "placeholder"] == ["args_0"]

    class Kinds(nn.Module):
        def forward(self, x: Any, flag: bool = True, *rest: Any, last: Any, **more: Any) -> Any:
            return {"sum": x["a"] + rest[1] + last + more["extra"], "flag": flag, "shape": (rest[0],)}

    state, one = QATState([], [], []), torch.ones(2)
    call = ({"a": one, "b": 3}, False, one * 2, one * 3), {"last": one * 4, "extra": one * 5}
    graph = capture(Kinds(), state, [], [], call, nullcontext)
    names = [n.target for n in graph.graph.nodes if n.op == "placeholder"]
    assert names == ["x", "flag", "rest_0", "rest_1", "last", "extra"]
    assert graph(*call[0], **call[1])["sum"].tolist() == [13.0, 13.0]
    assert graph(*call[0], **call[1])["flag"] is False


def test_what_the_forward_changes_is_as_before():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.steps, self.seen = 0, []
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            self.steps += 1
            self.seen.append(x)
            return self.drop(self.norm(x)) + self.calls

    net, x = Counting(), torch.randn(3, 4)
    random = torch.get_rng_state()
    graph = capture(net, QATState([], [], []), [], [], ((x,), {}), nullcontext)
    assert torch.equal(random, torch.get_rng_state())
    assert (net.calls, net.steps, net.seen, net.training) == (0, 0, [], True)
    torch.testing.assert_close(graph(x), net.norm.eval()(x) + 1)


def test_bisection_finds_the_layer_of_a_captured_graph():
    torch.manual_seed(0)
    net, x = resnet(), torch.randn(4, 3, 8, 8)
    graph = with_ranges(captured(net, x), x)
    choice = chosen(["torch"])[0]
    assert first_difference(graph, choice, ((x,), {})) == "the output"
    assert first_difference(graph, choice, ((x,), {}), min_sqnr_db=math.nan).startswith("fq_in (")


class Causal(nn.Conv2d):
    """Masks its weight in place, as PixelCNN does."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.register_buffer("mask", torch.ones(3, 3).triu())

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


def test_a_weight_that_forward_masks_in_place_gets_what_to_write() -> None:
    x = torch.randn(2, 3, 6, 6)
    prepared = lq.prepare(nn.Sequential(Causal(), nn.ReLU()), example_args=(x,))
    with pytest.raises(ValueError, match=r"write x\.detach\(\)\. .* F\.conv2d\(x, self\.weight \* mask\)"):
        as_graph(prepared)
