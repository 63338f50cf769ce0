"""The benchmark of calibration and export, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import deployment
from tests.tiny import quicken_deployment


def test_calibration_and_export_have_their_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_deployment(monkeypatch)
    given = [
        "--models",
        "mlp",
        "--exporters",
        "torch",
        "--observers",
        "minmax",
        "mse",
        "--batch",
        "2",
        "--batches",
        "3",
    ]
    rows = deployment.main([*given, "--json", str(tmp_path / "rows.json")])
    works = ["float model, forward", "calibrate, minmax", "calibrate, mse", "export torch"]
    assert [(row["model"], row["work"]) for row in rows] == [("mlp", work) for work in works]
    assert all(row["seconds"] > 0 for row in rows)
    assert [row["batches"] for row in rows] == [3, 3, 3, 1]
