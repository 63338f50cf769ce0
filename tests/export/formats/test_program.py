from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.export.formats.program import export_program, float_program
from tests.export.nets import TwoInputs, calibrated, example_of, images, residual, round_trip


@pytest.mark.parametrize("size", [1, 4])
def test_any_batch_size_runs_and_equals_the_prepared_model(size: int) -> None:
    prepared = residual()
    program, dynamic = export_program(prepared, example_of(images(size)))
    assert dynamic
    for count in (1, 2, 7):
        x = images(count)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), prepared(x))


def test_keyword_inputs_and_dicts() -> None:
    example = example_of(images(4), other=images(4, seed=3))
    prepared = calibrated(TwoInputs(), example)
    program, dynamic = export_program(prepared, example)
    assert dynamic
    x, y = images(3), images(3, seed=5)
    with torch.no_grad():
        got, expected = program.module()(x, other=y), prepared(x, other=y)
    torch.testing.assert_close(got["logits"], expected["logits"])
    torch.testing.assert_close(got["features"][1], expected["features"][1])
    assert got["loss"] is None


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_lie_last_in_memory_leave_no_trace(channels: int) -> None:
    net = nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    x = images(4)[:, :channels].contiguous(memory_format=torch.channels_last)
    prepared = calibrated(net.to(memory_format=torch.channels_last), example_of(x))  # type: ignore[call-overload]
    program, _ = export_program(prepared, example_of(x))
    # Its decomposition would be a gather in ONNX, which computes in float.
    assert "as_strided" not in str(program.run_decompositions().graph)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), prepared(x))


class Labelled(nn.Module):
    """Returns texts and numbers beside tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"task": "digits", "logits": self.layer(x), "rest": [None, 3, 0.5, True]}


@pytest.mark.parametrize("kind", ["torch", "pt2", "onnx"])
def test_texts_and_numbers_come_back_beside_tensors(kind: str, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxscript")
    example = example_of(torch.randn(8, 4))
    prepared = calibrated(Labelled(), example)
    model, _ = round_trip(kind, prepared, example, tmp_path)
    got = model(torch.randn(3, 4))
    assert got.pop("logits").shape == (3, 3)
    assert got == {"task": "digits", "rest": [None, 3, 0.5, True]}


class WithOptions(nn.Module):
    """Called with its first and its last argument, as a model of transformers is with ``input_ids`` and ``labels``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layer(x if mask is None else x * mask)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def test_a_keyword_behind_one_that_is_not_given_keeps_its_place() -> None:
    example = example_of(x=torch.randn(4, 4), labels=torch.tensor([0, 1, 2, 0]))
    prepared = calibrated(WithOptions(), example)
    program, dynamic = export_program(prepared, example)
    assert dynamic
    x, labels = torch.randn(3, 4), torch.tensor([2, 2, 1])
    with torch.no_grad():
        got, expected = program.module()(x=x, mask=None, labels=labels), prepared(x=x, labels=labels)
    torch.testing.assert_close(got["loss"], expected["loss"])


def test_keywords_in_another_order_than_the_parameters_do_not_change_places() -> None:
    example = example_of(other=images(4, seed=3), scale=1.0, image=images(4))
    prepared = calibrated(TwoInputs(), example)
    program, _ = export_program(prepared, example)
    x, y = images(3), images(3, seed=5)
    with torch.no_grad():
        got, expected = program.module()(image=x, other=y, scale=1.0), prepared(x, other=y)
    torch.testing.assert_close(got["logits"], expected["logits"])


class Difference(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - right


@pytest.mark.parametrize("dynamic", [True, False])
def test_an_example_that_gives_one_tensor_twice_has_two_inputs(dynamic: bool) -> None:
    x = torch.ones(3, 2)
    program, _ = float_program(Difference(), example_of(x, x), dynamic)
    assert torch.equal(program.module()(x, 4 * x), -3 * x)


class FixesItsBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layer(x)).reshape(4, 4, -1).mean(2))


def test_a_model_that_fixes_its_batch_is_exported_with_the_examples(capfd: pytest.CaptureFixture[str]) -> None:
    prepared = calibrated(FixesItsBatch(), example_of(images(4)))
    program, dynamic = export_program(prepared, example_of(images(4)))
    assert not dynamic
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(4)), prepared(images(4)))
    printed = "".join(capfd.readouterr())
    assert printed == "", "what the first attempt says of its failure concerns nobody"


def test_inputs_without_a_common_first_dimension_are_independent() -> None:
    example = example_of(images(4), other=images(2))

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, image: Tensor, *, other: Tensor) -> Tensor:
            return self.layer(image) + other.mean()

    prepared = calibrated(Uneven(), example)
    program, dynamic = export_program(prepared, example)
    assert dynamic
    for left, right in ((4, 2), (1, 5), (3, 3)):
        x, y = images(left), images(right)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x, other=y), prepared(x, other=y))


def test_dynamic_batch_can_be_left_out() -> None:
    program, dynamic = export_program(residual(), example_of(images(4)), dynamic=False)
    assert not dynamic
    with pytest.raises(Exception, match=r"[Gg]uard|shape"):
        program.module()(images(3))


def test_signed_programs_compute_the_same_on_int8() -> None:
    prepared = residual()
    program, _ = export_program(prepared, example_of(images(4)), signed=True)
    targets = [n for n in program.graph.nodes if "quantize_per_tensor" in str(n.target)]
    assert targets
    assert {n.args[-1] for n in targets} == {torch.int8}
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(5)), prepared(images(5)))


def _with_a_number(layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias) if x.sum().item() > 0 else x


def test_what_cannot_be_exported_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = residual()
    head = prepared.get_submodule("head")
    monkeypatch.setattr(type(head), "compute", _with_a_number)
    with pytest.raises(ValueError, match=r"torch.export cannot export Residual: "):
        export_program(prepared, example_of(images(4)))
    assert "".join(capfd.readouterr()) == ""
