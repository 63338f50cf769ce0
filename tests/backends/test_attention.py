"""QConfig(attention="int8"): attention's two products trained with what they read on grids."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lq.backends.prepare import is_planned, plan_of, prepare, prepare_again, set_phase, state_of
from lq.config.qconfig import QConfig
from lq.config.specs import ActivationSpec
from lq.conversion.convert import convert
from lq.core.functional import fake_quantize
from lq.instrument.attach import instrument_of
from lq.ptq import calibrate
from tests.attention_nets import ALL_WAYS, WAYS, Heads, sequences, transformer
from tests.instrument.nets import assert_same, step

INT8 = QConfig(attention="int8")


def trained(net: nn.Module, x: Tensor, qconfig: QConfig = INT8) -> nn.Module:
    """Prepared, with ranges, and two steps on."""
    prepared = prepare(net, qconfig, example_args=(x,))
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return prepared


@pytest.mark.parametrize("way", ALL_WAYS)
def test_every_way_is_quantized_and_int8_computes_what_was_trained(way: str) -> None:
    net, x = transformer(way, drop=0.1), sequences()
    expected = net.eval()(x)
    prepared = prepare(net, INT8, example_args=(x,))
    torch.testing.assert_close(prepared(x), expected)  # nothing is rounded yet; einsum is another kernel now
    plan = plan_of(prepared)
    assert len(plan.int8_products) == 2
    assert plan.share == 1.0
    assert "6 of 6 layers and 2 products of attention quantized, 100% of the work" in plan.summary()
    softmax = [tensor for tensor in plan.tensors if tensor.after.endswith("softmax")]
    assert [tensor.grid for tensor in softmax] == ["uint8 [0, 255] affine, from 0 to 1"]
    trained(net, x)
    assert not instrument_of(net).unplanned  # in training, with dropout
    with torch.no_grad():
        got = prepared.eval()(x)
        assert not torch.allclose(got, expected, rtol=1e-3)
        assert torch.equal(convert(prepared)(x), got)  # the engine's int8 layers, and products in float, to the bit


def grid(state: Any, name: str, x: Tensor) -> Tensor:
    return fake_quantize(x, *state.slot_qparams(state.names.index(name)))


def test_it_computes_what_a_slow_twin_does() -> None:
    heads, x = Heads(WAYS["torch_function"]), sequences()[..., :1].expand(-1, -1, 16) * torch.linspace(-1, 1, 16)
    prepared: Any = trained(heads, x).eval()
    state = state_of(prepared)
    with torch.no_grad():
        given = grid(state, "fq_x", x)
        weights = {n: q.quantized(prepared.get_submodule(n).weight, False) for n, q in quantizers(state).items()}
        qkv = grid(state, "fq_qkv", F.linear(given, weights["qkv"], prepared.qkv.bias))
        q, k, v = qkv.reshape(6, 8, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        probabilities = torch.softmax(q @ k.mT / 8**0.5, -1)
        assert float(state.scale_zero_point()[0][state.names.index("fq_softmax")]) == pytest.approx(1 / 255)
        probabilities = torch.round(probabilities * 255) / 255
        attended = grid(state, "fq_matmul_1", probabilities @ v).transpose(1, 2).reshape(6, 8, 16)
        expected = grid(state, "fq_proj", F.linear(attended, weights["proj"], prepared.proj.bias))
        # A value that another order of additions carries over the middle between two steps differs by a step.
        assert float((prepared(x) - expected).abs().max()) <= 1.01 * float(state.slot_qparams(len(state.names) - 1)[0])
        assert float((prepared(x) == expected).float().mean()) > 0.98


def quantizers(state: Any) -> dict[str, Any]:
    return {name.removeprefix("wq_"): module for name, module in state.named_children() if name.startswith("wq_")}


class Masked(nn.Module):
    """One attention with a mask, between linear layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.q, self.kv, self.out, self.options = nn.Linear(8, 32), nn.Linear(8, 16), nn.Linear(32, 4), options

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = (y.unflatten(-1, (1, 8)).transpose(1, 2) for y in self.kv(x).chunk(2, -1))
        y = F.scaled_dot_product_attention(q, k, v, mask, **self.options)
        return self.out(y.transpose(1, 2).flatten(2))


