"""Inference: size, latency and throughput of int8 in every runtime against float, at 224x224.

``python -m benchmarks.inference``. Weights are random, which changes neither; the ranges come from a calibration on
noise. Each model is built in one process and measured in another, which has done nothing else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from rich.console import Console
from torch import Tensor, nn

import lq
from benchmarks._common import machine
from lq.report.bench import print_bench

MODELS = ("resnet18", "mobilenet_v2")
EXPORTERS = ("torch", "onnx", "openvino", "pt2")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all models, print a table for each, write JSON."""
    options = _options().parse_args(arguments)
    steps = {"build": build, "measure": measure}
    if options.step:
        steps[options.step](options)
        return {}
    found: dict[str, Any] = {"machine": machine(torch.device("cpu"))}
    for name in options.models:
        with tempfile.TemporaryDirectory() as scratch:
            for step in steps:
                _again(options, name, step, scratch)
            found[name] = json.loads(Path(scratch, "bench.json").read_text())
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return found


def build(options: argparse.Namespace) -> None:
    """Calibrate and export one network; how far random weights agree says nothing, so no gate stops them."""
    batches = [_noise(options.size) for _ in range(4)]
    qconfig = lq.QConfig(options.preset, attention=options.attention)
    prepared = lq.prepare(_network(options.models[0], options.size), qconfig, example_args=(batches[0],))
    lq.calibrate(prepared, batches)
    gate = lq.Gate(min_agreement=None, min_sqnr_db=None)
    lq.export_artifact(prepared, batches[:1], options.scratch / "int8", options.exporters, gate)


def measure(options: argparse.Namespace) -> None:
    """Measure one network's artifact and print its table."""
    torch.set_num_threads(options.threads)
    console = Console()
    console.print(f"\n{options.models[0]}, {options.size}x{options.size}", style="bold", highlight=False)
    measured = lq.bench(
        options.scratch / "int8",
        _network(options.models[0], options.size),
        options.batch_sizes,
        options.threads,
        options.seconds,
        not options.no_compile,
        tell=lambda line: print(line, file=sys.stderr),
    )
    print_bench(measured.rows, measured.notes, console)
    (options.scratch / "bench.json").write_text(json.dumps({"rows": measured.rows, "notes": measured.notes}))


def _network(name: str, size: int) -> nn.Module:
    """A network with random weights and BatchNorm statistics that fit them, or its activations would die out."""
    torch.manual_seed(0)
    model: nn.Module
    if name == "vit_tiny":  # DeiT-Ti of Touvron et al., https://arxiv.org/abs/2012.12877
        model = torchvision.models.VisionTransformer(size, 16, 12, 3, 192, 768)
    else:
        model = torchvision.models.get_model(name)
    with torch.no_grad():
        for _ in range(2):
            model.train()(_noise(size))
    return model.eval()


def _noise(size: int) -> Tensor:
    """Four images of coarse and fine noise."""
    coarse = nn.functional.interpolate(torch.randn(4, 3, 7, 7), size=(size, size), mode="bilinear")
    return coarse + 0.5 * torch.randn(4, 3, size, size)


def _again(options: argparse.Namespace, name: str, step: str, scratch: str) -> None:
    given = ["--models", name, "--exporters", *options.exporters, "--batch-sizes", *map(str, options.batch_sizes)]
    given += ["--size", str(options.size), "--threads", str(options.threads), "--seconds", str(options.seconds)]
    given += ["--preset", options.preset, "--attention", options.attention]
    given += ["--no-compile"] if options.no_compile else []
    command = [sys.executable, "-m", "benchmarks.inference", *given, "--step", step, "--scratch", scratch]
    subprocess.run(command, check=True)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Inference of int8 and float models in every runtime.")
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="torchvision classifiers, vit_tiny")
    parser.add_argument("--preset", default="portable", help="qconfig (default: portable)")
    parser.add_argument("--attention", choices=["float", "int8"], default="float", help="attention's two products")
    parser.add_argument("--exporters", nargs="+", default=list(EXPORTERS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--size", type=int, default=224, help="side of the images")
    parser.add_argument("--threads", type=int, default=1, help="of every runtime")
    parser.add_argument("--seconds", type=float, default=2.0, help="of timed calls for each model and batch size")
    parser.add_argument("--no-compile", action="store_true", help="without what inductor makes of float and pt2")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--step", choices=["build", "measure"], help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
