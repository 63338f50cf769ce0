"""Runs what docs/matrix.md claims, and writes it: ``python -m tests.write_matrix`` (a quarter of an hour)."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import lightning
import torch

from tests.backends.zoo import ZOO, keep_contract
from tests.callback.matrix_run import PRECISIONS, Cell
from tests.zoo.trial import BEGIN

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "matrix.md"
# How processes start, how many, the label, and the cells (none: all). Spawned processes take long to start.
STARTS: tuple[tuple[str, int, str, tuple[Cell, ...]], ...] = (
    ("auto", 1, "one process", ()),
    ("ddp", 2, "`ddp`, 2", ()),
    ("ddp", 3, "`ddp`, 3", ()),
    ("ddp_notebook", 2, "`ddp_notebook`, 2", ()),
    ("ddp_spawn", 2, "`ddp_spawn`, 2", (Cell("32-true", False, 1, False), Cell("32-true", False, 2, True))),
)
KILLS = 60

INTRODUCTION = """\
# What works together

Written by `python -m tests.write_matrix` from what it ran; not to be edited. torch {torch}, Lightning {lightning},
Python {python}, {machine}, CPU only.

## Processes, precision, averaged weights, accumulation, resume

One tiny convolutional network with BatchNorm, four epochs: float, observers on, observers off, statistics frozen. E is
`EMAWeightAveraging`, A is `accumulate_grad_batches=2`, R is a run that breaks off before its third epoch and is
resumed. A tick means: the artifact passed the parity gate; all processes ended with the same weights and ranges; and
with R weights, ranges and optimizer were those of the unbroken run, to the bit (three processes: to four units of
the last place, because DDP does not add up three gradients in the same order each time it starts). A dot was not run.
Several processes use gloo.
"""

NOT_RUN = """
`ddp_spawn` and `ddp_notebook` train in other processes than the one that calls `fit`: the artifact lies in
`export_dir`, the weights come back, but `callback.deployment` stays `None` there. `ModelParallelStrategy` with
`fully_shard` is run by `tests/callback/test_sharded.py`. `FSDPStrategy`, tensor parallelism and DeepSpeed are refused,
and so are `StochasticWeightAveraging` and averaging callbacks that stand before `QATCallback`. `EMAWeightAveraging`
of Lightning 2.6.6 cannot be pickled, so not with `ddp_spawn`.

