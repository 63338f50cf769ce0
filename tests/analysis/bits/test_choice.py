"""What a choice of bits says of itself."""

from __future__ import annotations

from lq.analysis.bits.activations import ActivationOption
from lq.analysis.bits.budget import Budget
from lq.analysis.bits.choice import ActivationBits, ActivationRow, BitChoice, FrontierRow
from lq.analysis.bits.layers import LayerOption
from lq.config.specs import ActivationSpec, WeightSpec


def test_the_fewest_bits_come_first_and_float_last() -> None:
    row = FrontierRow(name="chosen", size_mb=0.1, effective_bits=4.0, expected=0.1, measured=0.1, latency_ms=None)
    layers = {"a": LayerOption(32, None, 32, 400), "b": LayerOption(4, WeightSpec(-7, 7), 4, 50)}
    options = {
        "c": ActivationOption(16, ActivationSpec(0, 65535)),
        "d": ActivationOption(8, ActivationSpec()),
        "e": ActivationOption(2, ActivationSpec(0, 3)),
    }
    activations = ActivationBits(
        options, [ActivationRow(name="chosen", bits=8.0, expected=0.1, measured=0.1)], with_weights=0.2
    )
    lines = str(BitChoice(Budget.parse("effective_bits=4"), "noise/signal", layers, [row], activations)).splitlines()
    assert lines[1:3] == ["  4 bits: b", "  float: a"]
    assert lines[4:] == ["  2 bits: e", "  8 bits: d", "  16 bits: c"]
