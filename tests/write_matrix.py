"""Runs what docs/matrix.md claims, and writes it: ``python -m tests.write_matrix`` (a quarter of an hour)."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
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
# Tested combinations

This page lists what lq was tested with, and what did not work. Do not edit it: `python -m tests.write_matrix` runs the
tests and writes it, except the last section, which `python -m tests.zoo.trial` writes. torch {torch},
Lightning {lightning}, Python {python}, {machine}, CPU only.

## Processes, precision, averaged weights, accumulation, resume

A tiny convolutional network with BatchNorm is trained for four epochs: float, observers on, observers off, BatchNorm
statistics frozen. There are eight runs for each way to start processes and each precision: with and without
`EMAWeightAveraging`, with and without `accumulate_grad_batches=2`, and uninterrupted or interrupted before the third
epoch and resumed. The table says how many of them passed. A run passes if

- the artifact passes the parity gate;
- all processes end with the same weights and ranges;
- a resumed run ends with the weights, ranges and optimizer state of the uninterrupted one, bit for bit. (With three
  processes: to four units in the last place, because DDP does not always add up three gradients in the same order.)
"""

NOT_RUN = """
- Several processes use gloo.
- With `ddp_spawn`, which takes long to start, there were only two runs: a plain one, and a resumed one with
  accumulation. `EMAWeightAveraging` of Lightning 2.6.6 does not work with `ddp_spawn`, because it cannot be pickled.
- `ddp_spawn` and `ddp_notebook` train in new processes, not in the one that calls `fit`. The artifact is in
  `export_dir`, and the trained weights are returned, but `callback.deployment` stays `None`.
- `tests/callback/test_sharded.py` tests `ModelParallelStrategy` with `fully_shard`.
- These raise an error: `FSDPStrategy`, tensor parallelism, DeepSpeed, `StochasticWeightAveraging`, and averaging
  callbacks listed before `QATCallback`.
- These were not run, because they need GPUs: NCCL, `sync_batchnorm=True`, and `16-mixed` with its GradScaler. Several
  machines were not tried either.
"""

# What a test of tests/callback/test_long_jobs.py means for a user: features by group, and the other tests.
FEATURES: Mapping[str, Mapping[str, str]] = {
    "Gradients": {
        "accumulate_grad_batches": "`accumulate_grad_batches`",
        "GradientAccumulationScheduler": "`GradientAccumulationScheduler`",
        "clip by norm": "clipping by norm",
        "clip by value": "clipping by value",
        "clip in a hook": "clipping in `configure_gradient_clipping`",
        "detect_anomaly": "`detect_anomaly`",
    },
    "Optimizers": {
        "several optimizers, manual": "several optimizers in manual optimization",
        "BackboneFinetuning": "`BackboneFinetuning`",
    },
    "Length of the training": {
        "EarlyStopping": "`EarlyStopping` on a metric of the module",
        "EarlyStopping on qat/fake": "`EarlyStopping` on `qat/fake/accuracy`",
        "Timer": "`Timer`",
        "max_time": "`max_time`",
        "max_steps": "`max_steps`",
    },
    "Data": {
        "overfit_batches": "`overfit_batches`",
        "limit_batches": "`limit_train_batches` and `limit_val_batches`",
        "reload_dataloaders": "`reload_dataloaders_every_n_epochs`",
        "worker processes": "data loaders with worker processes",
        "channels_last": "images in `channels_last`",
    },
    "Validation": {
        "val_check_interval": "`val_check_interval`",
        "check_val_every_n_epoch": "`check_val_every_n_epoch`",
        "no sanity check": "`num_sanity_val_steps=0`",
        "inference_mode=False": "`inference_mode=False`",
    },
    "Other": {
        "ModelSummary": "`ModelSummary`",
        "profiler": "a profiler",
        "bf16-mixed": "`bf16-mixed` with clipping",
        "learned scales": "learned scales",
    },
}
SENTENCES: Mapping[str, str] = {
    "test_max_time_ends_the_training_and_deploys": "If `max_time` ends the training, the model is exported.",
    "test_max_time_alone_needs_a_schedule_without_shares": "With `max_time` alone (`max_epochs=-1`), fractions in the "
    "schedule raise an error, because lq does not know how long the training is.",
    "test_learning_rate_finder": "QAT starts from the learning rate that `LearningRateFinder` finds.",
    "test_tuner_before_the_fit": "`Tuner.lr_find` works before the fit.",
    "test_torch_compile": "These work, with and without a sanity check: `trainer.fit(torch.compile(module))`, "
    "`module.compile()`, and `self.model.compile()` in `on_fit_start`.",
    "test_compiled_code_runs_again_behind_a_validation_on_its_own": "After `trainer.validate` on a compiled module, "
    "`torch.compile` still compiles other code.",
    "test_compiled_steps_are_those_of_eager_code": "Compiled steps end with the same weights as eager ones.",
    "test_target_that_was_compiled_before_it_is_prepared_is_refused": "A target that was compiled before the fit "
    "raises an error.",
    "test_checkpoint_by_a_figure_of_qat": "ModelCheckpoint can monitor `qat/fake/accuracy`, also with a delayed start.",
    "test_early_stopping_by_a_figure_of_qat_before_it_starts_is_refused": "With a delayed start, EarlyStopping on a "
    "`qat/...` metric raises an error, unless it has `strict=False`.",
    "test_early_stopping_that_compares_with_the_float_model_is_told_of": "With a delayed start, EarlyStopping on a "
    "metric of the module compares QAT with the best float value; a line in the log says so.",
    "test_checkpoint_by_a_figure_that_never_comes_says_so": "A misspelt `qat/...` metric in `monitor` raises an error.",
    "test_checkpoint_by_a_figure_of_some_epochs": "With `int8_every_n_epochs=2`, ModelCheckpoint can monitor "
    "`qat/int8/accuracy`.",
    "test_checkpoint_by_the_float_figure_of_the_first_epoch": "ModelCheckpoint can monitor `qat/fp32/accuracy`, which "
    "is logged in one epoch only.",
    "test_a_validation_on_its_own_asks_for_no_figure": "`trainer.validate` works after a fit in which ModelCheckpoint "
    "monitors a metric that only training logs.",
}


