from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lq.export.artifact.scratch import cleaned_up_on_sigterm, scratch, scratch_beside

WAITS = """
import sys, time
from pathlib import Path
from lq.export.artifact.scratch import cleaned_up_on_sigterm, scratch, scratch_beside
from lq.export.parity.fresh_process import run_module
with cleaned_up_on_sigterm(), scratch_beside(Path(sys.argv[1])), scratch() as place:
    (place / "batch").write_bytes(b"x" * 1000)
    if sys.argv[2] == "alone":
        time.sleep(60)
    run_module("tests.export.sleeper", str(place))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("how", ["alone", "with a worker"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_however_the_process_ends(tmp_path: Path, how: str, number: int) -> None:
    target, root = tmp_path / "int8", Path(__file__).parents[3]
    command = [sys.executable, "-c", WAITS, str(target), how]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    wanted = "batch" if how == "alone" else "pid"
    deadline = time.monotonic() + 40
    while not list(tmp_path.glob(f"*/{wanted}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (place,) = tmp_path.iterdir()
    worker = int((place / "pid").read_text() or 0) if how != "alone" else 0
    process.send_signal(number)
    assert process.wait(30) == -number
    while worker and Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (worker and Path(f"/proc/{worker}").exists()), "the worker went on"
    if number == signal.SIGKILL:
        with scratch_beside(target), scratch() as ours:
            assert list(tmp_path.iterdir()) == [ours], "the next run cleans up"
    assert list(tmp_path.iterdir()) == []


def test_a_handler_of_the_users_own_is_left_alone() -> None:
    def own(*_: object) -> None:
        raise KeyError

    before = signal.signal(signal.SIGTERM, own)
    try:
        with cleaned_up_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_place_of_its_own_it_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(OSError, match=r"no temporary directory can be created .*TMPDIR"), scratch():
        pass
