"""A disk that fills up in the middle of an export costs that export, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.export.full_disk import is_possible

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not is_possible(), reason="may not mount in a namespace of its own")
def test_a_disk_that_fills_up_costs_the_new_artifact_alone() -> None:
    command = [sys.executable, "-m", "tests.export.full_disk", "--step", "32", "--exporters", "torch"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=240, capture_output=True, text=True)
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["wrong"] == []
    assert report["tried"] >= 2
    assert report["fits_kB"], "no disk was large enough"
    assert done.returncode == 0, done.stderr[-2000:]
