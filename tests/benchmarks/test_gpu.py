"""The script for a machine with a GPU, in its dry run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.skipif(
    None in (shutil.which("bash"), shutil.which("timeout"), shutil.which("tar")), reason="needs bash and coreutils"
)


def run(*arguments, **environment):
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=550, check=False)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_the_dry_run_makes_every_file(tmp_path):
    out = tmp_path / "figures"
    done = run("--cpu", out)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = json.loads((out / "step_time-mlp.json").read_text())["rows"]
    assert {row["precision"] for row in steps if "ms" in row} == {"32", "bf16", "16"}
    compiled = json.loads((out / "compiled-mlp-bf16.json").read_text())["rows"]
    assert "lq, observers on, compiled" in {row["step"] for row in compiled}
    assert {"distributed.json", "memory.json", "tests.log"} <= {file.name for file in out.iterdir()}
    assert "def call(" in (out / "generated_code.log").read_text()
    assert (tmp_path / "figures.tar.gz").stat().st_size > 0


def test_what_found_no_time_is_named(tmp_path):
    done = run("--cpu", tmp_path / "figures", SECONDS_IN_ALL="1")
    assert done.returncode == 1
    assert "INCOMPLETE step_time-mlp: no time left" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_runs(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert "sees no GPU here; benchmarks/gpu.sh --cpu" in done.stderr


def test_an_unknown_option_is_refused():
    done = run("--gpu")
    assert (done.returncode, "usage:" in done.stderr) == (2, True)
