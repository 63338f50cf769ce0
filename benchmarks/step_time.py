"""How long a training step takes: float, stock torch.ao and lq in each of its phases, in turns in one process.

    python -m benchmarks.step_time --models resnet18 mobilenet_v2 --rounds 20 --compile --json step_time.json
    python -m benchmarks.step_time --device cuda --models resnet50 --batch 64 --size 224 --precision 32 bf16 16

The ratio of a compiled step is to the compiled float step of the same precision. ``--without-c`` also measures lq
where PyTorch's own operations round, as on a machine without a C compiler.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Sequence

import torch

from benchmarks._common import TIMING_COLUMNS, Row, compare, label, number, parse, parser, report
from benchmarks._variants import FLOAT, LARGE, PRECISIONS, VARIANTS, Case, Step, UnavailableError, build, cases

COLUMNS = (
    label("model", "model"),
    label("precision", "bits"),
    label("step", "step"),
    *TIMING_COLUMNS,
    number("step_mb", "MB a step", ".0f"),
    label("note", ""),
)
_COMPILED, _WITHOUT_C = ", compiled", ", without C"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure the chosen models and print the table."""
    options = parse(_options(), arguments)
    known = cases(options.size)
    rows = [
        row
        for name in options.models
        for bits in options.precision
        for row in measure(name, known[name], bits, options)
    ]
    report(f"Training step, batch {options.batch}, 3x{options.size}x{options.size}", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Time of a training step as a ratio to float.", rounds=15)
    known = list(cases(32))
    default = [name for name in known if name not in LARGE]
    options.add_argument("--models", nargs="+", choices=known, default=default, metavar="NAME", help=", ".join(known))
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
    options.add_argument(
        "--precision", nargs="+", choices=list(PRECISIONS), default=["32"], help="bf16 and 16: autocast (default: 32)"
    )
    options.add_argument("--compile", action="store_true", help="measure the same under torch.compile, too")
    options.add_argument("--without-c", action="store_true", help="measure lq's steps without its kernels in C, too")
    return options


def measure(name: str, case: Case, precision: str, options: argparse.Namespace) -> list[Row]:
    """One row for every variant of one model."""
    steps, notes = _steps(case, precision, options)
    timings = compare(steps, {step: _baseline(step) for step in steps}, options) if steps else {}
    diverged = [step for step, work in steps.items() if not math.isfinite(float(work()))]
    if diverged:
        raise RuntimeError(f"{name}: the loss of {diverged} is not finite any more, so its time means nothing.")
    memory = {step: _step_mb(work) for step, work in steps.items()}
    steps.clear()
    torch.compiler.reset()
    gc.collect()
    about = {"model": name, "precision": precision}
    rows = [
        {**about, "step": step, **timing.row(), "step_mb": memory[step], "note": ""} for step, timing in timings.items()
    ]
    return rows + [{**about, "step": step, "note": note} for step, note in notes.items()]


def _step_mb(step: Step) -> float | None:
    """What a step on a GPU allocates at most beside what is there before it, gradients apart, in MB; else None."""
    device = step.x.device
    if device.type != "cuda":
        return None
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6


def _baseline(step: str) -> str:
    return FLOAT + _COMPILED if step.endswith(_COMPILED) else FLOAT


def _steps(case: Case, precision: str, options: argparse.Namespace) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that run, by name, and why the others do not."""
    steps: dict[str, Step] = {}
    notes: dict[str, str] = {}
    x, y = case.batch(options.batch, torch.device(options.device))
    variants = list(dict.fromkeys([FLOAT, *options.variants]))
    ways = [(variant, compiled, True) for compiled in (False, True)[: 1 + options.compile] for variant in variants]
    if options.without_c:
        ways += [(variant, False, False) for variant in variants if variant.startswith("lq")]
    for variant, compiled, c in ways:
        name = variant + (_COMPILED if compiled else "") + ("" if c else _WITHOUT_C)
        try:
            steps[name] = Step.of(build(variant, case, x, precision), x, y, compiled, precision, c)
        except UnavailableError as reason:
            notes[name] = str(reason)
        if FLOAT in notes:
            return {}, notes
    return steps, notes


if __name__ == "__main__":
    main()
