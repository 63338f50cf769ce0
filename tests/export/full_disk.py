"""Exports onto a disk that fills up at every write in turn.

    python -m tests.export.full_disk [--step 4] [--exporters torch onnx pt2]

A tmpfs, mounted in a namespace of its own (Linux), holds a good artifact and a few kB more. Each export needs more than
there is, until one fits. All that comes before it has to end with an OSError that names path and reason; the good
artifact has to be what it was, byte by byte; and nothing else may lie about.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lq

NAMESPACE = ("unshare", "--map-root-user", "--mount")


def is_possible() -> bool:
    """Whether a process may mount a tmpfs in a namespace of its own."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def calibrated(seed: int) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    x = torch.rand(16, 1, 6, 6)
    prepared = lq.prepare(net, example_args=(x,))
    lq.calibrate(prepared, [x], show_progress=False)
    return prepared, x


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def limit(disk: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)


def used(disk: Path) -> int:
    return -(-shutil.disk_usage(disk).used // 1024)


def complaint(disk: Path, before: dict[str, bytes], error: Exception) -> str:
    """What is wrong after an export that the disk did not let through, or ""."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    full = "No space left" in str(error) or "the disk is full" in str(error)
    if not full or str(disk) not in str(error):
        return f"says neither where nor why: {error}"
    if contents(disk / "int8") != before:
        return "the older artifact has changed"
    left = [path.name for path in disk.iterdir() if path.name != "int8"]
    return f"left behind: {left}" if left else ""


def run(disk: Path, step: int, exporters: list[str], most: int) -> dict[str, Any]:
    """Export with ``step`` kB more each time; returns how often it was tried, held, and what went wrong."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)], check=True)
    (first, x), (second, _) = calibrated(0), calibrated(1)
    lq.export_artifact(first, [x], disk / "int8", exporters)
    before, start = contents(disk / "int8"), used(disk)
    wrong: list[str] = []
    for tried in range(most):
        kilobytes = start + 4 + tried * step
        limit(disk, kilobytes)
        try:
            lq.export_artifact(second, [x], disk / "int8", exporters)
            held = contents(disk / "int8") != before
            wrong += [] if held else [f"{kilobytes} kB: nothing was written, and nothing was said"]
            return {"tried": tried, "held": tried - len(wrong), "wrong": wrong, "fits_kB": kilobytes - start}
        except Exception as error:
            found = complaint(disk, before, error)
            wrong += [f"{kilobytes - start} kB more: {found}"] if found else []
    return {"tried": most, "held": most - len(wrong), "wrong": wrong, "fits_kB": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--step", type=int, default=4, help="kB more each time")
    parser.add_argument("--most", type=int, default=1000, help="exports at most")
    parser.add_argument("--exporters", nargs="+", default=["torch", "onnx", "pt2"])
    parser.add_argument("--mounted", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mounted is None:
        with tempfile.TemporaryDirectory() as disk:
            command = [*NAMESPACE, sys.executable, "-m", "tests.export.full_disk", *sys.argv[1:], "--mounted", disk]
            sys.exit(subprocess.run(command, check=False).returncode)
    torch.set_num_threads(1)
    report = run(Path(options.mounted), options.step, options.exporters, options.most)
    print(json.dumps(report))
    sys.stdout.flush()
    os._exit(bool(report["wrong"]))


if __name__ == "__main__":
    main()
