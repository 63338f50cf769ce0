from __future__ import annotations

from typing import Any

import pytest
import torch

from lq.callback import QATCallback
from tests.callback.conftest import Fit
from tests.tiny import Tiny


def test_what_the_summary_counts_is_the_model_and_not_its_exports(fit: Fit, capsys: pytest.CaptureFixture[Any]) -> None:
    """Lightning's summary calls the model under a counter, and that call is the first one."""
    module = Tiny()
    module.example_input_array = torch.zeros(2, 1, 6, 6)
    fit(module, QATCallback(exporters=["torch", "pt2"]), max_epochs=1, enable_model_summary=True)
    printed = capsys.readouterr().out
    if "FLOPs" in printed:  # Lightning 2.6
        # Two images: 4 channels of 4x4 from 9 products each, and 3 from 64 of the linear layer; twice that in flops.
        assert "3.1 K" in printed
