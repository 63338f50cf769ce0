"""A training that is killed at random moments loses nothing (kill_run.py takes any number of kills)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
def test_random_kills(tmp_path: Path) -> None:
    # In a fresh process: forking one that has threads may hang.
    command = [sys.executable, "-m", "tests.callback.kill_run", str(tmp_path / "runs"), "--kills", "8", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == 8
    assert report["runs"] >= 1
    assert len(report["stages"]) >= 2, "all kills struck in the same stage"
