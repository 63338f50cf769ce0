from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from lq.export.exporters import EXPORTERS
from lq.timing.latency import Latency, compare_latency, size_mb
from lq.timing.rows import artifact_mb, comparison_rows, fastest_float, float_forms
from tests.export.nets import Residual, example_of, images


def took(milliseconds: float) -> Latency:
    return Latency(milliseconds, milliseconds, 0.0, 1, 1, 10)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for kind in ("torch", "openvino"):
        for file in EXPORTERS[kind].files:
            (tmp_path / file).write_bytes(bytes(250_000))
    return tmp_path


def test_size_counts_all_files_of_a_kind(place: Path) -> None:
    assert artifact_mb("torch", place) == 0.25
    assert artifact_mb("openvino", place) == 0.5


def test_a_row_for_each_version_with_what_is_known_of_it(place: Path) -> None:
    net = Residual().eval()
    times = {"fp32 frozen": took(4.0), "fp32 fused": took(3.0), "torch": took(2.0)}
    results = {
        "fp32": {"accuracy": 0.9},
        "fake": {"accuracy": 0.8},
        "torch": {"accuracy": 0.7},
        "torch_vs_fake": {"agreement": 0.99, "sqnr_db": 40.0},
    }
    rows = comparison_rows(["torch", "openvino"], net, place, results, times)
    assert [row["model"] for row in rows] == ["FP32", "fake-quantized", "int8 torch", "int8 openvino"]
    fp32, fake, scripted, openvino = rows
    assert [row["metrics"].get("accuracy") for row in rows] == [0.9, 0.8, 0.7, None]
    assert fp32["size_mb"] == size_mb(net)
    assert (scripted["size_mb"], openvino["size_mb"]) == (0.25, 0.5)
    assert (scripted["agreement"], scripted["sqnr_db"]) == (0.99, 40.0)
    assert openvino["sqnr_db"] is None
    assert (fp32["latency_ms"], scripted["latency_ms"]) == (3.0, 2.0)
    assert fp32["threads"] == 1
    assert "latency_ms" not in fake
    assert "latency_ms" not in openvino  # it could not be measured


def test_without_the_float_model_its_results_stay(place: Path) -> None:
    rows = comparison_rows([], None, place, {"fp32": {"accuracy": 0.9}}, {})
    assert rows[0] == {"model": "FP32", "metrics": {"accuracy": 0.9}}
    assert [row["model"] for row in comparison_rows([], None, place, {}, {})] == ["fake-quantized"]


def test_int8_is_compared_with_the_fastest_float_form() -> None:
    net = Residual().eval()
    forms = float_forms(net, example_of(images(1)))
    assert list(forms) == ["fp32 eager", "fp32 frozen", "fp32 fused"]
    for form in forms.values():
        with torch.no_grad():
            torch.testing.assert_close(form(images(1)), net(images(1)), rtol=1e-4, atol=1e-5)  # BatchNorm is folded


class Unscriptable(nn.Module):
    def forward(self, x: torch.Tensor) -> set[int]:
        return {len(x)}


def test_what_torchscript_cannot_do_leaves_the_eager_model() -> None:
    assert list(float_forms(Unscriptable(), example_of(images(1)))) == ["fp32 eager"]


class Maps(nn.Module):
    """Pairs of maps, as the heads of a detector return them: no type of TorchScript's."""

    def forward(self, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(2 * x, 3 * x), (4 * x, 5 * x)]


def test_structures_that_torchscript_has_no_type_for_are_measured_as_tuples() -> None:
    forms = float_forms(Maps(), example_of(images(1)))
    assert list(forms) == ["fp32 eager", "fp32 frozen", "fp32 fused"]
    for factor, found in zip((2, 3, 4, 5), forms["fp32 frozen"](images(2)), strict=True):
        torch.testing.assert_close(found, factor * images(2))


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, other: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return scale * x + other


def test_float_forms_take_the_call_of_the_original() -> None:
    example = example_of(images(1), other=images(1), scale=2.0)
    forms = float_forms(Scaled().eval(), example)
    assert len(forms) == 3
    for form in forms.values():
        torch.testing.assert_close(form(*example[0], **example[1]), 3 * images(1))


def test_fastest_float_looks_at_the_median() -> None:
    def latency(median_ms: float) -> Latency:
        return dataclasses.replace(measured, median_ms=median_ms)

    measured = compare_latency({"x": lambda x: x}, (torch.ones(1),), threads=1, min_time=0.001)["x"]
    times = {"fp32 eager": latency(3.0), "fp32 fused": latency(2.0), "torch": latency(1.0)}
    assert fastest_float(times) is times["fp32 fused"]
