"""Two processes compute what one does on the joined batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callback.ddp_run import main

ROOT = Path(__file__).parents[2]


def _in_two_processes(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests/callback/ddp_run.py"), str(folder), "2"]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=180, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed training")
def test_two_processes(tmp_path: Path) -> None:
    main(tmp_path, 1)
    one = torch.load(tmp_path / "rank0.pt", weights_only=True)
    first, second = _in_two_processes(tmp_path / "two")
    for key in ("min", "max", "weight"):
        assert torch.equal(first[key], second[key]), f"the processes differ in {key}"
        # Sums in another order; where that moves a value over the edge of a step, a whole step of the grid.
        torch.testing.assert_close(first[key], one[key], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close((first["min"][0], first["max"][0]), (one["min"][0], one["max"][0]))  # the data's own
    assert first["deployed"]
    assert not second["deployed"]
    assert len(list((tmp_path / "two").rglob("int8.pt"))) == 1
    # 15 validation images: two processes see one of them twice, the final comparison sees each once
    assert first["results"]["fake"] == one["results"]["fake"]
    assert first["logged"] == second["logged"]
    assert {"qat/fp32/accuracy", "qat/fake/accuracy", "qat/int8/accuracy"} <= first["logged"].keys()
    assert first["results"]["torch_vs_fake"]["agreement"] == 1.0
    log = (tmp_path / "two" / "log.txt").read_text()
    assert log.count("lq: model: Sequential") == 1
    assert log.count("int8 torch ") == 1
    assert "sync_dist" not in log
