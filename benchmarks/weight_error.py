"""What the observers of weights leave of a trained model: SQNR of its weights on grids of few bits.

python -m benchmarks.weight_error runs/checkpoints/fashion_mnist_resnet18_float.ckpt
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._common import Row, label, number, parse, parser, report, synchronize
from lq.config.specs import WEIGHT_OBSERVERS, WeightSpec
from lq.core.weight import quantize_weight, weight_scale

COLUMNS = (
    label("grid", "grid"),
    label("observer", "observer"),
    number("mean", "SQNR dB, mean of layers", ".1f"),
    number("worst", "worst layer", ".1f"),
    number("ms", "ms for all", ".0f"),
)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure every observer on every grid and print the table."""
    options = parse(_options(), arguments)
    saved = torch.load(options.checkpoint, map_location=options.device, weights_only=True)
    weights = layer_weights(saved.get("state_dict", saved))
    specs = [WeightSpec(-q, q, observer=observer) for q in options.quant_max for observer in WEIGHT_OBSERVERS]
    rows = [measure(spec, weights) for spec in specs]
    report(f"{len(weights)} weights of {options.checkpoint.name}, per channel", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("SQNR of the weights of a checkpoint.", rounds=None)
    options.add_argument("checkpoint", type=Path, help="a state dict, or a checkpoint of Lightning with one")
    options.add_argument("--quant_max", type=int, nargs="+", default=[1, 3, 7, 31, 127], help="highest integers")
    return options


def layer_weights(state_dict: Mapping[str, Any]) -> list[Tensor]:
    """The weights of layers: those with an input and an output axis."""
    return [w.float() for name, w in state_dict.items() if name.endswith("weight") and w.dim() > 1]


def measure(spec: WeightSpec, weights: Sequence[Tensor]) -> Row:
    """SQNR and time of one observer on one grid."""
    synchronize(weights[0].device)
    start = time.perf_counter()
    scales = [weight_scale(weight, spec) for weight in weights]
    synchronize(weights[0].device)
    ms = 1e3 * (time.perf_counter() - start)
    sqnr = [_sqnr(weight, scale, spec.quant_max) for weight, scale in zip(weights, scales, strict=True)]
    grid = f"{spec.bits} bits, [{spec.quant_min}, {spec.quant_max}]"
    return {"grid": grid, "observer": spec.observer, "mean": sum(sqnr) / len(sqnr), "worst": min(sqnr), "ms": ms}


def _sqnr(weight: Tensor, scale: Tensor, quant_max: int) -> float:
    error = quantize_weight(weight, scale, quant_max).float() * scale - weight
    return float(10 * torch.log10(weight.square().sum() / error.square().sum()))


if __name__ == "__main__":
    main()
