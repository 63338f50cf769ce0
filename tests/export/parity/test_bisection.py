from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lq.backends.prepare import prepare
from lq.conversion.graph import as_graph
from lq.export.artifact.calls import smallest_call
from lq.export.exporters import Chosen, chosen
from lq.export.parity.bisection import before_detections, first_difference
from lq.ptq import calibrate
from lq.tracing.batch import fixed_batch
from tests.detectors import DETECTORS, photographs
from tests.export import faulty
from tests.export.nets import example_of, images, residual


@pytest.mark.parametrize("layer", ["stem", "depthwise", "point", "second", "third", "hidden", "head"])
def test_the_layer_where_they_part_is_named(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    prepared = residual()
    choice = Chosen(faulty.register(monkeypatch), {"layer": layer})
    found = first_difference(prepared, choice, example_of(images(4)))
    assert found.startswith(f"{layer} ("), found
    assert found.endswith("dB)")
    # Half the weights are 6 dB; where biases are large or a residual is added there is less to see.
    assert 3 < float(found.split("(")[1].removesuffix(" dB)")) < 20


def test_not_a_number_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Chosen(faulty.register(monkeypatch), {"layer": "second", "factor": math.nan})
    assert first_difference(residual(), choice, example_of(images(4))).startswith("second (")


def test_where_nothing_differs_it_is_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = residual()
    before = {name: tensor.clone() for name, tensor in prepared.state_dict().items() if isinstance(tensor, Tensor)}
    assert first_difference(prepared, Chosen(faulty.register(monkeypatch)), example_of(images(4))) == "the output"
    after = prepared.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_real_exporter_is_cut_behind_every_layer() -> None:
    assert first_difference(residual(), chosen(["torch"])[0], example_of(images(4)), 25.0) == "the output"


def test_what_is_cut_off_takes_as_many_images_as_the_whole() -> None:
    """Not one of them, and not one of their channels."""
    torch.manual_seed(0)
    shown = [image for image, _ in photographs(2)]
    model = prepare(DETECTORS["SSD"]().eval(), example_args=(shown,))
    calibrate(model, [(shown,)])
    graph = as_graph(model).eval()
    heads = before_detections(graph)
    assert heads is not None
    assert fixed_batch(heads) == fixed_batch(graph) is not None
    assert smallest_call(heads, ((shown,), {}))[0][0] is shown
