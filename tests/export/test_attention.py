"""Attention in int8, in the files of every exporter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lq.backends.prepare import plan_of
from lq.config.qconfig import QConfig
from lq.deployment.in_float import float_notes
from lq.export.parity.rounding import rounding_noise
from lq.metrics import sqnr
from tests.attention_nets import WAYS, Heads, OfTorch, Transformer, sequences, transformer
from tests.backends.test_attention import MASKS, Masked
from tests.export.nets import calibrated, example_of, round_trip

PRESETS = {"openvino": "openvino", "litert": "litert"}
NEEDS = {"onnx": "onnxruntime", "openvino": "openvino", "litert": "ai_edge_litert"}


def exported(net: Any, example: Any, exporter: str, directory: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The prepared model, what is loaded of the exporter's file, and what the exporter says of it."""
    pytest.importorskip(NEEDS.get(exporter, "torch"))
    prepared = calibrated(net, example, QConfig(PRESETS.get(exporter, "portable"), attention="int8"))
    model, info = round_trip(exporter, prepared, example, directory)
    return prepared, model, info


def assert_agrees(prepared: Any, model: Any, call: Any) -> None:
    with torch.no_grad():
        expected, got = prepared(*call[0]), model(*call[0])
        noise = rounding_noise(prepared, [call], [expected])
    limit = 35.0 if noise is None else min(35.0, noise.sqnr_db - 6)
    assert sqnr(expected, got) > limit  # a step more or less where a value lies in the middle of two


@pytest.mark.parametrize("exporter", ["torch", "onnx", "openvino", "litert", "pt2"])
def test_every_exporter_computes_what_was_trained(exporter: str, tmp_path: Path) -> None:
    net, example = transformer(), example_of(sequences(8))
    prepared, model, info = exported(net, example, exporter, tmp_path)
    assert_agrees(prepared, model, example_of(sequences(3, seed=1)))
    plan, notes = plan_of(prepared), float_notes(plan_of(prepared), {exporter: info})
    assert plan.share == 1.0
    if exporter == "torch":
        assert len(notes) == 1
        assert notes[0].startswith("torch: blocks.0.attention.matmul, blocks.0.attention.matmul_1 run in float")
        assert "(PyTorch multiplies two activations in float); 90% of the work" in notes[0]
    else:
        assert notes == []
    if exporter == "onnx":
        assert sum(info["int8_layers"].values()) == 6 + 2  # layers and products
        assert info["float_layers"] == []
    if exporter == "openvino":
        assert info["int8_layers"]["Attention"] == 1  # two products and a softmax
    if exporter == "litert":
        assert info["int8_layers"]["BATCH_MATMUL"] == 2
        assert not any("softmax" in name for name in info["float_operators"])


def test_other_ways_of_writing_it(tmp_path: Path) -> None:
    net = Transformer(Heads(WAYS["by_einsum"]), Heads(WAYS["by_bmm"]), OfTorch())
    prepared, model, info = exported(net, example_of(sequences(8)), "onnx", tmp_path)
    assert len(plan_of(prepared).int8_products) == 6
    assert info["float_layers"] == []
    assert_agrees(prepared, model, example_of(sequences(3, seed=1)))


@pytest.mark.parametrize(
    ("case", "exporter"),
    [
        ("bool", "onnx"),
        ("causal", "litert"),  # which has no masks that are computed from inputs
        ("scale and grouped queries", "litert"),
    ],
)
def test_masks(case: str, exporter: str, tmp_path: Path) -> None:
    options, mask = MASKS[case]
    torch.manual_seed(0)
    example = example_of(sequences(6)) if mask is None else example_of(sequences(6), mask)
    prepared, model, _ = exported(Masked(**options), example, exporter, tmp_path)
    assert_agrees(prepared, model, example)