CAUSAL = torch.ones(8, 8, dtype=torch.bool).tril()
PADDING = torch.arange(8) < torch.tensor([8, 5, 3, 0, 1, 7])[:, None]  # one sample has no token at all
MASKS: dict[str, tuple[dict[str, Any], Tensor | None]] = {
    "causal": ({"is_causal": True}, None),
    "scale and grouped queries": ({"scale": 0.5, "enable_gqa": True}, None),
    "bool": ({}, PADDING[:, None, None, :]),
    "float": ({}, torch.zeros(8, 8).masked_fill(~CAUSAL, -torch.inf)),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(case: str) -> None:
    options, mask = MASKS[case]
    net, x = Masked(**options), sequences()
    expected = net(x, mask)
    prepared = prepare(net, INT8, example_args=(x,) if mask is None else (x, mask))
    assert len(plan_of(prepared).int8_products) == 2
    set_phase(prepared, fake_quant=True, observer=True, freeze_bn=False)
    prepared.train()(x, mask)
    prepared(x, mask).sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in prepared.parameters() if p.grad is not None)
    with torch.no_grad():
        got = prepared.eval()(x, mask)
        # Rounding of values up to 2 in steps of 1/50, a few times.
        torch.testing.assert_close(got, expected, atol=0.1, rtol=0)
        assert torch.equal(convert(prepared)(x, *([] if mask is None else [mask])), got)
        blind = x.clone()
        blind[:, -1] = 9.0  # what the last token holds
        if case in ("causal", "float"):
            assert torch.equal(prepared(blind, mask)[:, :-1], got[:, :-1])


def test_what_dropout_leaves_is_not_clipped_at_one() -> None:
    heads, x = Heads(WAYS["torch_function"], drop=0.5), torch.rand(64, 1, 16)  # one key: its probability is 1
    heads.proj = nn.Identity()
    prepared = trained(heads, x)
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=False)
    with torch.no_grad():
        dropped, whole = prepared.train()(x), prepared.eval()(x)
    assert torch.equal(dropped, torch.where(dropped == 0, 0.0, 2 * whole))
    assert bool(dropped.any())


def test_patterns_leave_attention_to_float_and_as_one_call() -> None:
    net, x = transformer(blocks=2), sequences()
    prepared = prepare(net, QConfig(attention="int8", exclude=("blocks.0.attention.scaled*",)), example_args=(x,))
    plan = plan_of(prepared)
    assert [row.name for row in plan.int8_products] == ["blocks.1.attention.matmul", "blocks.1.attention.matmul_1"]
    (left,) = plan.in_float
    assert (left.name, left.reason) == (
        "blocks.0.attention.scaled_dot_product_attention",
        "exclude 'blocks.0.attention.scaled*'",
    )
    assert plan.sites is not None
    assert plan.sites.opened == (("blocks.1.attention", "scaled_dot_product_attention", 0),)
    first = prepare(transformer(), QConfig(attention="int8", exclude=("*.matmul",)), example_args=(x,))
    assert [row.name for row in plan_of(first).int8_products] == ["blocks.0.attention.matmul_1"]


def test_grids_of_an_override_win() -> None:
    grids = {"*.softmax": {"activation": {"fixed_range": None}}, "*.qkv": {"activation": {"quant_max": 15}}}
    prepared = prepare(transformer(), QConfig(attention="int8", overrides=grids), example_args=(sequences(),))
    found = {tensor.after.rpartition(".")[2]: tensor.grid for tensor in plan_of(prepared).tensors}
    assert found["softmax"] == "uint8 [0, 255] affine, moving_average_minmax"
    assert found["qkv"].startswith("uint4")


