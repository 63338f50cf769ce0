"""Layers of a whole detector are judged by what is before its choice of boxes, as other boxes cannot be subtracted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lq
from lq.analysis import CompareOptions, compare, sensitivity, sqnr_per_layer
from lq.analysis.bits.search import choose_bits
from lq.analysis.tensors import compared_part
from lq.conversion.graph import as_graph
from lq.deployment.rehearsal import rehearse
from lq.timing.bench import bench
from tests.detectors import DETECTORS, photographs
from tests.tiny import quicken_deployment

BATCH: Any = ([image for image, _ in photographs(2)],)


@pytest.fixture(params=["SSD", "Faster R-CNN"])
def detector(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return DETECTORS[request.param]().eval()


@pytest.fixture
def prepared(detector: nn.Module) -> nn.Module:
    model = lq.prepare(detector, example_args=BATCH)
    lq.calibrate(model, [BATCH])
    return model


def test_every_layer_has_a_loss_and_a_ratio(prepared: nn.Module) -> None:
    before = {row["layer"]: row["value"] for row in sensitivity(prepared, [BATCH], direction="one")}
    assert all(0 < value < 100 for name, value in before.items() if not name.startswith("roi_heads"))
    rows = {row["name"]: row for row in sqnr_per_layer(prepared, [BATCH], int8=True)}
    assert rows["output"]["accumulated_db"] is None
    assert any(row["int8_db"] is not None for row in rows.values())


@pytest.mark.parametrize("detector", ["SSD"], indirect=True)
def test_bits_are_weighed(detector: nn.Module) -> None:
    choice = choose_bits(detector, [BATCH], options="effective_bits=7")
    losses = {row["name"]: row["measured"] for row in choice.rows}
    assert losses["all 2 bits"] > losses["all 8 bits"] > 0


def test_other_models_are_compared_by_their_output() -> None:
    x: Tensor = torch.zeros(2, 4)
    graph = as_graph(lq.prepare(nn.Sequential(nn.Linear(4, 2)), example_args=(x,)))
    assert compared_part(graph) is graph


@pytest.mark.parametrize("exporter", ["litert", "mcu"])
def test_an_exporter_that_chooses_no_boxes_says_so(prepared: nn.Module, exporter: str) -> None:
    with pytest.raises(ValueError, match=r"no non-maximum suppression.* torch, onnx, .*target='model.backbone'"):
        rehearse(as_graph(prepared), (BATCH, {}), [exporter])


@pytest.mark.parametrize("detector", ["SSD"], indirect=True)
def test_a_detector_is_timed_with_one_image(
    prepared: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_deployment(monkeypatch)
    lq.export_artifact(prepared, [BATCH], tmp_path / "int8", ["torch"], lq.Gate(min_detection_agreement=None))
    found = bench(tmp_path / "int8", DETECTORS["SSD"](), (1, 16), min_time=0.01, compile=False)
    assert {row["batch_size"] for row in found.rows} == {1}
    assert {"fp32 eager", "int8 torch"} <= {row["model"] for row in found.rows}


@pytest.mark.parametrize("detector", ["SSD"], indirect=True)
def test_versions_of_a_detector_are_compared_on_batches_of_any_size(detector: nn.Module) -> None:
    images = [image for image, _ in photographs(5)]
    batches = [(images[:3], None), (images[3:], None)]
    options = CompareOptions(seconds=0.01, own=lambda model: {"boxes": float(len(model(images)[0]["boxes"]))})
    rows = compare(detector, batches, batches, options=options)
    assert all(row["metrics"]["boxes"] > 0 for row in rows)


@pytest.mark.parametrize("detector", ["SSD"], indirect=True)
def test_all_images_of_a_batch_are_compared(prepared: nn.Module) -> None:
    first, second = BATCH[0]
    part = compared_part(as_graph(prepared, (([first],), {})))
    with torch.no_grad():
        both, alone = part([first, second]), [part([image]) for image in (first, second)]
    assert torch.equal(both, torch.cat(alone))
    assert not torch.equal(*alone)
