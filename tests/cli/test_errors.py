"""Which errors are a message, and which keep their traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lq.cli.errors import explanation, find_own_error


def caught(action: Any) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        action()
    return caught.value


def test_settings_that_lightning_refuses_are_a_message() -> None:
    error = caught(lambda: L.Trainer(accelerator="cup"))
    assert find_own_error(error) is None
    assert "accelerator='cup'" in (explanation(error) or "")
    assert "`" not in (explanation(error) or "")


def test_data_that_are_missing_can_be_named() -> None:
    error = caught(lambda: L.LightningModule().val_dataloader())
    assert isinstance(error, MisconfigurationException)
    assert "--data my_module.Data" in (explanation(error) or "")


def test_a_file_that_is_missing_is_told_with_the_line_that_wants_it() -> None:
    told = explanation(caught(Path("no/such/file").read_text))
    assert told is not None
    assert "No such file or directory: 'no/such/file'" in told
    assert "test_errors.py, line " in told, "the line of the user's that wants it"


def test_faults_of_the_code_keep_their_traceback() -> None:
    assert explanation(caught(lambda: torch.ones(2) @ torch.ones(3))) is None
    assert explanation(caught(lambda: [][0])) is None