def test_presets_have_the_grids_that_their_runtimes_multiply() -> None:
    found = {}
    for preset in ("portable", "openvino", "litert", "tensorrt"):
        prepared = prepare(transformer(), QConfig(preset, attention="int8"), example_args=(sequences(),))
        grids = {tensor.after.rpartition(".")[2]: tensor.grid for tensor in plan_of(prepared).tensors}
        found[preset] = grids["softmax"], grids["qkv"].partition(",")[0]
    assert found == {
        "portable": ("uint8 [0, 255] affine, from 0 to 1", "uint8 [0"),
        "openvino": ("uint8 [0, 255] affine, from 0 to 1", "int8 [-127"),
        "litert": ("uint8 [0, 255] affine, from 0 to 0.996094", "uint8 [0"),
        "tensorrt": ("int8 [-128, 127] symmetric, from 0 to 1", "int8 [-128"),
    }
    scale, zero_point = state_of(
        prepare(transformer(), QConfig("litert", attention="int8"), example_args=(sequences(),))
    ).scale_zero_point()
    fixed = 1 / 256
    assert (float(scale[scale == fixed]), float(zero_point[scale == fixed])) == (fixed, 0.0)


def test_float_is_the_default_and_says_how_to_change_it() -> None:
    plan = plan_of(prepare(transformer(), example_args=(sequences(),)))
    assert plan.int8_products == ()
    assert "QConfig(attention='int8')" in plan.in_float[0].reason


@pytest.mark.parametrize("backend", ["eager", "pt2e"])
def test_backends_that_decide_themselves_are_refused(backend: str) -> None:
    quantizer = "x86_inductor" if backend == "pt2e" else ""
    with pytest.raises(ValueError, match="backend='fx', or leave attention out"):
        QConfig(attention="int8", backend=backend, quantizer=quantizer)
    with pytest.raises(ValueError, match=r"Unknown attention='int4'. Choose one of \['float', 'int8'\]"):
        QConfig(attention="int4")


def test_without_an_example_it_is_planned_at_the_first_call() -> None:
    prepared = prepare(transformer(), INT8)
    assert not is_planned(prepared)
    calibrate(prepared, [sequences()], show_progress=False)
    assert len(plan_of(prepared).int8_products) == 2


def test_another_process_attaches_the_plan() -> None:
    x = sequences()
    net = trained(transformer(), x)
    other = prepare_again(transformer(), INT8, plan_of(net).to_dict())
    other.load_state_dict(net.state_dict())
    assert_same(step(net, x), step(other.train(), x))


def test_a_block_that_is_computed_again_is_rounded_as_before() -> None:
    x = sequences()
    net: Any = trained(transformer(), x)
    set_phase(net, fake_quant=True, observer=False, freeze_bn=False)
    plain = step(net, x)
    blocks = net.blocks.forward

    def again(y: Tensor) -> Any:
        return checkpoint(net.blocks[0], y, use_reentrant=False)

    net.blocks[0].attention.drop = 0.0
    own = copy.copy(blocks)
    net.blocks.forward = again
    try:
        assert_same(plain, step(net, x))
    finally:
        net.blocks.forward = own


def test_compiled_code_rounds_alike() -> None:
    x = sequences()
    net = trained(transformer(), x).eval()
    with torch.no_grad():
        expected = net(x)
        got = torch.compile(net, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(got, expected)


def test_a_softmax_of_fixed_range_counts_as_no_data() -> None:
    prepared = prepare(transformer(), INT8, example_args=(sequences(),))
    with pytest.raises(ValueError, match="No fake quantizer has seen a batch"):
        convert(prepared)
    prepare(prepared, "portable", example_args=(sequences(),))  # has seen no data, so that it may be planned anew
    assert plan_of(prepared).int8_products == ()
    assert ActivationSpec(fixed_range=[0, 1]).fixed_range == (0.0, 1.0)
