"""The benchmark of sequences: trained, exported, loaded and measured, on a few images."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import sequence
from tests.tiny import quicken_deployment


@pytest.mark.filterwarnings("ignore:lq. QAT ended with")  # a step on noise
def test_a_row_for_each_setting(fashion_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence.FashionMNISTDataModule.__init__, "__defaults__", ("data", 8, 8, 0, 2, True, False, 0))
    monkeypatch.setitem(sequence.MODELS, "vit", lambda: sequence.VisionTransformer(12, 2, 1))
    quicken_deployment(monkeypatch)
    options = ["--models", "vit", "--runtimes", "torch", "--epochs", "1", "--images", "16", "--seconds", "0.01"]
    rows = sequence.main([*options, "--data", str(fashion_folder)])
    assert [row["setting"] for row in rows] == ["layers", "attention too"]
    assert rows[0]["share"] < rows[1]["share"] == 1.0
    assert all(0 <= row["accuracy_torch"] <= 100 and row["ms_torch"] > 0 for row in rows)
