from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lq.backends.prepare import prepare, state_of
from lq.conversion.graph import as_graph
from lq.deployment.rehearsal import rehearse
from lq.export.formats.parts import call_of_one_part
from tests.export.nets import calibrated, example_of, round_trip

Function = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.function = nn.Linear(4, 4), nn.Linear(4, 3), function

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.function(self.first(x)))
        return logits


def rows(count: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


DEPENDENT: dict[str, tuple[Function, str]] = {
    "the first sample": (lambda y: y + y[0], "from select on"),
    "the sample before": (lambda y: y + y.roll(1, 0), "from roll on"),
    "the mean of all": (lambda y: y - y.mean(0), "from mean on"),
    "products of all": (lambda y: (y @ y.t()).softmax(-1) @ y, "from matmul on"),
}


def test_a_module_that_mixes_samples_is_named_as_in_the_plan() -> None:
    x = rows(4)
    prepared = calibrated(nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Softmax(0))), example_of(x))
    with pytest.raises(ValueError, match=r"of the batch, from 1\.0 \(Softmax\) on, but"):
        call_of_one_part(prepared, example_of(x))


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize(("function", "where"), DEPENDENT.values(), ids=DEPENDENT)
def test_samples_that_depend_on_others_are_told(function: Function, where: str, count: int) -> None:
    x = rows(count)
    prepared = calibrated(Between(function), example_of(x))
    with pytest.raises(ValueError, match=rf"depend on other samples of the batch, {where}, .* takes 1 sample at a t"):
        call_of_one_part(prepared, example_of(x))
    assert state_of(prepared).fake_quant


INDEPENDENT: dict[str, Function] = {
    "none": lambda y: y,
    "batch last": lambda y: (y.t() + torch.arange(4.0)[:, None]).t(),
    "its own maximum": lambda y: y - y.amax(1, keepdim=True),
    "reshaped": lambda y: (y.reshape(-1, 2) * 2).reshape(-1, 4),
}


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("function", INDEPENDENT.values(), ids=INDEPENDENT)
def test_others_are_cut_to_one(function: Function, count: int) -> None:
    x = rows(count)
    ((found,), _) = call_of_one_part(calibrated(Between(function), example_of(x)), example_of(x))
    assert torch.equal(found, x[:1])


class WithState(nn.Module):
    """A recurrence, whose last state has the batch second, and a table that has none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.gru = nn.Linear(4, 4), nn.GRU(4, 4, batch_first=True)
        self.register_buffer("table", torch.randn(7, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, state = self.gru(self.layer(x))
        return y, state, self.table * 2


def test_the_batch_may_be_anywhere_or_nowhere_in_an_output() -> None:
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    ((found,), _) = call_of_one_part(calibrated(WithState(), example_of(x)), example_of(x))
    assert found.shape == (1, 5, 4)


@pytest.mark.parametrize("kind", ["litert", "mcu", "executorch", "qnn"])
def test_files_of_one_sample_refuse_them_before_the_training(kind: str) -> None:
    packages = {"litert": "ai_edge_litert", "mcu": "tflite_micro", "executorch": "executorch", "qnn": "onnxruntime_qnn"}
    if importlib.util.find_spec(packages[kind]) is None:
        pytest.skip(f"{packages[kind]} is not here")
    function, _ = DEPENDENT["the first sample"]
    x = rows(4)
    prepared = as_graph(prepare(Between(function).eval(), "litert", (x,)), example_of(x))
    with pytest.raises(ValueError, match=rf"as '{kind}', so the run stops before .* a sample depend on other samples"):
        rehearse(prepared, example_of(x), [kind])


def test_files_of_any_batch_need_not(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    function, _ = DEPENDENT["the first sample"]
    prepared = calibrated(Between(function), example_of(rows(4)))
    model, _ = round_trip("onnx", prepared, example_of(rows(4)), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(model(rows(6)), prepared(rows(6)), atol=0.05, rtol=0)
