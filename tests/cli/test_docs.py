"""The commands of docs/command_line.md print what the page says."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import quicken_deployment

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text()
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILES = {body.split()[1]: body for language, body in FENCE.findall(PAGE) if language in ("python", "py")}


def commands() -> Iterator[tuple[list[str], list[str]]]:
    """Every command of the page, and the lines that it is said to print."""
    for language, body in FENCE.findall(PAGE):
        for entry in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:] if language == "console" else ():
            command, *lines = entry.splitlines()
            words = [quoted or bare for quoted, bare in re.findall(r"'([^']*)'|(\S+)", command)]
            yield words[1:], [line for line in lines if line != "..."]


def shape(text: str) -> str:
    """Text without figures, which differ between machines, and without the width of columns."""
    return re.sub(r"[\s-]+", " ", re.sub(r"-?\d[\d.]*|\binf\b", "#", text)).replace("# %", "#").strip()


# Lightning says so whenever a checkpoint is loaded into a new version directory.
@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:lq. QAT did not start from these float weights")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_the_commands_of_the_page(
    run_lq: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("matplotlib")
    quicken_deployment(monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, source in FILES.items():
        (tmp_path / name).write_text(source)
    ran = []
    for words, lines in commands():
        if "float.ckpt" in words and not (tmp_path / "float.ckpt").exists():
            runpy.run_path("train.py")
        capsys.readouterr(), caplog.clear()
        with suppress(SystemExit), caplog.at_level("INFO"):
            run_lq(*words)
        out = "".join(capsys.readouterr()) + "\n".join(caplog.messages)
        printed = [shape(line) for line in out.splitlines()]
        missing = [line for line in lines if not any(shape(line) in line_ for line_ in printed)]
        assert not missing, f"lq {' '.join(words)} printed\n{out}"
        ran.append(words[0])
    assert {"fit", "validate", "export", "ptq", "analyze", "report", "bench", "doctor"} <= set(ran)
    sys.modules.pop("my_module", None)
