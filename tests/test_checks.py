from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lq
from lq.checks import as_dataclass
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
