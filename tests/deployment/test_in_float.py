"""What an artifact computes in float although the plan has it in int8 is said by name, with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.conversion.convert import convert, in_float
from lq.conversion.graph import as_graph
from lq.deployment.in_float import float_notes
from lq.deployment.rehearsal import rehearse
from lq.tracing.plan import LayerPlan, Plan, ProductPlan
from tests.tiny import quicken_deployment

X = torch.rand(8, 1, 8, 8)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)


def decoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).eval()  # fmt: skip


def calibrated(net: nn.Module, qconfig: Any = "portable", x: Tensor = X) -> nn.Module:
    prepared = lq.prepare(net, qconfig, example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    return prepared


def test_a_layer_without_a_kernel_is_noted_with_its_name_and_reason(tmp_path: Path) -> None:
    prepared = calibrated(decoder())
    done = lq.export_artifact(prepared, [X], tmp_path / "a", ["torch"])
    (note,) = [note for note in done.notes if "in float" in note]
    assert note.startswith("torch: 2 runs in float (engine 'x86' has no int8 kernel for ConvTranspose2d that computes")
    work = {row.name: row.work for row in lq.plan_of(prepared).layers}
    left = 1 - work["2"] / sum(work.values())
    assert note.endswith(f"; {left:.0%} of the work runs in int8, not 100%")
    info = json.loads((tmp_path / "a" / "lq.json").read_text())["artifacts"]["torch"]
    assert info["float_layers"] == ["2"]
    assert "no int8 kernel" in info["float_reasons"]["2"]


def test_an_engine_that_has_the_kernel_leaves_nothing_to_say(tmp_path: Path) -> None:
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("no fbgemm here")
    prepared = calibrated(decoder(), lq.QConfig(engine="fbgemm"))
    assert in_float(convert(prepared)) == {}
    assert not lq.export_artifact(prepared, [X], tmp_path / "a", ["torch"]).notes


def test_layers_that_the_plan_has_in_float_are_not_told_again(tmp_path: Path) -> None:
    prepared = calibrated(decoder(), lq.QConfig(exclude=("2",)))
    done = lq.export_artifact(prepared, [X], tmp_path / "a", ["torch"])
    assert not any("in float" in note for note in done.notes)
    assert json.loads((tmp_path / "a" / "lq.json").read_text())["artifacts"]["torch"]["float_layers"] == ["2"]


class Halves(nn.Module):
    """The second layer is called in training only, so that its output never gets a range in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_a_layer_whose_output_has_no_range_says_so() -> None:
    prepared = calibrated(Halves(), x=torch.rand(8, 4))
    state = prepared.qat_state
    slot = state.names.index("fq_second")
    state.min_val[slot], state.max_val[slot] = torch.inf, -torch.inf
    assert in_float(convert(prepared)) == {"second": "its output has no range, because it never ran"}


def plan(**work: int) -> Plan:
    grids = {name: None if name.startswith("f") else "int7" for name in work}
    rows = tuple(LayerPlan(name, "Linear", weight=grids[name], work=done) for name, done in work.items())
    return Plan("Net", "portable", rows, (), products=(ProductPlan("matmul", "matmul", 10, "", "two activations"),))


NOTES = [
    ({}, []),
    ({"float_layers": ["fa (Conv)", "matmul (MatMul)"]}, []),
    ({"float_layers": ["node_7 (Conv)", "node_8 (MatMul)"]}, []),  # as many as the plan has
    ({"float_layers": ["b (FusedConv)"]}, ["x: b (FusedConv) runs in float; 50% of the work runs in int8, not 75%"]),
    (
        {"float_layers": ["node_1", "node_2", "node_3"]},
        ["x: node_1, node_2, node_3 run in float"],  # one of them was to run in int8, and nobody knows which
    ),
    (
        {"float_layers": ["a", "b"], "float_reasons": {"a": "no kernel", "b": "its input is in float"}},
        ["x: a (no kernel), b (its input is in float) run in float; 0% of the work runs in int8, not 75%"],
    ),
]


@pytest.mark.parametrize(("info", "expected"), NOTES)
def test_notes(info: dict[str, Any], expected: list[str]) -> None:
    assert float_notes(plan(a=20, b=10, fa=0), {"x": info}) == expected


def test_an_attention_in_float_is_two_products_of_a_runtime() -> None:
    row = ProductPlan("attention", "scaled_dot_product_attention", 10, "", "in float")
    rows = (LayerPlan("a", "Linear", weight="int8", work=10),)
    info = {"x": {"float_layers": ["node_1 (FusedMatMul)", "node_2 (MatMul)"]}}
    assert float_notes(Plan("Net", "portable", rows, (), products=(row,)), info) == []
    info["x"]["float_layers"].append("node_3 (MatMul)")
    assert len(float_notes(Plan("Net", "portable", rows, (), products=(row,)), info)) == 1


def test_a_share_that_is_the_same_when_rounded_is_left_out() -> None:
    assert float_notes(plan(a=1, b=989), {"x": {"float_layers": ["a"]}}) == ["x: a runs in float"]


def test_long_lists_are_cut() -> None:
    rows = {f"a{i}": 1 for i in range(8)}
    (note,) = float_notes(plan(**rows), {"x": {"float_layers": list(rows)}})
    assert note.startswith("x: a0, a1, a2, a3, a4 and 3 more run in float;")


def test_sizes_that_the_code_has_fixed_are_told_before_the_training() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.message = nn.Linear(4, 4)

        def forward(self, nodes: Tensor, edges: Tensor, ends: Tensor) -> Tensor:
            return torch.zeros(len(nodes), 4).index_add(0, ends, self.message(edges))

    example = torch.rand(5, 4), torch.rand(9, 4), torch.randint(5, (9,))
    prepared = lq.prepare(Graph(), example_args=example)
    notes = rehearse(as_graph(prepared), (example, {}), ["torch", "onnx"])
    assert [note.partition(",")[0] for note in notes] == [
        "onnx: the file takes inputs of exactly the sizes of the example"
    ]


class WithLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.fc(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_labels_are_said_to_be_inputs_of_the_files(tmp_path: Path) -> None:
    batch = {"x": torch.rand(8, 4), "labels": torch.arange(8) % 3}
    prepared = lq.prepare(WithLoss(), example_kwargs=batch)
    lq.calibrate(prepared, [batch], call=lambda net, given: net(**given), show_progress=False)
    done = lq.export_artifact(prepared, [batch], tmp_path / "int8", ["torch"])
    assert [note for note in done.notes if note.startswith("the files take labels, too")] == done.notes
    assert rehearse(as_graph(prepared), ((), batch)) == done.notes