**Not run**, because it needs GPUs: NCCL, `sync_batchnorm=True` (PyTorch has it on GPUs only), `16-mixed` with its
GradScaler, several machines.
"""


def matrix(folder: Path) -> Iterable[str]:
    """The table of all combinations."""
    columns = list(itertools.product((False, True), (1, 2), (False, True)))
    names = [" ".join(letter for letter, on in zip("EAR", (e, a == 2, r), strict=True) if on) for e, a, r in columns]
    yield from _head(["processes", "precision", *(name or "plain" for name in names)])
    notes = []
    for strategy, processes, label, cells in STARTS:
        found = _cells(folder / f"{strategy}{processes}", strategy, processes, cells)
        for precision in PRECISIONS:
            keys = [str(Cell(precision, *column)) for column in columns]
            row = ["·" if key not in found else "✗" if found[key] else "✓" for key in keys]
            notes += [f"- {label}, {key}: {found[key]}" for key in keys if found.get(key)]
            yield _row([label, f"`{precision}`", *row])
    if notes:
        yield from ("", *notes)


def _cells(folder: Path, strategy: str, processes: int, cells: Iterable[Cell]) -> dict[str, str]:
    if not (folder / "cells.json").exists():
        folder.mkdir(exist_ok=True)
        _python("-m", "tests.callback.matrix_run", str(folder), strategy, str(processes), *map(str, cells))
    found: dict[str, str] = json.loads((folder / "cells.json").read_text())
    return found


def features(folder: Path) -> Iterable[str]:
    """The list of what long jobs use."""
    report = folder / "features.xml"
    _python("-m", "pytest", "-q", "tests/callback/test_long_jobs.py", f"--junitxml={report}")
    passed = [case.get("name", "") for case in ElementTree.parse(report).iter("testcase") if not len(case)]
    names = [
        name.removeprefix("test_feature[").removesuffix("]") for name in passed if name.startswith("test_feature[")
    ]
    others = [_sentence(name) for name in passed if not name.startswith("test_feature[")]
    yield textwrap.fill(f"Each in a fit whose artifact passed the gate: {', '.join(names)}.", 120)
    yield ""
    yield "And (names of tests):"
    yield ""
    yield from (f"- {name}" for name in others)


def _sentence(name: str) -> str:
    words, _, parameter = name.removeprefix("test_").removesuffix("]").partition("[")
    return words.replace("_", " ") + (f": {parameter}" if parameter else "")


def kills(folder: Path) -> str:
    """What the random kills left."""
    output = _python("-m", "tests.callback.kill_run", str(folder / "kills"), "--kills", str(KILLS), "--seed", "7")
    found = json.loads(output.splitlines()[-1])
    where = ", ".join(
        f"{count} {_during(stage)}" for stage, count in sorted(found["stages"].items(), key=lambda x: -x[1])
    )
    signals = " and ".join(f"{count} {name}" for name, count in sorted(found["signals"].items()))
    text = (
        f"{found['kills']} kills at random moments ({signals}; {where}): every checkpoint loaded, no artifact was "
        f"half-written, and every run that got through ({found['runs']}) ended with the weights, ranges and optimizer "
        "of an undisturbed one, to the bit."
    )
    return textwrap.fill(text, 120)


def _during(stage: str) -> str:
    return {"before training": "before the first step", "float": "in float training"}.get(stage, f"in {stage}")


def zoo(names: Iterable[str]) -> Iterable[str]:
    """The table of architectures."""
    yield from _head(["model", "layers quantized", "in float", "int8 against fake", "fake against float"])
    for name in names:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = keep_contract(ZOO[name])
        parts = ", ".join(f"`{part}`" for part in kept.float_parts[:1])
        more = f" and {len(kept.float_parts) - 1} more" if len(kept.float_parts) > 1 else ""
        figures = [
            "equal" if kept.noise_db == math.inf else f"{kept.noise_db:.1f} dB",
            f"{kept.quantization_db:.1f} dB",
        ]
        yield _row([name, f"{kept.quantized} of {kept.layers}", parts + more, *figures])


def _head(titles: Sequence[str]) -> Iterable[str]:
    yield _row(titles)
    yield _row(["---"] * len(titles))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def page(folder: Path, results: Path) -> str:
    """The whole page."""
    versions: dict[str, Any] = {"torch": torch.__version__, "lightning": lightning.__version__}
    torch.set_num_threads(1)
    lines = [INTRODUCTION.format(**versions, python=platform.python_version(), machine=platform.machine())]
    lines += ["\n".join(matrix(results)), NOT_RUN, "## What long jobs use", "", "\n".join(features(folder)), ""]
    lines += [
        "## Kills",
        "",
        f"`python -m tests.callback.kill_run FOLDER --kills {KILLS} --seed 7`: {kills(folder)}",
        "",
    ]
    lines += [ZOO_INTRODUCTION, "\n".join(zoo(ZOO)), ""]
    return "\n".join(lines)


def published(former: str) -> str:
    """The last part of the page, which ``tests.zoo.trial`` writes."""
    _, begin, rest = former.partition(BEGIN)
    return f"\n{begin}{rest}" if begin else ""


ZOO_INTRODUCTION = """\
## Architectures

Random weights, small images, default qconfig. For each: preparing twice changes nothing; parameters are shared with the
original; evaluation is deterministic and equals the float model to 1e-5 while fake quantization is off; two training
steps reach every parameter; state dict, `deepcopy` and pickle give the same outputs to the bit; after a calibration on
48 samples the int8 model follows the fake-quantized one (SQNR of the first output; untrained networks amplify every
rounding, so it is to be read against the last column).
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, help="keep the matrix here, and do not run again what is there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        text = page(Path(scratch), arguments.results or Path(scratch))
    arguments.page.parent.mkdir(exist_ok=True)
    former = arguments.page.read_text() if arguments.page.exists() else ""
    arguments.page.write_text(text + published(former))
    print(f"wrote {arguments.page}")
