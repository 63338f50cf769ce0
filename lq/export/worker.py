"""Runs a model of an artifact in a process of its own: ``python -m lq.export.worker DIRECTORY KIND CALLS OUTPUTS``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lq.export.artifact import load
from lq.export.signature import Inputs
from lq.metrics.outputs import main_tensor


def run_in_fresh_process(directory: Path, kind: str, calls: Sequence[Inputs]) -> list[Tensor]:
    """The main output tensor of each call, computed by a process that has nothing but the files and lq.

    Args:
        directory: the artifact.
        kind: which of its models.
        calls: inputs on the CPU.

    Returns:
        a tensor for each call.

    Raises:
        RuntimeError: if the process fails, with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch, "calls.pt"), Path(scratch, "outputs.pt")
        torch.save(list(calls), given)
        run_module("lq.export.worker", str(directory), kind, str(given), str(made))
        outputs: list[Tensor] = torch.load(made, weights_only=True)
        return outputs


def run_module(module: str, *arguments: str) -> None:
    """Run a module of lq in a fresh process.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"a fresh process could not run {arguments[0]}: {_end(done.stderr) or done.returncode}")


def main(directory: str, kind: str, given: str, made: str) -> None:
    """What the process does."""
    model = load(directory, kind)
    # Written by the parent a moment ago, and inputs may be of any class.
    calls: list[Inputs] = torch.load(given, weights_only=False)
    torch.save([main_tensor(model(*args, **kwargs)) for args, kwargs in calls], made)


def _environment() -> dict[str, str]:
    """This process's environment, with the same lq and without devices."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}


def _end(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


if __name__ == "__main__":
    main(*sys.argv[1:])