def matrix(folder: Path) -> Iterable[str]:
    """The table of all combinations: how many runs passed, for each way to start and each precision."""
    yield from _head(["processes", *(f"`{precision}`" for precision in PRECISIONS)])
    notes: list[str] = []
    for strategy, processes, label, cells in STARTS:
        found = _cells(folder / f"{strategy}{processes}", strategy, processes, cells)
        yield _row([label, *(counted(found, precision) for precision in PRECISIONS)])
        notes += [f"- {label}, {key}: {error}" for key, error in found.items() if error]
    if notes:
        yield from ("", "What does not work:", "", *notes)


def counted(found: Mapping[str, str], precision: str) -> str:
    """How many runs with a precision passed; ``found`` has the error of each, "" if there was none."""
    errors = [error for key, error in found.items() if key.startswith(f"{precision},")]
    return f"{errors.count('')} of {len(errors)}" if errors else "not run"


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
    cases = ElementTree.parse(report).iter("testcase")
    return in_words([case.get("name", "") for case in cases if not len(case)])


def in_words(passed: Iterable[str]) -> Iterable[str]:
    """What tests of ``tests/callback/test_long_jobs.py`` show that passed, given their names."""
    names = dict.fromkeys(name.partition("[")[0] if "feature[" not in name else name for name in passed)
    yield "Each of these was used in a fit, whose artifact passed the gate:"
    yield ""
    for title, words in FEATURES.items():
        shown = ", ".join(text for name, text in words.items() if f"test_feature[{name}]" in names)
        if shown:
            yield _bullet(f"**{title}**: {shown}")
    yield ""
    yield "The tests also show:"
    yield ""
    yield from (_bullet(SENTENCES[name]) for name in names if name in SENTENCES)


def _bullet(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def kills(folder: Path) -> str:
    """What the random kills left."""
    output = _python("-m", "tests.callback.kill_run", str(folder / "kills"), "--kills", str(KILLS), "--seed", "7")
    found = json.loads(output.splitlines()[-1])
    where = ", ".join(
        f"{count} {_during(stage)}" for stage, count in sorted(found["stages"].items(), key=lambda x: -x[1])
    )
    signals = " and ".join(f"{count} times with {name}" for name, count in sorted(found["signals"].items()))
    text = (
        f"A run was killed {found['kills']} times at random moments, {signals}: {where}. After each kill, every "
        f"checkpoint could be loaded, and no artifact was half-written. {found['runs']} runs finished in the end, with "
        "the weights, ranges and optimizer of a run without interruptions, bit for bit."
    )
    return textwrap.fill(text, 120)


def _during(stage: str) -> str:
    words = {"before training": "before the first step", "float": "in float training", "deployment": "in the export"}
    return words.get(stage, f"in {stage}")


def zoo(names: Iterable[str]) -> Iterable[str]:
    """The table of architectures."""
    yield from _head(["model", "quantized layers", "in float", "int8, dB", "fake-quantized, dB"])
    for name in names:
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kept = keep_contract(ZOO[name])
        parts = ", ".join(f"`{part}`" for part in kept.float_parts[:1])
        more = f" and {len(kept.float_parts) - 1} more" if len(kept.float_parts) > 1 else ""
        figures = [
            "equal" if kept.noise_db == math.inf else f"{kept.noise_db:.1f}",
            f"{kept.quantization_db:.1f}",
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
        kills(folder),
        "",
        "```",
        f"python -m tests.callback.kill_run FOLDER --kills {KILLS} --seed 7",
        "```",
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

Each of these models has random weights, takes small images, and is prepared with the default `qconfig`. For each,

- preparing it twice changes nothing, and its parameters stay those of the original;
- evaluation is deterministic and, while fake quantization is off, equals the float model to 1e-5;
- two training steps reach every parameter;
- state dict, `deepcopy` and pickle give the same outputs, bit for bit;
- after a calibration on 48 samples, the int8 model follows the fake-quantized one.

The last two columns have the SQNR of the first output: of the int8 model against the fake-quantized one, and of the
fake-quantized model against the float one. More is closer. Networks that were not trained amplify every rounding, so
compare the two columns: the int8 model should be closer to the fake-quantized one than this is to float.
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
