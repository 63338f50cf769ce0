"""The benchmark of weight observers, on a small checkpoint."""

import json

import pytest
import torch
from torch import nn

from benchmarks import weight_error


@pytest.mark.parametrize("wrapped", [False, True])
def test_every_observer_is_measured_on_every_grid(wrapped, tmp_path, capsys):
    state = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.Linear(64, 8)).state_dict()
    checkpoint, file = tmp_path / "net.ckpt", tmp_path / "weights.json"
    torch.save({"state_dict": state} if wrapped else state, checkpoint)
    weight_error.main([str(checkpoint), "--quant_max", "1", "127", "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["grid"], row["observer"]) for row in rows] == [
        (grid, observer) for grid in ("2 bits, [-1, 1]", "8 bits, [-127, 127]") for observer in ("minmax", "mse")
    ]
    assert all(row["worst"] <= row["mean"] and row["ms"] > 0 for row in rows)
    two_bits = {row["observer"]: row["mean"] for row in rows[:2]}
    assert two_bits["mse"] > two_bits["minmax"] + 1
    assert "2 weights of net.ckpt" in capsys.readouterr().out


def test_the_ratio_is_that_of_the_definition():
    weight = torch.tensor([[1.0, 0.4]])  # on [-1, 1]: 1 and 0, so an error of 0.4
    assert weight_error._sqnr(weight, torch.tensor([[1.0]]), 1) == pytest.approx(8.6034, abs=1e-3)  # 10 log10(1.16/.16)
