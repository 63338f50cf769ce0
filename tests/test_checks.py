from __future__ import annotations

from typing import Any

import pytest

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
