"""How long a training step takes: float, stock torch.ao and lq in each of its phases, in turns in one process.

    python -m benchmarks.step_time --models resnet18 mobilenet_v2 --rounds 20 --compile --json step_time.json

The ratio of a compiled step is to the compiled float step.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Sequence

import torch

from benchmarks._common import TIMING_COLUMNS, Row, compare, label, parse, parser, report
from benchmarks._variants import FLOAT, VARIANTS, Case, Step, UnavailableError, build, cases

COLUMNS = (label("model", "model"), label("step", "step"), *TIMING_COLUMNS, label("note", ""))
_COMPILED = ", compiled"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure the chosen models and print the table."""
    options = parse(_options(), arguments)
    known = cases(options.size)
    rows = [row for name in options.models for row in measure(name, known[name], options)]
    report(f"Training step, batch {options.batch}, 3x{options.size}x{options.size}", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Time of a training step as a ratio to float.", rounds=15)
    known = list(cases(32))
    options.add_argument("--models", nargs="+", choices=known, default=known, metavar="NAME", help=", ".join(known))
    options.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        metavar="NAME",
        help="; ".join(VARIANTS),
    )
    options.add_argument(
        "--batch", type=int, default=16, help="images a step (default: 16; the MLP takes 8 times more)"
    )
    options.add_argument("--size", type=int, default=96, help="height and width of an image (default: 96)")
    options.add_argument("--compile", action="store_true", help="measure the same under torch.compile, too")
    return options


def measure(name: str, case: Case, options: argparse.Namespace) -> list[Row]:
    """One row for every variant of one model."""
    steps, notes = _steps(case, options)
    timings = compare(steps, {step: _baseline(step) for step in steps}, options) if steps else {}
    diverged = [step for step, work in steps.items() if not math.isfinite(float(work()))]
    if diverged:
        raise RuntimeError(f"{name}: the loss of {diverged} is not finite any more, so its time means nothing.")
    steps.clear()
    torch.compiler.reset()
    gc.collect()
    rows = [{"model": name, "step": step, **timing.row(), "note": ""} for step, timing in timings.items()]
    return rows + [{"model": name, "step": step, "note": note} for step, note in notes.items()]


def _baseline(step: str) -> str:
    return FLOAT + _COMPILED if step.endswith(_COMPILED) else FLOAT


def _steps(case: Case, options: argparse.Namespace) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that run, by name, and why the others do not."""
    steps: dict[str, Step] = {}
    notes: dict[str, str] = {}
    x, y = case.batch(options.batch, torch.device(options.device))
    for compiled in (False, True) if options.compile else (False,):
        for variant in dict.fromkeys([FLOAT, *options.variants]):
            name = variant + (_COMPILED if compiled else "")
            try:
                steps[name] = Step.of(build(variant, case, x), x, y, compiled)
            except UnavailableError as reason:
                notes[name] = str(reason)
            if FLOAT in notes:
                return {}, notes
    return steps, notes


if __name__ == "__main__":
    main()
