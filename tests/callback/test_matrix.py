"""Everything at once, in one process and in two; docs/matrix.md shows all combinations (matrix_run.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callback.matrix_run import CELLS, HAS_EMA, PRECISIONS, Cell, run

ROOT = Path(__file__).parents[2]

# A checkpoint is taken up by a trainer that keeps its own elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


def _is_tried(cell: Cell) -> bool:
    """Half of those that resume: each value of a setting meets each value of the others."""
    odd = PRECISIONS.index(cell.precision) + cell.ema + cell.accumulate
    return cell.resume and (odd % 2 == 1 or not HAS_EMA)


@pytest.mark.parametrize("cell", [cell for cell in CELLS if _is_tried(cell)], ids=str)
def test_one_process(tmp_path: Path, cell: Cell) -> None:
    run(cell, "auto", 1, tmp_path)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed training")
def test_two_processes(tmp_path: Path) -> None:
    cells = [str(Cell(precision, HAS_EMA, 2, True)) for precision in ("32-true", "bf16-mixed")]
    command = [sys.executable, "-m", "tests.callback.matrix_run", str(tmp_path), "ddp", "2", *cells]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads((tmp_path / "cells.json").read_text()) == dict.fromkeys(cells, "")
