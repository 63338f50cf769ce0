"""Budgets as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from lq.analysis.bits.budget import Budget


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("size=2.5MB", "size", 2_500_000),
        ("size = 300 kB", "size", 300_000),
        ("size=1MiB", "size", 2**20),
        ("size=4e3B", "size", 4000),
        ("effective_bits=5", "effective_bits", 5),
        ("effective_bits=4.5bits", "effective_bits", 4.5),
        ("latency=0.6@openvino", "latency", 0.6),
        ("latency = 2.5 ms @ onnx", "latency", 2.5),
        ("latency=900us@torch", "latency", 0.9),
        ("latency=1s@torch", "latency", 1000),
    ],
)
def test_what_is_understood(text: str, kind: str, amount: float) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount) == (kind, amount)
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=2.5", "has no unit; write size=2.5MB"),
        ("size=2.5mb", "has the unknown unit 'mb'"),
        ("effective_bits=5MB", "has the unknown unit 'MB'"),
        ("speed=0.6", "is neither a size, effective_bits nor a latency; write size=2.5MB"),
        (
            "latency=0.6",
            "does not say in which runtime; write latency=0.6@torch, latency=0.6@onnx or latency=0.6@openv",
        ),
        ("latency=2ms@litert", "names the runtime 'litert', which is not timed; write latency=2ms@torch"),
        ("latency=2min@onnx", "has the unknown unit 'min'"),
        ("latency=0@onnx", "must be above 0"),
        ("size=2MB@onnx", "names a runtime, which only a latency has"),
        ("size", "is no budget; write size=2.5MB"),
        ("size=1.2.3MB", "contains no number"),
        ("size=0MB", "must be above 0"),
        ("effective_bits=1e999", "must be above 0"),
        ("", "is no budget"),
    ],
)
def test_what_is_refused_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


def test_a_number_is_no_budget() -> None:
    number: Any = 2.5
    with pytest.raises(TypeError, match=r"budget=2.5 \(float\) must be text: write size=2.5MB"):
        Budget.parse(number)
