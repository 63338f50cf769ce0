from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchao")

from lq.analysis.tensors import tensors_of
from lq.backends.prepare import plan_of, prepare, prepare_again, set_phase, state_of
from lq.backends.pt2e import choice
from lq.backends.pt2e.quantizers import make_quantizer
from lq.config.qconfig import LayerQConfig, QConfig
from lq.config.specs import ActivationSpec, WeightSpec
from lq.conversion.convert import convert
from lq.conversion.graph import as_graph
from lq.conversion.reference import reference
from lq.export.parity.bisection import _source
from lq.metrics import sqnr
from lq.ptq import calibrate, prepare_static

X86 = QConfig(backend="pt2e", quantizer="x86_inductor")
XNNPACK = QConfig(backend="pt2e", quantizer="xnnpack")
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """What a quantizer shares, fuses and passes on: an addition, pooling, a concatenation, flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3, momentum=0.03)
        self.body, self.relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.pool, self.mean = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        x = self.pool(self.relu(self.body(x) + x))
        x = torch.cat([self.relu(self.left(x)), self.relu(self.right(x))], dim=1)
        y: Tensor = self.head(self.mean(x))
        return y


def of(qconfig: QConfig, net: nn.Module | None = None) -> Any:
    torch.manual_seed(0)
    return prepare(net or Residual(), qconfig, example_args=(X,))


def sites(prepared: Any) -> dict[str, str]:
    return {t.after: t.absorbs for t in plan_of(prepared).tensors}


def test_the_gate_names_what_was_rounded_where_tensors_share_a_range():
    prepared = as_graph(of(XNNPACK))
    named = {str(node.args[0]): _source(prepared, node) for node in prepared.graph.nodes if "fq_" in str(node.target)}
    assert named["cat"] == "cat"
    assert named["left"] == "left"


def test_x86_inductor_leaves_what_it_fuses_with_an_addition_unrounded():
    prepared = of(X86)
    assert plan_of(prepared).qconfig == "pt2e x86_inductor"
    assert len(plan_of(prepared).quantized) == 5
    assert sites(prepared)["add"] == "relu"
    assert "body" not in sites(prepared)
    assert "head.2" not in sites(prepared)  # logits stay float
    assert {str(row.weight) for row in plan_of(prepared).layers} == {"int8 [-127, 127] per channel"}


def test_xnnpack_rounds_all_of_it_on_signed_integers():
    prepared = of(XNNPACK)
    assert {"body", "head.2"} <= sites(prepared).keys()
    assert {spec.quant_min for spec in state_of(prepared).specs} == {-128}


@pytest.mark.parametrize("qconfig", [X86, XNNPACK])
def test_shared_grids_are_one_range_that_covers_all(qconfig):
    prepared = of(qconfig)
    state = state_of(prepared)
    names = {t.after: t.name for t in plan_of(prepared).tensors}
    assert names["left"] == names["right"] == "fq_left"
    modules = {tensor.name: tensor.quantizer for tensor in tensors_of(prepared)}
    assert modules["left"] is modules["right"]
    with torch.no_grad():  # the right one has the larger values
        prepared.right.bias.add_(5.0)
        prepared.left.bias.zero_()
    calibrate(prepared, [X])
    heard: list[Tensor] = []
    state.fq_left.register_forward_hook(lambda _, args, out: heard.append(out))
    with torch.no_grad():
        prepared.eval()(X)
    assert float(state.max_val[state.names.index("fq_left")]) == pytest.approx(
        max(float(h.max()) for h in heard), rel=0.05
    )
    assert float(heard[0].max()) < 2 < float(heard[1].max())


@pytest.mark.parametrize("qconfig", [X86, XNNPACK])
def test_int8_follows(qconfig):
    prepared = of(qconfig)
    calibrate(prepared, [X])
    with torch.no_grad():
        fake = prepared.eval()(X)
        assert float(sqnr(fake, reference(prepared)(X))) > 50  # the same arithmetic; BatchNorm is folded elsewhere
        assert float(sqnr(fake, convert(prepared)(X))) > 35  # ties


def test_a_relu_that_reads_what_is_rounded_is_rounded_on_its_own():
    both = QConfig(backend="pt2e", quantizer="tests.backends.pt2e.quantizers.Results")
    prepared = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), both, (torch.rand(2, 4),))
    assert [(t.after, t.absorbs) for t in plan_of(prepared).tensors] == [("0", "none"), ("1", "none"), ("2", "none")]
    calibrate(prepared, [torch.rand(8, 4)])
    assert all(state_of(prepared).ready(slot) for slot in range(3))


def test_weights_alone_are_refused():
    qconfig = QConfig(backend="pt2e", quantizer="tests.backends.pt2e.quantizers.weights_only")
    with pytest.raises(ValueError, match="weights_only' rounds weights and no activation, but lq converts"):
        prepare(nn.Sequential(nn.Linear(4, 4)), qconfig, (torch.rand(2, 4),))


def test_nothing_is_rounded_twice():
    for qconfig in (X86, XNNPACK):
        names = sites(of(qconfig))
        assert not {"pool", "head.0", "head.1"} & names.keys()  # same values on the same grid


def test_batch_norm_and_dropout_keep_their_arguments():
    net = Residual()
    prepared = of(X86, net)
    for _ in range(2):
        prepared.eval()
        prepared.train()
    assert (prepared.bn.eps, prepared.bn.momentum) == (1e-3, 0.03)
    assert prepared.get_submodule("head.1").p == 0.2
    assert prepared.get_submodule("head.1").training


def test_excluded_layers_and_overrides_have_the_last_word():
    overrides = {"left": LayerQConfig(WeightSpec(-7, 7), ActivationSpec(0, 15))}
    prepared = of(replace(XNNPACK, exclude=("stem", "head.*"), overrides=overrides))
    rows = {row.name: row for row in plan_of(prepared).layers}
    assert rows["stem"].reason == "exclude 'stem'"
    assert rows["left"].weight == "int4 [-7, 7] per channel"
    assert "x" not in sites(prepared)  # only the excluded layer reads it
    assert "head.2" in sites(prepared)  # but what the quantizer wants behind one may be read by others


def test_weights_per_tensor_if_either_says_so():
    per_tensor = of(replace(XNNPACK, quantizer_options={"is_per_channel": False}))
    assert {row.weight for row in plan_of(per_tensor).layers} == {"int8 [-127, 127] per tensor"}
    ours = of(replace(XNNPACK, weight=WeightSpec(per_channel=False)))
    assert {row.weight for row in plan_of(ours).layers} == {"int8 [-127, 127] per tensor"}


def test_learned_scales_cannot_be_shared():
    learned = ActivationSpec(learned_scale=True)
    with pytest.raises(ValueError, match=r"left, right.* have one grid together, as the quantizer wants it"):
        of(replace(X86, activation=learned))


def test_without_an_example_it_says_how_to_give_one():
    with pytest.raises(ValueError, match=r"lq\.prepare\(\.\.\., example_args=\(x,\)\), or self\.example_input_array"):
        prepare(Residual(), X86)


def test_a_known_plan_needs_neither_example_nor_quantizer(monkeypatch):
    prepared = of(X86)
    monkeypatch.setattr(choice, "annotate", None)
    again = prepare_again(Residual(), X86, plan_of(prepared).to_dict())
    assert plan_of(again).tensors == plan_of(prepared).tensors
    assert state_of(again).names == state_of(prepared).names


def test_after_training_the_example_is_taken_from_the_data():
    prepared = prepare_static(Residual(), iter([X, X]), XNNPACK)
    assert {spec.observer for spec in state_of(prepared).specs} == {"histogram"}
    assert {spec.quant_min for spec in state_of(prepared).specs} == {-128}
    assert all(state_of(prepared).ready(slot) for slot in range(len(state_of(prepared).names)))


def test_it_computes_what_torchao_would():
    """The vendor's own flow on the same grids: both differ from float much more than from each other."""
    from torchao.quantization.pt2e import disable_observer
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    torch.manual_seed(0)
    exact = QConfig(backend="pt2e", quantizer="tests.backends.pt2e.quantizers.x86_inductor_with_exact_weights")
    net: Any = Residual()
    net.bn, net.head[1].p = nn.Identity(), 0.0  # torchao scales weights by statistics that are one step old
    exported = torch.export.export(copy.deepcopy(net).train(), (X,), strict=True).module()
    theirs: Any = prepare_qat_pt2e(exported, make_quantizer(exact))
    ours = prepare(copy.deepcopy(net), exact, example_args=(X,))
    set_phase(ours, fake_quant=True, observer=True, freeze_bn=False)
    with torch.no_grad():
        for _ in range(2):
            ours.train()(X)
            theirs(X)
        theirs.apply(disable_observer)
        state_of(ours).observer = False
        _take_grids(state_of(ours), theirs)
        fake, real, plain = ours(X), theirs(X), net.train()(X)
    assert float(sqnr(real, fake)) > float(sqnr(plain, real)) + 20  # ties and the order of sums are left


def _take_grids(state: Any, theirs: Any) -> None:
    """Give lq's slots the ranges of torchao's; the one rounding that lq leaves out is switched off."""
    calls = [n for n in theirs.graph.nodes if n.op == "call_module" and n.users]  # without the guards on shapes
    found = {str(n.args[0]): theirs.get_submodule(n.target) for n in calls}
    for name, source in {"fq_x": "x", "fq_stem": "relu", "fq_add": "relu_1", "fq_left": "relu_2"}.items():
        slot, observer = state.names.index(name), found[source].activation_post_process
        state.min_val[slot], state.max_val[slot] = observer.min_val, observer.max_val
    assert found["relu_2"] is found["relu_3"] is found["cat"]
    found["dropout"].disable_fake_quant()  # what Linear reads has been rounded before
