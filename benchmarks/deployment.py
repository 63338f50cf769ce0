"""What calibration and export take: seconds, and seconds for each batch, beside one float batch.

    python -m benchmarks.deployment                                          # resnet18, mobilenet_v2
    python -m benchmarks.deployment --exporters torch onnx openvino pt2

An export is timed with a parity gate of one batch and of several. The difference is what a further batch takes; the
rest is writing the file, loading it in a fresh process, and the latencies. The networks have random weights, so the
gate compares and lets everything pass.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import lq
from benchmarks._common import Row, label, number, parse, parser, report
from benchmarks._variants import cases

COLUMNS = (
    label("model", "model"),
    label("work", "work"),
    number("seconds", "s", ".1f"),
    number("batches", "batches", "d"),
    number("batch_seconds", "s a batch", ".2f"),
)
OBSERVERS = ("minmax", "histogram", "percentile", "mse", "entropy")


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure all models and print the table."""
    options = parse(_options(), arguments)
    rows = [{"model": name, **row} for name in options.models for row in measure(name, options)]
    report("Calibration and export", COLUMNS, rows, options)
    return rows


def _options() -> argparse.ArgumentParser:
    options = parser("Seconds of calibration and export.", rounds=None)
    options.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"], metavar="NAME")
    options.add_argument("--exporters", nargs="+", default=["torch", "onnx"], metavar="NAME")
    options.add_argument("--observers", nargs="+", choices=OBSERVERS, default=OBSERVERS, metavar="NAME")
    options.add_argument("--size", type=int, default=224, help="height and width of the images (default: 224)")
    options.add_argument("--batch", type=int, default=16, help="samples of a batch (default: 16)")
    options.add_argument("--batches", type=int, default=10, help="of a calibration, and of the gate (default: 10)")
    return options


@torch.no_grad()
def measure(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one model."""
    case = cases(options.size)[name]
    net = case.build().eval()
    batches = [case.batch(options.batch, torch.device("cpu"))[0] for _ in range(options.batches)]
    net(batches[0])
    rows = [_row("float model, forward", _seconds(lambda: [net(x) for x in batches]), len(batches))]
    for observer in options.observers:
        prepared = _prepared(net, batches[0], observer)
        calibration = partial(lq.calibrate, prepared, batches, show_progress=False)
        rows.append(_row(f"calibrate, {observer}", _seconds(calibration), len(batches)))
    return rows + [_export(prepared, batches, exporter) for exporter in options.exporters]


def _prepared(net: nn.Module, x: Tensor, observer: str) -> nn.Module:
    qconfig = lq.QConfig("portable", activation=lq.ActivationSpec(observer=observer))
    return lq.prepare(copy.deepcopy(net), qconfig, example_args=(x,))


def _export(prepared: nn.Module, batches: Sequence[Tensor], exporter: str) -> Row:
    short, whole = (_seconds(partial(_export_once, prepared, batches[:n], exporter)) for n in (1, len(batches)))
    further = max(1, len(batches) - 1)
    return {"work": f"export {exporter}", "seconds": short, "batches": 1, "batch_seconds": (whole - short) / further}


def _export_once(prepared: nn.Module, batches: Sequence[Tensor], exporter: str) -> None:
    gate = lq.Gate(batches=len(batches), min_agreement=None, min_sqnr_db=None)
    with tempfile.TemporaryDirectory() as place:
        lq.export_artifact(prepared, batches, f"{place}/int8", [exporter], gate)


def _row(work: str, seconds: float, batches: int) -> Row:
    return {"work": work, "seconds": seconds, "batches": batches, "batch_seconds": seconds / batches}


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
