"""The benchmark of inference, at tiny size, in its own processes."""

import json

import pytest

from benchmarks import inference

pytest.importorskip("torchvision")


def test_tables_and_figures(tmp_path, capfd):
    file = tmp_path / "inference.json"
    arguments = ["--models", "resnet18", "--exporters", "torch", "--batch-sizes", "1", "--size", "32"]
    inference.main([*arguments, "--seconds", "0.02", "--no-compile", "--json", str(file)])
    rows = {row["model"]: row for row in json.loads(file.read_text())["resnet18"]["rows"]}
    assert rows["fp32 eager"]["size_mb"] / rows["int8 torch"]["size_mb"] > 3.8  # the goal
    assert "resnet18, 32x32" in capfd.readouterr().out
