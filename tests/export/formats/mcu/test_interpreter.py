"""How much memory files need in tflite-micro."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.export.nets import calibrated, example_of, round_trip

pytest.importorskip("ai_edge_litert")
pytest.importorskip("tflite_micro")


@pytest.mark.parametrize("width", [1, 4, 16])
def test_the_arena_is_found_where_tflite_micro_crashes_in_smaller_ones(width: int, tmp_path: Path) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    prepared = calibrated(nn.Sequential(nn.Linear(3, width)), example_of(x), "mcu")
    model, info = round_trip("mcu", prepared, example_of(x), tmp_path)
    assert info["arena_bytes"] % 16 == 0
    assert 1000 < info["arena_bytes"] < 3000
    with torch.no_grad():
        assert (model(x) - prepared(x)).abs().max() < 0.1
