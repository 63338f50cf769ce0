from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lq.export.artifact.files import save, write_file

FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_exception_with_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "model.pt").symlink_to(FULL)
    with pytest.raises(OSError, match=r"cannot write .*model\.pt: No space left on device") as caught:
        save({"x": torch.ones(8)}, tmp_path / "model.pt")
    assert caught.value.errno == 28
    assert not (tmp_path / "model.pt").is_symlink(), "nothing of it stays"


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot write .*gone/a: No such file or directory"):
        write_file(tmp_path / "gone" / "a", b"x")


TINY_DISK = """
import sys, torch
from pathlib import Path
from lq.export.artifact.files import save
try:
    save({"x": torch.ones(100_000)}, Path(sys.argv[1], "model.pt"))
except OSError as error:
    print(error.errno, list(Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser may mount")
def test_a_tiny_disk_ends_no_process(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("may not mount here")
    try:
        done = subprocess.run([sys.executable, "-c", TINY_DISK, str(tmp_path)], capture_output=True, text=True)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (done.returncode, done.stdout.strip()) == (0, "28 []"), done.stderr
