"""Files for microcontrollers, in the interpreter of those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lq.export.artifact.signature import Signature
from lq.export.exporters import EXPORTERS, chosen
from lq.export.formats.mcu import FILE
from lq.export.formats.mcu.interpreter import RefusedError, arena_bytes
from tests.export.formats.litert.ran import steps_apart
from tests.export.nets import IMAGES, calibrated, example_of, images, residual, round_trip

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite_micro")

EXAMPLE = example_of(IMAGES)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Any], Path]:
    directory = tmp_path_factory.mktemp("mcu")
    prepared = residual("mcu")
    return prepared, *round_trip("mcu", prepared, EXAMPLE, directory), directory


def test_a_microcontroller_computes_what_was_trained(exported: Any) -> None:
    prepared, model, _, _ = exported
    x = images(64)
    with torch.no_grad():
        expected = prepared(x)
    got = model(x)
    # It adds in fixed point: a step of an addition in front of two layers.
    assert steps_apart(expected, got) <= 2
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.95
    first = model(x[:1])
    assert not torch.equal(first, model(x[1:2])), "an output must not change with the next call"
    assert torch.equal(first, got[:1])


def test_it_is_integers_from_end_to_end_and_says_what_the_chip_needs(exported: Any) -> None:
    _, _, info, directory = exported
    from ai_edge_litert.interpreter import Interpreter

    file = Interpreter(str(directory / FILE))
    (given,), (returned,) = file.get_input_details(), file.get_output_details()
    assert given["dtype"].__name__ == returned["dtype"].__name__ == "int8"
    assert given["shape_signature"].tolist() == [1, 8, 8, 3]
    assert info["transposes"] == 0
    assert info["operators"] == [
        "ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MAX_POOL_2D", "RESHAPE",
    ]  # fmt: skip
    assert 2_000 < info["arena_bytes"] < 20_000, "activations of this net have some 2 kB at once"


def test_litert_computes_the_same_file(exported: Any, tmp_path: Path) -> None:
    prepared, model, _, _ = exported
    options = {"inputs": "int8", "outputs": "int8", "channels_last": True, "xnnpack": False}
    other, _ = round_trip("litert", prepared, EXAMPLE, tmp_path, **options)
    assert steps_apart(model(images(64)), other(images(64))) <= 1  # fixed point of 32 bits here, of 64 there


def test_the_arena_that_is_reported_is_enough_and_less_is_not(exported: Any) -> None:
    prepared, _, info, directory = exported
    with torch.no_grad():
        signature = Signature.of(prepared, EXAMPLE, prepared(IMAGES))
    assert arena_bytes(directory / FILE) == info["arena_bytes"]
    less = {**info, "arena_bytes": info["arena_bytes"] - 16}
    with pytest.raises(RefusedError, match=r"tflite-micro refuses int8.mcu.tflite: \S"):
        EXPORTERS["mcu"].load(directory, signature, less)


def test_ends_may_be_floats_in_torch_s_layout(tmp_path: Path) -> None:
    prepared = residual("mcu")
    model, info = round_trip(
        "mcu", prepared, EXAMPLE, tmp_path, inputs="float32", outputs="float32", channels_last=False
    )
    assert info["transposes"] == 1
    assert {"QUANTIZE", "DEQUANTIZE"} <= {*info["operators"]}
    with torch.no_grad():
        assert steps_apart(prepared(images(8)), model(images(8))) <= 2


class Between(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.function(F.relu(self.first(x))))
        return out


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (F.gelu, r"tflite-micro lacks the operator GELU \(gelu\)\. Replace it .* or export 'litert'\."),
        (
            nn.LayerNorm(8),
            r"on integers alone, but these would be float: layer_norm \(.*\)\. Change them to what LiteRT",
        ),
    ],
)
def test_what_does_not_run_there_is_refused_by_name(function: Any, message: str, tmp_path: Path) -> None:
    prepared = calibrated(Between(function), EXAMPLE, "mcu")
    with pytest.raises(ValueError, match=message):
        round_trip("mcu", prepared, EXAMPLE, tmp_path)


def test_options_are_checked_before_the_training() -> None:
    with pytest.raises(ValueError, match=r"inputs='uint8' must be 'float32' or 'int8'"):
        chosen([{"mcu": {"inputs": "uint8"}}])
    with pytest.raises(TypeError, match=r"channels_last=1"):
        chosen([{"mcu": {"channels_last": 1}}])
