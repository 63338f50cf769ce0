"""Several processes compute what one does on the joined batch, however they are started."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy

from lq.callback.processes import check_strategy
from tests.callback.ddp_run import main

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed training")


def _in_processes(folder: Path, processes: int, strategy: str, lr: float, *quick: str) -> list[dict[str, Any]]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script, arguments = ROOT / "tests/callback/ddp_run.py", [str(folder), str(processes), strategy, str(lr), *quick]
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=180, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / "log.txt").write_text(done.stdout + done.stderr)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def _alone(folder: Path, lr: float) -> dict[str, Any]:
    main(folder, 1, lr=lr)
    found: dict[str, Any] = torch.load(folder / "rank0.pt", weights_only=True)
    return found


def test_two_processes(tmp_path: Path) -> None:
    one = _alone(tmp_path, 0.1)
    first, second = _in_processes(tmp_path / "two", 2, "ddp", 0.1)
    for key in ("min", "max", "weight"):
        assert torch.equal(first[key], second[key]), f"the processes differ in {key}"
        # Sums in another order; where that moves a value over the edge of a step, a whole step of the grid.
        torch.testing.assert_close(first[key], one[key], rtol=1e-2, atol=1e-3)
    assert first["deployed"]
    assert not second["deployed"]
    assert len(list((tmp_path / "two").rglob("int8.pt"))) == 1
    # 15 validation images: two processes see one of them twice, the final comparison sees each once
    assert first["results"]["fake"] == one["results"]["fake"]
    assert first["logged"] == second["logged"]
    assert {"qat/fp32/accuracy", "qat/fake/accuracy", "qat/int8/accuracy"} <= first["logged"].keys()
    assert first["logged"]["qat/distillation"] == pytest.approx(one["logged"]["qat/distillation"], rel=1e-2)
    assert first["results"]["torch_vs_fake"]["agreement"] == 1.0
    log = (tmp_path / "two" / "log.txt").read_text()
    assert log.count("lq: model: Sequential") == 1
    assert log.count("int8 torch ") == 1
    assert "sync_dist" not in log


@pytest.mark.parametrize(
    ("processes", "strategy"), [(3, "ddp"), (2, "ddp_spawn"), (2, "ddp_notebook")], ids=["three", "spawn", "notebook"]
)
def test_ranges_are_those_of_one_process_on_the_joined_batch(tmp_path: Path, processes: int, strategy: str) -> None:
    one = _alone(tmp_path, 0.0)  # weights that stand still: then nothing but the ranges can differ
    ranks = _in_processes(tmp_path / "more", processes, strategy, 0.0, "quick")
    for key in ("min", "max"):
        for rank in ranks:
            assert torch.equal(rank[key], one[key]), key
    assert [rank["deployed"] for rank in ranks] == [True] + [False] * (processes - 1)
    left = torch.load(tmp_path / "more" / "main.pt", weights_only=True)
    assert torch.equal(left["state_dict"]["model.3.weight"], one["weight"])
    assert {"qat/fp32/accuracy", "qat/fake/accuracy"} <= left["metrics"].keys()


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_hide_the_weights_are_refused(strategy: Any) -> None:
    split = strategy.__new__(strategy)  # DeepSpeed's asks for its package
    with pytest.raises(
        ValueError, match=rf"{strategy.__name__} cannot be used with QATCallback.*ModelParallelStrategy\(.*'ddp'"
    ):
        check_strategy(split)
    check_strategy(DDPStrategy())
