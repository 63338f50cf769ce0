"""Import paths that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import LightningModule
from torch import nn

from lq.cli.import_paths import imported, why_not


def test_what_is_imported() -> None:
    assert imported("torch.nn.Linear") is nn.Linear
    assert imported("torch.nn.Liner") is imported("nowhere.Net") is imported(None) is imported("Net") is None


def test_names_of_inner_modules_are_corrected() -> None:
    assert why_not("torch.optm.Adam") == "there is no module torch.optm; did you mean 'torch.optim.Adam'?"


def test_nothing_like_it_says_where_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert why_not("qqqqqq.Net") == f"there is no module qqqqqq in {tmp_path} or among what is installed"
    assert why_not("Qqqqqq") == "'Qqqqqq' is no import path of a class, such as my_module.Net"


def test_a_class_in_the_working_directory_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_by_name.py").write_text("class Detector: ...\n")
    assert why_not("Detector", LightningModule).endswith("; did you mean 'mine_by_name.Detector'?")
