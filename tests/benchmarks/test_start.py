"""The benchmark of what happens once, on a tiny transformer."""

import json

import pytest

from benchmarks import start

pytest.importorskip("torchvision")


def test_prepare_setup_and_convert_have_their_seconds(tmp_path, capsys):
    file = tmp_path / "start.json"
    start.main(["--models", "tiny", "--json", str(file)])
    (row,) = json.loads(file.read_text())["rows"]
    assert 0 < row["prepare_s"] < row["setup_s"] + 60
    assert row["convert_s"] > 0
    assert row["prepare_memory"] >= 1
    assert "onnx_s" not in row
    assert "tiny" in capsys.readouterr().out


def test_a_transformer_of_a_billion_weights_is_one():
    blocks, width, words = 19, 2048, 32_000
    block = start.Block(width, 16)
    weights = sum(p.numel() for p in block.parameters()) * blocks + words * width + width * 1000
    assert 1e9 < weights < 1.05e9
