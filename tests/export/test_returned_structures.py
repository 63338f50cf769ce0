"""What a model returns comes back in its structure, whatever the file: named tuples as tuples, records as dicts."""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lq.deployment.deploy import export_artifact
from lq.tracing.structure import tensors_of
from tests.export.nets import calibrated, example_of, round_trip

RUNTIMES = {"torch": "torch", "pt2": "torch", "onnx": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass
class Record:
    scores: Tensor
    more: Any


STRUCTURES: dict[str, tuple[Callable[[Tensor], Any], Any]] = {
    "named tuple in a dict": (lambda y: {"both": Pair(y, y * 2)}, {"both": (..., ...)}),
    "named tuple in one": (lambda y: Pair(Pair(y, None), [y * 2]), ((..., None), [...])),
    "named tuple in a list": (lambda y: [Pair(y, y * 2), y], [(..., ...), ...]),
    "named tuple in a record": (lambda y: Record(y, Pair(y * 2, 3)), {"scores": ..., "more": (..., 3)}),
    "ordered": (lambda y: OrderedDict(b=Pair(y, "text"), a=y * 2), OrderedDict(b=(..., "text"), a=...)),
    "of a factory": (lambda y: defaultdict(list, a=[y]), {"a": [...]}),
    "keys of two types": (lambda y: {0: y, "a": y * 2}, {0: ..., "a": ...}),
    "keys that JSON has not": (lambda y: {(0, 1): y, (1, 2): y * 2}, (..., ...)),
}


class Returns(nn.Module):
    def __init__(self, structure: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.structure = nn.Linear(4, 3), structure

    def forward(self, x: Tensor) -> Any:
        return STRUCTURES[self.structure][0](self.layer(x))


def form(value: Any) -> Any:
    """A structure with ... in the places of its tensors."""
    if isinstance(value, Tensor):
        return ...
    if isinstance(value, dict):
        return type(value)((key, form(part)) for key, part in value.items())
    return type(value)(map(form, value)) if isinstance(value, (tuple, list)) else value


@pytest.mark.parametrize("kind", RUNTIMES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_come_back(structure: str, kind: str, tmp_path: Path) -> None:
    pytest.importorskip(RUNTIMES[kind])
    example, x = example_of(torch.rand(4, 4)), torch.rand(3, 4)
    prepared = calibrated(Returns(structure), example)
    model, _ = round_trip(kind, prepared, example, tmp_path)
    with torch.no_grad():
        expected, got = prepared(x), model(x)
    wanted = STRUCTURES[structure][1]
    assert form(got) == wanted
    assert type(got) is type(wanted)
    for a, b in zip(tensors_of(expected), tensors_of(got), strict=True):
        torch.testing.assert_close(b, a)


def test_a_graph_returns_named_tuples_also_after_a_pickle() -> None:
    prepared = calibrated(Returns("named tuple in a dict"), example_of(torch.rand(4, 4)))
    for graph in (prepared, pickle.loads(pickle.dumps(prepared))):
        assert isinstance(graph(torch.rand(3, 4))["both"], Pair)


@pytest.mark.parametrize("kind", ["torch", "pt2", "onnx"])
def test_complex_outputs_come_back_and_are_compared(kind: str, tmp_path: Path) -> None:
    pytest.importorskip(RUNTIMES[kind])

    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(self.layer(x))

    x = torch.rand(8, 4)
    prepared = calibrated(Spectrum(), example_of(x))
    done = export_artifact(prepared, [x], tmp_path / "int8", [kind])
    got, expected = done.models[kind](x), prepared(x)
    assert done.parity[kind].passed
    assert got.is_complex() is (kind != "onnx")
    torch.testing.assert_close(got if got.is_complex() else torch.view_as_complex(got), expected)
