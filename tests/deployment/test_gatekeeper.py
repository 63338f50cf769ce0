from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from lq.backends.prepare import prepare, set_phase
from lq.conversion.graph import as_graph
from lq.deployment.gated_export import gated_export
from lq.deployment.gatekeeper import Gatekeeper
from lq.deployment.results import Compared, Deployment
from lq.deployment.settings import ExportSettings
from lq.export.artifact.manifest import write_manifest
from lq.export.artifact.signature import Signature
from lq.export.exporters import chosen
from lq.export.parity.gate import Gate, Parity
from lq.export.parity.rounding import rounding_noise
from lq.export.parity.worker import Worker
from lq.metrics.detections import comparable
from lq.ptq import calibrate
from lq.tracing.structure import Inputs
from tests.detectors import DETECTORS, photographs
from tests.export import faulty
from tests.export.nets import example_of, images, residual
from tests.export.places import new_directory
from tests.tiny import quicken_deployment

ROWS = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
CALL: Inputs = ((ROWS,), {})


@cache
def deep() -> fx.GraphModule:
    """So many layers that values which round to the other side multiply."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(40):
        linear = nn.Linear(64, 64)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.ReLU()]
    prepared = prepare(nn.Sequential(*layers, nn.Linear(64, 10)))
    calibrate(prepared, [ROWS])
    set_phase(prepared, fake_quant=True, observer=False, freeze_bn=True)
    return prepared.eval()


@torch.no_grad()
def outputs(prepared: fx.GraphModule) -> Tensor:
    result: Tensor = prepared(ROWS)
    return result


def delivered(prepared: fx.GraphModule, order: ExportSettings, expected: Tensor | None = None) -> Deployment:
    calls = [(CALL, outputs(prepared) if expected is None else expected)]
    return gated_export(prepared, CALL, lambda models, keep: Compared(calls=calls), order)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    faulty.register(monkeypatch)


def test_rounding_moves_deep_networks_and_hardly_shallow_ones() -> None:
    noise = rounding_noise(deep(), [CALL], [outputs(deep())])
    assert noise is not None
    assert 30 < noise.sqnr_db < 60
    shallow = residual()
    call = example_of(images(4))
    with torch.no_grad():
        noise = rounding_noise(shallow, [call], [shallow(*call[0])])
    assert noise is not None
    assert noise.sqnr_db > 80


def test_the_model_is_left_as_it_is() -> None:
    prepared = residual()
    before = {name: t.clone() for name, t in prepared.state_dict().items() if isinstance(t, Tensor)}
    rounding_noise(prepared, [example_of(images(4))], [prepared(images(4))])
    for name, tensor in prepared.state_dict().items():
        if isinstance(tensor, Tensor):
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor, before[name])


class Insists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.float())


def test_a_model_that_insists_on_float32_has_no_figure() -> None:
    prepared = prepare(Insists())
    calibrate(prepared, [torch.randn(8, 4)])
    x = torch.randn(8, 4)
    assert rounding_noise(prepared.eval(), [((x,), {})], [prepared(x)]) is None


def test_what_rounding_explains_is_excused() -> None:
    done = delivered(deep(), ExportSettings(["torch"], Gate(min_sqnr_db=100)))
    assert done.parity["torch"].passed
    assert done.parity["torch"].sqnr_db < 100
    assert done.failures == []
    assert len(done.notes) == 1
    assert done.notes[0].startswith("torch: SQNR ")
    assert "computed in float64, the fake-quantized model itself reaches" in done.notes[0]


def test_it_is_not_if_the_gate_says_so() -> None:
    done = delivered(deep(), ExportSettings(["torch"], Gate(min_sqnr_db=100, excuse_rounding=False)))
    assert not done.parity["torch"].passed
    assert done.parity["torch"].first_layer
    assert done.notes == []


def test_a_fault_is_not_excused() -> None:
    done = delivered(deep(), ExportSettings([{"faulty": {"layer": "78"}}], Gate(min_sqnr_db=100)))
    assert not done.parity["faulty"].passed
    assert "they first differ at " in done.failures[0]


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y: Tensor = self.b(x + torch.randn_like(x))
        return y


def test_chance_is_not_taken_for_rounding() -> None:
    prepared = prepare(Noisy(), example_args=(ROWS,))
    calibrate(prepared, [ROWS])
    done = delivered(as_graph(prepared).eval(), ExportSettings(["torch"]))
    assert not done.parity["torch"].passed
    assert "where forward draws random numbers" in done.failures[0]


def test_a_graph_that_computes_something_else_does_not_excuse_itself() -> None:
    trained = outputs(deep())
    trained = trained + trained.std() * torch.randn_like(trained)
    done = delivered(deep(), ExportSettings(["torch"]), trained)
    assert not done.parity["torch"].passed
    assert done.failures


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("not in float64")


def test_an_explanation_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = copy.deepcopy(residual())
    stem = model.get_submodule("stem")
    stem.register_forward_pre_hook(lambda module, args: refuse() if args[0].dtype == torch.float64 else None)
    assert rounding_noise(model, [example_of(images(4))], [model(images(4))]) is None
    monkeypatch.setattr("lq.deployment.gatekeeper.first_difference", refuse)
    done = delivered(deep(), ExportSettings(["torch", {"faulty": {"layer": "78"}}], directory=tmp_path / "int8"))
    assert list(done.models) == ["torch"]
    assert "they first differ at a layer that could not be found (not in float64)" in done.failures[0]


def test_noise_is_not_asked_for_where_all_agree(tmp_path: Path) -> None:
    calls = [(CALL, outputs(deep()))]
    with new_directory(tmp_path / "int8") as place:
        infos = {"torch": chosen(["torch"])[0].export(deep(), CALL, place)}
        entries = {"signature": Signature.of(deep(), CALL, outputs(deep())).to_dict(), "artifacts": infos}
        write_manifest(place, entries)
        keeper = Gatekeeper(deep(), calls, Gate(), Worker())
        assert keeper.judge(chosen(["torch"])[0], place).passed
    assert "noise" not in keeper.__dict__


@pytest.mark.parametrize("tied", [True, False])
def test_boxes_that_differ_are_excused_only_by_equal_scores(tied: bool) -> None:
    """Right layers before the choice say nothing of what a file makes of them."""
    torch.manual_seed(0)
    detector, shown = DETECTORS["SSD"]().eval(), [image for image, _ in photographs(2)]
    if tied:
        for parameter in detector.head.classification_head.parameters():
            nn.init.zeros_(parameter)
    model = prepare(detector, example_args=(shown,))
    calibrate(model, [(shown,)])
    prepared = as_graph(model).eval()
    call: Inputs = ((shown,), {})
    with torch.no_grad():
        keeper = Gatekeeper(prepared, [(call, comparable(prepared(shown)))], Gate(), Worker())
    complaint = Gate().complaint(Parity(2, math.inf, 0.0, 0.75, detections=True))
    for ratio in (math.inf, 140.0):
        excused, note = keeper._excused(Parity(2, ratio, 0.0, 0.75, complaint, detections=True))
        assert excused.complaint == ("" if tied else complaint)
        assert note.partition(";")[2][:25] == (" scores that are nearly e" if tied else "")


@pytest.mark.parametrize(("sqnr_db", "excused"), [(50.0, True), (math.inf, False), (20.0, False)])
def test_boxes_that_differ_are_excused_by_the_noise_of_the_layers_if_that_is_allowed(
    sqnr_db: float, excused: bool
) -> None:
    """With random weights the regions of a Faster R-CNN are hardly more than a matter of chance."""
    torch.manual_seed(0)
    shown = [image for image, _ in photographs(2)]
    model = prepare(DETECTORS["Faster R-CNN"]().eval(), example_args=(shown,))
    calibrate(model, [(shown,)])
    prepared = as_graph(model).eval()
    with torch.no_grad():
        keeper = Gatekeeper(prepared, [(((shown,), {}), comparable(prepared(shown)))], Gate(), Worker())
    found = Parity(2, sqnr_db, 0.1, 0.75, detections=True)
    complaint = Gate().complaint(found)
    judged, _ = keeper._excused(replace(found, complaint=complaint))
    assert judged.complaint == ("" if excused else complaint)
