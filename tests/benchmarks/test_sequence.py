"""The benchmark of sequences: trained, exported, loaded and measured, on a few images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lq
from benchmarks import sequence
from lq.conversion.graph import as_graph
from lq.export.formats.onnx import export
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


def test_the_profile_of_a_file_has_its_operators(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net, x = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)), torch.rand(4, 64)
    prepared = lq.prepare(net, example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    (tmp_path / "int8").mkdir()
    export(as_graph(prepared.eval()), ((x,), {}), tmp_path / "int8")
    shares = sequence.profile(tmp_path / "int8" / "int8.onnx", calls=20)
    assert "Linear " in shares
    assert sum(int(part.split()[1].rstrip("%")) for part in shares.split(", ")) > 50
