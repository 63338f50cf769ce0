"""A virtual environment for each project."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

_DONE = "installed.txt"


class InstallationError(Exception):
    """A project cannot be installed here."""


def environment(folder: Path, requirements: Sequence[str], *, reuse: bool, seconds: float) -> Path:
    """Make an environment, unless it is there, and install lq's dependencies and the requirements.

    Args:
        folder: where it lies.
        requirements: for pip.
        reuse: whether it sees the packages of the running interpreter, so that torch is not installed again.
        seconds: that the installation may take.

    Returns:
        its interpreter.

    Raises:
        InstallationError: with the last line of pip.
    """
    python, done = folder / "bin" / "python", folder / _DONE
    wanted = "\n".join([*requirements, f"reuse={reuse}"])
    if done.exists() and done.read_text() == wanted:
        return python
    if not python.exists():
        venv.create(folder, symlinks=True)
        if reuse:
            _see_packages_of_this_interpreter(python)
    _install([*([] if reuse else ["--editable", str(ROOT)]), *requirements], python, seconds)
    done.write_text(wanted)
    return python


def _see_packages_of_this_interpreter(python: Path) -> None:
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    inside = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (Path(inside) / "of_another_interpreter.pth").write_text("\n".join(here) + "\n")


def _install(arguments: Sequence[str], python: Path, seconds: float) -> None:
    if not arguments:
        return
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise InstallationError(f"the installation took more than {seconds:.0f} s") from None
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise InstallationError(errors[-1] if errors else f"pip ended with {done.returncode}")
