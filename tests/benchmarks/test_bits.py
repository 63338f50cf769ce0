"""The benchmark of chosen bits: the same size as uniform ones, and what is known is not run again."""

import json

import pytest

from benchmarks import bits
from benchmarks.low_bits import Run

pytest.importorskip("torchvision")


def test_chosen_bits_are_no_larger_than_uniform_ones_and_rows_are_kept(small_network, tmp_path):
    table = tmp_path / "table.md"
    options = [*small_network, "--grids", "W3A8", "--steps", "0", "--markdown", str(table)]
    uniform, chosen = bits.main([*options, "--methods", "uniform", "chosen of 2, 4, 8"])
    assert chosen["size"] <= uniform["size"]
    assert 0 <= chosen["test"] <= 100
    assert "| mobilenet_v2, W3A8, 0 | chosen of 2, 4, 8 |" in table.read_text()
    known = json.loads((tmp_path / "r.json").read_text())
    assert known.keys() == {Run("mobilenet_v2", "W3A8", m, 0, 0.01).key for m in ("uniform", "chosen of 2, 4, 8")}
    known[Run("mobilenet_v2", "W3A8", "uniform", 0, 0.01).key]["test"] = 12.34
    (tmp_path / "r.json").write_text(json.dumps(known))
    assert bits.main([*options, "--methods", "uniform"])[0]["mean"] == 12.34
