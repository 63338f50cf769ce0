"""What a person sees on a terminal."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RUN = """
import lightning as L
import lq.timing.stopwatch
from tests.tiny import Tiny, qat, train_loader, val_loader
lq.timing.stopwatch.SECONDS = 0.01
L.Trainer(accelerator="cpu", max_epochs=2, callbacks=[qat(start=1), *{bar}], logger=False, enable_checkpointing=False,
          default_root_dir={folder!r}).fit(Tiny(), train_loader(), val_loader())
"""


@pytest.mark.parametrize("bar", ["[]", "[L.pytorch.callbacks.TQDMProgressBar()]"], ids=["rich", "tqdm"])
def test_lines_and_table_stand_beside_the_progress_bar(tmp_path: Path, bar: str) -> None:
    code = RUN.format(bar=bar, folder=str(tmp_path))
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code], stdout=follower, stderr=follower, stdin=follower, env=environment
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(leader)
    screen = seen.decode(errors="replace")
    assert process.wait(timeout=60) == 0, screen[-3000:]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen).replace("\r", "\n")
    lines = [line.strip() for line in plain.splitlines()]
    for start in ("lq: learning rate of QAT", "lq: after 1 epoch, 3 steps: fake quantization on", "lq: artifact in"):
        assert sum(line.startswith(start) for line in lines) == 1, f"{start!r} is not a line of its own:\n{plain}"
    table = next(index for index, line in enumerate(lines) if line.startswith("int8 torch"))
    assert not any("Epoch" in line for line in lines[table:]), "a bar below the table"
