from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lq
from lq.checks import as_dataclass, check_integer, check_number
from lq.config.schedule import QATSchedule
from lq.export.parity.gate import Gate


@pytest.mark.parametrize("value", [None, {}, Gate()])
def test_defaults(value: Any) -> None:
    assert as_dataclass(Gate, value, "gate") == Gate()


def test_a_mapping_is_taken_for_what_it_describes() -> None:
    assert as_dataclass(QATSchedule, {"start": "20%", "lr": None}, "schedule") == QATSchedule(start="20%", lr=None)


@pytest.mark.parametrize("value", ["default", 3, [1], True])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^gate=.* must be a Gate, or a mapping of its settings"):
        as_dataclass(Gate, value, "gate")


def test_a_large_value_does_not_fill_the_message() -> None:
    with pytest.raises(TypeError) as caught:
        as_dataclass(Gate, [torch.rand(1000)], "gate")
    assert len(str(caught.value)) < 200


def test_inputs_in_the_place_of_a_qconfig() -> None:
    with pytest.raises(ValueError, match=r"got tuple: \(tensor.*\.\.\.\. Inputs of a call are example_args=\(x,\)"):
        lq.prepare(nn.Linear(4, 2), (torch.rand(64, 4),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got Tensor: <tensor of shape \(64, 4\)>\. Inputs"):
        lq.prepare(nn.Linear(4, 2), torch.rand(64, 4))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1.5, True, "3", None, float("nan")])
def test_only_whole_numbers_are_whole_numbers(value: Any) -> None:
    with pytest.raises(TypeError, match=r"^gate: batches=.* is not a whole number; write e\.g\. batches=10\.$"):
        check_integer("gate: batches", value, 10, least=1)


@pytest.mark.parametrize("value", [0, -1])
def test_whole_numbers_have_a_limit(value: int) -> None:
    with pytest.raises(ValueError, match=rf"^gate: batches={value} must be at least 1; write e\.g\. batches=10\.$"):
        check_integer("gate: batches", value, 10, least=1)
    check_integer("gate: batches", 1, 10, least=1)
    check_integer("gate: batches", value, 10)


@pytest.mark.parametrize(("value", "kind"), [("3", TypeError), (False, TypeError), (float("nan"), ValueError)])
def test_only_numbers_are_numbers(value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^rate=.* is not a number; write e\.g\. rate=0\.5\.$"):
        check_number("rate", value, 0.5)
    check_number("rate", 1, 0.5)
