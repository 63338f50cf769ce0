from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lq.export.parity.fresh_process import WorkerError, run_module

ROOT = Path(__file__).parents[3]

RUNS = """
import sys
from lq.export.parity.fresh_process import run_module
run_module("tests.export.writer", sys.argv[1])
"""

SURPRISES = {
    "PYTHONWARNINGS": "error",
    "PYTHONSTARTUP": "/nowhere",
    "PYTHONINSPECT": "1",
    "PYTHONOPTIMIZE": "2",
    "PYTHONUNBUFFERED": "1",
    "PYTHONIOENCODING": "ascii",
    "PYTHONDONTWRITEBYTECODE": "",
}


@pytest.mark.parametrize("name", ["queue", "json", "typing_extensions", "numpy", "sitecustomize", "onnxruntime"])
def test_files_beside_the_script_are_not_imported(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("raise SystemExit('my own script')")
    (tmp_path / "lq.py").write_text("raise SystemExit('my own script')")
    code = RUNS.replace("import sys\n", f"import sys; sys.path.remove(''); sys.path.insert(0, {str(ROOT)!r})\n", 1)
    code = code.replace("run_module(", "import os; os.chdir(sys.argv[2]); sys.path.insert(0, sys.argv[2]); run_module(")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "made"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made").read_text() == str(ROOT / "lq" / "__init__.py")


def test_variables_of_python_do_not_reach_it(tmp_path: Path) -> None:
    environment = {**os.environ, **SURPRISES, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", RUNS, str(tmp_path / "made")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (tmp_path / "made").exists(), done.stderr


def test_what_goes_wrong_is_told_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"(?s)ended with exit status 1: Traceback.*No module named 'lq\.nothing'"):
        run_module("lq.nothing")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(WorkerError, match=r"could not be started: .*No such file or directory"):
        run_module("lq.nothing")
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(WorkerError, match="does not know its own executable"):
        run_module("lq.nothing")
