"""What a fit says of its phases is of what there is in the network."""

from __future__ import annotations

import pytest
from torch import nn

from tests.callback.conftest import Fit
from tests.tiny import Tiny, qat


def lines(fit: Fit, module: Tiny, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level("INFO"):
        fit(module, qat(freeze_bn="4 steps", observer_off="never"), max_epochs=2)
    return [text for text in caplog.text.splitlines() if "fake quantization on" in text or "learning rate of" in text]


def test_batch_norm_is_told_of_where_there_is_one(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    rate, *phases = lines(fit, Tiny("plateau"), caplog)
    assert "in place of the module's schedulers" in rate
    assert [text.rpartition("statistics ")[2] for text in phases] == ["moving", "frozen"]


def test_nothing_is_told_of_what_there_is_not(fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    module = Tiny()
    module.model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    rate, phase = lines(fit, module, caplog)
    assert rate.endswith("along a cosine")
    assert phase.endswith("fake quantization on, observers on")
