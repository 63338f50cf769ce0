"""Do weights oscillate between two steps of their grid, and does it help to stop them?

    lq fit --config recipes/fashion_mnist/mobilenet_v2_float.yaml       # the float checkpoint
    python -m benchmarks.oscillation --grids W4A4 W3A3 --seeds 1

Of the same training as in ``benchmarks.low_bits`` this counts the weights that change their integer to and fro (Nagel
et al., "Overcoming Oscillations in Quantization-Aware Training", https://arxiv.org/abs/2203.11086, section 2.3), and
tries the two remedies of that paper: dampening, a loss that draws weights to the middle of their bins, and freezing
those that oscillate. Neither is part of lq, as neither pays here; see docs/low_bits.md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from benchmarks._common import Row, label, number, parse, parser, report
from benchmarks.low_bits import GRIDS, Bench, Run, add_shared, markdown
from lq.backends.prepare import plan_of, state_of
from lq.core.weight_quantizer import WeightQuantizer

MOMENTUM = 0.02  # of the frequency of oscillations: a mean of the last 50 steps
OSCILLATES = 0.005  # the paper's least frequency of a weight that does

METHODS: dict[str, dict[str, float]] = {
    "QAT": {},
    "dampened, 3": {"dampening": 3.0},
    "dampened, 30": {"dampening": 30.0},
    "frozen": {"freeze_above": 0.04, "freeze_above_at_the_end": 0.01},
}
COLUMNS = (
    label("about", "model, grid, steps"),
    label("method", "method"),
    number("mean", "test accuracy, %", ".2f"),
    number("spread", "std", ".2f"),
    number("oscillating", "weights that oscillate, %", ".3f"),
    number("frozen", "frozen, %", ".3f"),
    number("seeds", "seeds", "d"),
)


@dataclass
class _Weight:
    """A weight, its quantizer, and what its integers have done."""

    parameter: Tensor
    quantizer: WeightQuantizer
    integers: Tensor = field(init=False)
    direction: Tensor = field(init=False)
    frequency: Tensor = field(init=False)
    mean: Tensor = field(init=False)
    held: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.integers, _ = self.now()
        self.mean, self.direction = self.integers.clone(), torch.zeros_like(self.integers)
        self.frequency, self.held = torch.zeros_like(self.integers), torch.full_like(self.integers, torch.nan)

    def now(self) -> tuple[Tensor, Tensor]:
        """Its integers, and their scale."""
        integers, scale = self.quantizer.integers(self.parameter)
        return integers.float(), scale

    def to_the_middle(self) -> Tensor:
        """Gradient of half the squared distance to the middle of the bins."""
        integers, scale = self.now()
        return self.parameter - integers * scale

    def note(self) -> None:
        """Look at what a step has changed."""
        integers, _ = self.now()
        change = (integers - self.integers).sign()
        returns = (change != 0) & (change == -self.direction)
        self.frequency.lerp_(returns.float(), MOMENTUM)
        self.mean.lerp_(integers, MOMENTUM)
        self.direction, self.integers = torch.where(change != 0, change, self.direction), integers

    def freeze(self, frequency: float) -> None:
        """Hold those that oscillate more often at their mean integer from now on."""
        new = (self.frequency > frequency) & self.held.isnan()
        self.held = torch.where(new, self.mean.round(), self.held)
        _, scale = self.now()
        self.parameter.copy_(torch.where(self.held.isnan(), self.parameter, self.held * scale))


class Oscillations(L.Callback):
    """Counts them, and acts against them if asked.

    Args:
        target: name of the prepared module.
        steps: of the training.
        dampening: weight of the loss at the end; it rises along a cosine.
        freeze_above: frequency of oscillations that freezes a weight; it falls along a cosine to the next one.
        freeze_above_at_the_end: of the training.
    """

    def __init__(
        self,
        target: str,
        steps: int,
        dampening: float = 0.0,
        freeze_above: float = math.inf,
        freeze_above_at_the_end: float = math.inf,
    ) -> None:
        self.target, self.steps, self.dampening = target, steps, dampening
        self.first, self.last = freeze_above, freeze_above_at_the_end
        self.weights: list[_Weight] = []

    def _risen(self, trainer: L.Trainer) -> float:
        return 0.5 - 0.5 * math.cos(math.pi * min(1.0, trainer.global_step / self.steps))

    @torch.no_grad()
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Find the weights, once."""
        if not self.weights:
            self.weights = [_Weight(*pair) for pair in quantized_weights(pl_module.get_submodule(self.target))]

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        """Add the gradient of the dampening loss."""
        for weight in self.weights if self.dampening else ():
            if weight.parameter.grad is not None:
                weight.parameter.grad.add_(weight.to_the_middle(), alpha=2 * self.dampening * self._risen(trainer))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Count, and freeze."""
        for weight in self.weights:
            weight.note()
            if math.isfinite(self.first):
                weight.freeze(self.first + (self.last - self.first) * self._risen(trainer))

    @property
    def shares(self) -> dict[str, float]:
        """Of all quantized weights, in percent."""
        count = sum(weight.integers.numel() for weight in self.weights)
        oscillating = sum(int((weight.frequency > OSCILLATES).sum()) for weight in self.weights)
        frozen = sum(int((~weight.held.isnan()).sum()) for weight in self.weights)
        return {"oscillating": 100 * oscillating / count, "frozen": 100 * frozen / count}


def quantized_weights(target: nn.Module) -> Iterator[tuple[Tensor, WeightQuantizer]]:
    """The parameters of a prepared module that are quantized, with their quantizers."""
    sites = plan_of(target).sites
    assert sites is not None
    quantizers = [part for part in state_of(target).children() if isinstance(part, WeightQuantizer)]
    for layer, quantizer in zip(sites.layers, quantizers, strict=True):
        yield target.get_submodule(layer.name).get_parameter("weight"), quantizer


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run what is missing, print the table, and write it as Markdown if asked."""
    options = parse(_options(), arguments)
    warnings.filterwarnings("ignore", module="lightning")
    bench = Bench(options)
    tables = [(model, grid) for model in options.models for grid in options.grids]
    rows = [_row(bench, model, grid, method, options) for model, grid in tables for method in options.methods]
    report("Fashion-MNIST, int8 as delivered", COLUMNS, rows, options)
    if options.markdown:
        options.markdown.write_text(markdown(rows, COLUMNS))
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Weights that oscillate, and what stops them.", rounds=None)
    add_shared(options)
    options.set_defaults(models=["mobilenet_v2"])
    options.add_argument("--grids", nargs="+", choices=GRIDS, default=["W4A4", "W3A3"], metavar="GRID")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    options.add_argument("--rate", type=float, default=0.01, help="QATSchedule(lr=...)")
    options.add_argument("--results", type=Path, default=Path("runs/oscillation.json"), help="rows that are done")
    return options


def _row(bench: Bench, model: str, grid: str, method: str, options: argparse.Namespace) -> Row:
    def measure(run: Run) -> dict[str, float]:
        watching = Oscillations("model", run.steps, **METHODS[run.method])
        return bench.trained(run, bench.qconfig(run), callbacks=[watching]) | watching.shares

    runs = (Run(model, grid, method, options.steps, options.rate, seed) for seed in range(options.seeds))
    found = [bench.result(run, measure) for run in runs]
    row: Row = {"about": f"{model}, {grid}, {options.steps}", "method": method, "seeds": len(found)}
    row["mean"] = statistics.mean(one["test"] for one in found)
    if len(found) > 1:
        row["spread"] = statistics.stdev(one["test"] for one in found)
    return row | {name: statistics.mean(one[name] for one in found) for name in ("oscillating", "frozen")}


if __name__ == "__main__":
    main()
