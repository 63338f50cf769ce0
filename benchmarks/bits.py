"""What bits that are chosen under a budget are worth: the same size as uniform bits, the same training.

    lq fit --config recipes/fashion_mnist/mobilenet_v2_float.yaml       # the float checkpoint
    python -m benchmarks.bits --models mobilenet_v2 --seeds 1 --results runs/bits.json

The first and last layers keep the bits of the preset everywhere. Bits are chosen on four batches of validation images,
for a file of the size that uniform bits have; what is reported is the accuracy of the int8 model that was delivered, on
the 10,000 test images of Fashion-MNIST, with ``--steps 0`` that of quantization without training. Rows are kept in the
results file and not run again.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lq
from benchmarks._common import Row, label, number, parse, parser, report
from benchmarks.low_bits import Bench, Run, add_shared, markdown
from lq.analysis.bits import AutoBits, BitChoice, choose_bits
from lq.analysis.bits.choice import ActivationBits, FrontierRow
from lq.analysis.bits.layers import at_width
from lq.config.specs import ActivationSpec

UNIFORM = "uniform"
EVERY = (2, 3, 4, 5, 6, 8)
WIDTHS = {"chosen of 2, 4, 8": (2, 4, 8), "chosen of 2, 3, 4, 5, 6, 8": EVERY}
ACTIVATIONS = "chosen, activations too"  # with as many bits of an activation in the mean as uniform ones have
METHODS = (UNIFORM, *WIDTHS, ACTIVATIONS)
BATCHES = 4
COLUMNS = (
    label("about", "model, uniform grid, steps"),
    label("method", "bits of the weights"),
    number("size", "size, MB", ".3f"),
    number("activation_bits", "bits per activation", ".2f"),
    number("loss", "KL before training", ".4f"),
    number("ptq", "PTQ, validation, %", ".2f"),
    number("mean", "test accuracy, %", ".2f"),
    number("spread", "std", ".2f"),
    number("seeds", "seeds", "d"),
)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run what is missing, print the table, and write it as Markdown if asked."""
    options = parse(_options(), arguments)
    warnings.filterwarnings("ignore", module="lightning")
    bench = Bench(options)
    tables = [(model, grid) for model in options.models for grid in options.grids]
    rows = [row for model, grid in tables for row in _rows(bench, model, grid, options)]
    report("Fashion-MNIST, int8 as delivered", COLUMNS, rows, options)
    if options.markdown:
        options.markdown.write_text(markdown(rows, COLUMNS))
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Uniform bits against chosen ones of the same size.", rounds=None)
    add_shared(options)
    options.add_argument("--grids", nargs="+", default=["W4A8", "W3A8", "W4A4"], metavar="GRID", help="W4A8 and so on")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--rate", type=float, default=0.01, help="QATSchedule(lr=...) (default: 0.01)")
    options.add_argument("--results", type=Path, default=Path("runs/bits.json"), help="rows that are done")
    return options


def _rows(bench: Bench, model: str, grid: str, options: argparse.Namespace) -> Iterator[Row]:
    about = f"{model}, {grid}, {options.steps}"
    for method in options.methods:
        runs = [Run(model, grid, method, options.steps, options.rate, seed) for seed in range(options.seeds)]
        found = [bench.result(run, lambda run: _measured(bench, run)) for run in runs]
        tests = [row["test"] for row in found]
        row: Row = {"about": about, "model": model, "grid": grid, "method": method, **found[0]}
        row |= {"mean": statistics.mean(tests), "seeds": len(tests)}
        if len(tests) > 1:
            row["spread"] = statistics.stdev(tests)
        yield row


def _measured(bench: Bench, run: Run) -> dict[str, float]:
    """Train with uniform or with chosen bits, or quantize without training."""
    width, activation = (int(bits) for bits in run.grid[1:].split("A"))
    base = lq.QConfig() if activation == 8 else lq.QConfig(activation=ActivationSpec(0, 2**activation - 1))
    uniform = next(row for row in _choice(bench, run.model, (width,), "effective_bits=31").rows if row["name"])
    qconfig, costs = at_width(base, width), _costs(uniform)
    budget = f"size={uniform['size_mb']:.9f}MB"
    if run.method != UNIFORM:
        choice = _choice(bench, run.model, WIDTHS.get(run.method, EVERY), budget, _mean_bits(bench, run, activation))
        qconfig, costs = choice.apply(qconfig), _costs(choice.chosen, choice.activations)
    return (bench.trained if run.steps else bench.untrained)(run, qconfig) | costs


def _mean_bits(bench: Bench, run: Run, width: int) -> float | None:
    """Bits of an activation in the mean, the ends with those of the preset and the others with a width."""
    if run.method != ACTIVATIONS:
        return None
    found = _choice(bench, run.model, EVERY, "effective_bits=7", 7.9).activations
    assert found is not None
    return next(row["bits"] for row in found.rows if row["name"] == f"all {width} bits")


def _costs(row: FrontierRow, activations: ActivationBits | None = None) -> dict[str, float]:
    assert row["measured"] is not None
    chosen = {} if activations is None else {"activation_bits": activations.chosen["bits"]}
    return {"size": row["size_mb"], "loss": row["measured"], **chosen}


def _choice(
    bench: Bench, model: str, widths: tuple[int, ...], budget: str, activation_bits: float | None = None
) -> BitChoice:
    batches: list[Any] = list(islice(bench.data.val_dataloader(), BATCHES))
    known = bench.options.results.with_name(f"{bench.options.results.stem}_{model}_losses.json")
    options = AutoBits(budget, widths, BATCHES, known, activation_bits)
    return choose_bits(bench.module(model).model, batches, "portable", options)


if __name__ == "__main__":
    main()
